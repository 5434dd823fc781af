// SPDX-License-Identifier: Apache-2.0
//! Standard input: one writer at a time, in the order of the requests, and
//! none after the process.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

use super::StdioError;
use super::output::LOOK;
use crate::children::Exit;

/// The agent's end of standard input.
pub struct Input {
    stream: Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
    exit: Exit,
}

impl Input {
    pub(super) fn new(stream: Option<Arc<AsyncFd<OwnedFd>>>, exit: Exit) -> Self {
        Self {
            stream: Mutex::new(stream),
            exit,
        }
    }

    /// Writes all of `data`, waiting for the process to read it.
    ///
    /// # Errors
    /// [`StdioError::InputClosed`] after [`Self::close`]; `EPIPE` when the
    /// process has closed its end, or has ended while a descendant that does
    /// not read holds it open.
    pub async fn write(&self, data: &[u8]) -> Result<(), StdioError> {
        // The lock is fair: requests are written in the order they came.
        let stream = self.stream.lock().await;
        let Some(stream) = stream.as_ref() else {
            return Err(StdioError::InputClosed);
        };
        let failed = |error| StdioError::Io("stdin", error);
        let mut exit = self.exit.clone();
        let mut rest = data;
        let mut closed = false;
        while !rest.is_empty() {
            match nix::unistd::write(stream.get_ref(), rest) {
                Ok(0) => return Err(failed(io::ErrorKind::WriteZero.into())),
                Ok(written) => rest = &rest[written..],
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => tokio::select! {
                    ready = stream.writable(), if !closed => {
                        let mut ready = ready.map_err(failed)?;
                        closed = ready.ready().is_write_closed();
                        ready.clear_ready();
                    }
                    () = tokio::time::sleep(LOOK), if closed => {}
                    // A closed channel means that the exit was seen and taken.
                    _ = exit.wait_for(Option::is_some) => {
                        return Err(failed(Errno::EPIPE.into()));
                    }
                },
                Err(errno) => return Err(failed(errno.into())),
            }
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

#[cfg(test)]
mod tests {
    use super::super::{Pipes, Stdio};
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::sync::{Arc, mpsc};
    use std::time::Duration;
    use tokio::sync::watch;

    /// In the reference such a write lasts for ever, and holds the agent up.
    #[tokio::test]
    async fn bug_a_write_ends_with_the_process() {
        let (sender, exit) = watch::channel(None);
        let (pipes, ends) = Pipes::new(0).unwrap();
        let stdio = Arc::new(Stdio::of_pipes(pipes, &exit).unwrap());
        let write = tokio::spawn({
            let stdio = stdio.clone();
            async move { stdio.input().unwrap().write(&[7; 1 << 20]).await }
        });
        let close = tokio::spawn({
            let stdio = stdio.clone();
            async move { stdio.close_input().await }
        });
        tokio::task::yield_now().await;
        assert!(!write.is_finished() && !close.is_finished());
        // A descendant keeps its end open, and the pipe is full.
        sender.send(Some(137)).unwrap();
        assert!(write.await.unwrap().is_err());
        close.await.unwrap();
        drop(ends);
    }

    /// As with output.
    #[tokio::test]
    async fn a_pipe_that_is_opened_again_does_not_hold_the_event_loop() {
        let (_sender, exit) = watch::channel(None);
        let (pipes, ends) = Pipes::new(0).unwrap();
        let stdio = Arc::new(Stdio::of_pipes(pipes, &exit).unwrap());
        let [stdin, ..] = ends.0;
        let name = format!("/proc/self/fd/{}", stdin.as_raw_fd());
        let way_back = File::options().write(true).open(name).unwrap();
        let write = tokio::spawn({
            let stdio = stdio.clone();
            async move { stdio.input().unwrap().write(&[7; 1 << 20]).await }
        });
        tokio::task::yield_now().await;
        drop(stdin);
        assert!(write.await.unwrap().is_err());
        // As full as it was.
        let mut stdin = File::open(format!("/proc/self/fd/{}", way_back.as_raw_fd())).unwrap();
        drop(way_back);
        let (tell, told) = mpsc::channel();
        let reader = tokio::task::spawn_blocking(move || {
            let others_ran = told.recv_timeout(Duration::from_secs(10)).is_ok();
            stdin.read_exact(&mut [0; 1 << 16]).unwrap();
            (others_ran, stdin)
        });
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            tell.send(()).unwrap();
        });
        stdio.input().unwrap().write(b"again").await.unwrap();
        assert!(reader.await.unwrap().0, "only the write ran");
    }

    #[tokio::test]
    async fn what_fits_is_written_for_a_descendant_too() {
        let (sender, exit) = watch::channel(None);
        let (pipes, ends) = Pipes::new(0).unwrap();
        let stdio = Stdio::of_pipes(pipes, &exit).unwrap();
        sender.send(Some(0)).unwrap();
        stdio
            .input()
            .unwrap()
            .write(b"for whom it may concern")
            .await
            .unwrap();
        let mut buffer = [0; 64];
        let length = nix::unistd::read(&ends.0[0], &mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"for whom it may concern");
    }
}
