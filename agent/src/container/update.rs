// SPDX-License-Identifier: Apache-2.0
//! UpdateContainer below the door: new limits for a container that is there.

use std::sync::Arc;

use oci_spec::runtime::LinuxResources;

use super::{Container, ContainerError};
use crate::pool::at_host_pace;

impl Container {
    /// Applies limits; absent ones stay as they are. Legal while paused. One
    /// update comes after the other, as they were asked for.
    ///
    /// # Errors
    /// [`StateError`](super::state::StateError) when the container is being
    /// removed, else what the cgroup says: those before the failed one are in force.
    pub async fn update(
        self: &Arc<Self>,
        mut resources: LinuxResources,
    ) -> Result<(), ContainerError> {
        if let Some(rules) = resources.devices_mut() {
            self.given.numbers.apply_to_update(rules);
        }
        // Never closed: there always is a turn.
        let turn = self.updates.clone().acquire_owned().await;
        let this = self.clone();
        let work = move || -> Result<(), ContainerError> {
            // Held by the thread, not by the caller, who may go away.
            let _turn = turn;
            // Looked at when its turn has come: removal does not wait for it.
            this.state().update().map_err(|e| this.state_error(e))?;
            Ok(this.cgroup.apply(&resources)?)
        };
        let applied = at_host_pace(work).await;
        applied.map_err(|_| ContainerError::Task(self.id.clone()))?
    }
}
