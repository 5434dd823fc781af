// SPDX-License-Identifier: Apache-2.0
//! WriteStdin, ReadStdout, ReadStderr, CloseStdin, TtyWinResize.

use protocols::agent::{
    CloseStdinRequest, ReadStreamRequest, ReadStreamResponse, TtyWinResizeRequest,
    WriteStreamRequest, WriteStreamResponse,
};
use protocols::empty::Empty;
use ttrpc::Code;

use super::status::{Coded, failure, lifecycle};
use crate::container::plan::PlanError;
use crate::sandbox::{Sandbox, SandboxError};
use crate::stdio::StdioError;

/// Which output is meant.
#[derive(Clone, Copy)]
pub enum Stream {
    Stdout,
    Stderr,
}

pub async fn write(
    sandbox: &Sandbox,
    request: &WriteStreamRequest,
) -> ttrpc::Result<WriteStreamResponse> {
    let (_, process) = sandbox
        .process(&request.container_id, &request.exec_id)
        .map_err(unwritable)?;
    let input = process.stdio().input().map_err(Coded::status)?;
    if request.data.is_empty() {
        // runtime-rs ends standard input this way and never calls CloseStdin.
        input.close().await;
    } else {
        input.write(&request.data).await.map_err(Coded::status)?;
    }
    // A message is at most 4 MiB, and so is what it carries.
    Ok(WriteStreamResponse {
        len: request.data.len() as u32,
        ..Default::default()
    })
}

pub async fn read(
    sandbox: &Sandbox,
    request: &ReadStreamRequest,
    stream: Stream,
) -> ttrpc::Result<ReadStreamResponse> {
    if request.len == 0 {
        // An empty answer would mean the end of the stream.
        return Err(PlanError::Missing("len").status());
    }
    let (_, process) = sandbox
        .process(&request.container_id, &request.exec_id)
        .map_err(Coded::status)?;
    let stdio = process.stdio();
    let data = match stream {
        Stream::Stdout => stdio.read_stdout(request.len as usize).await,
        Stream::Stderr => stdio.read_stderr(request.len as usize).await,
    };
    Ok(ReadStreamResponse {
        data: data.map_err(Coded::status)?,
        ..Default::default()
    })
}

pub async fn close(sandbox: &Sandbox, request: &CloseStdinRequest) -> ttrpc::Result<Empty> {
    let (_, process) = sandbox
        .process(&request.container_id, &request.exec_id)
        .map_err(Coded::status)?;
    process.stdio().close_input().await;
    Ok(Empty::new())
}

pub fn resize(sandbox: &Sandbox, request: &TtyWinResizeRequest) -> ttrpc::Result<Empty> {
    let (_, process) = sandbox
        .process(&request.container_id, &request.exec_id)
        .map_err(Coded::status)?;
    let clamp = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    process
        .stdio()
        .resize(clamp(request.row), clamp(request.column))
        .map_err(|error| match error {
            StdioError::NoTerminal => failure(error.code(), "no tty"),
            other => other.status(),
        })?;
    Ok(Empty::new())
}

/// WriteStdin has a code and texts of its own for what is not there (protocol
/// section 3.0).
fn unwritable(error: SandboxError) -> ttrpc::Error {
    let text = match &error {
        SandboxError::UnknownProcess { exec, .. } if exec.is_empty() => "init process missing",
        SandboxError::UnknownProcess { .. } => "invalid exec id",
        _ => return lifecycle(error),
    };
    failure(Code::INTERNAL, &format!("Process not found: {text}"))
}
