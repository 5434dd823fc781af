// SPDX-License-Identifier: Apache-2.0
//! Mounts that a new container takes over from another one (protocol 4.10).
//! Owns the checks, the waiting for a mount that is not there yet, and the
//! order to a helper process; never changes the agent's own namespaces.

use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::time::Duration;

use protocols::agent::SharedMount;
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::plan::{Namespace, PlanError, id::shorten};
use super::process::open_pidfd;
use super::spawn::{self, Unfinished};
use super::{Container, ContainerError, Engine};
use crate::launch::message::{ShareEnd, ShareOrder, Task};
use crate::launch::{Launch, LaunchError};
use crate::pool::at_host_pace;
use crate::watch::watch_for;

/// How long a mount may take to appear in its container.
const APPEARANCE: Duration = Duration::from_secs(10);

/// How long the taking over may take: the target may lie on a host's file system.
const PATIENCE: Duration = Duration::from_secs(30);

/// A container that mounts and unmounts all the time has its table read this
/// often at most.
const PAUSE: Duration = Duration::from_millis(20);

/// Mounts that one container may take over.
const MOST: usize = 256;

/// Bytes of a table of mounts that are read.
const TABLE: u64 = 16 << 20;

/// One mount to take over, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharePlan {
    /// Name (or id) of the container that has it.
    pub container: String,
    /// Where it is there.
    pub source: String,
    /// Where it is to be.
    pub target: String,
}

/// Why a mount could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// No such container.
    #[error("Shared mount '{path}': no container is named '{container}'")]
    Unknown {
        /// The mount's place in the source.
        path: String,
        /// The name.
        container: String,
    },
    /// It did not come in time.
    #[error("Shared mount '{path}' did not appear in container '{container}': {reason}")]
    Absent {
        /// The mount's place in the source.
        path: String,
        /// The container.
        container: String,
        /// What was waited for.
        reason: &'static str,
    },
    /// A container without a mount namespace.
    #[error("Shared mount '{0}': a container shares the guest's mounts")]
    NoNamespace(String),
    /// The helper's own words.
    #[error("Shared mount '{path}' could not be taken over: {reason}")]
    Refused {
        /// The mount's place in the source.
        path: String,
        /// The step and its error.
        reason: String,
    },
    /// No helper came to be.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// Sockets, files of `/proc`, a helper that is gone.
    #[error("Shared mount '{path}' could not be looked after")]
    Lost {
        /// The mount's place in the source.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ShareError {
    /// Whether the request is to blame.
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Unknown { .. } | Self::NoNamespace(_))
    }
}

/// Checks the shared mounts of a request.
///
/// # Errors
/// [`PlanError::Invalid`].
pub fn plan_all(wire: &[SharedMount]) -> Result<Vec<SharePlan>, PlanError> {
    if wire.len() > MOST {
        let number = wire.len().to_string();
        return Err(PlanError::invalid("shared_mounts", number, "too many"));
    }
    let plan = |mount: &SharedMount| {
        if mount.src_ctr.is_empty() || mount.src_ctr.len() > 1024 {
            let name = shorten(&mount.src_ctr);
            return Err(PlanError::invalid(
                "src_ctr",
                name,
                "not a container's name",
            ));
        }
        Ok(SharePlan {
            container: mount.src_ctr.clone(),
            source: path("src_path", &mount.src_path)?,
            target: path("dst_path", &mount.dst_path)?,
        })
    };
    wire.iter().map(plan).collect()
}

/// Absolute, below the root, without `..`, made plain.
fn path(field: &'static str, text: &str) -> Result<String, PlanError> {
    let refuse = |reason| Err(PlanError::invalid(field, shorten(text), reason));
    if !text.starts_with('/') || text.len() > 4095 || text.contains('\0') {
        return refuse("not an absolute path");
    }
    let names = text.split('/').filter(|name| !matches!(*name, "" | "."));
    if names.clone().any(|name| name == "..") {
        return refuse("it has a .. component");
    }
    let plain: String = names.flat_map(|name| ["/", name]).collect();
    if plain.is_empty() {
        return refuse("it is the root");
    }
    Ok(plain)
}

impl SharePlan {
    /// Waits until the mount is there, by the kernel's word.
    ///
    /// # Errors
    /// [`ShareError::Absent`] after ten seconds or with the end of the source.
    pub async fn appear(&self, source: &Container) -> Result<(), ShareError> {
        let absent = |reason| ShareError::Absent {
            path: self.source.clone(),
            container: self.container.clone(),
            reason,
        };
        tokio::select! {
            seen = self.watch(source) => seen.map_err(|error| self.lost(error)),
            _ = source.init.wait() => Err(absent("the container has ended")),
            () = tokio::time::sleep(APPEARANCE) => Err(absent("waited for 10 s")),
        }
    }

    async fn watch(&self, source: &Container) -> io::Result<()> {
        let table = std::fs::File::open(format!("/proc/{}/mountinfo", source.init.pid()))?;
        // Reaped before it was opened, its pid may have been another process's.
        if !source.init.is_alive() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let changes = watch_for(OwnedFd::from(table.try_clone()?), Interest::PRIORITY)?;
        let table = Arc::new(table);
        loop {
            let (table, path) = (table.clone(), self.source.clone());
            // It may be long: a container can make many mounts.
            let found = at_host_pace(move || has_mount(&table, &path)).await;
            if found.map_err(io::Error::other)?? {
                return Ok(());
            }
            changes.ready(Interest::PRIORITY).await?.clear_ready();
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Takes the mount over, into a container that was not started yet.
    ///
    /// # Errors
    /// [`ShareError`].
    pub async fn take(
        &self,
        engine: &Engine,
        from: &Container,
        to: &Container,
    ) -> Result<(), ShareError> {
        let namespaces = [self.mounts_of(from)?, self.mounts_of(to)?];
        let lost = |error| self.lost(error);
        let (ours, theirs) = StdStream::pair().map_err(lost)?;
        ours.set_nonblocking(true).map_err(lost)?;
        let control = UnixStream::from_std(ours).map_err(lost)?;
        let expectation = engine.children.expect();
        let launch = Launch {
            task: Task::Share,
            namespaces: 0,
            control: theirs.as_fd(),
            pid_namespace: None,
            cgroup: None,
        };
        let pid = engine.launcher.launch(&launch).await?;
        let _helper = expectation.claim(pid);
        drop(theirs);
        // Stuck or no longer wanted, it is killed.
        let _unfinished = Unfinished::new(open_pidfd(pid).map_err(lost)?);
        let end = tokio::time::timeout(PATIENCE, self.order(&control, &namespaces)).await;
        let end = end.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match end.map_err(lost)?.failure {
            None => Ok(()),
            Some(reason) => Err(ShareError::Refused {
                path: self.source.clone(),
                reason,
            }),
        }
    }

    fn mounts_of(&self, container: &Container) -> Result<Arc<OwnedFd>, ShareError> {
        let mut all = container.namespaces().into_iter();
        let found = all.find(|(kind, _)| *kind == Namespace::Mount);
        let found = found.map(|(_, fd)| fd);
        found.ok_or_else(|| ShareError::NoNamespace(self.source.clone()))
    }

    /// Has the helper do it, and hears how that went.
    async fn order(
        &self,
        control: &UnixStream,
        [from, to]: &[Arc<OwnedFd>; 2],
    ) -> io::Result<ShareEnd> {
        let order = ShareOrder {
            source: self.source.clone(),
            target: self.target.clone(),
        };
        spawn::send_frame(control, &order, &[from.as_fd(), to.as_fd()]).await?;
        let end = spawn::Reports::new(control).next::<ShareEnd>().await?;
        end.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn lost(&self, source: io::Error) -> ShareError {
        ShareError::Lost {
            path: self.source.clone(),
            source,
        }
    }
}

/// Whether a table of mounts (proc_pid_mountinfo(5)) has a mount point. Blocking.
fn has_mount(mut table: &std::fs::File, path: &str) -> io::Result<bool> {
    table.rewind()?;
    let mut text = Vec::new();
    table.take(TABLE).read_to_end(&mut text)?;
    Ok(names(&text, path))
}

fn names(table: &[u8], path: &str) -> bool {
    let mut lines = table.split(|&byte| byte == b'\n');
    lines.any(|line| {
        let point = line.split(|&byte| byte == b' ').nth(4);
        point.is_some_and(|point| crate::storage::unescape(point).as_os_str() == path)
    })
}

impl From<ShareError> for ContainerError {
    fn from(error: ShareError) -> Self {
        Self::Share(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_plain() {
        assert_eq!(path("src_path", "/a//b/./c..d/").unwrap(), "/a/b/c..d");
        for bad in [
            "",
            "a",
            "/",
            "/.",
            "/a/../b",
            "/..",
            "/a\0",
            &"/a".repeat(3000),
        ] {
            assert!(path("src_path", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn requests_are_bounded() {
        let mount = SharedMount {
            src_ctr: "c1".into(),
            src_path: "/a".into(),
            dst_path: "/b".into(),
            ..SharedMount::default()
        };
        assert_eq!(
            plan_all(std::slice::from_ref(&mount)).unwrap()[0].target,
            "/b"
        );
        assert!(plan_all(&vec![mount.clone(); MOST + 1]).is_err());
        let nobody = SharedMount {
            src_ctr: String::new(),
            ..mount
        };
        assert!(plan_all(&[nobody]).is_err());
    }

    #[test]
    fn mount_points_are_compared_whole() {
        let table = b"22 1 0:20 / /run/a\\040b rw - tmpfs tmpfs rw\nbroken\n";
        assert!(names(table, "/run/a b"));
        assert!(!names(table, "/run/a"));
        assert!(!names(table, "/run"));
    }
}
