// SPDX-License-Identifier: Apache-2.0
//! Standard input: one writer at a time, in the order of the requests.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

use super::StdioError;

/// The agent's end of standard input.
pub struct Input {
    stream: Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
}

impl Input {
    pub(super) fn new(stream: Arc<AsyncFd<OwnedFd>>) -> Self {
        Self {
            stream: Mutex::new(Some(stream)),
        }
    }

    /// Writes all of `data`, waiting for the process to read it.
    ///
    /// # Errors
    /// [`StdioError::InputClosed`] after [`Self::close`]; `EPIPE` when the
    /// process has closed its end.
    pub async fn write(&self, data: &[u8]) -> Result<(), StdioError> {
        // The lock is fair: requests are written in the order they came.
        let stream = self.stream.lock().await;
        let Some(stream) = stream.as_ref() else {
            return Err(StdioError::InputClosed);
        };
        let mut rest = data;
        while !rest.is_empty() {
            let written = stream
                .async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, rest)?))
                .await
                .map_err(|e| StdioError::Io("stdin", e))?;
            if written == 0 {
                return Err(StdioError::Io("stdin", io::ErrorKind::WriteZero.into()));
            }
            rest = &rest[written..];
        }
        Ok(())
    }

    /// Ends the input once everything asked for before has been written. For a
    /// terminal this only refuses further writes: letting the master go would
    /// hang up on the session.
    pub async fn close(&self) {
        self.stream.lock().await.take();
    }
}
