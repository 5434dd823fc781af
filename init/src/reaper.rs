// SPDX-License-Identifier: Apache-2.0
//! The one place where children end.
//!
//! Owns SIGCHLD and the collecting of every child and adopted orphan. It never
//! knows whose child it was: it hands each exit to the caller's closure, once.
//! Nothing else in the process may wait for children by itself.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::process::{WaitId, WaitIdOptions, WaitOptions, WaitStatus, wait, waitid};
use thiserror::Error;

/// The reaper could not be set up or went deaf.
#[derive(Debug, Error)]
pub enum ReaperError {
    /// The signal mask could not be changed.
    #[error("Cannot block SIGCHLD")]
    Mask(#[source] Errno),
    /// No descriptor for SIGCHLD.
    #[error("Cannot open a signalfd for SIGCHLD")]
    SignalFd(#[source] Errno),
    /// The kernel refused to hand us orphans.
    #[error("Cannot become the subreaper of orphaned processes")]
    Subreaper(#[source] Errno),
    /// The descriptor could not be read.
    #[error("Cannot read the signalfd for SIGCHLD")]
    Read(#[source] Errno),
    /// wait4(2) failed in a way it should not.
    #[error("Cannot collect exited children")]
    Wait(#[source] Errno),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It called exit with this code, 0 to 255.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
}

/// The end of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The process, as seen from our pid namespace.
    pub pid: Pid,
    /// How it ended.
    pub status: Status,
}

impl Exit {
    /// The exit code as shells and the agent protocol (4.16) count: the code
    /// itself, or 128 and the number of the signal.
    pub fn code(&self) -> i32 {
        match self.status {
            Status::Exited(code) => code,
            Status::Signaled(signal) => 128 + signal,
        }
    }
}

/// Collects exited children. Readable (see `AsFd`) when there may be some.
#[derive(Debug)]
pub struct Reaper {
    signals: SignalFd,
}

impl Reaper {
    /// Takes over SIGCHLD and adopts orphans.
    ///
    /// Call it before any thread is started: threads inherit the blocked
    /// signal. So do children, through fork and exec: a child that becomes
    /// somebody else's program must empty its signal mask first.
    pub fn new() -> Result<Self, ReaperError> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None).map_err(ReaperError::Mask)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&mask, flags).map_err(ReaperError::SignalFd)?;
        // PID 1 gets the orphans anyway; as a service this makes it so.
        prctl::set_child_subreaper(true).map_err(ReaperError::Subreaper)?;
        Ok(Self { signals })
    }

    /// Collects all children that have exited and hands each to `f`. Returns
    /// how many there were; does not wait.
    pub fn drain(&mut self, mut f: impl FnMut(Exit)) -> Result<usize, ReaperError> {
        // The signal first, the children second: a child that exits between
        // the two makes the descriptor readable again. The other way round
        // its signal would be eaten and nobody would look.
        while self
            .signals
            .read_signal()
            .map_err(ReaperError::Read)?
            .is_some()
        {}
        let mut count = 0;
        while let Some(exit) = next_exit()? {
            count += 1;
            f(exit);
        }
        Ok(count)
    }

    /// Whether there is any child left, running or not yet collected.
    pub(crate) fn has_children() -> bool {
        // With WNOWAIT nothing is collected; ECHILD says that there is none.
        let options = WaitIdOptions::EXITED
            | WaitIdOptions::NOHANG
            | WaitIdOptions::NOWAIT
            | WaitIdOptions::from_bits_retain(WALL);
        !matches!(waitid(WaitId::All, options), Err(rustix::io::Errno::CHILD))
    }
}

/// `__WALL`: also children made by clone(2) with another exit signal.
const WALL: u32 = 0x4000_0000;

/// The next exited child, if there is one. rustix rather than nix here: nix
/// reports a death by a real-time signal as EINVAL, and the child is gone.
fn next_exit() -> Result<Option<Exit>, ReaperError> {
    let options = WaitOptions::NOHANG | WaitOptions::from_bits_retain(WALL);
    loop {
        match wait(options) {
            Ok(Some((pid, status))) => {
                let pid = Pid::from_raw(pid.as_raw_nonzero().get());
                if let Some(status) = ended(status) {
                    return Ok(Some(Exit { pid, status }));
                }
            }
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(None),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(ReaperError::Wait(Errno::from_raw(errno.raw_os_error()))),
        }
    }
}

/// Reads a wait status; `None` for a stop or a continuation.
fn ended(status: WaitStatus) -> Option<Status> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(Status::Exited(code)),
        (None, Some(signal)) => Some(Status::Signaled(signal)),
        (None, None) => None,
    }
}

impl AsFd for Reaper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

impl AsRawFd for Reaper {
    fn as_raw_fd(&self) -> RawFd {
        self.signals.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn exit(status: Status) -> Exit {
        let pid = Pid::from_raw(1);
        Exit { pid, status }
    }

    #[test]
    fn bug_signal_deaths_count_from_128() {
        assert_eq!(exit(Status::Exited(42)).code(), 42);
        assert_eq!(exit(Status::Signaled(9)).code(), 137);
        assert_eq!(exit(Status::Signaled(64)).code(), 192);
    }

    /// Waits for the ends of these processes. One test function does all of
    /// it, since a reaper takes every child of the process, also other tests'.
    fn collect(reaper: &mut Reaper, count: usize) -> Vec<Exit> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut exits = Vec::new();
        while exits.len() < count && Instant::now() < deadline {
            let fd = PollFd::new(reaper.as_fd(), PollFlags::POLLIN);
            poll(&mut [fd], PollTimeout::from(1000u16)).unwrap();
            reaper.drain(|exit| exits.push(exit)).unwrap();
        }
        exits
    }

    #[test]
    fn children_and_orphans_are_collected() {
        let mut reaper = Reaper::new().unwrap();
        let shell = |script: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]).stdout(Stdio::null());
            i32::try_from(command.spawn().unwrap().id()).unwrap()
        };
        // The shell unblocks nothing: SIGCHLD stays blocked, which sh can take.
        let seven = shell("exit 7");
        let killed = shell("kill -9 $$");
        // SIGRTMAX: nix would answer EINVAL and lose the process.
        let realtime = shell("kill -64 $$");
        // The child of this one is orphaned, and ours to collect.
        let parent = shell("sleep 0.2 & exit 0");
        let exits = collect(&mut reaper, 5);
        let status = |pid| {
            exits
                .iter()
                .find(|e| e.pid.as_raw() == pid)
                .map(|e| e.status)
        };
        assert_eq!(status(seven), Some(Status::Exited(7)));
        assert_eq!(status(killed), Some(Status::Signaled(9)));
        assert_eq!(status(realtime), Some(Status::Signaled(64)));
        assert_eq!(status(parent), Some(Status::Exited(0)));
        assert_eq!(exits.len(), 5, "the orphan is missing: {exits:?}");
        assert!(!Reaper::has_children());
    }
}
