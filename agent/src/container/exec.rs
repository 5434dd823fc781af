// SPDX-License-Identifier: Apache-2.0
//! ExecProcess below the door: one more process in an existing container.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::plan::{ChildPlan, ExecId, Namespace, ProcessPlan};
use super::spawn::{Request, spawn};
use super::{Container, ContainerError, Engine, key_of};
use crate::cgroup::Join;

impl Container {
    /// Starts a process in the container and adds it to its table.
    ///
    /// # Errors
    /// [`ContainerError::ExecExists`] before anything was done; else whatever
    /// kept the process from running.
    pub async fn exec(
        &self,
        engine: &Engine,
        id: &ExecId,
        mut process: ProcessPlan,
    ) -> Result<(), ContainerError> {
        process.capabilities = process.capabilities.or(Some(self.capabilities));
        let _place = self.reserve(id)?;
        let cgroup = self.cgroup.join()?;
        let ordered = self
            .namespaces
            .iter()
            .filter(|(kind, _)| *kind != Namespace::Pid);
        let (kinds, joins) = ordered.map(|(kind, fd)| (*kind, fd.as_fd())).unzip();
        let pid_namespace = self
            .namespaces
            .iter()
            .find(|(kind, _)| *kind == Namespace::Pid);
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
        };
        let spawned = spawn(engine, request).await?;
        let mut table = self.table();
        if let Err(gone) = table.state.exec() {
            drop(table);
            // RemoveContainer came meanwhile and has not seen this one.
            let _ = spawned.process.signal(libc::SIGKILL);
            return Err(self.state_error(gone));
        }
        table.processes.insert(key_of(id), spawned.process);
        Ok(())
    }

    /// Keeps an exec id for a process that is being started.
    fn reserve(&self, id: &ExecId) -> Result<Reservation<'_>, ContainerError> {
        let mut table = self.table();
        table.state.exec().map_err(|e| self.state_error(e))?;
        if table.processes.contains_key(id.as_str()) || !table.starting.insert(key_of(id)) {
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
    }
}

/// A container is used by several tasks at once.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Arc<Container>>();
};
