// SPDX-License-Identifier: Apache-2.0
//! The standard streams of a process, as the protocol reads and writes them.
//!
//! The kernel's pipe or terminal is the only buffer: a reader that stays away
//! stops the process, never the agent.

mod input;
mod output;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;

use crate::children::Exit;
pub use input::Input;
pub use output::Output;

/// Why a stream cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// Standard input was closed before.
    #[error("Standard input of the process is closed")]
    InputClosed,
    /// The process has no terminal.
    #[error("Process has no terminal")]
    NoTerminal,
    /// The kernel's answer.
    #[error("Stream {0} failed")]
    Io(&'static str, #[source] io::Error),
}

/// The ends of three pipes that the process gets.
pub struct ChildEnds(pub [OwnedFd; 3]);

/// The agent's ends.
pub struct Stdio {
    input: Input,
    stdout: Mutex<Option<Arc<Output>>>,
    stderr: Mutex<Option<Arc<Output>>>,
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
}

/// The agent's ends before the process has been started.
pub struct Pipes {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Pipes {
    /// Three pipes; `size` > 0 sets the capacity of the output ones in bytes
    /// (`agent.container_pipe_size`).
    ///
    /// # Errors
    /// The errno of `pipe2(2)` or `F_SETPIPE_SZ`.
    pub fn new(size: u32) -> io::Result<(Self, ChildEnds)> {
        let (stdin_read, stdin) = pipe2(OFlag::O_CLOEXEC)?;
        let (stdout, stdout_write) = pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, stderr_write) = pipe2(OFlag::O_CLOEXEC)?;
        for ours in [&stdin, &stdout, &stderr] {
            fcntl(ours.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        if size > 0 {
            let size = i32::try_from(size).unwrap_or(i32::MAX);
            fcntl(stdout.as_fd(), FcntlArg::F_SETPIPE_SZ(size))?;
            fcntl(stderr.as_fd(), FcntlArg::F_SETPIPE_SZ(size))?;
        }
        Ok((
            Self {
                stdin,
                stdout,
                stderr,
            },
            ChildEnds([stdin_read, stdout_write, stderr_write]),
        ))
    }
}

impl Stdio {
    /// The streams of a process with pipes.
    ///
    /// # Errors
    /// When a descriptor cannot be polled.
    pub fn of_pipes(pipes: Pipes, exit: &Exit) -> io::Result<Self> {
        let output = |fd: OwnedFd| -> io::Result<_> {
            Ok(Mutex::new(Some(Arc::new(Output::new(
                Arc::new(crate::watch::watch(fd)?),
                exit.clone(),
            )))))
        };
        Ok(Self {
            input: Input::new(Arc::new(crate::watch::watch(pipes.stdin)?)),
            stdout: output(pipes.stdout)?,
            stderr: output(pipes.stderr)?,
            terminal: None,
        })
    }

    /// The streams of a process with a terminal, by its master side. There is
    /// no standard error: a terminal has one output.
    ///
    /// # Errors
    /// When the descriptor cannot be polled.
    pub fn of_terminal(master: OwnedFd, exit: &Exit) -> io::Result<Self> {
        fcntl(
            master.as_fd(),
            FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK),
        )?;
        let master = Arc::new(crate::watch::watch(master)?);
        Ok(Self {
            input: Input::new(master.clone()),
            stdout: Mutex::new(Some(Arc::new(Output::new(master.clone(), exit.clone())))),
            stderr: Mutex::new(None),
            terminal: Some(master),
        })
    }

    /// Standard input.
    #[must_use]
    pub fn input(&self) -> &Input {
        &self.input
    }

    /// Up to `limit` bytes of standard output; empty at its end, which also
    /// lets the descriptor go.
    ///
    /// # Errors
    /// [`StdioError::Io`].
    pub async fn read_stdout(&self, limit: usize) -> Result<Vec<u8>, StdioError> {
        read(&self.stdout, "stdout", limit).await
    }

    /// Up to `limit` bytes of standard error.
    ///
    /// # Errors
    /// [`StdioError::Io`].
    pub async fn read_stderr(&self, limit: usize) -> Result<Vec<u8>, StdioError> {
        read(&self.stderr, "stderr", limit).await
    }

    /// Sets the size of the terminal in characters.
    ///
    /// # Errors
    /// [`StdioError::NoTerminal`], or the errno of `TIOCSWINSZ`.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), StdioError> {
        let terminal = self.terminal.as_ref().ok_or(StdioError::NoTerminal)?;
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(terminal.get_ref(), size).map_err(|e| StdioError::Io("resize", e.into()))
    }
}

async fn read(
    slot: &Mutex<Option<Arc<Output>>>,
    name: &'static str,
    limit: usize,
) -> Result<Vec<u8>, StdioError> {
    let stream = slot.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(stream) = stream else {
        return Ok(Vec::new());
    };
    let data = stream
        .read(limit)
        .await
        .map_err(|e| StdioError::Io(name, e))?;
    if data.is_empty() {
        slot.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
    Ok(data)
}
