// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a volume.

use std::path::PathBuf;

use nix::errno::Errno;

use crate::cgroup::CgroupError;
use crate::device::DeviceError;

/// An error of a volume, or of swap.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A path that cannot be used.
    #[error("Volume path {path:?} is refused: {reason}")]
    Path {
        /// As it was sent.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A slot that no PCI bus has, or too many of them.
    #[error("Swap device at PCI slots {slots:?} is refused")]
    Slots {
        /// The first of them, as they were sent.
        slots: Vec<u32>,
    },
    /// A step on the volume failed.
    #[error("Failed to {step} volume {path}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// The volume.
        path: PathBuf,
        /// The kernel's reason.
        source: Errno,
    },
    /// It has a kind of file system that does not grow while it is used.
    #[error("Volume {path} cannot grow: it is neither ext4 nor xfs but {magic:#x} (statfs)")]
    FileSystem {
        /// The volume.
        path: PathBuf,
        /// What statfs(2) says it is.
        magic: i64,
    },
    /// It is there, but not on a whole disk of its own.
    #[error("Volume {path} cannot grow: {reason}")]
    NotOnDisk {
        /// The volume.
        path: PathBuf,
        /// What it is on.
        reason: &'static str,
    },
    /// It is larger already.
    #[error("Volume {path} cannot shrink to {size} bytes")]
    Shrink {
        /// The volume.
        path: PathBuf,
        /// What was asked for.
        size: u64,
    },
    /// Its disk.
    #[error("Disk of the volume")]
    Disk(#[from] DeviceError),
    /// The kernel does not swap to it.
    #[error("libc::swapon get error for {node}")]
    Swap {
        /// The disk.
        node: PathBuf,
        /// The kernel's reason.
        source: Errno,
    },
    /// Containers can use it as well.
    #[error("Swap disk {node} cannot be kept from containers")]
    NotKept {
        /// The disk.
        node: PathBuf,
        /// Why.
        source: Box<CgroupError>,
    },
    /// Work that was given up half-way, which only a defect of the agent does.
    #[error("Work on volume {path} was interrupted")]
    Interrupted {
        /// The volume.
        path: PathBuf,
    },
}

impl VolumeError {
    /// Whether the request is to blame rather than the guest.
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Path { .. } | Self::Slots { .. } | Self::Shrink { .. } => true,
            Self::Disk(error) => error.is_bad_input(),
            _ => false,
        }
    }
}
