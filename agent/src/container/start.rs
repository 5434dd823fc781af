// SPDX-License-Identifier: Apache-2.0
//! StartContainer below the door: the word to go on. Without hooks nothing is
//! waited for; with hooks until they have run.

use tokio::net::UnixStream;

use super::hooks::Point;
use super::plan::ContainerId;
use super::spawn::{self, Reports};
use super::state::{Event, StateError};
use super::{Container, ContainerError, Engine};
use crate::launch::message::Report;

/// The step that is reported when the program itself cannot be executed.
const EXECUTION: &str = "exec";

impl Container {
    /// Lets the first process execute its program. With startContainer or
    /// poststart hooks it returns when they have ended; it is to be run to its
    /// end.
    ///
    /// # Errors
    /// [`StateError`]; [`ContainerError::Start`] when a startContainer hook
    /// fails, which ends the first process.
    pub async fn start(&self, engine: &Engine) -> Result<(), ContainerError> {
        let gate = {
            let mut table = self.table();
            let next = table.state.after(Event::Start);
            let next = next.map_err(|e| self.state_error(e))?;
            let gate = table
                .gate
                .take()
                .ok_or_else(|| self.state_error(StateError::AlreadyStarted))?;
            spawn::go(&gate).map_err(|_| self.state_error(StateError::Dead))?;
            self.enter(&mut table, next);
            gate
        };
        if !self.starts_hooks && !self.hooks.any(Point::Started) {
            tokio::spawn(log_execution(self.id.clone(), gate));
            return Ok(());
        }
        if let Some(reason) = executed(&self.id, &gate).await {
            let id = self.id.clone();
            return Err(ContainerError::Start { id, reason });
        }
        let pid = self.init.is_alive().then(|| self.init.pid().as_raw());
        self.hooks.run_all(engine, Point::Started, pid).await;
        Ok(())
    }
}

async fn log_execution(id: ContainerId, gate: UnixStream) {
    if let Some(reason) = executed(&id, &gate).await {
        log::warn!("Container {id}: {reason}");
    }
}

/// Follows the first process until its program runs or it has ended; the step
/// before that which failed, if one did.
async fn executed(id: &ContainerId, gate: &UnixStream) -> Option<String> {
    let mut reports = Reports::new(gate);
    loop {
        match reports.next().await {
            Ok(Some(Report::HookSaid { hook, output })) => {
                log::debug!("Container {id}: hook '{hook}': {output}");
            }
            // The exit status says so to the host, this to whoever reads the log.
            Ok(Some(Report::Failed { step, error, .. })) if step == EXECUTION => {
                log::warn!("Container {id}: {step}: {error}");
                return None;
            }
            Ok(Some(Report::Failed { step, error, .. })) => {
                return Some(format!("{step}: {error}"));
            }
            _ => return None,
        }
    }
}
