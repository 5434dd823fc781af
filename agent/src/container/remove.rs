// SPDX-License-Identifier: Apache-2.0
//! RemoveContainer below the door: kill, wait by events, take everything away.
//! Nothing that waits for processes holds a thread.

use std::sync::Arc;
use std::time::Duration;

use super::hooks::Point;
use super::state::Event;
use super::{Container, ContainerError, Engine, bundle};

/// How long processes that were sent SIGKILL may take to go: they finish at
/// once unless the kernel itself is stuck.
pub const PATIENCE: Duration = Duration::from_secs(10);

impl Container {
    /// Ends the container and removes what belongs to it in the guest, but its
    /// storages; `false` says that the bundle stays because one of them is mounted
    /// in it. Once begun it is not to be interrupted.
    ///
    /// # Errors
    /// [`StateError::Is`](super::state::StateError::Is) when it is called
    /// twice, [`ContainerError::Stuck`] when processes do not go, and what the
    /// bundle's removal says. It may be called again after the latter two.
    pub async fn remove(self: &Arc<Self>, engine: &Engine) -> Result<bool, ContainerError> {
        self.advance(Event::Remove)?;
        let result = self.take_away(engine).await;
        if result.is_err() {
            // Nobody else can have changed the state meanwhile.
            self.advance(Event::RemoveFailed)?;
        }
        result
    }

    async fn take_away(self: &Arc<Self>, engine: &Engine) -> Result<bool, ContainerError> {
        self.kill_all().await?;
        let tracked: Vec<_> = self.table().processes.values().cloned().collect();
        let all_gone = async {
            for process in tracked.iter().chain([&self.init]) {
                process.wait().await;
            }
        };
        tokio::time::timeout(PATIENCE, all_gone)
            .await
            .map_err(|_| ContainerError::Stuck(self.id.clone()))?;
        if self.hooks.any(Point::Stopped) {
            self.clear_cgroup(false).await?;
            if !std::mem::replace(&mut self.table().hooks_ended, true) {
                self.hooks.run_all(engine, Point::Stopped, None).await;
            }
        }
        self.leave_namespaces().await;
        self.clear_cgroup(true).await
    }

    /// Closes what was kept for execs. What is mounted in there is in use until
    /// then, and its disks with it, wherever else it is unmounted.
    async fn leave_namespaces(&self) {
        let kept = std::mem::take(&mut *self.kept_namespaces());
        // Not one of the turns of what waits for the host: no container's removal may wait for these.
        if tokio::task::spawn_blocking(move || drop(kept))
            .await
            .is_err()
        {
            log::error!(
                "Container {}: its namespaces were left half closed",
                self.id
            );
        }
    }

    /// Removes the cgroup, and the bundle with it or not: the last thing that a
    /// hook may look at. `false` when something of the bundle stays.
    async fn clear_cgroup(self: &Arc<Self>, with_bundle: bool) -> Result<bool, ContainerError> {
        if let Some(all) = self.try_clear(with_bundle).await? {
            return Ok(all);
        }
        // Untracked descendants may take a moment longer than the tracked ones.
        if self.cgroup.emptied(PATIENCE).await?
            && let Some(all) = self.try_clear(with_bundle).await?
        {
            return Ok(all);
        }
        Err(ContainerError::Stuck(self.id.clone()))
    }

    /// Nothing while something still runs in the cgroup.
    async fn try_clear(
        self: &Arc<Self>,
        with_bundle: bool,
    ) -> Result<Option<bool>, ContainerError> {
        let this = self.clone();
        let work = move || -> Result<Option<bool>, ContainerError> {
            if !this.cgroup.try_remove()? {
                return Ok(None);
            }
            let all = !with_bundle || bundle::remove(&this.bundle)?;
            Ok(Some(all))
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| ContainerError::Task(self.id.clone()))?
    }
}
