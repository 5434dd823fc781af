// SPDX-License-Identifier: Apache-2.0
//! QEMU's command line, as a function of what the VM shall be.
//!
//! Only words are made here; nothing is started and, disk sizes aside, nothing on the host is looked at.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use guest_kernel::Arch;

use super::driver::DEVICE;
use super::virtiofs::TAG;
use super::{Accel, Disk, DiskKind, VmConfig, VmError};

/// An nvdimm's size must be a multiple of this: the kernel drops a region that ends inside a huge page.
const PMEM_ALIGN: u64 = 2 << 20;

/// What differs between the architectures.
#[derive(Debug)]
struct Machine {
    name: &'static str,
    /// The processor model under KVM.
    cpu: &'static str,
    /// The processor model under TCG.
    cpu_tcg: &'static str,
    tty: &'static str,
    /// Kernel words this machine needs.
    words: &'static [&'static str],
}

const X86_64: Machine = Machine {
    name: "q35",
    cpu: "max",
    cpu_tcg: "max",
    tty: "ttyS0",
    // Under TCG on a busy host the timer check fails now and then, and with it the boot ("IO-APIC + timer doesn't work"); under
    // KVM Linux skips it anyway. reboot=t: a triple fault ends QEMU at once, without a tour of reset methods.
    words: &["no_timer_check", "reboot=t"],
};

const AARCH64: Machine = Machine {
    name: "virt",
    cpu: "max",
    // The architected pointer authentication algorithm is slow to emulate.
    cpu_tcg: "max,pauth-impdef=on",
    tty: "ttyAMA0",
    words: &[],
};

/// The machine type QEMU is asked for.
pub fn machine_name(arch: Arch) -> &'static str {
    machine(arch).name
}

fn machine(arch: Arch) -> &'static Machine {
    match arch {
        Arch::X86_64 => &X86_64,
        Arch::Aarch64 => &AARCH64,
    }
}

/// The sockets that tie QEMU to the other parties.
#[derive(Debug)]
pub struct Sockets<'a> {
    /// Of the vsock device.
    pub vsock: &'a Path,
    /// Of the file-system daemon, if there is a share.
    pub virtiofs: Option<&'a Path>,
    /// Where QEMU shall listen for QMP.
    pub qmp: &'a Path,
    /// Where QEMU shall listen for QMP for our own questions.
    pub status: &'a Path,
}

/// The kernel command line: what every VM needs, then `extra`, so that a later word can override ours.
pub fn kernel_words(arch: Arch, extra: &[String]) -> String {
    let machine = machine(arch);
    let console = format!("console={}", machine.tty);
    // panic=-1: reboot at once, which -no-reboot turns into the end of QEMU. random.trust_cpu: no wait for entropy.
    let base = [console.as_str(), "panic=-1", "random.trust_cpu=on"];
    let words: Vec<&str> = (base.into_iter())
        .chain(machine.words.iter().copied())
        .chain(extra.iter().map(String::as_str))
        .collect();
    words.join(" ")
}

/// QEMU's arguments.
pub fn arguments(config: &VmConfig, sockets: &Sockets<'_>) -> Result<Vec<OsString>, VmError> {
    let mut line = Line::default();
    line.machine(config);
    line.memory(config)?;
    line.console();
    line.option("-object", "rng-builtin,id=rng");
    line.option("-device", "virtio-rng-pci,rng=rng");
    line.socket("vsock", sockets.vsock, "");
    line.option(
        "-device",
        format!("vhost-user-vsock-pci,chardev=vsock,id={DEVICE}"),
    );
    if let Some(path) = sockets.virtiofs {
        line.socket("fs", path, "");
        line.option(
            "-device",
            format!("vhost-user-fs-pci,chardev=fs,tag={TAG},queue-size=1024"),
        );
    }
    for (id, path) in [("qmp", sockets.qmp), ("status", sockets.status)] {
        line.socket(id, path, ",server=on,wait=off");
        line.option("-mon", format!("chardev={id},mode=control"));
    }
    for (index, disk) in config.disks.iter().enumerate() {
        line.disk(index, disk)?;
    }
    line.option("-kernel", &config.kernel);
    if let Some(initramfs) = &config.initramfs {
        line.option("-initrd", initramfs);
    }
    line.option("-append", kernel_words(config.arch, &config.cmdline));
    line.0.extend(config.extra_args.iter().cloned());
    Ok(line.0)
}

/// The arguments collected so far.
#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn option(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.0.push(name.into());
        self.0.push(value.as_ref().to_owned());
    }

    /// An option whose value ends with a path, in which QEMU wants each comma twice, followed by `rest`.
    fn path_option(&mut self, name: &str, before: &str, path: &Path, rest: &str) {
        let mut value = before.as_bytes().to_vec();
        for byte in path.as_os_str().as_bytes() {
            value.push(*byte);
            if *byte == b',' {
                value.push(b',');
            }
        }
        value.extend_from_slice(rest.as_bytes());
        self.option(name, OsString::from_vec(value));
    }

    fn socket(&mut self, id: &str, path: &Path, rest: &str) {
        self.path_option("-chardev", &format!("socket,id={id},path="), path, rest);
    }

    fn machine(&mut self, config: &VmConfig) {
        let machine = machine(config.arch);
        let accel = accel_word(config.accel);
        let nvdimm = if config.disks.iter().any(is_pmem) {
            ",nvdimm=on"
        } else {
            ""
        };
        self.option(
            "-machine",
            format!("{},accel={accel},memory-backend=mem{nvdimm}", machine.name),
        );
        self.option(
            "-cpu",
            if accel == "tcg" {
                machine.cpu_tcg
            } else {
                machine.cpu
            },
        );
        self.option("-smp", config.cpus.to_string());
        for word in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            self.0.push(word.into());
        }
        self.option("-display", "none");
    }

    /// The guest's memory is shared with the vhost-user processes, which is what a memfd is for.
    fn memory(&mut self, config: &VmConfig) -> Result<(), VmError> {
        let size = config.memory_mib;
        let mut value = format!("{size}M");
        let pmem: Vec<&Disk> = config.disks.iter().filter(|d| is_pmem(d)).collect();
        if !pmem.is_empty() {
            let bytes = pmem
                .iter()
                .map(|d| pmem_size(&d.path))
                .sum::<Result<u64, VmError>>()?;
            // Each DIMM slot may cost up to 1 GiB of alignment.
            let most = u64::from(size) + (bytes >> 20) + 1024 * pmem.len() as u64;
            value.push_str(&format!(",slots={},maxmem={most}M", pmem.len()));
        }
        self.option("-m", value);
        self.option(
            "-object",
            format!("memory-backend-memfd,id=mem,size={size}M,share=on"),
        );
        Ok(())
    }

    fn console(&mut self) {
        self.option("-chardev", "stdio,id=console,signal=off");
        self.option("-serial", "chardev:console");
    }

    fn disk(&mut self, index: usize, disk: &Disk) -> Result<(), VmError> {
        let on = if disk.readonly { "on" } else { "off" };
        match disk.kind {
            DiskKind::VirtioBlk => {
                let before = format!("if=none,id=disk{index},format=raw,readonly={on},file=");
                self.path_option("-drive", &before, &disk.path, "");
                let serial = serial_word(&disk.serial)?;
                self.option(
                    "-device",
                    format!("virtio-blk-pci,drive=disk{index}{serial}"),
                );
            }
            DiskKind::Pmem => {
                let size = pmem_size(&disk.path)?;
                let share = if disk.readonly { "off" } else { "on" };
                let before = format!(
                    "memory-backend-file,id=pmem{index},share={share},readonly={on},size={size},mem-path="
                );
                self.path_option("-object", &before, &disk.path, "");
                self.option(
                    "-device",
                    format!("nvdimm,id=nvdimm{index},memdev=pmem{index},unarmed={on}"),
                );
            }
        }
        Ok(())
    }
}

fn is_pmem(disk: &Disk) -> bool {
    disk.kind == DiskKind::Pmem
}

/// The accelerator's name. [`Accel::Auto`] has been resolved by then; TCG works everywhere.
fn accel_word(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "kvm",
        Accel::Auto | Accel::Tcg => "tcg",
    }
}

/// `,serial=…`, or nothing for an empty one. The guest sees at most 20 bytes of it.
fn serial_word(serial: &str) -> Result<String, VmError> {
    if serial.is_empty() {
        return Ok(String::new());
    }
    let plain = serial
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if !plain || serial.len() > 20 {
        return Err(VmError::BadSerial(serial.to_owned()));
    }
    Ok(format!(",serial={serial}"))
}

fn pmem_size(path: &Path) -> Result<u64, VmError> {
    let size = path.metadata().map_err(VmError::io("look at", path))?.len();
    if size == 0 || !size.is_multiple_of(PMEM_ALIGN) {
        return Err(VmError::PmemSize {
            path: path.to_owned(),
            size,
        });
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::tests::config;

    fn text(config: &VmConfig) -> String {
        let sockets = Sockets {
            vsock: Path::new("/d/v"),
            virtiofs: Some(Path::new("/d/a,b")),
            qmp: Path::new("/d/q"),
            status: Path::new("/d/s"),
        };
        let words = arguments(config, &sockets).unwrap();
        words
            .iter()
            .map(|w| w.to_str().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn a_plain_vm() {
        let line = text(&config(Arch::X86_64));
        for wanted in [
            "-machine q35,accel=tcg,memory-backend=mem -cpu max -smp 2",
            "-nodefaults -no-user-config -no-reboot",
            "-m 512M -object memory-backend-memfd,id=mem,size=512M,share=on",
            "-chardev socket,id=vsock,path=/d/v -device vhost-user-vsock-pci,chardev=vsock,id=vsock0",
            "-chardev socket,id=fs,path=/d/a,,b -device vhost-user-fs-pci,chardev=fs,tag=kataShared",
            "-kernel /k/bzImage -initrd /k/initramfs",
            "-append console=ttyS0 panic=-1 random.trust_cpu=on no_timer_check reboot=t quiet",
        ] {
            assert!(line.contains(wanted), "{wanted} is not in {line}");
        }
        assert!(!line.contains("nvdimm"));
    }

    #[test]
    fn the_other_architecture() {
        let line = text(&config(Arch::Aarch64));
        assert!(
            line.contains("-machine virt,accel=tcg,memory-backend=mem -cpu max,pauth-impdef=on")
        );
        assert!(line.contains("-append console=ttyAMA0 panic=-1 random.trust_cpu=on quiet"));
    }

    #[test]
    fn disks() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image)
            .unwrap()
            .set_len(PMEM_ALIGN)
            .unwrap();
        let mut config = config(Arch::X86_64);
        let disk = |kind, readonly| Disk {
            path: image.clone(),
            serial: "data-1".into(),
            readonly,
            kind,
        };
        config.disks = vec![disk(DiskKind::VirtioBlk, false), disk(DiskKind::Pmem, true)];
        let line = text(&config);
        assert!(line.contains(",nvdimm=on") && line.contains("-m 512M,slots=1,maxmem=1538M"));
        assert!(line.contains("-drive if=none,id=disk0,format=raw,readonly=off,file="));
        assert!(line.contains("virtio-blk-pci,drive=disk0,serial=data-1"));
        assert!(
            line.contains(
                "memory-backend-file,id=pmem1,share=off,readonly=on,size=2097152,mem-path="
            )
        );
        assert!(line.contains("nvdimm,id=nvdimm1,memdev=pmem1,unarmed=on"));
    }

    #[test]
    fn what_qemu_would_misread_is_refused() {
        assert!(serial_word("a,b").is_err() && serial_word(&"x".repeat(21)).is_err());
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, "short").unwrap();
        assert!(matches!(
            pmem_size(&image),
            Err(VmError::PmemSize { size: 5, .. })
        ));
    }
}
