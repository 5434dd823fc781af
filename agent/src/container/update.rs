// SPDX-License-Identifier: Apache-2.0
//! UpdateContainer below the door: new limits for a container that is there.

use std::sync::Arc;

use oci_spec::runtime::LinuxResources;

use super::{Container, ContainerError};

impl Container {
    /// Applies limits; absent ones stay as they are. Legal while paused.
    ///
    /// # Errors
    /// [`StateError`](super::state::StateError) when the container is being
    /// removed, else what the cgroup says: those before the failed one are in force.
    pub async fn update(self: &Arc<Self>, resources: LinuxResources) -> Result<(), ContainerError> {
        self.state().update().map_err(|e| self.state_error(e))?;
        let this = self.clone();
        let work = move || this.cgroup.apply(&resources);
        let applied = tokio::task::spawn_blocking(work).await;
        Ok(applied.map_err(|_| ContainerError::Task(self.id.clone()))??)
    }
}
