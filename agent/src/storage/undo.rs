// SPDX-License-Identifier: Apache-2.0
//! What a storage did to the guest, as steps that take it back. Each driver
//! records a step right after its effect; the steps run in reverse when the
//! storage fails half-way and when its last user leaves.

use std::path::PathBuf;

use log::warn;
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::mount::{MntFlags, umount2};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::StorageError;
use super::ephemeral;
use super::watchable;
use super::watcher::Watcher;

/// One effect to take back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Something was mounted there.
    Unmount(PathBuf),
    /// A directory was made; it goes if it is empty by then.
    RemoveDir(PathBuf),
    /// An empty file was made to be mounted on.
    RemoveFile(PathBuf),
    /// A mapped device was made.
    RemoveMapped(String),
    /// Huge pages were reserved: their sysfs directory and number.
    ReturnHugepages(PathBuf, u64),
    /// A copy is watched: its number and where it is.
    Unwatch(Watcher, u64, PathBuf),
    /// The directory of all copies has been settled on.
    Unsettle(Watcher),
}

/// The effects of one storage, in the order in which they happened.
#[derive(Debug, Clone, Default)]
pub(super) struct Undo(Vec<Step>);

impl Undo {
    pub(super) fn push(&mut self, step: Step) {
        self.0.push(step);
    }

    /// Adds the effects of a later part of the work.
    pub(super) fn append(&mut self, later: Self) {
        self.0.extend(later.0);
    }

    /// Takes everything back as far as possible; what failed is returned.
    /// Blocks.
    pub(super) fn run(self) -> Vec<StorageError> {
        let steps = self.0.into_iter().rev();
        steps.filter_map(|step| step.run().err()).collect()
    }
}

impl Step {
    fn run(self) -> Result<(), StorageError> {
        match self {
            Self::Unmount(path) => unmount(&path).map_err(StorageError::at("unmount", &path)),
            Self::RemoveDir(path) => match unlinkat(AT_FDCWD, &path, UnlinkatFlags::RemoveDir) {
                // Used by somebody else by now, or gone: both fine.
                Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EEXIST | Errno::EBUSY) => Ok(()),
                other => other.map_err(StorageError::at("remove", &path)),
            },
            Self::RemoveFile(path) => match unlinkat(AT_FDCWD, &path, UnlinkatFlags::NoRemoveDir) {
                Err(Errno::ENOENT | Errno::EBUSY) => Ok(()),
                other => other.map_err(StorageError::at("remove", &path)),
            },
            Self::RemoveMapped(name) => init::dm::remove(&name).map_err(StorageError::Mapped),
            Self::ReturnHugepages(dir, pages) => ephemeral::return_hugepages(&dir, pages),
            Self::Unwatch(watcher, id, path) => {
                watcher.forget(id);
                watchable::remove(&path, id).map_err(StorageError::at("remove", &path))
            }
            Self::Unsettle(watcher) => {
                watcher.unsettle();
                Ok(())
            }
        }
    }
}

/// A real umount, so that data is on the disk afterwards; what a stray process
/// still holds is at least taken out of sight.
fn unmount(path: &PathBuf) -> nix::Result<()> {
    match umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
        // Not mounted (any more).
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(Errno::EBUSY) => {
            warn!("Storage at {} is busy: detached only", path.display());
            umount2(path, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)
        }
        other => other,
    }
}
