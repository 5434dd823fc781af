// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a storage.

use std::path::PathBuf;

use init::dm::DmError;
use init::verity::VerityError;
use nix::errno::Errno;

use crate::confidential::HubError;
use crate::confidential::pause::PauseError;
use crate::device::DeviceError;
use crate::mount_options::MountOptionError;

/// An error of a storage; `driver` and paths are as the host sent them.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// No such driver exists.
    #[error("Failed to find the storage handler {driver}")]
    UnknownDriver {
        /// Its name.
        driver: String,
    },
    /// The protocol has it, this agent does not (yet).
    #[error("Storage {what} is not implemented")]
    NotImplemented {
        /// A driver or an option.
        what: String,
    },
    /// A field that cannot be used.
    #[error("Storage {driver}: {field} {value:?} is refused: {reason}")]
    Field {
        /// The driver.
        driver: String,
        /// The field's name on the wire.
        field: &'static str,
        /// As it was sent.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Mount options that cannot be used.
    #[error("Storage at {mount_point} has unusable options")]
    Options {
        /// Where it was to be mounted.
        mount_point: String,
        /// What is wrong with them.
        source: MountOptionError,
    },
    /// Its disk could not be had.
    #[error("No block device for the storage")]
    Device(#[from] DeviceError),
    /// mount(2) failed.
    #[error("Failed to mount {from} ({fstype}) to {to}")]
    Mount {
        /// The source.
        from: String,
        /// The type of the file system.
        fstype: String,
        /// The mount point.
        to: PathBuf,
        /// The kernel's reason.
        source: Errno,
    },
    /// The parameters of a verified layer.
    #[error("A layer cannot be verified")]
    Verity(#[source] VerityError),
    /// There is no hash tree where the host says.
    #[error("{node} has no verity superblock at byte {offset}, or one for more data than there is")]
    VeritySuperblock {
        /// The disk or partition.
        node: PathBuf,
        /// Where it was looked for.
        offset: u64,
    },
    /// The device mapper.
    #[error("The verified device of a layer failed")]
    Mapped(#[source] DmError),
    /// No file system could be made on a fresh disk.
    #[error("No file system could be made on {node}: {reason}")]
    MakeFileSystem {
        /// The disk.
        node: PathBuf,
        /// What the maker said.
        reason: String,
    },
    /// Any other step on a path failed.
    #[error("Failed to {step} {path}")]
    Path {
        /// What was tried: `create`, `unmount`, …
        step: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's reason.
        source: Errno,
    },
    /// The kernel has fewer huge pages to give.
    #[error("Only allocated {got} of {wanted} hugepages of size {page_size}")]
    Hugepages {
        /// How many could be had.
        got: u64,
        /// How many were asked for.
        wanted: u64,
        /// In bytes.
        page_size: u64,
    },
    /// Watched storages of a sandbox are in one directory.
    #[error("Watched storages of this sandbox are in {used}, not in {wanted}")]
    Elsewhere {
        /// Where this one was to be.
        wanted: PathBuf,
        /// Where the others are.
        used: PathBuf,
    },
    /// A directory tree deeper than the walk for `fs_group` goes.
    #[error("Directory {path} is nested too deep to change its group")]
    TooDeep {
        /// The storage's mount point.
        path: PathBuf,
    },
    /// The confidential-data-hub did not do its part.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The hub was to mount something where something is mounted already.
    #[error("Something is mounted at {path} already")]
    Occupied {
        /// The mount point.
        path: PathBuf,
    },
    /// The hub was asked before, and has not done with it.
    #[error("The confidential-data-hub may still mount something at {path}")]
    Unsettled {
        /// The mount point.
        path: PathBuf,
    },
    /// The hub says that it has mounted something, and has not.
    #[error("The confidential-data-hub has mounted nothing at {path}")]
    NotMounted {
        /// The mount point.
        path: PathBuf,
    },
    /// The guest's own pause image.
    #[error(transparent)]
    Pause(#[from] PauseError),
    /// The work was given up half-way, which only a defect of the agent does.
    #[error("Storage at {mount_point} was interrupted")]
    Interrupted {
        /// Where it was to be mounted.
        mount_point: PathBuf,
    },
}

impl StorageError {
    /// Whether the request is to blame rather than the guest.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::UnknownDriver { .. }
            | Self::Field { .. }
            | Self::Options { .. }
            | Self::Elsewhere { .. }
            | Self::Verity(_) => true,
            Self::Device(error) => error.is_bad_input(),
            _ => false,
        }
    }

    /// Whether this agent lacks what was asked for.
    pub fn is_not_implemented(&self) -> bool {
        matches!(self, Self::NotImplemented { .. })
    }

    /// For `map_err` on calls that name one path.
    pub(super) fn at(step: &'static str, path: &std::path::Path) -> impl FnOnce(Errno) -> Self {
        let path = path.to_owned();
        move |source| Self::Path { step, path, source }
    }
}
