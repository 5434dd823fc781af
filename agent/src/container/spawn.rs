// SPDX-License-Identifier: Apache-2.0
//! Starting one process of a container: clone by the launcher, plan and
//! descriptors over the control socket, and the child's report.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::Engine;
use super::hooks::{ContainerHooks, HookError, Point};
use super::plan::{ChildPlan, IdMap};
use super::process::{Process, open_pidfd};
use crate::cgroup::Join;
use crate::launch::message::{self, GO, Report, Task};
use crate::launch::{Launch, LaunchError};
use crate::stdio::{Pipes, Stdio};

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Descriptors, pipes, sockets.
    #[error("Process could not be prepared ({0})")]
    Prepare(&'static str, #[source] io::Error),
    /// No child came to be.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A step of the child failed.
    #[error("{step}: {error}")]
    Step {
        /// Its name in `container::child::STEPS`.
        step: String,
        /// The object and the kernel's answer.
        error: String,
        /// The request brought it about.
        bad_request: bool,
    },
    /// A hook that belongs to the creation.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The child went away without a word: killed, most likely by the OOM killer.
    #[error("Process died before it was ready")]
    Died,
}

/// One process to start.
pub struct Request<'a> {
    /// What the child does.
    pub plan: ChildPlan,
    /// `CLONE_NEW*` bits for the clone itself.
    pub clone_flags: u64,
    /// Pid namespace to be born in.
    pub pid_namespace: Option<BorrowedFd<'a>>,
    /// For the plan's joins, in their order.
    pub joins: Vec<BorrowedFd<'a>>,
    /// The container's cgroup.
    pub cgroup: Join,
    /// For a new user namespace.
    pub maps: Option<(&'a [IdMap], &'a [IdMap])>,
    /// To be run when the child asks for it.
    pub hooks: Option<&'a ContainerHooks>,
}

/// A process that is ready (a container's first one) or already runs (an exec).
pub struct Spawned {
    /// The process.
    pub process: Arc<Process>,
    /// The gate of StartContainer; closed by the child's execution.
    pub control: UnixStream,
}

/// Starts a process and waits until it is ready. May be given up at any await:
/// the child is dead or dying then, as after an error.
///
/// # Errors
/// [`SpawnError`]; the child is dead or dying then.
pub async fn spawn(engine: &Engine, request: Request<'_>) -> Result<Spawned, SpawnError> {
    let prepare = |what| move |error: io::Error| SpawnError::Prepare(what, error);
    let terminal = request.plan.process.terminal;
    let passed = engine.arrivals.take(request.plan.process.ports).await;
    let pipes = if terminal {
        None
    } else {
        Some(Pipes::new(engine.pipe_size).map_err(prepare("pipes"))?)
    };
    let (ours, theirs) = StdStream::pair().map_err(prepare("control socket"))?;
    ours.set_nonblocking(true)
        .map_err(prepare("control socket"))?;
    let control = UnixStream::from_std(ours).map_err(prepare("control socket"))?;

    let expectation = engine.children.expect();
    let into = match &request.cgroup {
        Join::V2(directory) => Some(directory.as_fd()),
        Join::V1(_) | Join::None => None,
    };
    let launch = Launch {
        task: Task::Process,
        namespaces: request.clone_flags,
        control: theirs.as_fd(),
        pid_namespace: request.pid_namespace,
        cgroup: into,
    };
    let pid = engine.launcher.launch(&launch).await?;
    let exit = expectation.claim(pid);
    drop(theirs);
    // Unless it was reaped, its pid is its own; if it was, it is dead.
    let pidfd = open_pidfd(pid).map_err(|_| SpawnError::Died)?;
    let mut unfinished = Unfinished::new(pidfd);

    let (pipes, ends) = pipes.unzip();
    send_plan(&control, &request, ends)
        .await
        .map_err(prepare("plan"))?;
    let master = converse(engine, &control, &request, pid).await?;
    let stdio = match (pipes, master) {
        (Some(pipes), _) => Stdio::of_pipes(pipes, &exit),
        (None, Some(master)) => Stdio::of_terminal(master, &exit),
        (None, None) => return Err(SpawnError::Died),
    };
    let stdio = match passed {
        Some(passed) => stdio.and_then(|stdio| stdio.pass(passed, &exit)),
        None => stdio,
    };
    let stdio = stdio.map_err(prepare("streams"))?;
    // Nothing can fail from here on.
    let pidfd = unfinished.pidfd.take().ok_or(SpawnError::Died)?;
    let process = Process::new(pid, pidfd, exit, stdio);
    Ok(Spawned {
        process: Arc::new(process),
        control,
    })
}

/// Kills a child that never became a process.
pub(super) struct Unfinished {
    pidfd: Option<OwnedFd>,
}

impl Unfinished {
    pub(super) fn new(pidfd: OwnedFd) -> Self {
        Self { pidfd: Some(pidfd) }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.pidfd {
            // It may have ended by itself.
            let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
        }
    }
}

async fn send_plan(
    control: &UnixStream,
    request: &Request<'_>,
    ends: Option<crate::stdio::ChildEnds>,
) -> io::Result<()> {
    let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
    fds.extend(ends.iter().flat_map(|ends| ends.0.iter().map(AsFd::as_fd)));
    fds.extend(&request.joins);
    if let Join::V1(files) = &request.cgroup {
        fds.extend(files.iter().map(AsFd::as_fd));
    }
    send_frame(control, &request.plan, &fds).await
}

/// Sends one frame with descriptors attached.
///
/// # Errors
/// The error of the socket or of the encoder.
pub async fn send_frame<T: Serialize>(
    control: &UnixStream,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let frame = message::encode_frame(message)?;
    let send = || message::send_with_fds(control.as_raw_fd(), &frame, fds);
    let mut sent = control.async_io(Interest::WRITABLE, send).await?;
    while sent < frame.len() {
        let rest = &frame[sent..];
        sent += control
            .async_io(Interest::WRITABLE, || {
                message::send_with_fds(control.as_raw_fd(), rest, &[])
            })
            .await?;
    }
    Ok(())
}

/// Answers the child until it is ready; the master of its terminal, if it has one.
async fn converse(
    engine: &Engine,
    control: &UnixStream,
    request: &Request<'_>,
    pid: nix::unistd::Pid,
) -> Result<Option<OwnedFd>, SpawnError> {
    let go_on = |what| move |error: io::Error| SpawnError::Prepare(what, error);
    let mut reports = Reports::new(control);
    loop {
        match reports.next().await {
            Ok(Some(Report::NeedsIdMaps)) => {
                write_maps(pid, request.maps).map_err(go_on("id maps"))?;
                go(control).map_err(go_on("id maps"))?;
            }
            Ok(Some(Report::NeedsHooks)) => {
                if let Some(hooks) = request.hooks {
                    hooks
                        .run(engine, Point::Creation, Some(pid.as_raw()))
                        .await?;
                }
                go(control).map_err(go_on("hooks"))?;
            }
            Ok(Some(Report::HookSaid { hook, output })) => {
                log::debug!("Hook '{hook}': {output}");
            }
            Ok(Some(Report::Ready)) => return Ok(reports.fds.into_iter().next()),
            Ok(Some(Report::Failed {
                step,
                error,
                bad_request,
            })) => {
                return Err(SpawnError::Step {
                    step,
                    error,
                    bad_request,
                });
            }
            // The socket of an exec closes with its execution.
            Ok(None) if request.plan.init.is_none() => return Ok(None),
            Ok(None) | Err(_) => return Err(SpawnError::Died),
        }
    }
}

/// Lets the child go on. One byte always fits into an empty socket buffer.
///
/// # Errors
/// `EPIPE` when the child is gone.
pub fn go(control: &UnixStream) -> io::Result<()> {
    message::send_with_fds(control.as_raw_fd(), &[GO], &[]).map(drop)
}

/// What a child says, message by message; several may arrive at once.
pub struct Reports<'a> {
    control: &'a UnixStream,
    bytes: Vec<u8>,
    /// The descriptors that came along with any of them.
    fds: Vec<OwnedFd>,
}

impl<'a> Reports<'a> {
    /// Of the child at the other end.
    #[must_use]
    pub fn new(control: &'a UnixStream) -> Self {
        Self {
            control,
            bytes: Vec::new(),
            fds: Vec::new(),
        }
    }

    /// The next message, or `None` when the child has closed its end.
    ///
    /// # Errors
    /// `UnexpectedEof` for half a message, `InvalidData` for none.
    pub async fn next<T: for<'b> Deserialize<'b>>(&mut self) -> io::Result<Option<T>> {
        loop {
            if let Some((message, used)) = message::decode_frame(&self.bytes)? {
                self.bytes.drain(..used);
                return Ok(Some(message));
            }
            match self.receive().await? {
                0 if self.bytes.is_empty() => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => {}
            }
        }
    }

    async fn receive(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 4096];
        let read = || message::receive_with_fds(self.control.as_raw_fd(), &mut buffer);
        let (length, received) = match self.control.async_io(Interest::READABLE, read).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (0, Vec::new()),
            other => other?,
        };
        self.fds.extend(received);
        self.bytes.extend_from_slice(&buffer[..length]);
        Ok(length)
    }
}

fn write_maps(pid: nix::unistd::Pid, maps: Option<(&[IdMap], &[IdMap])>) -> io::Result<()> {
    let (uids, gids) = maps.unwrap_or_default();
    for (file, maps) in [("uid_map", uids), ("gid_map", gids)] {
        let lines: String = maps
            .iter()
            .map(|map| format!("{} {} {}\n", map.inside, map.outside, map.count))
            .collect();
        std::fs::write(format!("/proc/{pid}/{file}"), lines)?;
    }
    Ok(())
}
