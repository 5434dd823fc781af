// SPDX-License-Identifier: Apache-2.0
//! A process of a container: its pid held by descriptor, its exit, its streams.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::children::{Exit, code_of};
use crate::stdio::Stdio;

/// A started process.
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
    exit: Exit,
    stdio: Stdio,
}

impl Process {
    /// Of a child that has not been reaped yet, or whose exit is in `exit`.
    pub(super) fn new(pid: Pid, pidfd: OwnedFd, exit: Exit, stdio: Stdio) -> Self {
        Self {
            pid,
            pidfd,
            exit,
            stdio,
        }
    }

    /// The pid in the agent's namespace; for `/proc` only, and only while
    /// [`Self::is_alive`].
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its standard streams.
    #[must_use]
    pub fn stdio(&self) -> &Stdio {
        &self.stdio
    }

    /// False once it has been reaped.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.exit.borrow().is_none()
    }

    /// True if it has exited or is about to, also before it was reaped: the
    /// first process of a pid namespace takes its time, as it waits for the others.
    #[must_use]
    pub fn is_dying(&self) -> bool {
        let read = |file| std::fs::read_to_string(format!("/proc/{}/{file}", self.pid));
        !self.is_alive()
            || read("stat").map_or(true, |stat| is_exiting(&stat))
            || read("status").map_or(true, |status| is_killed(&status))
    }

    /// Waits for its exit code, 128+N for death by signal N. Any number of
    /// callers may wait.
    pub async fn wait(&self) -> i32 {
        code_of(&mut self.exit.clone()).await
    }

    /// Sends a signal; a process that has exited is no error, and a recycled
    /// pid is never hit. Signal 0 only tests.
    ///
    /// # Errors
    /// `EINVAL` for a number that is no signal, or the errno of
    /// `pidfd_send_signal(2)`.
    pub fn signal(&self, number: i32) -> io::Result<()> {
        if number == 0 || !self.is_alive() {
            return if (0..=libc::SIGRTMAX()).contains(&number) {
                Ok(())
            } else {
                Err(Errno::EINVAL.into())
            };
        }
        let signal = signal_of(number).ok_or(Errno::EINVAL)?;
        match pidfd_send_signal(self.pidfd.as_fd(), signal) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => Ok(other?),
        }
    }

    /// True if the process blocks, ignores or catches SIGTERM, by the masks of
    /// `/proc/PID/status`. A first process that does none of these would not
    /// see the signal at all: the kernel shields the init of a pid namespace.
    #[must_use]
    pub fn handles_sigterm(&self) -> bool {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        handles(&status, libc::SIGTERM)
    }
}

/// The pidfd of a child that nobody but the caller can reap.
pub(super) fn open_pidfd(pid: Pid) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(Errno::ESRCH)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

fn signal_of(number: i32) -> Option<Signal> {
    Signal::from_named_raw(number).or_else(|| realtime(number))
}

#[allow(unsafe_code)]
fn realtime(number: i32) -> Option<Signal> {
    if !(libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number) {
        return None;
    }
    // SAFETY: the number lies in the range of real-time signals that programs
    // may use; libc's own ones are below SIGRTMIN().
    Some(unsafe { Signal::from_raw_unchecked(number) })
}

fn handles(status: &str, signal: i32) -> bool {
    in_any_mask(status, &["SigBlk", "SigIgn", "SigCgt"], signal)
}

/// A SIGKILL is on its way.
fn is_killed(status: &str) -> bool {
    in_any_mask(status, &["SigPnd", "ShdPnd"], libc::SIGKILL)
}

fn in_any_mask(status: &str, masks: &[&str], signal: i32) -> bool {
    let bit = 1u64 << (signal - 1);
    status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| masks.contains(key))
        .filter_map(|(_, mask)| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & bit != 0)
}

/// `PF_EXITING` among the flags of `/proc/PID/stat`, proc(5).
const EXITING: u64 = 0x4;

/// The flags are the seventh field after the name, which may hold anything.
fn is_exiting(stat: &str) -> bool {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let flags = after_name.split_ascii_whitespace().nth(6);
    let flags = flags.and_then(|flags| flags.parse::<u64>().ok());
    flags.is_none_or(|flags| flags & EXITING != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_read_from_status() {
        let status = |blocked: &str, ignored: &str, caught: &str| {
            format!(
                "Name:\tx\nSigPnd:\tffffffffffffffff\nSigBlk:\t{blocked}\nSigIgn:\t{ignored}\nSigCgt:\t{caught}\n"
            )
        };
        let (none, term) = ("0000000000000000", "0000000000004000");
        assert!(!handles(&status(none, none, none), 15));
        assert!(handles(&status(term, none, none), 15));
        assert!(handles(&status(none, term, none), 15));
        assert!(handles(&status(none, none, term), 15));
        assert!(!handles("", 15));
        assert!(!handles(&status("", "zz", none), 15));
    }

    #[test]
    fn an_exiting_process_is_known_by_its_flags() {
        let stat = |flags: u64| format!("7 (a) 1 (b) S 1 7 7 0 -1 {flags} 103 0 0 0");
        assert!(!is_exiting(&stat(0x40_0100)));
        assert!(is_exiting(&stat(0x40_0104)));
        assert!(is_exiting(""));
        let own = std::fs::read_to_string("/proc/self/stat").unwrap();
        assert!(!is_exiting(&own));
        assert!(is_killed("SigPnd:\t0000000000000100\n"));
        assert!(!is_killed(
            "SigPnd:\t0000000000000000\nSigBlk:\t0000000000000100\n"
        ));
    }

    #[test]
    fn only_signals_are_signals() {
        assert!(signal_of(15).is_some());
        assert!(signal_of(libc::SIGRTMIN()).is_some());
        assert!(signal_of(0).is_none());
        assert!(signal_of(65).is_none());
        assert!(signal_of(-1).is_none());
        assert!(signal_of(i32::MAX).is_none());
    }
}
