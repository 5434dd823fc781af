// SPDX-License-Identifier: Apache-2.0
//! Which storages are there and who uses them. Owns the counting, the sharing
//! of work under way, and the undoing; the work itself runs on the blocking
//! pool, under the lock of that one storage only.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::warn;
use tokio::sync::{Mutex as AsyncMutex, oneshot};
use tokio::task::spawn_blocking;

use super::undo::Undo;
use super::{Environment, StorageError, StoragePlan};
use crate::children::Children;
use crate::confidential::Hub;
use crate::device::Devices;
use crate::pool::at_host_pace;

/// All storages of the guest. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Storages(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    environment: Environment,
    /// Never held across an await or a system call.
    tables: Mutex<Tables>,
    /// Numbers the storages in the order in which they came about.
    clock: AtomicU64,
}

#[derive(Debug, Default)]
struct Tables {
    slots: HashMap<PathBuf, Arc<Slot>>,
    /// What each owner holds, oldest first; a path as often as it was asked for.
    owned: HashMap<String, Vec<PathBuf>>,
}

/// One mount point.
#[derive(Debug, Default)]
struct Slot(AsyncMutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Taken out of the table: whoever waited for it starts anew.
    dead: bool,
    /// There, with what takes it back and when it came about.
    mounted: Option<(Undo, u64)>,
    users: usize,
    keep: bool,
}

/// A storage that a call has got.
#[derive(Debug)]
struct Taken {
    path: PathBuf,
    /// Brought about by this very call.
    fresh: bool,
}

/// What a call has got, given back when nobody takes it over.
struct Lease {
    storages: Storages,
    taken: Vec<Taken>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        if taken.is_empty() {
            return;
        }
        let storages = self.storages.clone();
        // Only ever dropped within the runtime that `acquire` runs on; without
        // one the guest is on its way down and nothing needs to be taken back.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { storages.give_back(taken).await });
        }
    }
}

impl Storages {
    /// An empty registry.
    pub fn new(devices: Devices, hub: Hub, children: Children) -> Self {
        let environment = Environment {
            devices,
            hub,
            children,
            ..Environment::default()
        };
        Self(Arc::new(Inner {
            environment,
            ..Inner::default()
        }))
    }

    /// Brings storages about, in order, for an owner (a container's id), and
    /// gives their mount points. All or nothing: when one fails, those that
    /// this call got are given back. Does not stop half-way when the caller
    /// goes away; what it got is given back then, too.
    ///
    /// # Errors
    /// Of the first storage that failed.
    pub async fn acquire(
        &self,
        plans: Vec<StoragePlan>,
        owner: &str,
    ) -> Result<Vec<PathBuf>, StorageError> {
        if plans.is_empty() {
            return Ok(Vec::new());
        }
        let interrupted = StorageError::Interrupted {
            mount_point: plans[0].mount_point.clone(),
        };
        let (send, receive) = oneshot::channel();
        let storages = self.clone();
        tokio::spawn(async move {
            // When nobody listens any more, dropping the lease undoes it.
            drop(send.send(storages.acquire_all(plans).await));
        });
        let mut lease = receive.await.map_err(|_| interrupted)??;
        let taken = std::mem::take(&mut lease.taken);
        let paths: Vec<_> = taken.into_iter().map(|taken| taken.path).collect();
        let mut tables = self.tables();
        let owned = tables.owned.entry(owner.to_owned()).or_default();
        owned.extend(paths.iter().cloned());
        Ok(paths)
    }

    /// Gives back everything an owner holds, the latest first. Calling it again
    /// does nothing.
    ///
    /// # Errors
    /// What could not be taken back is returned for the log; it is forgotten
    /// all the same.
    pub async fn release(&self, owner: &str) -> Vec<StorageError> {
        let owned = self.tables().owned.remove(owner).unwrap_or_default();
        let mut errors = Vec::new();
        for path in owned.iter().rev() {
            errors.extend(self.leave(path, false).await);
        }
        errors
    }

    /// Takes everything back, whoever uses it, the latest first: for the end of
    /// a sandbox that the guest outlives.
    ///
    /// # Errors
    /// As [`Self::release`].
    pub async fn release_all(&self) -> Vec<StorageError> {
        let slots = {
            let mut tables = self.tables();
            tables.owned.clear();
            std::mem::take(&mut tables.slots)
        };
        let mut mounted = Vec::new();
        for slot in slots.into_values() {
            let mut state = slot.0.lock().await;
            state.dead = true;
            mounted.extend(state.mounted.take());
        }
        mounted.sort_by_key(|(_, order)| std::cmp::Reverse(*order));
        let undos: Vec<_> = mounted.into_iter().map(|(undo, _)| undo).collect();
        let all = move || undos.into_iter().flat_map(Undo::run).collect();
        spawn_blocking(all).await.unwrap_or_default()
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Every change is complete before anything can panic.
        let tables = self.0.tables.lock();
        tables.unwrap_or_else(PoisonError::into_inner)
    }

    async fn acquire_all(&self, plans: Vec<StoragePlan>) -> Result<Lease, StorageError> {
        let mut lease = Lease {
            storages: self.clone(),
            taken: Vec::new(),
        };
        let all = plans.into_iter().flat_map(|mut plan| {
            let needs = plan.needs.take().map(|needs| *needs);
            needs.into_iter().chain([plan])
        });
        for plan in all {
            match self.enter(plan).await {
                Ok(taken) => lease.taken.push(taken),
                Err(error) => {
                    // Not left to the drop: the caller may try again at once.
                    self.give_back(std::mem::take(&mut lease.taken)).await;
                    return Err(error);
                }
            }
        }
        Ok(lease)
    }

    async fn enter(&self, plan: StoragePlan) -> Result<Taken, StorageError> {
        let path = plan.mount_point.clone();
        loop {
            let slot = self.tables().slots.entry(path.clone()).or_default().clone();
            let mut state = slot.0.lock().await;
            if state.dead {
                continue;
            }
            let fresh = state.mounted.is_none();
            if fresh {
                state.keep = plan.keep;
                match self.bring_about(plan).await {
                    Ok(undo) => {
                        let order = self.0.clock.fetch_add(1, Ordering::Relaxed);
                        state.mounted = Some((undo, order));
                    }
                    Err(error) => {
                        state.dead = true;
                        self.forget(&path, &slot);
                        return Err(error);
                    }
                }
            }
            state.users += 1;
            return Ok(Taken { path, fresh });
        }
    }

    async fn bring_about(&self, plan: StoragePlan) -> Result<Undo, StorageError> {
        let inner = Arc::clone(&self.0);
        let interrupted = StorageError::Interrupted {
            mount_point: plan.mount_point.clone(),
        };
        let ready = plan.prepare(&inner.environment).await?;
        let mut undo = Undo::default();
        if let Err(error) = plan.ask(&ready, &inner.environment, &mut undo).await {
            // Not stopped half-way: all of this is a task of its own.
            let undone = at_host_pace(move || log_all(&undo.run())).await;
            return undone.map_err(|_| interrupted).and(Err(error));
        }
        let work = move || match plan.run(&ready, &inner.environment, &mut undo) {
            Ok(()) => Ok(undo),
            Err(error) => {
                log_all(&undo.run());
                Err(error)
            }
        };
        at_host_pace(work).await.unwrap_or(Err(interrupted))
    }

    async fn give_back(&self, taken: Vec<Taken>) {
        for taken in taken.into_iter().rev() {
            log_all(&self.leave(&taken.path, taken.fresh).await);
        }
    }

    /// One user less. The last one has the storage taken away, one that is to
    /// be kept only when `fresh`: then nobody has used it yet.
    async fn leave(&self, path: &Path, fresh: bool) -> Vec<StorageError> {
        let Some(slot) = self.tables().slots.get(path).cloned() else {
            return Vec::new();
        };
        let mut state = slot.0.lock().await;
        state.users = state.users.saturating_sub(1);
        if state.dead || state.users > 0 || (state.keep && !fresh) {
            return Vec::new();
        }
        state.dead = true;
        let undo = state.mounted.take().map(|(undo, _)| undo);
        let errors = match undo {
            // The slot stays locked until it is gone: whoever wants the same
            // mount point waits for it to be free.
            Some(undo) => at_host_pace(|| undo.run()).await.unwrap_or_default(),
            None => Vec::new(),
        };
        self.forget(path, &slot);
        errors
    }

    fn forget(&self, path: &Path, slot: &Arc<Slot>) {
        let mut tables = self.tables();
        if tables.slots.get(path).is_some_and(|s| Arc::ptr_eq(s, slot)) {
            tables.slots.remove(path);
        }
    }
}

pub(super) fn log_all(errors: &[StorageError]) {
    for error in errors {
        let reason = std::error::Error::source(error);
        let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
        warn!("{error}{reason}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Action, Ready};
    use super::super::undo::Step;
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::sync::{Condvar, Mutex as StdMutex};

    /// An action that makes a directory, counts, and may be held up or fail.
    #[derive(Debug, Default)]
    struct Probe {
        runs: AtomicUsize,
        gate: StdMutex<bool>,
        opened: Condvar,
    }

    #[derive(Debug)]
    struct Make(Arc<Probe>, bool);

    impl Action for Make {
        fn run(
            &self,
            place: &Path,
            _: &Ready,
            _: &Environment,
            undo: &mut Undo,
        ) -> Result<(), StorageError> {
            self.0.runs.fetch_add(1, Ordering::SeqCst);
            let gate = self.0.gate.lock().unwrap();
            drop(self.0.opened.wait_while(gate, |closed| *closed).unwrap());
            std::fs::create_dir(place).unwrap();
            undo.push(Step::RemoveDir(place.to_owned()));
            match self.1 {
                true => Ok(()),
                false => Err(StorageError::TooDeep { path: place.into() }),
            }
        }
    }

    struct Bench {
        storages: Storages,
        probe: Arc<Probe>,
        dir: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                storages: Storages::default(),
                probe: Arc::default(),
                dir: tempfile::tempdir().unwrap(),
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn plan(&self, name: &str, works: bool, keep: bool) -> StoragePlan {
            StoragePlan {
                mount_point: self.path(name),
                action: Box::new(Make(Arc::clone(&self.probe), works)),
                fs_group: None,
                keep,
                needs: None,
            }
        }

        fn runs(&self) -> usize {
            self.probe.runs.load(Ordering::SeqCst)
        }

        fn close(&self, closed: bool) {
            *self.probe.gate.lock().unwrap() = closed;
            self.probe.opened.notify_all();
        }

        /// Lets everything that can run, run, until `done`.
        async fn until(&self, done: impl Fn() -> bool) {
            while !done() {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        }
    }

    #[tokio::test]
    async fn shared_by_count_and_removed_with_the_last() {
        let b = Bench::new();
        for owner in ["c1", "c2"] {
            let plans = vec![b.plan("a", true, false), b.plan("b", true, false)];
            let paths = b.storages.acquire(plans, owner).await.unwrap();
            assert_eq!(paths, [b.path("a"), b.path("b")]);
        }
        assert_eq!(b.runs(), 2);
        assert!(b.storages.release("c1").await.is_empty());
        assert!(b.storages.release("c1").await.is_empty());
        assert!(b.path("a").exists());
        assert!(b.storages.release("c2").await.is_empty());
        assert!(!b.path("a").exists() && !b.path("b").exists());
        assert!(b.storages.tables().slots.is_empty() && b.storages.tables().owned.is_empty());
    }

    #[tokio::test]
    async fn bug_a_failure_leaves_no_phantom() {
        let b = Bench::new();
        let plans = vec![b.plan("a", true, true), b.plan("bad", false, false)];
        assert!(b.storages.acquire(plans, "c1").await.is_err());
        // Even a storage to be kept goes when the call that made it fails.
        assert!(!b.path("a").exists() && !b.path("bad").exists());
        assert!(b.storages.tables().slots.is_empty());
        b.storages
            .acquire(vec![b.plan("bad", true, false)], "c1")
            .await
            .unwrap();
        assert!(b.path("bad").exists());
    }

    #[tokio::test]
    async fn a_failure_does_not_touch_what_others_hold() {
        let b = Bench::new();
        b.storages
            .acquire(vec![b.plan("a", true, false)], "c1")
            .await
            .unwrap();
        let plans = vec![b.plan("a", true, false), b.plan("bad", false, false)];
        assert!(b.storages.acquire(plans, "c2").await.is_err());
        assert!(b.path("a").exists());
        b.storages.release("c1").await;
        assert!(!b.path("a").exists());
    }

    #[tokio::test]
    async fn kept_storages_outlive_their_users() {
        let b = Bench::new();
        b.storages
            .acquire(vec![b.plan("a", true, true)], "c1")
            .await
            .unwrap();
        b.storages.release("c1").await;
        assert!(b.path("a").exists());
        // A restarted container finds what was there.
        b.storages
            .acquire(vec![b.plan("a", true, true)], "c1")
            .await
            .unwrap();
        assert_eq!(b.runs(), 1);
        assert!(b.storages.release_all().await.is_empty());
        assert!(!b.path("a").exists());
    }

    #[tokio::test]
    async fn work_under_way_is_shared() {
        let b = Bench::new();
        b.close(true);
        let acquire = |owner: &'static str| {
            let (storages, plan) = (b.storages.clone(), b.plan("a", true, false));
            tokio::spawn(async move { storages.acquire(vec![plan], owner).await })
        };
        let (first, second) = (acquire("c1"), acquire("c2"));
        b.until(|| b.runs() == 1).await;
        b.close(false);
        assert!(first.await.unwrap().is_ok() && second.await.unwrap().is_ok());
        assert_eq!(b.runs(), 1);
    }

    #[tokio::test]
    async fn a_waiter_tries_itself_when_the_first_fails() {
        let b = Bench::new();
        b.close(true);
        let failing = (b.storages.clone(), b.plan("a", false, false));
        let first = tokio::spawn(async move { failing.0.acquire(vec![failing.1], "c1").await });
        b.until(|| b.runs() == 1).await;
        let working = (b.storages.clone(), b.plan("a", true, false));
        let second = tokio::spawn(async move { working.0.acquire(vec![working.1], "c2").await });
        tokio::task::yield_now().await;
        b.close(false);
        assert!(first.await.unwrap().is_err());
        assert!(second.await.unwrap().is_ok());
        assert!(b.path("a").exists());
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_leaves_nothing() {
        let b = Bench::new();
        b.close(true);
        let (storages, plan) = (b.storages.clone(), b.plan("a", true, false));
        let caller = tokio::spawn(async move { storages.acquire(vec![plan], "c1").await });
        b.until(|| b.runs() == 1).await;
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        b.close(false);
        b.until(|| b.storages.tables().slots.is_empty()).await;
        assert!(!b.path("a").exists());
    }
}
