// SPDX-License-Identifier: Apache-2.0
//! QEMU's command line, as a function of what the VM shall be.
//!
//! Only words are made here; nothing is started and, images aside, nothing on the host is looked at.

pub mod machine;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use super::driver::DEVICE;
use guest_kernel::Arch;

use super::{Accel, Disk, DiskKind, Firmware, LATE_VSOCK, VmConfig, VmError};
use machine::{Bus, Traits, traits};

/// A pmem device's size must be a multiple of this: the kernel drops a region that ends inside a huge page.
const PMEM_ALIGN: u64 = 2 << 20;

/// The sockets that tie QEMU to the other parties.
#[derive(Debug)]
pub struct Sockets<'a> {
    /// Of the vsock device.
    pub vsock: &'a Path,
    /// Of the file-system daemons.
    pub shares: Vec<ShareSocket<'a>>,
    /// Where QEMU shall listen for QMP.
    pub qmp: &'a Path,
    /// Where QEMU shall listen for QMP for our own questions.
    pub status: &'a Path,
}

/// The socket of a file-system daemon.
#[derive(Clone, Copy, Debug)]
pub struct ShareSocket<'a> {
    /// The name by which the guest mounts it.
    pub tag: &'a str,
    /// The socket.
    pub path: &'a Path,
    /// The daemon offers a window.
    pub dax: bool,
}

/// The kernel command line: what every VM needs, where the root is, then the configuration's own words, so that a later word can
/// override ours.
pub fn kernel_words(config: &VmConfig) -> Result<String, VmError> {
    let machine = traits(config.arch, config.machine);
    // panic=-1: reboot at once, which -no-reboot turns into the end of QEMU. random.trust_cpu: no wait for entropy.
    let mut words = vec![
        format!("console={}", machine.tty),
        "panic=-1".to_owned(),
        "random.trust_cpu=on".to_owned(),
    ];
    words.extend(machine.words(config));
    if let Some(root) = &config.root {
        words.extend(root.words(config.initramfs.is_some())?);
    }
    words.extend(config.cmdline.iter().cloned());
    Ok(words.join(" "))
}

/// QEMU's arguments.
pub fn arguments(config: &VmConfig, sockets: &Sockets<'_>) -> Result<Vec<OsString>, VmError> {
    machine::check(config)?;
    let mut line = Line::new(traits(config.arch, config.machine));
    line.machine(config);
    line.memory(config)?;
    line.console();
    line.option("-object", "rng-builtin,id=rng");
    line.virtio("virtio-rng", "rng=rng");
    line.socket("vsock", sockets.vsock, "");
    match config.late_vsock {
        false => line.virtio("vhost-user-vsock", &format!("chardev=vsock,id={DEVICE}")),
        // Its number is one that QEMU gives to no slot by itself.
        true => line.option(
            "-device",
            format!("pcie-root-port,id={LATE_VSOCK},chassis=255,addr=0x1e"),
        ),
    }
    for (index, share) in sockets.shares.iter().enumerate() {
        line.share(index, share);
    }
    for (id, path) in [("qmp", sockets.qmp), ("status", sockets.status)] {
        line.socket(id, path, ",server=on,wait=off");
        line.option("-mon", format!("chardev={id},mode=control"));
    }
    for (index, disk) in config.all_disks().enumerate() {
        line.disk(index, &disk)?;
    }
    line.kernel(config);
    line.option("-append", kernel_words(config)?);
    line.words.extend(config.extra_args.iter().cloned());
    Ok(line.words)
}

/// The arguments collected so far.
struct Line {
    words: Vec<OsString>,
    traits: &'static Traits,
}

impl Line {
    fn new(traits: &'static Traits) -> Line {
        Line {
            words: Vec::new(),
            traits,
        }
    }

    fn option(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.words.push(name.into());
        self.words.push(value.as_ref().to_owned());
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

    /// A virtio device. The guest finds devices of a kind in the order of their making.
    fn virtio(&mut self, name: &str, properties: &str) {
        let suffix = self.traits.bus.suffix();
        self.option("-device", format!("{name}-{suffix},{properties}"));
    }

    fn machine(&mut self, config: &VmConfig) {
        let traits = self.traits;
        let (accel, options) = (accel_word(config.accel), machine::options(config));
        self.option(
            "-machine",
            format!("{},accel={accel},memory-backend=mem{options}", traits.name),
        );
        self.option("-cpu", traits.cpu(config.accel));
        self.option("-smp", config.cpus.to_string());
        for word in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            self.words.push(word.into());
        }
        self.option("-display", "none");
        if traits.bus == Bus::Mmio {
            // The vhost-user devices speak virtio 1 only.
            self.option("-global", "virtio-mmio.force-legacy=false");
        }
    }

    /// The guest's memory is shared with the vhost-user processes, which is what a memfd is for.
    fn memory(&mut self, config: &VmConfig) -> Result<(), VmError> {
        let size = config.memory_mib;
        let mut value = format!("{size}M");
        let pmem: Vec<Disk> = config.all_disks().filter(|d| d.kind.is_memory()).collect();
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

    fn share(&mut self, index: usize, share: &ShareSocket<'_>) {
        let id = format!("fs{index}");
        self.socket(&id, share.path, "");
        if share.dax {
            // Only the device without a type of its own maps what the daemon asks for; the daemon brings the configuration (and the
            // tag in it). 26: virtio-fs.
            self.option(
                "-device",
                format!("vhost-user-test-device-pci,virtio-id=26,num_vqs=2,vq_size=128,config_size=40,chardev={id}"),
            );
        } else {
            self.virtio(
                "vhost-user-fs",
                &format!("chardev={id},tag={},queue-size=1024", share.tag),
            );
        }
    }

    fn disk(&mut self, index: usize, disk: &Disk) -> Result<(), VmError> {
        let on = if disk.readonly { "on" } else { "off" };
        if disk.kind == DiskKind::VirtioBlk {
            let before = format!("if=none,id=disk{index},format=raw,readonly={on},file=");
            self.path_option("-drive", &before, &disk.path, "");
            let serial = serial_word(&disk.serial)?;
            self.virtio("virtio-blk", &format!("drive=disk{index}{serial}"));
            return Ok(());
        }
        let size = pmem_size(&disk.path)?;
        let share = if disk.readonly { "off" } else { "on" };
        let before = format!(
            "memory-backend-file,id=pmem{index},share={share},readonly={on},size={size},mem-path="
        );
        self.path_option("-object", &before, &disk.path, "");
        match disk.kind {
            DiskKind::VirtioPmem => self.virtio(
                "virtio-pmem",
                &format!("memdev=pmem{index},id=vpmem{index}"),
            ),
            _ => self.option(
                "-device",
                format!("nvdimm,id=nvdimm{index},memdev=pmem{index},unarmed={on}"),
            ),
        }
        Ok(())
    }

    fn kernel(&mut self, config: &VmConfig) {
        if config.firmware == Firmware::Uefi
            && let Some(firmware) = &config.tools.firmware
        {
            self.option("-bios", firmware);
        }
        self.option("-kernel", kernel_file(config));
        if let Some(initramfs) = &config.initramfs {
            self.option("-initrd", initramfs);
        }
    }
}

/// The uncompressed kernel where QEMU can enter it directly (PVH), which saves an eighth of the processor time of a boot to init under
/// TCG; else the image.
fn kernel_file(config: &VmConfig) -> &Path {
    match &config.vmlinux {
        Some(vmlinux) if config.arch == Arch::X86_64 && config.firmware == Firmware::Direct => {
            vmlinux
        }
        _ => &config.kernel,
    }
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
