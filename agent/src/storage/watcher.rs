// SPDX-License-Identifier: Apache-2.0
//! Looks at the sources of copies every now and then: one task for all of them,
//! which is there as long as any of them is, and one for each look that is under
//! way. Owns the table of what is watched; never makes or removes what is in it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::{info, warn};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::mirror::{Copy, Seen, open_source};
use super::mount::proc_path;
use super::{StorageError, open_dir};
use crate::files::remove_all;
use crate::pool::{self, at_host_pace};

/// A file system of a host tells nobody of changes: the protocol has the agent
/// look this often.
const PERIOD: Duration = Duration::from_secs(2);

/// An update has the old and the new at the same time for a moment: only what
/// is too large at that many looks in a row stays so.
const LOOKS: u8 = 2;

/// Looks at a time. A source that never answers delays no other copy then, and
/// two of them leave a thread for the mounts of the same host.
static TURNS: Semaphore = Semaphore::const_new(pool::THREADS - 2);

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
    Idle(Box<dyn Look>),
    /// Being looked at.
    Busy,
}

/// Something to look at every now and then.
pub(super) trait Look: Debug + Send {
    /// Makes the copy like its source; false if it is not to be watched any
    /// longer. Blocks.
    fn look(&mut self) -> bool;

    /// Where the copy is.
    fn place(&self) -> &Path;
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
    pub(super) fn add(&self, id: u64, watched: Box<dyn Look>) {
        let mut table = self.table();
        table.entries.insert(id, Entry::Idle(watched));
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
            if !self.go_on() {
                return;
            }
            self.round().await;
        }
    }

    /// Whether there still is something to look at.
    fn go_on(&self) -> bool {
        let mut table = self.table();
        table.running = !table.entries.is_empty();
        table.running
    }

    /// Begins a look at everything that is not being looked at.
    async fn round(&self) {
        let ids: Vec<u64> = self.table().entries.keys().copied().collect();
        for id in ids {
            // Before it is taken: while it waits it can be forgotten as a whole.
            let Ok(turn) = TURNS.acquire().await else {
                return;
            };
            if let Some(watched) = self.take(id) {
                tokio::spawn(self.clone().look(id, watched, turn));
            }
        }
    }

    fn take(&self, id: u64) -> Option<Box<dyn Look>> {
        let mut table = self.table();
        match std::mem::replace(table.entries.get_mut(&id)?, Entry::Busy) {
            Entry::Idle(watched) => Some(watched),
            Entry::Busy => None,
        }
    }

    async fn look(self, id: u64, mut watched: Box<dyn Look>, _turn: SemaphorePermit<'static>) {
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
                None => watched.place().parent().map(Path::to_owned),
            }
        };
        // Removed meanwhile, perhaps not all of it.
        drop(watched);
        if let Some(parent) = parent {
            let _ = tokio::task::spawn_blocking(move || discard(&parent, id)).await;
        }
    }
}

impl Look for Watched {
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

    fn place(&self) -> &Path {
        &self.place
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    use super::super::undo::{Step, Undo};
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A copy of something on a host that answers each look with one word.
    #[derive(Debug)]
    struct Slow {
        id: u64,
        place: PathBuf,
        begun: UnboundedSender<u64>,
        answers: Receiver<()>,
    }

    impl Look for Slow {
        fn look(&mut self) -> bool {
            let _ = self.begun.send(self.id);
            // Also ends with the story.
            let _ = self.answers.recv();
            true
        }

        fn place(&self) -> &Path {
            &self.place
        }
    }

    struct Bench {
        dir: tempfile::TempDir,
        watcher: Watcher,
        begun: UnboundedReceiver<u64>,
        hosts: Vec<Sender<()>>,
    }

    impl Bench {
        fn new(entries: u64) -> Self {
            let (begin, begun) = unbounded_channel();
            let mut bench = Self {
                dir: tempfile::tempdir().unwrap(),
                watcher: Watcher::default(),
                begun,
                hosts: Vec::new(),
            };
            for id in 0..entries {
                let (host, answers) = channel();
                bench.hosts.push(host);
                std::fs::write(bench.place(id), "copy").unwrap();
                let slow = Slow {
                    id,
                    place: bench.place(id),
                    begun: begin.clone(),
                    answers,
                };
                let entry = Entry::Idle(Box::new(slow));
                bench.watcher.table().entries.insert(id, entry);
            }
            bench
        }

        fn place(&self, id: u64) -> PathBuf {
            let dir = self.dir.path().canonicalize().unwrap();
            dir.join(id.to_string())
        }

        fn answer(&self, ids: &[usize]) {
            for &id in ids {
                self.hosts[id].send(()).unwrap();
            }
        }

        async fn round(&self) {
            let round = tokio::time::timeout(PATIENCE, self.watcher.round());
            round.await.expect("a round ends");
        }

        async fn expect_begun(&mut self, ids: &[u64]) {
            for &id in ids {
                let begun = tokio::time::timeout(PATIENCE, self.begun.recv());
                assert_eq!(begun.await, Ok(Some(id)));
            }
        }

        /// As for a container that is removed.
        async fn remove(&self, id: u64) {
            let mut undo = Undo::default();
            undo.push(Step::Unwatch(self.watcher.clone(), id, self.place(id)));
            let removed = tokio::time::timeout(PATIENCE, at_host_pace(|| undo.run()));
            let errors = removed.await.unwrap().unwrap();
            assert!(errors.is_empty() && !self.place(id).exists(), "{errors:?}");
        }
    }

    #[tokio::test]
    async fn a_source_that_never_answers_delays_itself_only() {
        let mut bench = Bench::new(3);
        for looks in [&[0, 1, 2][..], &[1, 2]] {
            bench.answer(&[1, 2]);
            bench.round().await;
            bench.expect_begun(looks).await;
        }
        // With another one nothing is looked at, but what is removed goes, and
        // the mounts of the host have a turn.
        let watcher = bench.watcher.clone();
        let round = tokio::spawn(async move { watcher.round().await });
        bench.expect_begun(&[1]).await;
        bench.remove(0).await;
        bench.remove(2).await;
        bench.answer(&[0, 1]);
        round.await.unwrap();
        // Nobody has taken up again what was removed.
        bench.answer(&[1]);
        bench.round().await;
        bench.expect_begun(&[1]).await;
        assert!(bench.watcher.table().entries.keys().eq(&[1]));
    }
}
