// SPDX-License-Identifier: Apache-2.0
//! What the confidential-data-hub mounts: the place is made and claimed before
//! it is asked, and looked at afterwards. Whatever the hub says, only what is
//! mounted counts, and that is taken back like any other mount, also when it
//! comes after the hub's time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::StorageError;
use super::mount::{make_dir, mounted_fstype, open_target};
use super::registry::log_all;
use super::undo::{Step, Undo};
use crate::confidential::{Asked, HubError};
use crate::pool::at_host_pace;

/// Places that the hub may still mount something at. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Late(Arc<Mutex<BTreeSet<PathBuf>>>);

impl Late {
    fn places(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        // Held for single operations on the set only.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the answer. When it is late nobody gets the place until the hub
    /// has done with it, and `undo` has taken back what it has mounted by then.
    pub(super) async fn expect(
        &self,
        place: &Path,
        mut asked: Asked,
        undo: Undo,
    ) -> Result<(), StorageError> {
        let answer = asked.in_time().await;
        if matches!(answer, Err(HubError::Late { .. })) {
            let (late, place) = (self.clone(), place.to_owned());
            self.places().insert(place.clone());
            tokio::spawn(async move {
                asked.end().await;
                let undone = at_host_pace(move || log_all(&undo.run())).await;
                // A panic: nobody knows what is there.
                if undone.is_ok() {
                    late.places().remove(&place);
                }
            });
        }
        Ok(answer.map(drop)?)
    }
}

/// Makes `dir` and sees to it that nothing is mounted at `place` yet, which is
/// `dir` itself or right below it. From here on what comes to be mounted at
/// `place` will be unmounted: the hub may mount something and not say so.
pub(super) async fn claim_place(
    dir: &Path,
    place: &Path,
    late: &Late,
    undo: &mut Undo,
) -> Result<(), StorageError> {
    if late.places().contains(place) {
        let path = place.to_owned();
        return Err(StorageError::Unsettled { path });
    }
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
