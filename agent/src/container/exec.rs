// SPDX-License-Identifier: Apache-2.0
//! ExecProcess below the door: one more process in an existing container.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::plan::{ChildPlan, ExecId, Namespace, ProcessPlan};
use super::spawn::{Request, Spawned, spawn};
use super::state::{State, StateError};
use super::{Container, ContainerError, Engine, key_of};
use crate::cgroup::Join;

impl Container {
    /// Starts a process in the container and adds it to its table. A container
    /// that is paused, stopped or removed meanwhile is an answer at once: what
    /// has been frozen half-way is sent SIGKILL (and dies, with cgroup v1, when
    /// the container goes on).
    ///
    /// # Errors
    /// [`ContainerError::ExecExists`] or [`ContainerError::State`] before
    /// anything was done; else whatever kept the process from running.
    pub async fn exec(
        &self,
        engine: &Engine,
        id: &ExecId,
        mut process: ProcessPlan,
    ) -> Result<(), ContainerError> {
        process.capabilities = process.capabilities.or(Some(self.capabilities));
        self.given.pci.rewrite(&mut process.env);
        let _place = self.reserve(id)?;
        let spawned = tokio::select! {
            biased;
            spawned = self.spawn_exec(engine, process) => spawned,
            refusal = self.refuses_execs() => Err(self.state_error(refusal)),
        };
        let process = spawned.map_err(|error| self.rather(error))?.process;
        let mut table = self.table();
        match table.state {
            // What is complete when a pause comes is frozen like the rest.
            State::Pausing { .. } | State::Paused { .. } => {}
            state => {
                if let Err(gone) = state.exec(!self.owns_pids) {
                    drop(table);
                    // RemoveContainer came meanwhile and has not seen this one.
                    let _ = process.signal(libc::SIGKILL);
                    return Err(self.state_error(gone));
                }
            }
        }
        table.processes.insert(key_of(id), process);
        Ok(())
    }

    /// Ends when nothing more can be added to the container. While it is being
    /// paused, what is under way may still arrive.
    async fn refuses_execs(&self) -> StateError {
        let refused = |state: &State| match state {
            State::Pausing { .. } => None,
            state => state.exec(!self.owns_pids).err(),
        };
        let mut states = self.states.subscribe();
        let state = states.wait_for(|state| refused(state).is_some()).await;
        // The sender is in `self`: there is a state.
        let state = state.map_or(State::Removing, |state| *state);
        refused(&state).unwrap_or(StateError::Is(state))
    }

    /// The state as the reason of a failure, where it is: a pid namespace whose
    /// first process is exiting takes its others along, and nobody in.
    fn rather(&self, error: ContainerError) -> ContainerError {
        let ends = self.owns_pids && self.init.is_dying();
        match self.state().exec(!self.owns_pids) {
            Err(state) => self.state_error(state),
            Ok(()) if ends && matches!(error, ContainerError::Spawn(_)) => {
                let started = true;
                self.state_error(StateError::Is(State::Stopped { started }))
            }
            Ok(()) => error,
        }
    }

    async fn spawn_exec(
        &self,
        engine: &Engine,
        process: ProcessPlan,
    ) -> Result<Spawned, ContainerError> {
        let cgroup = self.cgroup.join()?;
        let namespaces = self.namespaces();
        let ordered = namespaces
            .iter()
            .filter(|(kind, _)| *kind != Namespace::Pid);
        let (kinds, joins) = ordered.map(|(kind, fd)| (*kind, fd.as_fd())).unzip();
        let pid_namespace = namespaces.iter().find(|(kind, _)| *kind == Namespace::Pid);
        let request = Request {
            plan: ChildPlan {
                init: None,
                joins: kinds,
                unshare: 0,
                new_user_namespace: false,
                cgroup_files: if let Join::V1(files) = &cgroup {
                    files.len() as u32
                } else {
                    0
                },
                seccomp: self.seccomp.clone(),
                process,
            },
            clone_flags: 0,
            pid_namespace: pid_namespace.map(|(_, fd)| fd.as_fd()),
            joins,
            cgroup,
            maps: None,
            hooks: None,
        };
        Ok(spawn(engine, request).await?)
    }

    /// Keeps an exec id for a process that is being started.
    fn reserve(&self, id: &ExecId) -> Result<Reservation<'_>, ContainerError> {
        let mut table = self.table();
        let admitted = table.state.exec(!self.owns_pids);
        admitted.map_err(|e| self.state_error(e))?;
        // The container's own id means its first process, also after that has gone.
        let taken = id.as_str() == self.id.as_str() || table.processes.contains_key(id.as_str());
        if taken || !table.starting.insert(key_of(id)) {
            return Err(ContainerError::ExecExists(key_of(id)));
        }
        Ok(Reservation {
            container: self,
            id: key_of(id),
        })
    }
}

struct Reservation<'a> {
    container: &'a Container,
    id: String,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.container.table().starting.remove(&self.id);
        self.container.arrivals.notify_waiters();
    }
}

/// A container is used by several tasks at once.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Arc<Container>>();
};
