// SPDX-License-Identifier: Apache-2.0
//! Carries a process's streams between the agent and our own standard streams, one bounded piece at a time.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::client::{Agent, ClientError, Output, Process};

/// Bytes per piece: what a pipe holds.
const PIECE: usize = 64 * 1024;

/// Why a stream broke.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The agent's side.
    #[error("A stream of the container broke")]
    Agent(#[from] ClientError),
    /// Our side.
    #[error("Cannot write the container's output")]
    Local(#[source] io::Error),
}

/// Copies an output stream of the container's to its end.
pub async fn copy_output(
    agent: &Agent,
    id: &Process,
    output: Output,
    mut to: impl AsyncWrite + Unpin,
) -> Result<(), StreamError> {
    // A small piece shall be seen at once, so each is flushed; a piece is as large as what has gathered meanwhile.
    loop {
        let piece = agent.read(id, output, PIECE as u32).await?;
        if piece.is_empty() {
            return Ok(());
        }
        to.write_all(&piece).await.map_err(StreamError::Local)?;
        to.flush().await.map_err(StreamError::Local)?;
    }
}

/// Copies our standard input to the process until either end closes, then closes the process's. `close` says whether our end's end shall close
/// it: a terminal is not closed, that would hang it up.
pub async fn copy_input(
    agent: &Agent,
    id: &Process,
    mut from: impl AsyncRead + Unpin,
    close: bool,
) {
    let mut buffer = vec![0; PIECE];
    loop {
        // An input that cannot be read has ended, as far as the process is concerned.
        let n = from.read(&mut buffer).await.unwrap_or(0);
        if n == 0 {
            break;
        }
        // Refused: the process has ended or has closed its input, which is its right.
        if agent.write_stdin(id, buffer[..n].to_vec()).await.is_err() {
            return;
        }
    }
    if close {
        // The same goes for this.
        let _ = agent.close_stdin(id).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::fake;
    use std::time::Duration;

    #[tokio::test]
    async fn input_comes_back_whole_and_its_end_ends_the_output() {
        let (_server, agent, _) = fake::serve().await;
        let id = Process::init("c1");
        let input: Vec<u8> = (0..1_000_000u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut output = Vec::new();
        let (copied, ()) = tokio::join!(
            copy_output(&agent, &id, Output::Stdout, &mut output),
            copy_input(&agent, &id, &input[..], true)
        );
        copied.unwrap();
        assert_eq!(output, input);
    }

    #[tokio::test]
    async fn a_terminal_is_not_closed() {
        let (_server, agent, _) = fake::serve().await;
        let id = Process::init("c1");
        copy_input(&agent, &id, &b"x"[..], false).await;
        assert_eq!(agent.read(&id, Output::Stdout, 10).await.unwrap(), b"x");
        let more = agent.read(&id, Output::Stdout, 10);
        let wait = tokio::time::timeout(Duration::from_millis(50), more);
        assert!(wait.await.is_err());
    }

    #[tokio::test]
    async fn a_process_may_refuse_input_and_a_reader_output() {
        let (_server, agent, _) = fake::serve().await;
        let input = tokio::io::repeat(b'x');
        copy_input(&agent, &Process::init(fake::DEAF), input, true).await;
        let id = Process::init("c1");
        agent.write_stdin(&id, b"x".to_vec()).await.unwrap();
        let (near, far) = tokio::net::UnixStream::pair().unwrap();
        drop(far);
        let error = copy_output(&agent, &id, Output::Stdout, near)
            .await
            .unwrap_err();
        let broken = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
        assert!(matches!(&error, StreamError::Local(e) if broken(e)));
    }
}
