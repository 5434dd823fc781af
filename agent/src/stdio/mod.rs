// SPDX-License-Identifier: Apache-2.0
//! The standard streams of a process, as the protocol reads and writes them.
//!
//! The kernel's pipe or terminal is the only buffer: a reader that stays away
//! stops the process, never the agent.

mod arrivals;
mod copy;
mod input;
mod output;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::pipe2;
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;

use crate::children::Exit;
pub use arrivals::{Arrivals, Passed};
pub use input::Input;
pub use output::Output;

/// Why a stream cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// Standard input was closed before.
    #[error("Standard input of the process is closed")]
    InputClosed,
    /// The host has connections of its own for the streams.
    #[error("Streams of the process are passed over ports of their own")]
    Passed,
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
    input: Arc<Input>,
    passed: bool,
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
    /// The errno of `pipe2(2)`, `fchmod(2)` or `F_SETPIPE_SZ`.
    pub fn new(size: u32) -> io::Result<(Self, ChildEnds)> {
        let (stdin_read, stdin) = pipe(READ_BY_ALL)?;
        let (stdout, stdout_write) = pipe(WRITTEN_BY_ALL)?;
        let (stderr, stderr_write) = pipe(WRITTEN_BY_ALL)?;
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

/// Who may open a pipe again by its name in `/proc`, as `/dev/stdout` does. A
/// user that the pipe cannot be given to (the ids of a user namespace do not
/// reach it) and one that the program turns into need it. It is no more than
/// they can do with the descriptor: nobody else gets at a pipe without a name,
/// and the end that is the agent's is not in it.
const READ_BY_ALL: u32 = 0o644;
const WRITTEN_BY_ALL: u32 = 0o622;

fn pipe(mode: u32) -> nix::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    // Both ends are one inode.
    fchmod(&read, Mode::from_bits_truncate(mode))?;
    Ok((read, write))
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
            input: Arc::new(Input::new(
                Some(Arc::new(crate::watch::watch(pipes.stdin)?)),
                exit.clone(),
            )),
            passed: false,
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
            input: Arc::new(Input::new(Some(master.clone()), exit.clone())),
            passed: false,
            stdout: Mutex::new(Some(Arc::new(Output::new(master.clone(), exit.clone())))),
            stderr: Mutex::new(None),
            terminal: Some(master),
        })
    }

    /// Connects the streams with what the host opened for them: they are no
    /// longer read and written by requests. Standard input without a connection
    /// ends, output without one is thrown away.
    ///
    /// # Errors
    /// When a connection cannot be polled.
    pub fn pass(mut self, passed: Passed, exit: &Exit) -> io::Result<Self> {
        self.passed = true;
        let watch = |stream: Option<OwnedFd>| stream.map(crate::watch::watch).transpose();
        let (stdin, stdout, stderr) = (
            watch(passed.stdin)?,
            watch(passed.stdout)?,
            watch(passed.stderr)?,
        );
        match stdin {
            Some(stream) => drop(tokio::spawn(copy::feed(
                stream,
                self.input.clone(),
                exit.clone(),
            ))),
            None => self.input = Arc::new(Input::new(None, exit.clone())),
        }
        let is_terminal = self.terminal.is_some();
        for (slot, stream) in [(&self.stdout, stdout), (&self.stderr, stderr)] {
            let output = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(output) = output {
                tokio::spawn(copy::drain(output, stream, exit.clone(), is_terminal));
            }
        }
        Ok(self)
    }

    /// Standard input.
    ///
    /// # Errors
    /// [`StdioError::Passed`].
    pub fn input(&self) -> Result<&Input, StdioError> {
        self.unless_passed().map(|()| &*self.input)
    }

    /// Ends standard input, see [`Input::close`].
    pub async fn close_input(&self) {
        self.input.close().await;
    }

    fn unless_passed(&self) -> Result<(), StdioError> {
        if self.passed {
            return Err(StdioError::Passed);
        }
        Ok(())
    }

    /// Up to `limit` bytes of standard output; empty at its end, which also
    /// lets the descriptor go.
    ///
    /// # Errors
    /// [`StdioError::Passed`], [`StdioError::Io`].
    pub async fn read_stdout(&self, limit: usize) -> Result<Vec<u8>, StdioError> {
        self.unless_passed()?;
        read(&self.stdout, "stdout", limit).await
    }

    /// Up to `limit` bytes of standard error.
    ///
    /// # Errors
    /// [`StdioError::Passed`], [`StdioError::Io`].
    pub async fn read_stderr(&self, limit: usize) -> Result<Vec<u8>, StdioError> {
        self.unless_passed()?;
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
