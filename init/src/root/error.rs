// SPDX-License-Identifier: Apache-2.0
//! Why the root that is asked for cannot be had.

use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use thiserror::Error;

use super::request::VERITY;
use crate::dm::{DmError, word::WordError};
use crate::mounts::MountError;
use crate::uevent::UeventError;
use crate::verity::VerityError;

/// The root asked for cannot be had.
#[derive(Debug, Error)]
pub enum RootError {
    /// A way of naming a root that is not supported here.
    #[error(
        "root={root} names neither a device by its path in /dev nor, with rootfstype=virtiofs, \
         a shared directory by its tag, which is all that is supported"
    )]
    Unsupported {
        /// The value of `root=`.
        root: String,
    },
    /// The root is to be verified, and it is none that we mount from a device.
    #[error("{VERITY} is given, but {reason}")]
    Unverifiable {
        /// Why it cannot be.
        reason: &'static str,
    },
    /// The kernel's word verifies another device than the root.
    #[error("dm-mod.create= verifies a device, but root={root} does not name it")]
    NotOnTable {
        /// The value of `root=`.
        root: String,
    },
    /// The parameters of the verified root are wrong.
    #[error("{VERITY} cannot be used")]
    Verity(#[from] VerityError),
    /// Nobody says where the hashes are.
    #[error(
        "The root device {} is not a partition that a hash partition could follow; \
         hash_device= or hash_offset= must say where the hashes are",
        device.display()
    )]
    NoHashes {
        /// The device.
        device: PathBuf,
    },
    /// `dm-mod.create=` is wrong.
    #[error("The mapped root device cannot be made")]
    Word(#[from] WordError),
    /// The mapped device cannot be made.
    #[error("The mapped root device cannot be made")]
    Mapper(#[from] DmError),
    /// Waiting needs the kernel's messages.
    #[error("Cannot wait for the root device {}", device.display())]
    Wait {
        /// The device.
        device: PathBuf,
        /// What failed.
        source: UeventError,
    },
    /// The device did not appear.
    #[error("The root device {} did not appear within {} s", device.display(), waited.as_secs())]
    Missing {
        /// The device.
        device: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The path is there and is something else.
    #[error("The root device {} is not a block device", device.display())]
    NotBlock {
        /// The path.
        device: PathBuf,
    },
    /// The directory for the new root cannot be made.
    #[error("Cannot prepare the new root")]
    Prepare(#[source] MountError),
    /// mount(2) failed; the kernel's log often says more.
    #[error("Cannot mount the root device {} as {fstype} with options \"{options}\"", device.display())]
    Mount {
        /// The device or tag.
        device: PathBuf,
        /// The file system, or the last of those tried.
        fstype: String,
        /// The options of the file system.
        options: String,
        /// What the kernel answered.
        source: Errno,
    },
    /// The kernel does not say which of the two it is.
    #[error(
        "No virtio-fs device with the tag {tag} appeared within {} s, \
         or it cannot be mounted with options \"{options}\"",
        waited.as_secs()
    )]
    NoTag {
        /// The tag.
        tag: String,
        /// The options of the file system.
        options: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// `rootfstype=` is not given, and the kernel knows no file system at all.
    #[error("No file system to mount the root device {} with", device.display())]
    NoType {
        /// The device.
        device: PathBuf,
    },
    /// The root cannot be made writable.
    #[error("Cannot lay an overlay above the root: {step}")]
    Overlay {
        /// Which step of it.
        step: &'static str,
        /// What the kernel answered.
        source: Errno,
    },
    /// The new root is mounted but cannot become the root.
    #[error("Cannot switch to the new root: {step}")]
    Switch {
        /// Which step of it.
        step: &'static str,
        /// What the kernel answered.
        source: Errno,
    },
}
