// SPDX-License-Identifier: Apache-2.0
//! What the confidential-data-hub mounts: the place is made and claimed before
//! it is asked, and looked at afterwards. Whatever the hub says, only what is
//! mounted counts, and that is taken back like any other mount.

use std::path::Path;

use super::StorageError;
use super::mount::{make_dir, mounted_fstype, open_target};
use super::undo::{Step, Undo};
use crate::pool::at_host_pace;

/// Makes `dir` and sees to it that nothing is mounted at `place` yet, which is
/// `dir` itself or right below it. From here on what comes to be mounted at
/// `place` will be unmounted: the hub may mount something and not say so.
pub(super) async fn claim_place(
    dir: &Path,
    place: &Path,
    undo: &mut Undo,
) -> Result<(), StorageError> {
    let interrupted = StorageError::Interrupted {
        mount_point: place.to_owned(),
    };
    let dir_is_above = dir != place;
    let (dir, target) = (dir.to_owned(), place.to_owned());
    let work = move || {
        let mut undo = Undo::default();
        let made = make_dir(&dir, &mut undo).and_then(|_| match is_mounted(&target) {
            true => Err(StorageError::Occupied { path: target }),
            false => Ok(()),
        });
        (made, undo)
    };
    let (made, steps) = at_host_pace(work).await.map_err(|_| interrupted)?;
    undo.append(steps);
    made?;
    if dir_is_above {
        undo.push(Step::RemoveDir(place.to_owned()));
    }
    undo.push(Step::Unmount(place.to_owned()));
    Ok(())
}

/// Insists that the hub has mounted something. Blocks.
pub(super) fn expect_mounted(place: &Path) -> Result<(), StorageError> {
    match is_mounted(place) {
        true => Ok(()),
        false => Err(StorageError::NotMounted {
            path: place.to_owned(),
        }),
    }
}

fn is_mounted(place: &Path) -> bool {
    open_target(place).is_ok_and(|target| mounted_fstype(&target, place).is_some())
}
