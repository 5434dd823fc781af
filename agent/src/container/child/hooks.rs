// SPDX-License-Identifier: Apache-2.0
//! Running hooks: those of the child's own, between its steps, and single ones
//! for the agent, in a clone of the launcher that is there for nothing else.
//!
//! Runs in single-threaded children only, which may block: PID 1 itself never
//! waits for a hook. What a hook does is its own business; what it says is kept
//! up to a limit, and its time is limited.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child as Process, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, pipe2, setsid};
use rustix::process::{PidfdFlags, pidfd_open};

use super::{Child, Naming, StepError};
use crate::container::json;
use crate::container::plan::Hook;
use crate::launch::message::{HookEnd, HookOrder, Report, read_frame, write_frame};

/// Bytes of a hook's output that are kept; the rest is read and dropped.
const MAX_OUTPUT: usize = 2048;

/// How often the output of a hook that has exited is still read: what a daemon
/// that it has left behind goes on saying belongs to nobody.
const MAX_LAST_READS: usize = 64;

/// Milliseconds between two looks at a hook that cannot be watched.
const LOOK: u8 = 20;

/// Lets the agent run the hooks that belong into the guest, if there are any.
pub fn await_agent(child: &mut Child) -> Result<(), StepError> {
    let init = child.plan.init.as_ref();
    if !init.is_some_and(|init| init.hooks.wait_for_agent) {
        return Ok(());
    }
    child
        .report(&Report::NeedsHooks)
        .naming(|| "request for hooks".into())?;
    child.await_go()
}

/// In the container's namespaces, with the guest's root still in view.
pub fn create_container(child: &mut Child) -> Result<(), StepError> {
    let Some(init) = &mut child.plan.init else {
        return Ok(());
    };
    let hooks = std::mem::take(&mut init.hooks.create_container);
    run_all(child, &hooks, "creating")
}

/// In the container, right before its program.
pub fn start_container(child: &mut Child) -> Result<(), StepError> {
    let Some(init) = &mut child.plan.init else {
        return Ok(());
    };
    let hooks = std::mem::take(&mut init.hooks.start_container);
    run_all(child, &hooks, "created")
}

fn run_all(child: &mut Child, hooks: &[Hook], status: &str) -> Result<(), StepError> {
    if hooks.is_empty() {
        return Ok(());
    }
    let members = child.plan.init.as_ref().map(|init| &init.hooks.state);
    // The pid as the container sees it: the hook does so, too.
    let pid = Some(std::process::id() as i32);
    let state = json::state(members.map_or("", |m| m), status, pid);
    for hook in hooks {
        let end = run(hook, &state, None);
        if let Some(failure) = end.failure {
            let what = format!("hook '{}' {failure}{}", hook.path, quoted(&end.output));
            return Err(StepError::new(what, Errno::ECANCELED));
        }
        if !end.output.is_empty() {
            let said = Report::HookSaid {
                hook: hook.path.clone(),
                output: end.output,
            };
            child.report(&said).naming(|| "report".into())?;
        }
    }
    Ok(())
}

/// What a hook said, as the end of a sentence about it.
#[must_use]
pub fn quoted(output: &str) -> String {
    if output.is_empty() {
        String::new()
    } else {
        format!(", saying '{output}'")
    }
}

/// Runs the one hook that comes over the socket and reports its end; never
/// returns.
pub fn run_for_agent(mut control: UnixStream) -> ! {
    let Ok((order, _)) = read_frame::<HookOrder>(&mut control) else {
        // The agent has gone: nobody wants the hook any more.
        std::process::exit(1);
    };
    // Away from the agent's session and whatever terminal that has.
    let _ = setsid();
    // The launcher's own working directory is the floor of containers.
    let _ = nix::unistd::chdir("/");
    let end = run(&order.hook, &order.state, Some(control.as_fd()));
    // If nobody listens any more, there is nobody to tell.
    let _ = write_frame(&mut control, &end, &[]);
    std::process::exit(0)
}

/// Runs a hook to its end, until its time is up, or until the agent has closed
/// its end of the socket `agent`: then nobody wants it any more.
fn run(hook: &Hook, state: &str, agent: Option<BorrowedFd<'_>>) -> HookEnd {
    let mut output = Output::default();
    let failure = match try_run(hook, state, agent, &mut output) {
        Ok(status) if status.success() => None,
        Ok(status) => Some(match status.code() {
            Some(code) => format!("ended with status {code}"),
            None => format!("was killed ({status})"),
        }),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            Some(format!("was killed after {} s", hook.timeout))
        }
        Err(error) => Some(format!("could not be run: {error}")),
    };
    HookEnd {
        failure,
        output: output.text(),
    }
}

fn try_run(
    hook: &Hook,
    state: &str,
    agent: Option<BorrowedFd<'_>>,
    output: &mut Output,
) -> io::Result<ExitStatus> {
    let deadline = Instant::now().checked_add(Duration::from_secs(hook.timeout.into()));
    let (mut running, pipes) = start(hook)?;
    let input = state.as_bytes();
    let ended = converse(&mut running, pipes, input, output, deadline, agent);
    if ended.is_err() {
        // Its own process group: what it has started goes, too.
        let _ = killpg(Pid::from_raw(running.id() as i32), Signal::SIGKILL);
        // It may have left its group.
        let _ = running.kill();
    }
    let status = running.wait()?;
    ended.map(|()| status)
}

/// Our ends of a hook's standard streams.
struct Pipes {
    stdin: Option<File>,
    /// The hook's end of its standard input, too: with a reader left, no write
    /// ends in SIGPIPE, whatever the hook does to its own.
    _reader: OwnedFd,
    output: Option<File>,
}

fn start(hook: &Hook) -> io::Result<(Process, Pipes)> {
    let (input, stdin) = pipe2(OFlag::O_CLOEXEC)?;
    let (output, stdout) = pipe2(OFlag::O_CLOEXEC)?;
    for ours in [&stdin, &output] {
        fcntl(ours.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let reader = input.try_clone()?;
    let variables = hook.env.iter().filter_map(|entry| entry.split_once('='));
    let (name, arguments) = match hook.args.split_first() {
        Some((name, arguments)) => (name, arguments),
        None => (&hook.path, &[][..]),
    };
    let running = Command::new(&hook.path)
        .arg0(name)
        .args(arguments)
        .env_clear()
        .envs(variables.filter(|(name, _)| !name.is_empty()))
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(stdout.try_clone()?))
        .stderr(Stdio::from(stdout))
        .process_group(0)
        .spawn()?;
    let pipes = Pipes {
        stdin: Some(stdin.into()),
        _reader: reader,
        output: Some(output.into()),
    };
    Ok((running, pipes))
}

/// Feeds and listens to the hook until it has exited. Whoever else holds its
/// pipes by then, a daemon it has left behind, is not waited for.
fn converse(
    running: &mut Process,
    mut pipes: Pipes,
    mut input: &[u8],
    output: &mut Output,
    deadline: Option<Instant>,
    agent: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let pid = rustix::process::Pid::from_child(running);
    // A container's own filter may not allow it; then the end is looked for.
    let pidfd: Option<OwnedFd> = pidfd_open(pid, PidfdFlags::empty()).ok();
    loop {
        if input.is_empty() {
            pipes.stdin = None;
        }
        let Some(timeout) = time_left(deadline) else {
            return Err(io::ErrorKind::TimedOut.into());
        };
        let timeout = pidfd
            .as_ref()
            .map_or(PollTimeout::from(LOOK).min(timeout), |_| timeout);
        let forsaken = wait_for_any(pidfd.as_ref(), &pipes, agent, timeout)?;
        let exited = running.try_wait()?.is_some();
        let rounds = if exited { MAX_LAST_READS } else { 1 };
        for _ in 0..rounds {
            if !output.take_from(&mut pipes.output) {
                break;
            }
        }
        if exited {
            return Ok(());
        }
        if forsaken {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        feed(&mut pipes.stdin, &mut input);
    }
}

/// True when the agent has gone.
fn wait_for_any(
    pidfd: Option<&OwnedFd>,
    pipes: &Pipes,
    agent: Option<BorrowedFd<'_>>,
    timeout: PollTimeout,
) -> io::Result<bool> {
    let watch = |fd, flags| PollFd::new(fd, flags);
    let exit = pidfd.map(|fd| watch(fd.as_fd(), PollFlags::POLLIN));
    let output = pipes.output.as_ref();
    let output = output.map(|file| watch(file.as_fd(), PollFlags::POLLIN));
    let stdin = pipes.stdin.as_ref();
    let stdin = stdin.map(|file| watch(file.as_fd(), PollFlags::POLLOUT));
    // Its end is reported unasked, and nothing else is of interest.
    let end = agent.map(|fd| watch(fd, PollFlags::empty()));
    let others = exit.into_iter().chain(output).chain(stdin);
    let mut fds: Vec<_> = end.into_iter().chain(others).collect();
    match poll(&mut fds, timeout) {
        Ok(_) => {
            let said = agent.and(fds.first()).and_then(PollFd::revents);
            Ok(said.is_some_and(|said| said.contains(PollFlags::POLLHUP)))
        }
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// A hook that does not read its state has no use for it.
fn feed(stdin: &mut Option<File>, input: &mut &[u8]) {
    let Some(pipe) = stdin else { return };
    match pipe.write(input) {
        Ok(written) => *input = &input[written..],
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(_) => *stdin = None,
    }
}

/// What is left until the deadline, rounded up; none when it has passed.
fn time_left(deadline: Option<Instant>) -> Option<PollTimeout> {
    let Some(deadline) = deadline else {
        return Some(PollTimeout::NONE);
    };
    let left = deadline.checked_duration_since(Instant::now())?;
    let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
    let millis = millis.saturating_add(1);
    PollTimeout::try_from(millis).ok()
}

/// The beginning of what a hook has said.
#[derive(Default)]
struct Output(Vec<u8>);

impl Output {
    /// Reads once; true if there was something.
    fn take_from(&mut self, pipe: &mut Option<File>) -> bool {
        let Some(file) = pipe else { return false };
        let mut buffer = [0; 1024];
        match file.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(length) => {
                let room = MAX_OUTPUT.saturating_sub(self.0.len());
                self.0.extend_from_slice(&buffer[..length.min(room)]);
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => *pipe = None,
        }
        false
    }

    /// On one line: it goes into logs and errors.
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        text.trim().chars().map(printable).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(hook: &Hook, state: &str) -> HookEnd {
        super::run(hook, state, None)
    }

    fn shell(script: &str, timeout: u32) -> Hook {
        Hook {
            path: "/bin/sh".to_owned(),
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec!["WORD=a=b".to_owned(), "broken".to_owned()],
            timeout,
        }
    }

    #[test]
    fn a_hook_gets_its_state_arguments_and_environment_only() {
        let end = run(
            &shell("cat; echo \" $0 $WORD\"; /usr/bin/env | wc -l", 60),
            "{}",
        );
        assert_eq!(end.failure, None);
        assert!(end.output.starts_with("{} sh a=b"), "{}", end.output);
        assert!(end.output.ends_with(char::is_numeric), "{}", end.output);
    }

    #[test]
    fn a_hook_may_ignore_its_state_and_may_talk_without_end() {
        let state = "x".repeat(1 << 20);
        assert_eq!(run(&shell("exec 0<&-; exit 0", 60), &state).failure, None);
        let end = run(&shell("head -c 1000000 /dev/zero | tr '\\0' y", 60), "");
        assert_eq!((end.failure, end.output), (None, "y".repeat(MAX_OUTPUT)));
    }

    #[test]
    fn failures_are_told_with_the_output() {
        let end = run(&shell("echo so; echo that >&2; exit 3", 60), "");
        assert_eq!(end.failure.as_deref(), Some("ended with status 3"));
        assert_eq!(end.output, "so that");
        let missing = Hook {
            path: "/no/such/hook".to_owned(),
            ..shell("", 60)
        };
        let failure = run(&missing, "").failure.unwrap();
        assert!(failure.contains("could not be run"), "{failure}");
    }

    #[test]
    fn a_hook_without_arguments_is_called_by_its_path() {
        let hook = Hook {
            path: "/bin/true".to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            timeout: 60,
        };
        assert_eq!(run(&hook, "").failure, None);
    }

    #[test]
    fn time_is_limited_for_the_whole_group() {
        let script = "sleep 1000 & echo $!; wait";
        let end = run(&shell(script, 1), "");
        assert_eq!(end.failure.as_deref(), Some("was killed after 1 s"));
        let child: i32 = end.output.parse().unwrap();
        while !is_gone(child) {
            std::thread::yield_now();
        }
    }

    fn is_gone(pid: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    }

    /// It goes into a group of its child's: its own one is empty then.
    #[test]
    fn bug_time_is_limited_for_a_hook_that_leaves_its_group() {
        let script = "$| = 1; my $c = fork; if (!$c) { sleep 1000 }
            print $c; setpgrp($c, $c); setpgrp(0, $c) or die; sleep 1000";
        let perl = Hook {
            path: "/usr/bin/perl".to_owned(),
            args: ["perl", "-e", script].map(str::to_owned).to_vec(),
            env: Vec::new(),
            timeout: 1,
        };
        let end = run(&perl, "");
        assert_eq!(end.failure.as_deref(), Some("was killed after 1 s"));
        let child = Pid::from_raw(end.output.parse().unwrap());
        nix::sys::signal::kill(child, Signal::SIGKILL).unwrap();
    }

    #[test]
    fn bug_a_hook_ends_with_the_agents_interest() {
        let (agent, ours) = UnixStream::pair().unwrap();
        let listener = std::thread::spawn(move || {
            let hook = shell("echo $$; exec sleep 1000", 20);
            super::run(&hook, "", Some(ours.as_fd()))
        });
        drop(agent);
        let end = listener.join().unwrap();
        let failure = end.failure.unwrap();
        assert!(failure.contains("connection aborted"), "{failure}");
        if let Ok(pid) = end.output.parse() {
            assert!(is_gone(pid));
        }
    }

    #[test]
    fn a_daemon_that_keeps_the_pipes_is_not_waited_for() {
        let end = run(&shell("sleep 1000 & echo $!", 60), "");
        assert_eq!(end.failure, None);
        let daemon = Pid::from_raw(end.output.parse().unwrap());
        nix::sys::signal::kill(daemon, Signal::SIGKILL).unwrap();
    }
}
