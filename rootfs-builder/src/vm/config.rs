// SPDX-License-Identifier: Apache-2.0
//! What a VM shall be, in terms that are QEMU's only where QEMU is spoken to.

use std::ffi::OsString;
use std::path::PathBuf;

use guest_kernel::{Arch, Kernel};

use super::Tools;
use super::virtiofs::TAG;
use crate::image::verity::Verity;

/// The root port for a vsock device that comes later.
pub const LATE_VSOCK: &str = "vsock-port";

/// What a VM shall be.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// The guest's architecture.
    pub arch: Arch,
    /// The machine that QEMU plays.
    pub machine: Machine,
    /// Who starts the kernel.
    pub firmware: Firmware,
    /// The kernel image (`bzImage`, `Image`).
    pub kernel: PathBuf,
    /// The same kernel as an uncompressed ELF file, which a microvm boots without a detour where there is one.
    pub vmlinux: Option<PathBuf>,
    /// The kernel's drivers are modules that the initramfs loads. The vsock device must not be used before they are there, so
    /// [`super::Vm::connect`] then waits for the agent's own word.
    pub modular: bool,
    /// The initramfs, unless the kernel finds its root elsewhere.
    pub initramfs: Option<PathBuf>,
    /// The root, if it is not the initramfs. Its device comes before all others of its kind, so that it is `/dev/vda` or `/dev/pmem0`.
    pub root: Option<Root>,
    /// The guest's memory in MiB.
    pub memory_mib: u32,
    /// The number of processors. Under TCG each costs a quarter of a second of boot.
    pub cpus: u32,
    /// Kernel words besides our own.
    pub cmdline: Vec<String>,
    /// A directory offered by virtio-fs under the tag `kataShared`.
    pub share: Option<Share>,
    /// Disks, in the order in which the guest finds them.
    pub disks: Vec<Disk>,
    /// How the processor is made.
    pub accel: Accel,
    /// The vsock device is plugged into the root port [`LATE_VSOCK`] by whoever wants it: with it QEMU saves no VM. Not on a microvm.
    pub late_vsock: bool,
    /// More arguments for QEMU.
    pub extra_args: Vec<OsString>,
    /// The host programs to use.
    pub tools: Tools,
    /// Also write the console to our stderr as it comes.
    pub echo_console: bool,
    /// Keep the directory with sockets and logs.
    pub keep_dir: bool,
}

impl VmConfig {
    /// A VM for `kernel` with the usual size (512 MiB, 1 CPU), no share and no disks.
    pub fn new(
        arch: Arch,
        kernel: &Kernel,
        initramfs: impl Into<PathBuf>,
        tools: Tools,
    ) -> VmConfig {
        VmConfig {
            arch,
            machine: Machine::Default,
            firmware: Firmware::Direct,
            kernel: kernel.image.clone(),
            vmlinux: kernel.vmlinux.clone(),
            modular: !kernel.modules.is_empty(),
            initramfs: Some(initramfs.into()),
            root: None,
            memory_mib: 512,
            cpus: 1,
            cmdline: Vec::new(),
            share: None,
            disks: Vec::new(),
            accel: Accel::Auto,
            late_vsock: false,
            extra_args: Vec::new(),
            tools,
            echo_console: false,
            keep_dir: false,
        }
    }

    /// All disks, the root's first.
    pub(super) fn all_disks(&self) -> impl Iterator<Item = Disk> {
        let root = self.root.iter().flat_map(Root::disks);
        root.chain(self.disks.iter().cloned())
    }

    /// All shares with their tags.
    pub(super) fn all_shares(&self) -> impl Iterator<Item = (&'static str, Share)> {
        let root = self.root.iter().filter_map(Root::share);
        let root = root.map(|share| (super::root::TAG, share));
        root.chain(self.share.iter().map(|share| (TAG, share.clone())))
    }
}

impl DiskKind {
    /// Whether it takes the place of memory in the guest.
    pub(super) fn is_memory(self) -> bool {
        self != DiskKind::VirtioBlk
    }
}

/// The machine that QEMU plays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Machine {
    /// The usual one with PCI Express: `q35` or `virt`.
    #[default]
    Default,
    /// `microvm`: virtio-mmio instead of PCI, and little else. On x86_64 only.
    Microvm,
}

/// Who starts the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Firmware {
    /// QEMU itself, with the least firmware that there is. An aarch64 guest then finds its devices by a device tree.
    #[default]
    Direct,
    /// UEFI, which also brings ACPI tables to aarch64 guests.
    Uefi,
}

/// A root on another device than the initramfs.
///
/// With an initramfs our binary in it mounts the root, without one the kernel does.
#[derive(Clone, Debug)]
pub struct Root {
    /// How the guest is given it.
    pub how: RootDevice,
    /// The image file; for [`RootDevice::VirtioFs`] the directory.
    pub image: PathBuf,
    /// The file system; whatever fits if not given. Not for [`RootDevice::VirtioFs`].
    pub fstype: Option<String>,
    /// Map the files' pages directly instead of copying them into the guest's memory.
    pub dax: bool,
    /// What the root is measured by, if it is.
    pub verity: Option<RootVerity>,
    /// Let the guest change its root, in its memory.
    pub overlay: bool,
}

/// What a root is measured by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootVerity {
    /// The parameters of its hash tree.
    pub verity: Verity,
    /// The file with the hash tree of an image without partitions; otherwise it is on the partition behind the root's.
    pub hashes: Option<PathBuf>,
}

/// How the guest is given its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootDevice {
    /// An nvdimm. The image's size must be a multiple of 2 MiB.
    Nvdimm,
    /// A virtio-pmem device; x86_64 only. The image's size must be a multiple of 2 MiB.
    VirtioPmem,
    /// A virtio-blk disk.
    VirtioBlk,
    /// A shared directory.
    VirtioFs,
}

/// A directory of the host that the guest may mount.
#[derive(Clone, Debug)]
pub struct Share {
    /// The directory.
    pub path: PathBuf,
    /// The guest may not change it.
    pub readonly: bool,
    /// Offer the guest a window to map the files' pages through. Needs programs that no distributor has yet; see [`super::tools::Dax`].
    pub dax: bool,
}

/// A disk image (raw).
#[derive(Clone, Debug)]
pub struct Disk {
    /// The image file.
    pub path: PathBuf,
    /// The serial number the guest reads; at most 20 letters, digits, `-`, `_` and `.`; may be empty. Ignored for pmem.
    pub serial: String,
    /// The guest may not change it.
    pub readonly: bool,
    /// What the guest sees it as.
    pub kind: DiskKind,
}

/// What the guest sees a disk as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskKind {
    /// `/dev/vdX`.
    VirtioBlk,
    /// An nvdimm, `/dev/pmemN`. The file's size must be a multiple of 2 MiB.
    Pmem,
    /// A virtio-pmem device, `/dev/pmemN`. The file's size must be a multiple of 2 MiB.
    VirtioPmem,
}

/// How the processor is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accel {
    /// KVM if it works, else TCG.
    #[default]
    Auto,
    /// KVM, or fail.
    Kvm,
    /// Emulation.
    Tcg,
}
