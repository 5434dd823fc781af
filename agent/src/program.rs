// SPDX-License-Identifier: Apache-2.0
//! Running a program of the guest's to its end, such as modprobe or mkfs. Owns
//! the start through the one reaper and the reading of what it says; knows no
//! program by name.

use std::ffi::OsStr;
use std::io;
use std::process::{Command, Stdio};

use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, sink};
use tokio::net::unix::pipe;

use crate::children::{Children, Exit, code_of};
use crate::pool::at_host_pace;

/// Bytes of its output that are kept, enough for an error.
const MAX_OUTPUT: u64 = 4096;

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status, 128+N for death by signal N.
    pub code: i32,
    /// The beginning of what it wrote to both of its outputs.
    pub output: String,
}

/// Runs a program with nothing to read.
///
/// # Errors
/// Why it could not be started, such as that it is not there.
pub async fn run<S: AsRef<OsStr>>(
    children: &Children,
    program: &'static str,
    arguments: &[S],
) -> io::Result<Ended> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let children = children.clone();
    // The program may lie on the host.
    let started = at_host_pace(move || start(&children, command)).await;
    let (mut output, mut exit) = started.map_err(io::Error::other)??;
    let mut text = Vec::new();
    (&mut output)
        .take(MAX_OUTPUT)
        .read_to_end(&mut text)
        .await?;
    // It must not stop for a reader that has heard enough.
    tokio::io::copy(&mut output, &mut sink()).await?;
    Ok(Ended {
        code: code_of(&mut exit).await,
        output: String::from_utf8_lossy(&text).trim().to_owned(),
    })
}

fn start(children: &Children, mut command: Command) -> io::Result<(pipe::Receiver, Exit)> {
    let (reader, writer) = io::pipe()?;
    let expectation = children.expect();
    // Not waited for here: the one reaper collects it.
    #[allow(clippy::zombie_processes)]
    let child = command.stdout(writer.try_clone()?).stderr(writer).spawn()?;
    let exit = expectation.claim(Pid::from_raw(child.id() as i32));
    Ok((pipe::Receiver::from_owned_fd(reader.into())?, exit))
}
