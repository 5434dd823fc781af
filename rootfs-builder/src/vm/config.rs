// SPDX-License-Identifier: Apache-2.0
//! What a VM shall be, in terms that are QEMU's only where QEMU is spoken to.

use std::ffi::OsString;
use std::path::PathBuf;

use guest_kernel::{Arch, Kernel};

use super::Tools;

/// What a VM shall be.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// The guest's architecture.
    pub arch: Arch,
    /// The kernel image (`bzImage`, `Image`).
    pub kernel: PathBuf,
    /// The kernel's drivers are modules that the initramfs loads. The vsock device must not be used before they are there, so
    /// [`super::Vm::connect`] then waits for the agent's own word.
    pub modular: bool,
    /// The initramfs, unless the kernel finds its root elsewhere.
    pub initramfs: Option<PathBuf>,
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
            kernel: kernel.image.clone(),
            modular: !kernel.modules.is_empty(),
            initramfs: Some(initramfs.into()),
            memory_mib: 512,
            cpus: 1,
            cmdline: Vec::new(),
            share: None,
            disks: Vec::new(),
            accel: Accel::Auto,
            extra_args: Vec::new(),
            tools,
            echo_console: false,
            keep_dir: false,
        }
    }
}

/// A directory of the host that the guest may mount.
#[derive(Clone, Debug)]
pub struct Share {
    /// The directory.
    pub path: PathBuf,
    /// The guest may not change it.
    pub readonly: bool,
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
