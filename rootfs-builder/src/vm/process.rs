// SPDX-License-Identifier: Apache-2.0
//! A host program that belongs to a VM: started with its output going to a log file, and certain to end.
//!
//! Each one is the leader of its own process group and is killed when its [`Child`] is dropped, when the thread that watches it goes
//! (which is when this process goes), and before its pid is given back to the kernel. Nothing here ever signals a process that
//! it did not start, and nothing needs an async runtime: a `Child` may be awaited from any runtime.

#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getpid, getppid};
use tokio::sync::watch;

use super::VmError;

/// Whether the process group may still be signalled: its leader has not been reaped.
type Alive = Arc<Mutex<bool>>;

/// A running (or ended) program of a VM.
#[derive(Debug)]
pub struct Child {
    name: &'static str,
    group: Pid,
    alive: Alive,
    exit: watch::Receiver<Option<ExitStatus>>,
    log: PathBuf,
}

/// What a new [`Child`] and its standard output, if piped, come as.
type Started = io::Result<(Pid, Option<ChildStdout>)>;

impl Child {
    /// Starts `command`. Its stderr goes to the file `log`, and its stdout too unless `pipe` is set, in which case it is returned.
    pub fn spawn(
        name: &'static str,
        mut command: Command,
        log: &Path,
        pipe: bool,
    ) -> Result<(Child, Option<ChildStdout>), VmError> {
        let file = std::fs::File::create(log).map_err(VmError::io("create", log))?;
        let second = file.try_clone().map_err(VmError::io("duplicate", log))?;
        command.stdin(Stdio::null()).stderr(file).process_group(0);
        command.stdout(if pipe { Stdio::piped() } else { second.into() });
        die_with_parent(&mut command);
        let spawn_error = |source| VmError::Spawn {
            program: name,
            source,
        };

        let alive: Alive = Arc::new(Mutex::new(true));
        let (exit_tx, exit) = watch::channel(None);
        let (pid_tx, pid_rx) = std::sync::mpsc::sync_channel::<Started>(1);
        let watched = Arc::clone(&alive);
        thread::Builder::new()
            .name(format!("watch-{name}"))
            .spawn(move || watch_child(command, &pid_tx, &watched, &exit_tx))
            .map_err(spawn_error)?;
        // The thread sends exactly one message before anything that could end it.
        let started = pid_rx
            .recv()
            .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        let (group, stdout) = started.map_err(spawn_error)?;
        let log = log.to_owned();
        Ok((
            Child {
                name,
                group,
                alive,
                exit,
                log,
            },
            stdout,
        ))
    }

    /// The program's process id.
    pub fn pid(&self) -> u32 {
        self.group.as_raw().unsigned_abs()
    }

    /// How it ended, if it has.
    pub fn status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Waits until it ends.
    pub async fn wait(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            // The sender is dropped only after it has sent, so an error cannot be seen; a killed program is the honest reading.
            Ok(status) => status.unwrap_or_default(),
            Err(_) => ExitStatus::default(),
        }
    }

    /// Waits until it ends, at most `timeout`.
    pub async fn wait_for(&self, timeout: Duration) -> Option<ExitStatus> {
        tokio::time::timeout(timeout, self.wait()).await.ok()
    }

    /// Kills it and everything it started. Does nothing if it has ended.
    pub fn kill(&self) {
        let alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        if *alive {
            // ESRCH: all of the group are zombies already. No other error is possible for our own children.
            let _ = killpg(self.group, Signal::SIGKILL);
        }
    }

    /// What it wrote to its log, or the reason why that cannot be read.
    pub fn log(&self) -> String {
        match std::fs::read(&self.log) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) => format!("(no log: {e})"),
        }
    }

    /// The error to report if it took too long to become ready.
    pub fn not_ready(&self, after: Duration) -> VmError {
        VmError::NotReady {
            program: self.name,
            after,
            log: self.log(),
        }
    }

    /// The error to report if it has ended when it should not have.
    pub fn ended(&self) -> Option<VmError> {
        let status = self.status()?;
        Some(VmError::Ended {
            program: self.name,
            status,
            log: self.log(),
        })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Asks the kernel to kill the program when the thread that starts it goes.
fn die_with_parent(command: &mut Command) {
    let parent = getpid();
    let hook = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have gone before the request was made.
        if getppid() == parent {
            Ok(())
        } else {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    };
    // SAFETY: between fork and exec only async-signal-safe calls may be made; prctl(2) and getppid(2) are plain system calls, and
    // the closure neither allocates nor takes a lock (an error kind without a message is not boxed).
    unsafe {
        command.pre_exec(hook);
    }
}

/// The body of the watching thread: starts the program and stays until it has ended, because `PR_SET_PDEATHSIG` is about
/// the death of the starting *thread*, not of the process.
fn watch_child(
    mut command: Command,
    started: &std::sync::mpsc::SyncSender<Started>,
    alive: &Alive,
    exit: &watch::Sender<Option<ExitStatus>>,
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) => {
            let _ = started.send(Err(e));
            return;
        }
    };
    // A pid always fits: the kernel's limit is 2^22.
    let pid = Pid::from_raw(child.id().cast_signed());
    let _ = started.send(Ok((pid, child.stdout.take())));
    while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
        == Err(nix::errno::Errno::EINTR)
    {}
    // The leader is a zombie: its pid, which is also the group's id, is still ours. What it left running goes now.
    let mut alive = alive.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = killpg(pid, Signal::SIGKILL);
    let status = child.wait().unwrap_or_default();
    *alive = false;
    drop(alive);
    exit.send_replace(Some(status));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn output_is_logged_and_status_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let (child, stdout) = Child::spawn("sh", shell("echo hello; exit 3"), &log, false).unwrap();
        assert!(stdout.is_none());
        assert_eq!(child.wait().await.code(), Some(3));
        assert_eq!(child.log(), "hello\n");
        assert!(child.ended().unwrap().to_string().contains("hello"));
    }

    #[tokio::test]
    async fn dropping_kills_the_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let (child, stdout) =
            Child::spawn("sh", shell("sleep 1000 & echo $!; wait"), &log, true).unwrap();
        let mut reader = io::BufReader::new(stdout.unwrap());
        let mut line = String::new();
        io::BufRead::read_line(&mut reader, &mut line).unwrap();
        let grandchild: i32 = line.trim().parse().unwrap();
        let mut exit = child.exit.clone();
        drop(child);
        exit.wait_for(Option::is_some).await.unwrap();
        // The signal has been sent; on a busy host the process may take a while to act on it.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while is_running(grandchild) {
            assert!(std::time::Instant::now() < deadline, "still there");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn is_running(pid: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = stat.rsplit(')').next().unwrap_or_default().trim_start();
        !matches!(rest.chars().next(), None | Some('Z' | 'X'))
    }

    #[test]
    fn a_missing_program_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let command = Command::new("/nonexistent/program");
        let error = Child::spawn("thing", command, &dir.path().join("log"), false).unwrap_err();
        assert!(error.to_string().contains("thing"));
    }
}
