// SPDX-License-Identifier: Apache-2.0
//! The hooks that run in the guest (prestart, createRuntime, poststart and
//! poststop), and the guest's own hooks beside those of a container.
//!
//! Each hook runs under a process of its own, cloned by the launcher; here it
//! is only waited for, on the event loop. See `child::hooks` for the running.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;

use super::plan::{ContainerId, Hook, Hooks};
use super::{Engine, json, spawn};
use crate::launch::message::{HookEnd, HookOrder, Task};
use crate::launch::{Launch, LaunchError};

/// How long a hook of the guest may take, in seconds.
const GUEST_TIMEOUT: u32 = 10;

/// How much longer than its hook the process that runs it may take.
const GRACE: Duration = Duration::from_secs(5);

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// A hook that cannot be run from anywhere.
    #[error("Path of {kind} hook '{path}' must be absolute")]
    Path {
        /// The OCI name of its kind.
        kind: &'static str,
        /// What was sent.
        path: String,
    },
    /// The process for it could not be had.
    #[error("Hook '{path}' could not be started")]
    Launch {
        /// The program.
        path: String,
        /// Why not.
        #[source]
        source: LaunchError,
    },
    /// The conversation with that process broke off.
    #[error("Hook '{path}' was lost")]
    Lost {
        /// The program.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ran, and failed.
    #[error("Hook '{path}' {reason}")]
    Failed {
        /// The program.
        path: String,
        /// How, with the beginning of its output.
        reason: String,
    },
}

/// Refuses hooks that cannot be run, before anything is done.
///
/// # Errors
/// [`HookError::Path`].
pub fn check(hooks: &Hooks) -> Result<(), HookError> {
    let kinds = [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
        ("createContainer", &hooks.create_container),
        ("startContainer", &hooks.start_container),
        ("poststart", &hooks.poststart),
        ("poststop", &hooks.poststop),
    ];
    for (kind, hooks) in kinds {
        if let Some(hook) = hooks.iter().find(|hook| !hook.path.starts_with('/')) {
            return Err(HookError::Path {
                kind,
                path: super::plan::id::shorten(&hook.path),
            });
        }
    }
    Ok(())
}

/// A point in a container's life at which hooks run in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The namespaces are there, the root is not changed yet.
    Creation,
    /// The program was started.
    Started,
    /// The container is gone.
    Stopped,
}

impl Point {
    /// As the OCI state calls it.
    fn status(self) -> &'static str {
        match self {
            Self::Creation => "creating",
            Self::Started => "running",
            Self::Stopped => "stopped",
        }
    }

    fn of(self, hooks: &Hooks) -> [&[Hook]; 2] {
        match self {
            Self::Creation => [&hooks.prestart, &hooks.create_runtime],
            Self::Started => [&hooks.poststart, &[]],
            Self::Stopped => [&hooks.poststop, &[]],
        }
    }
}

/// A container's hooks for the guest, with what they are told.
pub struct ContainerHooks {
    id: ContainerId,
    own: Hooks,
    guest: Arc<Hooks>,
    members: String,
}

impl ContainerHooks {
    /// `members`: see [`json::members`].
    #[must_use]
    pub fn new(id: ContainerId, own: Hooks, guest: Arc<Hooks>, members: String) -> Self {
        Self {
            id,
            own,
            guest,
            members,
        }
    }

    /// True if something runs in the guest at that point.
    #[must_use]
    pub fn any(&self, point: Point) -> bool {
        let lists = [point.of(&self.own), point.of(&self.guest)];
        lists.iter().flatten().any(|list| !list.is_empty())
    }

    /// Runs what there is for a point: the container's own hooks up to the first
    /// that fails, then the guest's, whose failures are only logged.
    ///
    /// # Errors
    /// Of the container's own hook that failed.
    pub async fn run(
        &self,
        engine: &Engine,
        point: Point,
        pid: Option<i32>,
    ) -> Result<(), HookError> {
        if !self.any(point) {
            return Ok(());
        }
        let state = json::state(&self.members, point.status(), pid);
        for hook in point.of(&self.own).into_iter().flatten() {
            self.run_one(engine, hook, &state).await?;
        }
        for hook in point.of(&self.guest).into_iter().flatten() {
            if let Err(error) = self.run_one(engine, hook, &state).await {
                self.complain(&error);
            }
        }
        Ok(())
    }

    /// The same where no failure counts: all of them run.
    pub async fn run_all(&self, engine: &Engine, point: Point, pid: Option<i32>) {
        if !self.any(point) {
            return;
        }
        let state = json::state(&self.members, point.status(), pid);
        let own = point.of(&self.own).into_iter().flatten();
        for hook in own.chain(point.of(&self.guest).into_iter().flatten()) {
            if let Err(error) = self.run_one(engine, hook, &state).await {
                self.complain(&error);
            }
        }
    }

    fn complain(&self, error: &HookError) {
        log::warn!(
            "Container {}: {}",
            self.id,
            crate::rpc::status::chain(error)
        );
    }

    async fn run_one(&self, engine: &Engine, hook: &Hook, state: &str) -> Result<(), HookError> {
        let order = HookOrder {
            hook: hook.clone(),
            state: state.to_owned(),
        };
        let output = run(engine, order).await?;
        if !output.is_empty() {
            log::debug!("Container {}: hook '{}': {output}", self.id, hook.path);
        }
        Ok(())
    }
}

/// Runs one hook and gives the beginning of its output.
async fn run(engine: &Engine, order: HookOrder) -> Result<String, HookError> {
    let path = order.hook.path.clone();
    let lost = |source| HookError::Lost {
        path: path.clone(),
        source,
    };
    let (ours, theirs) = StdStream::pair().map_err(lost)?;
    ours.set_nonblocking(true).map_err(lost)?;
    let control = UnixStream::from_std(ours).map_err(lost)?;
    let expectation = engine.children.expect();
    let launch = Launch {
        task: Task::Hook,
        namespaces: 0,
        control: theirs.as_fd(),
        pid_namespace: None,
        cgroup: None,
    };
    let launched = engine.launcher.launch(&launch).await;
    let pid = launched.map_err(|source| HookError::Launch {
        path: path.clone(),
        source,
    })?;
    // The hook's keeper ends by itself; that it was reaped is all we need of it.
    let _keeper = expectation.claim(pid);
    drop(theirs);
    spawn::send_frame(&control, &order, &[])
        .await
        .map_err(lost)?;
    // The keeper watches the time; unless it is stuck itself, in the kernel.
    let patience = Duration::from_secs(order.hook.timeout.into()).saturating_add(GRACE);
    let mut reports = spawn::Reports::new(&control);
    let end = tokio::time::timeout(patience, reports.next::<HookEnd>())
        .await
        .map_err(|_| lost(io::ErrorKind::TimedOut.into()))?
        .map_err(lost)?
        .ok_or_else(|| lost(io::ErrorKind::UnexpectedEof.into()))?;
    match end.failure {
        None => Ok(end.output),
        Some(failure) => Err(HookError::Failed {
            path,
            reason: failure + &super::child::hooks::quoted(&end.output),
        }),
    }
}

/// The guest's own hooks: executable files in `prestart`, `poststart` and
/// `poststop` below a directory of the guest, by name. Blocking.
///
/// # Errors
/// When the directory itself cannot be read.
pub fn scan(directory: &Path) -> io::Result<Hooks> {
    directory.read_dir().map(drop)?;
    Ok(Hooks {
        prestart: scan_kind(directory, "prestart"),
        poststart: scan_kind(directory, "poststart"),
        poststop: scan_kind(directory, "poststop"),
        ..Hooks::default()
    })
}

fn scan_kind(directory: &Path, kind: &str) -> Vec<Hook> {
    let directory = directory.join(kind);
    let entries = match directory.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            log::warn!("Guest hooks in '{}': {error}", directory.display());
            return Vec::new();
        }
    };
    let mut names: Vec<String> = entries
        .flatten()
        // Of the entry itself: a link is none.
        .filter(|entry| {
            entry
                .metadata()
                .is_ok_and(|m| m.is_file() && executable(&m))
        })
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    let hook = |name: String| Hook {
        path: directory.join(&name).to_string_lossy().into_owned(),
        args: vec![name, kind.to_owned()],
        env: Vec::new(),
        timeout: GUEST_TIMEOUT,
    };
    names.into_iter().map(hook).collect()
}

fn executable(meta: &std::fs::Metadata) -> bool {
    meta.permissions().mode() & 0o111 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_hooks_are_executable_files_by_name() {
        let base = tempfile::tempdir().unwrap();
        let place = base.path().join("prestart");
        std::fs::create_dir(&place).unwrap();
        for (name, mode) in [("20-b", 0o755), ("10-a", 0o100), ("data", 0o644)] {
            std::fs::write(place.join(name), "").unwrap();
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(place.join(name), permissions).unwrap();
        }
        std::fs::create_dir(place.join("directory")).unwrap();
        std::os::unix::fs::symlink("20-b", place.join("link")).unwrap();
        let hooks = scan(base.path()).unwrap();
        let names: Vec<_> = hooks
            .prestart
            .iter()
            .map(|hook| hook.args.clone())
            .collect();
        assert_eq!(names, [["10-a", "prestart"], ["20-b", "prestart"]]);
        assert!(hooks.prestart[0].path.ends_with("/prestart/10-a"));
        assert!(hooks.poststart.is_empty());
        assert!(scan(&base.path().join("missing")).is_err());
    }

    #[test]
    fn a_relative_path_is_refused() {
        let hook = |path: &str| Hook {
            path: path.to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            timeout: 1,
        };
        let hooks = |path| Hooks {
            poststop: vec![hook(path)],
            ..Hooks::default()
        };
        assert!(check(&hooks("/bin/true")).is_ok());
        for path in ["", "true", "./true"] {
            assert!(check(&hooks(path)).is_err(), "{path:?}");
        }
    }
}
