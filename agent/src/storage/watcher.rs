// SPDX-License-Identifier: Apache-2.0
//! Looks at the sources of copies every now and then: one task for all of them,
//! which is there as long as any of them is. Owns the table of what is watched;
//! never makes or removes what is in it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::{info, warn};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::mirror::{Copy, Seen, open_source};
use super::mount::proc_path;
use super::{StorageError, open_dir};
use crate::files::remove_all;
use crate::pool::at_host_pace;

/// A file system of a host tells nobody of changes: the protocol has the agent
/// look this often.
const PERIOD: Duration = Duration::from_secs(2);

/// An update has the old and the new at the same time for a moment: only what
/// is too large at that many looks in a row stays so.
const LOOKS: u8 = 2;

/// All that is watched. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Watcher(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    /// The directory that all copies are in.
    parent: Option<PathBuf>,
    running: bool,
    last: u64,
    entries: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
enum Entry {
    Idle(Box<Watched>),
    /// Being looked at.
    Busy,
}

/// One copy and its source.
#[derive(Debug)]
pub(super) struct Watched {
    source: PathBuf,
    place: PathBuf,
    copy: Copy,
    too_large: u8,
    failing: bool,
}

impl PartialEq for Watcher {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Watcher {}

/// A name in the common directory that no storage and no other copy has.
pub(super) fn temporary(what: &str, id: u64) -> String {
    format!("..keelson-{what}-{id}")
}

/// Removes what was renamed to be removed.
pub(super) fn discard(parent: &Path, id: u64) -> nix::Result<()> {
    let name = temporary("old", id);
    // Bound at the last moment, or not.
    let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    let _ = umount2(&parent.join(&name), flags);
    remove_all(&open_dir(parent)?, OsStr::new(&name))
}

impl Watcher {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Held for single operations on the maps only.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the directory that all copies of the sandbox are in.
    pub(super) fn settle(&self, parent: &Path) -> Result<(), StorageError> {
        let mut table = self.table();
        match &table.parent {
            Some(other) => Err(StorageError::Elsewhere {
                wanted: parent.to_owned(),
                used: other.clone(),
            }),
            None => {
                table.parent = Some(parent.to_owned());
                Ok(())
            }
        }
    }

    pub(super) fn unsettle(&self) {
        self.table().parent = None;
    }

    /// A number for a copy.
    pub(super) fn number(&self) -> u64 {
        let mut table = self.table();
        table.last += 1;
        table.last
    }

    /// Watches a copy from now on. To be called within the runtime.
    pub(super) fn add(&self, id: u64, watched: Watched) {
        let mut table = self.table();
        table.entries.insert(id, Entry::Idle(Box::new(watched)));
        if table.running {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            table.running = true;
            runtime.spawn(self.clone().run());
        }
    }

    /// Watches it no longer; a look that is under way may still write to it.
    pub(super) fn forget(&self, id: u64) {
        self.table().entries.remove(&id);
    }

    async fn run(self) {
        loop {
            tokio::time::sleep(PERIOD).await;
            let ids: Vec<u64> = {
                let mut table = self.table();
                table.running = !table.entries.is_empty();
                if !table.running {
                    return;
                }
                table.entries.keys().copied().collect()
            };
            // One after the other: a host that does not answer holds one thread.
            for id in ids {
                self.look(id).await;
            }
        }
    }

    async fn look(&self, id: u64) {
        let taken = match self.table().entries.get_mut(&id) {
            Some(entry) => std::mem::replace(entry, Entry::Busy),
            None => return,
        };
        let Entry::Idle(mut watched) = taken else {
            return;
        };
        let looked = at_host_pace(move || {
            let on = watched.look();
            (watched, on)
        });
        let Ok((watched, on)) = looked.await else {
            self.forget(id);
            return;
        };
        let parent = {
            let mut table = self.table();
            match table.entries.get_mut(&id) {
                Some(entry) if on => {
                    *entry = Entry::Idle(watched);
                    return;
                }
                Some(_) => {
                    table.entries.remove(&id);
                    return;
                }
                None => watched.place.parent().map(Path::to_owned),
            }
        };
        // Removed meanwhile, perhaps not all of it.
        drop(watched);
        if let Some(parent) = parent {
            let _ = tokio::task::spawn_blocking(move || discard(&parent, id)).await;
        }
    }
}

impl Watched {
    pub(super) fn new(source: PathBuf, place: PathBuf, copy: Copy) -> Self {
        Self {
            source,
            place,
            copy,
            too_large: 0,
            failing: false,
        }
    }

    /// Makes the copy like its source; false if it is not to be watched any longer.
    fn look(&mut self) -> bool {
        let seen = self.copy.look(&self.source);
        let done = match seen {
            Ok(Seen::TooLarge) => {
                self.too_large += 1;
                if self.too_large >= LOOKS {
                    self.bind();
                    return false;
                }
                return true;
            }
            Ok(Seen::Same) => Ok(()),
            Ok(Seen::Changed(change)) => self.copy.apply(change),
            Err(error) => Err(error),
        };
        self.too_large = 0;
        self.told(done);
        true
    }

    /// Errors are told of once; the next look may do better.
    fn told(&mut self, done: Result<(), Errno>) {
        match done {
            Err(error) if !self.failing => warn!(
                "Storage at {} stays as it is for now: {error}",
                self.place.display()
            ),
            _ => {}
        }
        self.failing = done.is_err();
    }

    /// On the copy itself, wherever that is by now.
    fn bind(&self) {
        let place = self.place.display();
        info!("Storage at {place} has become too large to be watched: bound");
        let bound = open_source(&self.source).and_then(|source| {
            let none = None::<&str>;
            let (from, to) = (proc_path(&source), proc_path(self.copy.target()));
            mount(
                Some(from.as_str()),
                to.as_str(),
                none,
                MsFlags::MS_BIND,
                none,
            )
        });
        if let Err(error) = bound {
            warn!("Storage at {place} could not be bound: {error}");
        }
    }
}
