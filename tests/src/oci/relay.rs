// SPDX-License-Identifier: Apache-2.0
//! Carries the standard streams of a process in the guest, as the host's shim does: in this process for an exec that is waited for,
//! in one of its own for what the caller does not wait for. Ends with the process it serves.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use protocols::agent::{
    CloseStdinRequest, ReadStreamRequest, TtyWinResizeRequest, WaitProcessRequest,
    WriteStreamRequest,
};
use tests::agent::Rpc;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Options;
use crate::console;
use crate::host::{Host, refused};

/// Most bytes of a read, as hosts ask for.
const CHUNK: usize = 32 << 10;

/// A process in the guest.
#[derive(Clone)]
pub struct Target {
    pub container: String,
    /// Empty for the container's own process.
    pub exec: String,
    pub terminal: bool,
}

/// Starts a relay of its own with the caller's streams, or with a new terminal whose master goes over the console socket.
pub fn detach(
    options: &Options,
    target: &Target,
    console_socket: Option<&std::path::Path>,
) -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--root").arg(options.root.canonicalize()?);
    command.args(["relay", &target.container, "--exec", &target.exec]);
    if target.terminal {
        command.arg("--terminal");
    }
    if let Some(socket) = console_socket {
        let slave = console::send(socket)?;
        command
            .stdin(Stdio::from(slave.try_clone()?))
            .stdout(Stdio::from(slave.try_clone()?))
            .stderr(Stdio::from(slave));
    }
    // Not ended with the caller's job.
    command.process_group(0).current_dir("/");
    command.spawn().context("Cannot start the relay")?;
    Ok(())
}

/// The relay's own process.
pub async fn serve(options: &Options, target: Target) -> Result<u8> {
    if target.terminal {
        // As its session's terminal, so that changes of its size are told. Fails where there is none, and then there is no size.
        let _ = rustix::process::setsid();
        let _ = rustix::process::ioctl_tiocsctty(std::io::stdin());
    }
    let rpc = Host::new(options).connect().await?;
    carry(&rpc, &target).await
}

/// Carries everything to the end and gives the exit code.
pub async fn carry(rpc: &Rpc, target: &Target) -> Result<u8> {
    tokio::spawn(input(rpc.clone(), target.clone()));
    if target.terminal {
        tokio::spawn(sizes(rpc.clone(), target.clone()));
    }
    let errors = tokio::spawn(output(rpc.clone(), target.clone(), Stream::Stderr));
    output(rpc.clone(), target.clone(), Stream::Stdout).await;
    let _ = errors.await;
    let request = WaitProcessRequest {
        container_id: target.container.clone(),
        exec_id: target.exec.clone(),
        ..Default::default()
    };
    let answer = rpc
        .wait_process(&request)
        .await
        .map_err(refused("WaitProcess"))?;
    Ok(u8::try_from(answer.status).unwrap_or(u8::MAX))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
}

/// An error is the end of a stream, as hosts take it.
async fn output(rpc: Rpc, target: Target, stream: Stream) {
    if target.terminal && stream == Stream::Stderr {
        return;
    }
    let request = ReadStreamRequest {
        container_id: target.container,
        exec_id: target.exec,
        len: CHUNK as u32,
        ..Default::default()
    };
    // With nobody to read it any more, output is still taken: the process must not hang.
    let mut reader_is_there = true;
    loop {
        let answer = match stream {
            Stream::Stdout => rpc.read_stdout(&request).await,
            Stream::Stderr => rpc.read_stderr(&request).await,
        };
        let Some(data) = answer
            .ok()
            .map(|answer| answer.data)
            .filter(|data| !data.is_empty())
        else {
            return;
        };
        if reader_is_there {
            let written = tokio::task::spawn_blocking(move || write(stream, &data)).await;
            reader_is_there = matches!(written, Ok(Ok(())));
        }
    }
}

fn write(stream: Stream, data: &[u8]) -> std::io::Result<()> {
    match stream {
        Stream::Stdout => {
            let mut stdout = std::io::stdout();
            stdout.write_all(data).and_then(|()| stdout.flush())
        }
        Stream::Stderr => std::io::stderr().write_all(data),
    }
}

async fn input(rpc: Rpc, target: Target) {
    loop {
        let read = tokio::task::spawn_blocking(|| {
            let mut data = vec![0; CHUNK];
            let read = std::io::stdin().read(&mut data).unwrap_or(0);
            data.truncate(read);
            data
        });
        let data = read.await.unwrap_or_default();
        if data.is_empty() {
            let request = CloseStdinRequest {
                container_id: target.container,
                exec_id: target.exec,
                ..Default::default()
            };
            let _ = rpc.close_stdin(&request).await;
            return;
        }
        if !send(&rpc, &target, data).await {
            return;
        }
    }
}

/// All of it, however little is taken at a time.
async fn send(rpc: &Rpc, target: &Target, mut data: Vec<u8>) -> bool {
    while !data.is_empty() {
        let request = WriteStreamRequest {
            container_id: target.container.clone(),
            exec_id: target.exec.clone(),
            data: data.clone(),
            ..Default::default()
        };
        match rpc.write_stdin(&request).await {
            Ok(answer) => data.drain(..data.len().min(answer.len as usize)),
            Err(_) => return false,
        };
    }
    true
}

/// The terminal's size, now and whenever it changes.
async fn sizes(rpc: Rpc, target: Target) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else {
        return;
    };
    loop {
        if let Some((row, column)) = rootfs_builder::terminal::size() {
            let request = TtyWinResizeRequest {
                container_id: target.container.clone(),
                exec_id: target.exec.clone(),
                row: row.into(),
                column: column.into(),
                ..Default::default()
            };
            let _ = rpc.tty_win_resize(&request).await;
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}
