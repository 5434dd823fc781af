// SPDX-License-Identifier: Apache-2.0
//! Standard output or error: complete to the last byte, and ended even if a
//! descendant of the process keeps it open for ever.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

use crate::children::Exit;

/// How long after the exit of the process its streams may stay silent before
/// they count as ended, although somebody holds them open.
const GRACE: Duration = Duration::from_millis(500);

/// How long to wait between two looks at a stream that was closed once. That is
/// not the end, for a process may open its end of a pipe or terminal again, but
/// the event loop calls the stream ready for ever then.
pub(super) const LOOK: Duration = Duration::from_millis(10);

/// What one reply carries at most: a pipe holds 64 KiB unless enlarged, and a
/// message must stay well below 4 MiB whatever length was asked for.
const MAX_READ: usize = 1 << 20;

/// What is read for when nothing seems to be there.
const LEAST_READ: usize = 256;

/// The agent's end of an output stream.
pub struct Output {
    stream: Arc<AsyncFd<OwnedFd>>,
    exit: Exit,
    turn: Mutex<()>,
}

impl Output {
    pub(super) fn new(stream: Arc<AsyncFd<OwnedFd>>, exit: Exit) -> Self {
        Self {
            stream,
            exit,
            turn: Mutex::new(()),
        }
    }

    /// Waits for data and returns up to `limit` bytes of it; empty at the end.
    /// Safe to drop while it waits: bytes leave the pipe only when returned.
    ///
    /// # Errors
    /// The errno of `read(2)`.
    pub async fn read(&self, limit: usize) -> io::Result<Vec<u8>> {
        if limit == 0 {
            return Err(Errno::EINVAL.into());
        }
        let _turn = self.turn.lock().await;
        let silent = silence_after(self.exit.clone());
        tokio::pin!(silent);
        let mut closed = false;
        loop {
            match self.take(limit) {
                Ok(data) => return Ok(data),
                // A terminal whose last user has gone.
                Err(Errno::EIO) => return Ok(Vec::new()),
                Err(Errno::EAGAIN) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            tokio::select! {
                ready = self.stream.readable(), if !closed => {
                    let mut ready = ready?;
                    closed = ready.ready().is_read_closed();
                    ready.clear_ready();
                }
                () = tokio::time::sleep(LOOK), if closed => {}
                // Something may have come since the last look.
                () = &mut silent => return Ok(self.take(limit).unwrap_or_default()),
            }
        }
    }

    /// What is there now. Memory is taken for that only: thousands of reads may
    /// wait at a time.
    fn take(&self, limit: usize) -> nix::Result<Vec<u8>> {
        let stream = self.stream.get_ref();
        let there = rustix::io::ioctl_fionread(stream).unwrap_or(0);
        let there = usize::try_from(there).unwrap_or(MAX_READ);
        // Nothing may also be the end, which only a read can tell.
        let mut data = vec![0; there.max(LEAST_READ).min(limit).min(MAX_READ)];
        let length = nix::unistd::read(stream, &mut data)?;
        data.truncate(length);
        Ok(data)
    }
}

/// Ends when the process has exited and a grace period has passed.
async fn silence_after(mut exit: Exit) {
    // A closed channel means that the exit was seen and taken.
    let _ = exit.wait_for(Option::is_some).await;
    tokio::time::sleep(GRACE).await;
}

#[cfg(test)]
mod tests {
    use super::super::{Pipes, Stdio};
    use super::Output;
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::sync::{Arc, mpsc};
    use std::time::Duration;
    use tokio::sync::watch;

    #[tokio::test]
    async fn output_is_complete_after_the_exit() {
        let (sender, exit) = watch::channel(None);
        let (pipes, ends) = Pipes::new(0).unwrap();
        let stdio = Stdio::of_pipes(pipes, &exit).unwrap();
        let mut stdout = std::fs::File::from({
            let [_, stdout, _] = ends.0;
            stdout
        });
        stdout.write_all(b"last words").unwrap();
        drop(stdout);
        sender.send(Some(0)).unwrap();
        assert_eq!(stdio.read_stdout(5).await.unwrap(), b"last ");
        assert_eq!(stdio.read_stdout(4096).await.unwrap(), b"words");
        assert!(stdio.read_stdout(4096).await.unwrap().is_empty());
        assert!(
            stdio.read_stdout(4096).await.unwrap().is_empty(),
            "an end stays an end"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn bug_a_descendant_that_holds_the_pipe_does_not_hold_the_reader() {
        let (sender, exit) = watch::channel(None);
        let (pipes, ends) = Pipes::new(0).unwrap();
        let stdio = Stdio::of_pipes(pipes, &exit).unwrap();
        let mut stdout = std::fs::File::from(ends.0[1].try_clone().unwrap());
        stdout.write_all(b"data").unwrap();
        sender.send(Some(0)).unwrap();
        assert_eq!(stdio.read_stdout(4096).await.unwrap(), b"data");
        assert!(stdio.read_stdout(4096).await.unwrap().is_empty());
        drop(ends);
    }

    /// The event loop would never come to anything else: a container must not
    /// be able to do that to the agent.
    #[tokio::test]
    async fn a_pipe_that_is_opened_again_does_not_hold_the_event_loop() {
        let (_sender, exit) = watch::channel(None);
        let (pipes, ends) = Pipes::new(0).unwrap();
        let stream = Arc::new(crate::watch::watch(pipes.stdout).unwrap());
        let output = Arc::new(Output::new(stream, exit));
        let [_, stdout, _] = ends.0;
        let way_back = File::open(format!("/proc/self/fd/{}", stdout.as_raw_fd())).unwrap();
        let read = tokio::spawn({
            let output = output.clone();
            async move { output.read(9).await }
        });
        tokio::task::yield_now().await;
        drop(stdout);
        // So the event loop has seen it closed.
        assert!(read.await.unwrap().unwrap().is_empty());
        let name = format!("/proc/self/fd/{}", way_back.as_raw_fd());
        let mut stdout = File::options().write(true).open(name).unwrap();
        let (tell, told) = mpsc::channel();
        let writer = tokio::task::spawn_blocking(move || {
            let others_ran = told.recv_timeout(Duration::from_secs(10)).is_ok();
            stdout.write_all(b"again").unwrap();
            (others_ran, stdout)
        });
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            tell.send(()).unwrap();
        });
        assert_eq!(output.read(9).await.unwrap(), b"again");
        assert!(writer.await.unwrap().0, "only the read ran");
    }

    #[tokio::test]
    async fn bug_a_huge_length_is_not_allocated() {
        let (_sender, exit) = watch::channel(None);
        let (pipes, ends) = Pipes::new(0).unwrap();
        let stdio = Stdio::of_pipes(pipes, &exit).unwrap();
        std::fs::File::from(ends.0[1].try_clone().unwrap())
            .write_all(b"x")
            .unwrap();
        let data = stdio.read_stdout(u32::MAX as usize).await.unwrap();
        assert!(data.capacity() <= super::MAX_READ);
        assert_eq!(data, b"x");
    }

    #[tokio::test]
    async fn closing_waits_for_what_was_asked_before() {
        let (_sender, exit) = watch::channel(None);
        let (pipes, ends) = Pipes::new(0).unwrap();
        let stdio = std::sync::Arc::new(Stdio::of_pipes(pipes, &exit).unwrap());
        let [stdin, ..] = ends.0;
        let big = vec![7u8; 300_000];
        let writer = {
            let stdio = stdio.clone();
            let big = big.clone();
            tokio::spawn(async move { stdio.input().unwrap().write(&big).await })
        };
        tokio::task::yield_now().await;
        let closer = {
            let stdio = stdio.clone();
            tokio::spawn(async move { stdio.close_input().await })
        };
        let reader = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            std::io::Read::read_to_end(&mut std::fs::File::from(stdin), &mut all).unwrap();
            all
        });
        writer.await.unwrap().unwrap();
        closer.await.unwrap();
        assert_eq!(reader.await.unwrap(), big);
        assert!(stdio.input().unwrap().write(b"x").await.is_err());
    }
}
