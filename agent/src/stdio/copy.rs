// SPDX-License-Identifier: Apache-2.0
//! Copying between a process and the connections that the host opened for its
//! streams. Each direction is a task; nobody waits for it, and each ends by
//! itself: at the end of its source, when its peer goes, or when the process has
//! ended and nothing moves any more.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use protocols::chunked::MAX_PIECE;
use rustix::net::Shutdown;
use tokio::io::unix::AsyncFd;

use super::{Input, Output};
use crate::children::Exit;

/// What one copy holds at most.
const BUFFER: usize = 64 << 10;

/// How long after the exit of the process a host that takes nothing is waited
/// for. Until the exit it holds up the process, as a full pipe does.
const LINGER: Duration = Duration::from_secs(10);

/// Copies what the host sends to standard input. Its end ends the input; the
/// connection ends with the process, or when that takes no more.
pub(super) async fn feed(stream: AsyncFd<OwnedFd>, input: Arc<Input>, mut exit: Exit) {
    let copy = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            match nix::unistd::read(stream.get_ref(), &mut buffer) {
                Ok(length) if length > 0 => {
                    if input.write(&buffer[..length]).await.is_err() {
                        return;
                    }
                    // Both may be ready without end.
                    tokio::task::yield_now().await;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => match stream.readable().await {
                    Ok(mut ready) => ready.clear_ready(),
                    Err(_) => return,
                },
                // The end, or a host that is gone.
                Ok(_) | Err(_) => return input.close().await,
            }
        }
    };
    tokio::select! {
        () = copy => {}
        // A closed channel means that the exit was seen and taken.
        _ = exit.wait_for(Option::is_some) => {}
    }
}

/// Copies an output to the host; what has no connection is thrown away, or the
/// process would stop at a full pipe that nobody can empty. When the host goes,
/// a pipe is closed, which tells the process; a terminal is emptied further.
pub(super) async fn drain(
    output: Arc<Output>,
    stream: Option<AsyncFd<OwnedFd>>,
    exit: Exit,
    is_terminal: bool,
) {
    let mut stream = stream;
    while let Ok(data) = output.read(BUFFER).await {
        if data.is_empty() {
            break;
        }
        if let Some(host) = &stream
            && write(host, &data, &exit).await.is_err()
        {
            if !is_terminal {
                return;
            }
            stream = None;
        }
        // Both may be ready without end.
        tokio::task::yield_now().await;
    }
    if let Some(host) = &stream {
        // It may be gone.
        let _ = rustix::net::shutdown(host.get_ref(), Shutdown::Write);
    }
}

async fn write(host: &AsyncFd<OwnedFd>, data: &[u8], exit: &Exit) -> io::Result<()> {
    let mut rest = data;
    while !rest.is_empty() {
        let piece = &rest[..rest.len().min(MAX_PIECE)];
        match nix::unistd::write(host.get_ref(), piece) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => tokio::select! {
                ready = host.writable() => ready?.clear_ready(),
                () = stuck_after(exit.clone()) => return Err(Errno::ETIMEDOUT.into()),
            },
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Ends when the process has exited and [`LINGER`] has passed.
async fn stuck_after(mut exit: Exit) {
    // A closed channel means that the exit was seen and taken.
    let _ = exit.wait_for(Option::is_some).await;
    tokio::time::sleep(LINGER).await;
}

#[cfg(test)]
mod tests {
    use super::super::{ChildEnds, Passed, Pipes, Stdio};
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as StdStream;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::sync::watch;

    /// A connection, and the host's end of it.
    fn connection() -> (OwnedFd, UnixStream) {
        let (ours, theirs) = StdStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours.into(), UnixStream::from_std(theirs).unwrap())
    }

    /// A process whose three streams are passed, as its ends and the host's.
    fn process(exit: &Exit) -> (Stdio, [File; 3], [UnixStream; 3]) {
        let (pipes, ChildEnds(ends)) = Pipes::new(0).unwrap();
        let (stdin, host_in) = connection();
        let (stdout, host_out) = connection();
        let (stderr, host_err) = connection();
        let passed = Passed {
            stdin: Some(stdin),
            stdout: Some(stdout),
            stderr: Some(stderr),
        };
        let stdio = Stdio::of_pipes(pipes, exit).unwrap();
        let stdio = stdio.pass(passed, exit).unwrap();
        (stdio, ends.map(File::from), [host_in, host_out, host_err])
    }

    async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    #[tokio::test]
    async fn all_three_streams_are_copied_to_their_ends() {
        let (exited, exit) = watch::channel(None);
        let (_stdio, [mut stdin, mut stdout, mut stderr], hosts) = process(&exit);
        let [mut host_in, mut host_out, mut host_err] = hosts;
        let big: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
        let echo = on_a_thread(move || {
            let mut all = Vec::new();
            stdin.read_to_end(&mut all).unwrap();
            stdout.write_all(&all).unwrap();
            stderr.write_all(b"done").unwrap();
        });
        let feed = async {
            host_in.write_all(&big).await.unwrap();
            host_in.shutdown().await.unwrap();
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let read = async {
            host_out.read_to_end(&mut out).await.unwrap();
            host_err.read_to_end(&mut err).await.unwrap();
        };
        tokio::join!(feed, read, echo);
        assert!(out == big && err == b"done");
        exited.send(Some(0)).unwrap();
        assert_eq!(
            host_in.read(&mut [0; 8]).await.unwrap(),
            0,
            "nothing is left open"
        );
    }

    /// In the reference the reaper waits here, with the sandbox locked.
    #[tokio::test(start_paused = true)]
    async fn bug_a_host_that_does_not_read_is_given_up_after_the_exit() {
        let (exited, exit) = watch::channel(None);
        let (_stdio, [stdin, stdout, stderr], [mut host_in, mut host_out, _]) = process(&exit);
        rustix::io::ioctl_fionbio(&stdout, true).unwrap();
        let mut written = 0;
        // Pipe, copy and socket are filled: the process is held up, as it should be.
        for _ in 0..100 {
            written += (&stdout).write(&[1; 4096]).unwrap_or(0);
            tokio::task::yield_now().await;
        }
        assert!(written < 4096 * 100);
        drop((stdin, stdout, stderr));
        exited.send(Some(0)).unwrap();
        // The copy of the input ends at once, whatever the output does.
        assert_eq!(host_in.read(&mut [0; 8]).await.unwrap(), 0);
        tokio::time::sleep(LINGER * 2).await;
        let mut got = Vec::new();
        host_out.read_to_end(&mut got).await.unwrap();
        assert!(!got.is_empty() && got.len() < written);
    }

    #[tokio::test(start_paused = true)]
    async fn bug_a_descendant_that_holds_the_pipe_does_not_hold_the_connection() {
        let (exited, exit) = watch::channel(None);
        let (_stdio, [_stdin, mut stdout, _stderr], [_, mut host_out, _]) = process(&exit);
        stdout.write_all(b"last words").unwrap();
        exited.send(Some(0)).unwrap();
        let mut got = Vec::new();
        host_out.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"last words");
    }

    #[tokio::test]
    async fn a_host_that_goes_closes_the_pipe() {
        let (_exited, exit) = watch::channel(None);
        let (_stdio, [_stdin, mut stdout, _stderr], [_, host_out, _]) = process(&exit);
        drop(host_out);
        let error = on_a_thread(move || {
            loop {
                if let Err(error) = stdout.write_all(&[0; 4096]) {
                    return error;
                }
            }
        });
        assert_eq!(error.await.kind(), io::ErrorKind::BrokenPipe);
    }

    /// The reference may close the descriptor of standard input twice.
    #[tokio::test]
    async fn bug_standard_input_is_closed_once_whoever_does_it() {
        let (exited, exit) = watch::channel(None);
        let (stdio, [mut stdin, _stdout, _stderr], [mut host_in, ..]) = process(&exit);
        host_in.write_all(b"words").await.unwrap();
        let mut words = [0; 5];
        let (mut stdin, words) = on_a_thread(move || {
            stdin.read_exact(&mut words).unwrap();
            (stdin, words)
        })
        .await;
        assert_eq!(&words, b"words");
        stdio.close_input().await;
        stdio.close_input().await;
        assert_eq!(stdin.read(&mut [0; 8]).unwrap(), 0);
        // The host is told when it writes on, or at the exit.
        let _ = host_in.write_all(b"late").await;
        assert!(!matches!(host_in.read(&mut [0; 8]).await, Ok(1..)));
        exited.send(Some(0)).unwrap();
        assert!(
            stdio.input().is_err(),
            "WriteStdin is not for such a process"
        );
        assert!(stdio.read_stdout(1).await.is_err());
    }

    #[tokio::test]
    async fn streams_without_a_connection_hold_nobody_up() {
        let (_exited, exit) = watch::channel(None);
        let (pipes, ChildEnds(ends)) = Pipes::new(0).unwrap();
        let stdio = Stdio::of_pipes(pipes, &exit).unwrap();
        let _stdio = stdio.pass(Passed::default(), &exit).unwrap();
        let [mut stdin, mut stdout, _stderr] = ends.map(File::from);
        on_a_thread(move || {
            assert_eq!(stdin.read(&mut [0; 8]).unwrap(), 0, "nobody can ever write");
            stdout.write_all(&[0; 1 << 20]).unwrap();
        })
        .await;
    }
}
