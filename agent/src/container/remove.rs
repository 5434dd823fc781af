// SPDX-License-Identifier: Apache-2.0
//! RemoveContainer below the door: kill, wait by events, take everything away.

use std::time::{Duration, Instant};

use super::{Container, ContainerError, bundle};

/// How long processes that were sent SIGKILL may take to go: they finish at
/// once unless the kernel itself is stuck.
pub const PATIENCE: Duration = Duration::from_secs(10);

impl Container {
    /// Ends the container and removes what belongs to it in the guest, but its
    /// storages. Once begun it is not to be interrupted.
    ///
    /// # Errors
    /// [`StateError::Removing`](super::state::StateError::Removing) when it is
    /// called twice, [`ContainerError::Stuck`] when processes do not go, and
    /// what the bundle's removal says.
    pub async fn remove(self: &std::sync::Arc<Self>) -> Result<(), ContainerError> {
        {
            let mut table = self.table();
            table.state = table.state.remove().map_err(|e| self.state_error(e))?;
        }
        let result = self.take_away().await;
        if result.is_err() {
            // The host may try again.
            self.table().state = super::state::State::Running;
        }
        result
    }

    async fn take_away(self: &std::sync::Arc<Self>) -> Result<(), ContainerError> {
        self.kill_all()?;
        let tracked: Vec<_> = self.table().processes.values().cloned().collect();
        let all_gone = async {
            for process in tracked.iter().chain([&self.init]) {
                process.wait().await;
            }
        };
        tokio::time::timeout(PATIENCE, all_gone)
            .await
            .map_err(|_| ContainerError::Stuck(self.id.clone()))?;
        let this = self.clone();
        let work = move || this.clear_ground();
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| ContainerError::Task(self.id.clone()))?
    }

    fn clear_ground(&self) -> Result<(), ContainerError> {
        // Untracked descendants may take a moment longer than the tracked ones.
        let deadline = Instant::now() + PATIENCE;
        if !self.cgroup.try_remove()? {
            if !self.cgroup.wait_empty(deadline)? {
                return Err(ContainerError::Stuck(self.id.clone()));
            }
            self.cgroup.try_remove()?;
        }
        Ok(bundle::remove(&self.bundle)?)
    }
}
