// SPDX-License-Identifier: Apache-2.0
//! Running a program of the guest's to its end, such as modprobe, mkfs or
//! iptables. Owns the start through the one reaper, what the program reads and
//! the reading of what it says; knows no program by name.

use std::io;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::time::timeout;

use crate::children::{Children, Exit, code_of};
use crate::pool::at_host_pace;

/// Bytes of its complaints that are kept, enough for an error.
const MAX_COMPLAINT: usize = 4096;

/// How long a program may take over its input (protocol 3.4).
const FEEDING: Duration = Duration::from_secs(5);

/// A program and what it is given.
pub struct Call<'a> {
    /// Where it is.
    pub program: &'a str,
    /// What follows its name.
    pub arguments: &'a [&'a str],
    /// What it reads.
    pub input: &'a [u8],
    /// Bytes of its output that are wanted.
    pub most: usize,
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status, 128+N for death by signal N.
    pub code: i32,
    /// The beginning of its output; longer than what was wanted if there was more.
    pub output: Vec<u8>,
    /// The beginning of its complaints.
    pub complaint: String,
}

/// Runs a program to its end. Dropped before that, it kills what it has started.
///
/// # Errors
/// Why it could not be started, such as that it is not there, or did not read.
pub async fn run(children: &Children, call: Call<'_>) -> io::Result<Ended> {
    let mut command = Command::new(call.program);
    command.args(call.arguments);
    let children = children.clone();
    // The program may lie on the host.
    let started = at_host_pace(move || start(&children, command)).await;
    let (pid, exit, pipes) = started.map_err(io::Error::other)??;
    let mut running = Running { pid, exit };
    // Fed and listened to at the same time: it may stop for either.
    let ((), output, complaint) = tokio::try_join!(
        feed(pipes.input, call.input),
        listen(pipes.output, call.most),
        listen(pipes.complaints, MAX_COMPLAINT)
    )?;
    Ok(Ended {
        code: code_of(&mut running.exit).await,
        output,
        complaint: String::from_utf8_lossy(&complaint).trim().to_owned(),
    })
}

struct Running {
    pid: Pid,
    exit: Exit,
}

impl Drop for Running {
    /// Nothing of ours outlives its request.
    fn drop(&mut self) {
        // Reaping is done on this thread: what has no exit yet has its pid still.
        if self.exit.borrow().is_none()
            && let Err(error) = kill(self.pid, Signal::SIGKILL)
        {
            log::warn!("Process {} cannot be killed: {error}", self.pid);
        }
    }
}

/// Our ends.
struct Pipes {
    input: pipe::Sender,
    output: pipe::Receiver,
    complaints: pipe::Receiver,
}

fn start(children: &Children, mut command: Command) -> io::Result<(Pid, Exit, Pipes)> {
    let (input, stdin) = pipe::pipe()?;
    let (stdout, output) = pipe::pipe()?;
    let (stderr, complaints) = pipe::pipe()?;
    command
        .stdin(stdin.into_blocking_fd()?)
        .stdout(stdout.into_blocking_fd()?)
        .stderr(stderr.into_blocking_fd()?);
    let expectation = children.expect();
    // Not waited for here: the one reaper collects it.
    #[allow(clippy::zombie_processes)]
    let child = command.spawn()?;
    // Process ids are positive numbers of this type.
    let pid = Pid::from_raw(child.id().cast_signed());
    let pipes = Pipes {
        input,
        output,
        complaints,
    };
    Ok((pid, expectation.claim(pid), pipes))
}

/// Writes everything and closes. A program that has heard enough says so by its exit status.
async fn feed(mut stdin: pipe::Sender, input: &[u8]) -> io::Result<()> {
    match timeout(FEEDING, stdin.write_all(input)).await {
        // Hosts know these words.
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "timeout waiting for stdin writer to complete",
        )),
        Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Ok(other) => other,
    }
}

/// Reads to the end, since a program must not stop for a listener that has heard
/// enough, and keeps a little more than `most` bytes at most.
async fn listen(mut from: impl AsyncRead + Unpin, most: usize) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let mut piece = [0u8; 4096];
    loop {
        match from.read(&mut piece).await? {
            0 => return Ok(kept),
            read if kept.len() <= most => kept.extend_from_slice(&piece[..read]),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_too_long_is_read_but_not_kept() {
        let text = vec![b'x'; 100_000];
        let kept = listen(&*text, 5000).await.unwrap();
        assert!(kept.len() > 5000 && kept.len() <= 5000 + 4096);
        assert_eq!(listen(&text[..7], 5000).await.unwrap().len(), 7);
    }
}
