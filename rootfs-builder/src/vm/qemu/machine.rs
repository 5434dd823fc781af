// SPDX-License-Identifier: Apache-2.0
//! The machines QEMU is asked for, what differs between them, and what each cannot have.

use std::fs;
use std::path::Path;

use guest_kernel::Arch;

use crate::vm::{Accel, DiskKind, Firmware, Machine, RootDevice, VmConfig, VmError};

/// What differs between the machines.
#[derive(Debug)]
pub struct Traits {
    /// What QEMU calls it, with its own options.
    pub name: &'static str,
    /// The processor model under KVM.
    cpu: &'static str,
    /// The processor model under TCG.
    cpu_tcg: &'static str,
    /// The serial port, as the guest names it.
    pub tty: &'static str,
    /// How the names of virtio devices end.
    pub bus: Bus,
    /// Kernel words this machine needs.
    words: &'static [&'static str],
}

/// What virtio devices sit on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// PCI Express.
    Pci,
    /// Memory-mapped registers.
    Mmio,
}

impl Bus {
    /// The end of a device's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Bus::Pci => "pci",
            Bus::Mmio => "device",
        }
    }
}

// Under TCG on a busy host the timer check fails now and then, and with it the boot ("IO-APIC + timer doesn't work"); under
// KVM Linux skips it anyway. reboot=t: a triple fault ends QEMU at once, without a tour of reset methods.
const X86_WORDS: &[&str] = &["no_timer_check", "reboot=t"];

const Q35: Traits = Traits {
    name: "q35",
    cpu: "max",
    cpu_tcg: "max",
    tty: "ttyS0",
    bus: Bus::Pci,
    words: X86_WORDS,
};

const MICROVM: Traits = Traits {
    // ACPI tells the guest of its devices and lets it power itself off. The serial port is not there without being asked for.
    name: "microvm,acpi=on,isa-serial=on",
    cpu: "max",
    cpu_tcg: "max",
    tty: "ttyS0",
    bus: Bus::Mmio,
    words: X86_WORDS,
};

const VIRT: Traits = Traits {
    name: "virt",
    cpu: "max",
    // The architected pointer authentication algorithm is slow to emulate.
    cpu_tcg: "max,pauth-impdef=on",
    tty: "ttyAMA0",
    bus: Bus::Pci,
    words: &[],
};

/// From this many processors on `virt`'s usual interrupt controller does not do.
const GIC2_CPUS: u32 = 8;

/// What is to be known of a machine.
pub fn traits(arch: Arch, machine: Machine) -> &'static Traits {
    match (arch, machine) {
        (Arch::X86_64, Machine::Default) => &Q35,
        (Arch::X86_64, Machine::Microvm) => &MICROVM,
        (Arch::Aarch64, _) => &VIRT,
    }
}

impl Traits {
    /// The processor model.
    pub fn cpu(&self, accel: Accel) -> &'static str {
        match accel {
            Accel::Kvm => self.cpu,
            Accel::Auto | Accel::Tcg => self.cpu_tcg,
        }
    }

    /// The kernel words that the machine needs.
    pub fn words(&self, config: &VmConfig) -> Vec<String> {
        let mut words: Vec<String> = self.words.iter().map(|&word| word.to_owned()).collect();
        // With hotpluggable memory Linux reserves 64 MiB for devices that cannot reach all of it. Ours can.
        if config.arch == Arch::X86_64 && config.all_disks().any(|disk| disk.kind.is_memory()) {
            words.push("swiotlb=noforce".to_owned());
        }
        // A microvm has no timer to measure the processor's clock by, KVM tells it and TCG does not.
        if self.bus == Bus::Mmio
            && config.accel != Accel::Kvm
            && let Some(khz) = tsc_khz()
        {
            words.push(format!("tsc_early_khz={khz}"));
        }
        words
    }
}

/// The rest of the `-machine` option.
pub fn options(config: &VmConfig) -> String {
    let mut options = String::new();
    if config.all_disks().any(|disk| disk.kind == DiskKind::Pmem) {
        options.push_str(",nvdimm=on");
    }
    if config.arch == Arch::Aarch64 && config.cpus > GIC2_CPUS {
        options.push_str(",gic-version=max");
    }
    options
}

/// Refuses what the machine does not have, in words that say what to do. QEMU's own would come late and say little, or nothing.
pub fn check(config: &VmConfig) -> Result<(), VmError> {
    let refuse = |what, reason| Err(VmError::Impossible { what, reason });
    let aarch64 = config.arch == Arch::Aarch64;
    let direct = config.firmware == Firmware::Direct;
    let has = |kind| config.all_disks().any(|disk| disk.kind == kind);
    let dax = config.all_shares().any(|(_, share)| share.dax);
    if config.machine == Machine::Microvm {
        if aarch64 {
            return refuse("A microvm", "the machine exists for x86_64 only");
        }
        if !direct {
            return refuse(
                "UEFI in a microvm",
                "its firmware does not know the machine",
            );
        }
        if has(DiskKind::Pmem) || has(DiskKind::VirtioPmem) {
            return refuse(
                "A pmem device in a microvm",
                "it has no slots for memory; use virtio-blk",
            );
        }
        if dax {
            return refuse("DAX for a share in a microvm", "QEMU's device needs PCI");
        }
        if config.accel != Accel::Kvm && Arch::host() != Some(Arch::X86_64) {
            return refuse(
                "An emulated microvm",
                "without an x86_64 host its processor has no usable clock",
            );
        }
    }
    if aarch64 && has(DiskKind::VirtioPmem) {
        return refuse(
            "virtio-pmem on aarch64",
            "QEMU does not have it there; use nvdimm with UEFI, or virtio-blk",
        );
    }
    if aarch64 && direct && has(DiskKind::Pmem) {
        return refuse(
            "An nvdimm on aarch64",
            "the kernel finds it by ACPI only, which needs UEFI",
        );
    }
    if !direct && config.tools.firmware.is_none() {
        return refuse(
            "UEFI",
            "QEMU's firmware is not installed; on Debian it is in qemu-efi-aarch64 and ovmf",
        );
    }
    if dax && config.tools.dax.is_none() {
        return refuse(
            "DAX for a share",
            "it needs QEMU 11 or newer, and a virtiofsd that serves the mapping requests; name them in KEELSON_DAX_QEMU and KEELSON_DAX_VIRTIOFSD",
        );
    }
    check_root(config)
}

fn check_root(config: &VmConfig) -> Result<(), VmError> {
    let refuse = |what, reason| Err(VmError::Impossible { what, reason });
    match &config.root {
        Some(root) if root.verity.is_some() && root.how == RootDevice::VirtioFs => {
            refuse("A measured root by virtio-fs", "dm-verity measures disks")
        }
        Some(root) if root.dax && root.how == RootDevice::VirtioBlk => refuse(
            "DAX for a root by virtio-blk",
            "a disk's pages cannot be mapped; use nvdimm or virtio-pmem",
        ),
        Some(root) if root.dax && root.verity.is_some() => refuse(
            "DAX for a measured root",
            "dm-verity measures what is read, not what is mapped",
        ),
        Some(_) if config.initramfs.is_none() && config.modular => refuse(
            "A root without an initramfs",
            "the kernel's drivers are modules",
        ),
        _ => Ok(()),
    }
}

/// How fast this host's time stamp counter counts, which TCG passes on to the guest as it is. The nominal frequency, where it is told,
/// is the counter's; in VMs the present one is too.
fn tsc_khz() -> Option<u64> {
    let base = "/sys/devices/system/cpu/cpu0/cpufreq/base_frequency";
    let base = fs::read_to_string(base)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    base.or_else(|| tsc_khz_in(&fs::read_to_string(Path::new("/proc/cpuinfo")).ok()?))
}

fn tsc_khz_in(cpuinfo: &str) -> Option<u64> {
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim())
    };
    let nominal = || {
        field("model name")?
            .rsplit_once("@ ")?
            .1
            .strip_suffix("GHz")?
            .parse::<f64>()
            .ok()
    };
    let present = || field("cpu MHz")?.parse::<f64>().ok();
    let mhz = nominal().map(|ghz| ghz * 1000.0).or_else(present)?;
    // Finite and positive, or it is no frequency.
    (mhz.is_finite() && mhz >= 1.0).then(|| (mhz * 1000.0).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_the_nominal_one_where_it_is_told() {
        let intel =
            "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) CPU @ 2.30GHz\ncpu MHz\t\t: 1200.000\n";
        assert_eq!(tsc_khz_in(intel), Some(2_300_000));
        let amd = "model name\t: AMD EPYC\ncpu MHz\t\t: 2596.140\n";
        assert_eq!(tsc_khz_in(amd), Some(2_596_140));
        for odd in [
            "",
            "model name\t: x\n",
            "cpu MHz\t: nan\n",
            "cpu MHz\t: -1\n",
            "cpu MHz\n",
        ] {
            assert_eq!(tsc_khz_in(odd), None, "{odd:?}");
        }
    }
}
