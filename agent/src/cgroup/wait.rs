// SPDX-License-Identifier: Apache-2.0
//! Waiting for a group on the event loop: until nothing runs in it, until
//! everything in it stands still. However long that takes, and for however many
//! groups at a time, no thread waits. Writes to no control file but the v1
//! freezer's list when a killed process is let go.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::hierarchy::errno;
use super::{Cgroup, CgroupError, Layout};

/// How long to wait between two looks at what sends no event (the v1 freezer):
/// at first, and at most.
const SOON: Duration = Duration::from_millis(1);
const SELDOM: Duration = Duration::from_millis(32);

impl Cgroup {
    /// Waits until nothing runs in the group and below it; `false` when that
    /// takes longer than `patience`.
    ///
    /// # Errors
    /// [`CgroupError::Step`] when the kernel's report cannot be read.
    pub async fn emptied(&self, patience: Duration) -> Result<bool, CgroupError> {
        let empty = async {
            match &self.cgroups.0.layout {
                Layout::V1(_) => self.all_exited().await,
                Layout::V2(_) => self.event("populated 0").await,
                Layout::None => Ok(()),
            }
        };
        self.within(patience, empty, "wait").await
    }

    /// Asks for every process in the group to be stopped where it is; does not
    /// wait, see [`Self::frozen`].
    ///
    /// # Errors
    /// [`CgroupError::Step`], with `EOPNOTSUPP` when there is no freezer.
    pub fn begin_freeze(&self) -> Result<(), CgroupError> {
        match &self.cgroups.0.layout {
            Layout::V1(split) => split.freeze(self.path()),
            Layout::V2(unified) => unified.freeze(self.path()),
            Layout::None => Err(Errno::EOPNOTSUPP),
        }
        .map_err(|e| self.failed("freeze", e))
    }

    /// Waits until everything in the group stands still; `false` when that
    /// takes longer than `patience`.
    ///
    /// # Errors
    /// [`CgroupError::Step`] when the kernel's report cannot be read.
    pub async fn frozen(&self, patience: Duration) -> Result<bool, CgroupError> {
        let frozen = async {
            match &self.cgroups.0.layout {
                Layout::V1(_) => self.v1_frozen().await,
                Layout::V2(_) => self.event("frozen 1").await,
                Layout::None => Err(Errno::EOPNOTSUPP),
            }
        };
        self.within(patience, frozen, "freeze").await
    }

    /// Lets a process that was sent SIGKILL die although its group is frozen.
    /// Version 2 does that by itself; with version 1 the process leaves the
    /// freezer's group, and that one only.
    ///
    /// # Errors
    /// [`CgroupError::Step`]; a process that is gone is none.
    pub fn release_killed(&self, pid: Pid) -> Result<(), CgroupError> {
        let Layout::V1(split) = &self.cgroups.0.layout else {
            return Ok(());
        };
        match split.leave_freezer(pid) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(source) => Err(self.failed("thaw", source)),
        }
    }

    async fn within(
        &self,
        patience: Duration,
        wait: impl Future<Output = nix::Result<()>>,
        step: &'static str,
    ) -> Result<bool, CgroupError> {
        match tokio::time::timeout(patience, wait).await {
            Ok(done) => done.map(|()| true).map_err(|e| self.failed(step, e)),
            Err(_) => Ok(false),
        }
    }

    /// Waits until `cgroup.events` says `wanted`. A group that is gone counts
    /// as said.
    async fn event(&self, wanted: &str) -> nix::Result<()> {
        let Layout::V2(unified) = &self.cgroups.0.layout else {
            return Ok(());
        };
        let events = unified
            .hierarchy
            .open_at(self.path(), "cgroup.events", OFlag::O_RDONLY);
        let events = match events {
            Err(Errno::ENOENT) => return Ok(()),
            other => File::from(other?),
        };
        if says(&events, wanted)? {
            return Ok(());
        }
        // The kernel reports a change of the file as an exceptional condition.
        let watched = events.try_clone().map_err(errno)?;
        let watched = crate::watch::watch_for(OwnedFd::from(watched), Interest::PRIORITY);
        let watched: AsyncFd<OwnedFd> = watched.map_err(errno)?;
        while !says(&events, wanted)? {
            let ready = watched.ready(Interest::PRIORITY).await;
            ready.map_err(errno)?.clear_ready();
        }
        Ok(())
    }

    /// There is no event for an empty group in v1, but there is one for the
    /// end of each process in it.
    async fn all_exited(&self) -> nix::Result<()> {
        loop {
            // On the blocking pool: a container may have made any number of groups.
            let (cgroups, path) = (self.cgroups.clone(), self.path.clone());
            let list = move || match cgroups.main_hierarchy() {
                Some(hierarchy) => hierarchy.pids(path.as_str()),
                None => Ok(Vec::new()),
            };
            let listed = tokio::task::spawn_blocking(list).await;
            let pids = listed.map_err(|_| Errno::ECANCELED)??;
            if pids.is_empty() {
                return Ok(());
            }
            for pid in pids {
                exited(pid).await?;
            }
        }
    }

    /// The v1 freezer sends no event: what it says is read until it is true.
    async fn v1_frozen(&self) -> nix::Result<()> {
        let Layout::V1(split) = &self.cgroups.0.layout else {
            return Ok(());
        };
        let mut pause = SOON;
        while !split.is_frozen(self.path())? {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(SELDOM);
        }
        Ok(())
    }
}

fn says(events: &File, wanted: &str) -> nix::Result<bool> {
    let mut buffer = [0u8; 256];
    let read = match events.read_at(&mut buffer, 0).map_err(errno) {
        Err(Errno::ENODEV) => return Ok(true),
        other => other?,
    };
    let mut lines = buffer[..read].split(|&b| b == b'\n');
    Ok(lines.any(|line| line == wanted.as_bytes()))
}

/// Waits for the end of one process.
async fn exited(pid: Pid) -> nix::Result<()> {
    let Some(pid) = rustix::process::Pid::from_raw(pid.as_raw()) else {
        return Ok(());
    };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        other => other.map_err(|e| Errno::from_raw(e.raw_os_error()))?,
    };
    let watched = crate::watch::watch_for(pidfd, Interest::READABLE).map_err(errno)?;
    watched.readable().await.map_err(errno).map(drop)
}
