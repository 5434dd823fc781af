// SPDX-License-Identifier: Apache-2.0
//! Streams that notice when the device below them goes. Owns the watch for
//! that; never reads or writes anything itself.
//!
//! When a vsock device is pulled out, and when a VM goes on from what was saved
//! of it, the kernel resets all connections. It announces an error and nothing
//! to read (Linux `virtio_vsock_reset_sock`): whoever waits to read would do so
//! for ever, and keep what was asked for over a connection that is gone.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::watch::watch_for;

/// A stream whose reader is told of an error of its socket.
pub struct Resettable<S> {
    stream: S,
    /// Ends with an error; none once it has.
    error: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl<S: AsFd> Resettable<S> {
    /// Watches over a stream. Must be called inside the runtime.
    ///
    /// # Errors
    /// When there is no further descriptor, or the kernel does not watch it.
    pub fn new(stream: S) -> io::Result<Self> {
        // The stream's own descriptor is under its own watch, which knows reading and writing only.
        let fd = watch_for(stream.as_fd().try_clone_to_owned()?, Interest::ERROR)?;
        let error = Box::pin(async move {
            // It fails with the event loop, and then nothing matters any more.
            let _ = fd.ready(Interest::ERROR).await;
        });
        Ok(Self {
            stream,
            error: Some(error),
        })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Resettable<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // What has come before the error counts.
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if read.is_ready() {
            return read;
        }
        if let Some(error) = &mut this.error {
            ready!(error.as_mut().poll(cx));
            this.error = None;
        }
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Resettable<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::os::fd::BorrowedFd;

    use tokio::io::AsyncReadExt;

    /// Never has anything to read, as a socket that was reset.
    struct Silent(io::PipeWriter);

    impl AsFd for Silent {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    impl AsyncRead for Silent {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn bug_an_error_ends_the_wait_for_something_to_read() {
        // The end of a pipe that is written to has an error, and nothing else, when nobody can read.
        let (other, end) = io::pipe().unwrap();
        let mut stream = Resettable::new(Silent(end)).unwrap();
        let mut byte = [0];
        let waits = poll_fn(|cx| {
            let mut buf = ReadBuf::new(&mut byte);
            Poll::Ready(Pin::new(&mut stream).poll_read(cx, &mut buf).is_pending())
        });
        assert!(waits.await);
        drop(other);
        for _ in 0..2 {
            let error = stream.read(&mut byte).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }
}
