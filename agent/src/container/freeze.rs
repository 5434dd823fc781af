// SPDX-License-Identifier: Apache-2.0
//! PauseContainer and ResumeContainer below the door. What waits here waits on
//! the event loop and for a limited time; a pause that does not come about is
//! taken back.

use std::time::Duration;

use super::state::{Event, State};
use super::{Container, ContainerError};

/// How long execs that are on their way when a pause comes may take to arrive;
/// then they are frozen with the rest, and refused.
const EXEC_GRACE: Duration = Duration::from_secs(1);

/// How long the processes may take to stand still: at once, unless one is
/// stuck in the kernel.
const PATIENCE: Duration = Duration::from_secs(5);

impl Container {
    /// Freezes every process. Returns when they stand still.
    ///
    /// # Errors
    /// [`StateError`](super::state::StateError) unless the container is created
    /// or running, and stays so; [`ContainerError::NotFrozen`] or
    /// [`ContainerError::Cgroup`] when it cannot be done, and it goes on then.
    pub async fn pause(&self) -> Result<(), ContainerError> {
        self.advance(Event::Pause)?;
        let undo = Undo(self);
        let frozen = self.freeze().await?;
        let outcome = match (frozen, self.state()) {
            (true, _) | (false, State::Removing | State::Dying | State::Stopped { .. }) => {
                self.advance(Event::Frozen)
            }
            (false, _) => Err(ContainerError::NotFrozen(self.id.clone())),
        };
        if outcome.is_ok() {
            std::mem::forget(undo);
        }
        outcome
    }

    async fn freeze(&self) -> Result<bool, ContainerError> {
        let left = async {
            let mut states = self.states.subscribe();
            // Never ends by the sender's going away: that is in `self`.
            let _ = states
                .wait_for(|state| !matches!(state, State::Pausing { .. }))
                .await;
            false
        };
        let stand_still = async {
            let _ = tokio::time::timeout(EXEC_GRACE, self.none_starting()).await;
            if !matches!(self.state(), State::Pausing { .. }) {
                return Ok(false);
            }
            self.table().frozen = true;
            self.cgroup.begin_freeze()?;
            Ok(self.cgroup.frozen(PATIENCE).await?)
        };
        tokio::select! {
            biased;
            other = left => Ok(other),
            frozen = stand_still => frozen,
        }
    }

    /// Waits until no exec is between its reservation and its arrival.
    async fn none_starting(&self) {
        loop {
            let arrival = self.arrivals.notified();
            tokio::pin!(arrival);
            arrival.as_mut().enable();
            if self.table().starting.is_empty() {
                return;
            }
            arrival.await;
        }
    }

    /// Lets the processes of a paused container run again.
    ///
    /// # Errors
    /// [`StateError::NotPaused`](super::state::StateError::NotPaused), or
    /// [`ContainerError::Cgroup`]; it stays paused then.
    pub fn resume(&self) -> Result<(), ContainerError> {
        let mut table = self.table();
        let next = table.state.after(Event::Resume);
        let next = next.map_err(|e| self.state_error(e))?;
        // One write that waits for nobody.
        self.cgroup.thaw()?;
        table.frozen = false;
        self.enter(&mut table, next);
        Ok(())
    }

    /// Thaws what a pause has frozen, whatever the state: for those who kill,
    /// and for the end of a pause that has lost its purpose.
    pub(super) fn thaw_if_frozen(&self) {
        if !std::mem::take(&mut self.table().frozen) {
            return;
        }
        if let Err(error) = self.cgroup.thaw() {
            log::warn!(
                "Container {}: {}",
                self.id,
                crate::rpc::status::chain(&error)
            );
        }
    }
}

/// Takes a pause back unless it is forgotten.
struct Undo<'a>(&'a Container);

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        self.0.thaw_if_frozen();
        // Refused if the container is stopped or removed by now: then that stays.
        let _ = self.0.advance(Event::PauseFailed);
    }
}
