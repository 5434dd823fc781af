// SPDX-License-Identifier: Apache-2.0
//! The agent's side of the launcher: starts it from a sealed memory file when
//! the first process is wanted, restarts it if it dies, and has it clone.
//!
//! It never looks into a plan and knows nothing of containers.

pub mod clone;
pub mod message;
pub mod server;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::sendfile::sendfile64;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

use message::{LaunchStep, Order, Receipt, Task};

/// The word on its command line by which the agent's binary knows that it is
/// the launcher.
pub const LAUNCHER_WORD: &str = "launcher";

/// Why no process could be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The launcher's memory file or process could not be made.
    #[error("Launcher process could not be started")]
    Start(#[source] io::Error),
    /// The launcher went away in the middle of an order.
    #[error("Launcher process does not answer")]
    Lost(#[source] io::Error),
    /// The kernel refused.
    #[error("New process could not be cloned ({step:?})")]
    Refused {
        /// Where it failed.
        step: LaunchStep,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// How long an order may take: clones do not wait for anything, so a launcher
/// that does not answer is stuck in the kernel, and others wait behind it.
const PATIENCE: Duration = Duration::from_secs(30);

/// One process to be cloned.
pub struct Launch<'a> {
    /// What it is for.
    pub task: Task,
    /// `CLONE_NEW*` bits.
    pub namespaces: u64,
    /// The child's end of the socket over which it gets its plan.
    pub control: BorrowedFd<'a>,
    /// Pid namespace to be born in.
    pub pid_namespace: Option<BorrowedFd<'a>>,
    /// Cgroup v2 directory to be born in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Starts processes; one per agent.
///
/// Its socket carries one order at a time, and is taken out for that long: an
/// order whose caller goes away in the middle takes the launcher with it, so
/// that no answer ever reaches the wrong caller.
#[derive(Default)]
pub struct Launcher {
    socket: Mutex<Option<AsyncFd<OwnedFd>>>,
}

impl Launcher {
    /// Makes sure that the launcher process runs, so that the first container
    /// does not pay for its start.
    ///
    /// # Errors
    /// [`LaunchError::Start`].
    pub async fn warm(&self) -> Result<(), LaunchError> {
        let mut socket = self.socket.lock().await;
        if socket.is_none() {
            *socket = Some(start().map_err(LaunchError::Start)?);
        }
        Ok(())
    }

    /// Has one process cloned and returns its pid. The process then reads what
    /// it is to do from the other end of `control`.
    ///
    /// # Errors
    /// Any [`LaunchError`]; after [`LaunchError::Lost`] the next call starts a
    /// new launcher.
    pub async fn launch(&self, wanted: &Launch<'_>) -> Result<Pid, LaunchError> {
        let order = Order {
            namespaces: wanted.namespaces,
            joins_pid: wanted.pid_namespace.is_some(),
            into_cgroup: wanted.cgroup.is_some(),
            task: wanted.task,
        };
        let mut fds = vec![wanted.control];
        fds.extend(wanted.pid_namespace);
        fds.extend(wanted.cgroup);
        let mut socket = self.socket.lock().await;
        let delivered = socket
            .take()
            .filter(|running| send(running, order, &fds).is_ok());
        let running = match delivered {
            Some(running) => running,
            // The first order, or the launcher died since the last one: then
            // nothing of this one has arrived anywhere.
            None => {
                let fresh = start().map_err(LaunchError::Start)?;
                send(&fresh, order, &fds).map_err(LaunchError::Lost)?;
                fresh
            }
        };
        let answer = tokio::time::timeout(PATIENCE, receive(&running))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(LaunchError::Lost)?;
        *socket = Some(running);
        match answer {
            Receipt::Started(pid) => Ok(Pid::from_raw(pid)),
            Receipt::Failed(step, errno) => Err(LaunchError::Refused {
                step,
                source: io::Error::from_raw_os_error(errno),
            }),
        }
    }
}

fn send(socket: &AsyncFd<OwnedFd>, order: Order, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut bytes = [0; 32];
    let encoded = postcard::to_slice(&order, &mut bytes).map_err(io::Error::other)?;
    message::send_with_fds(socket.as_raw_fd(), encoded, fds).map(drop)
}

async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<Receipt> {
    let mut answer = [0; 32];
    let length = loop {
        let mut ready = socket.readable().await?;
        match ready.try_io(|s| message::receive_with_fds(s.as_raw_fd(), &mut answer)) {
            Ok(Ok((0, _))) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(result) => break result?.0,
            Err(_would_block) => {}
        }
    };
    postcard::from_bytes(&answer[..length]).map_err(io::Error::other)
}

fn start() -> io::Result<AsyncFd<OwnedFd>> {
    let image = sealed_copy()?;
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )?;
    // The launcher blocks on its end; only ours belongs to the event loop.
    nix::fcntl::fcntl(
        theirs.as_fd(),
        FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()),
    )?;
    // The child is not waited for here: the agent's one reaper collects it.
    #[allow(clippy::zombie_processes)]
    Command::new(format!("/proc/self/fd/{}", image.as_raw_fd()))
        .arg(LAUNCHER_WORD)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    crate::watch::watch(ours)
}

/// A copy of the running binary that nobody can write to, ever: this is what
/// `/proc/PID/exe` of a process leads to until it executes its own program.
///
/// # Errors
/// The errno of the failing call.
pub fn sealed_copy() -> io::Result<OwnedFd> {
    let own = File::open("/proc/self/exe")?;
    let length = own.metadata()?.len();
    let image = memfd_create(
        "keelson-launcher",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )?;
    let mut left = length as usize;
    while left > 0 {
        match sendfile64(image.as_fd(), own.as_fd(), None, left)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            sent => left -= sent,
        }
    }
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    fcntl(image.as_fd(), FcntlArg::F_ADD_SEALS(seals))?;
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_copy_is_whole_and_cannot_be_written() {
        let copy = File::from(sealed_copy().unwrap());
        let own = std::fs::metadata("/proc/self/exe").unwrap().len();
        assert_eq!(copy.metadata().unwrap().len(), own);
        let error = (&copy).write(b"x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
}
