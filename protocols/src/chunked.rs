// SPDX-License-Identifier: Apache-2.0

//! A byte stream whose writes are small enough for every vsock device.
//!
//! A guest kernel turns one write to a vsock socket into packets of up to 64 KiB. Some VMMs' vsock devices
//! drop what is larger than they expect, and the stream stalls for good: vhost-device-vsock 0.3 above 32 KiB
//! by default, Cloud Hypervisor before the fix of its issue 7672, libkrun in its issue 535. A sending kernel does not join
//! two writes into one packet, so limiting the write call limits the packet, whatever the device.
//!
//! This module owns the limit and the wrapper. It never buffers, splits off threads, or touches reads.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes handed to one write call: half of the smallest limit known of a device.
pub const MAX_PIECE: usize = 16 * 1024;

/// Most buffers of a vectored write that are passed on in one call. More would only make the call longer, as the
/// sum is limited anyway; a caller has to cope with short writes in any case.
const MAX_SLICES: usize = 8;

/// Wraps a stream so that no single write to it exceeds [`MAX_PIECE`] bytes.
///
/// Larger writes are short writes, as [`AsyncWrite::poll_write`] allows: the caller goes on with the rest.
/// Reads, flushes and shutdowns pass through.
#[derive(Debug)]
pub struct ChunkedStream<S> {
    inner: S,
}

impl<S> ChunkedStream<S> {
    /// Wraps `inner`.
    pub const fn new(inner: S) -> Self {
        Self { inner }
    }

    /// The wrapped stream.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The wrapped stream. What is written to it directly is not limited.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Unwraps the stream. Nothing is lost, there is no buffer.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ChunkedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ChunkedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let piece = &buf[..buf.len().min(MAX_PIECE)];
        Pin::new(&mut self.inner).poll_write(cx, piece)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut pieces = [IoSlice::new(&[]); MAX_SLICES];
        let count = limit(bufs, &mut pieces);
        Pin::new(&mut self.inner).poll_write_vectored(cx, &pieces[..count])
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Fills `pieces` with the first [`MAX_PIECE`] bytes of `bufs` and returns how many of `pieces` are in use.
/// Empty buffers are left out: a run of them would fill `pieces` and make the write look like one of no bytes.
fn limit<'a>(bufs: &'a [IoSlice<'_>], pieces: &mut [IoSlice<'a>; MAX_SLICES]) -> usize {
    let mut room = MAX_PIECE;
    let mut count = 0;
    for buf in bufs.iter().filter(|buf| !buf.is_empty()) {
        if room == 0 || count == MAX_SLICES {
            break;
        }
        let piece = &buf[..buf.len().min(room)];
        room -= piece.len();
        pieces[count] = IoSlice::new(piece);
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Records the length of every write call it gets.
    #[derive(Default)]
    struct Recorder {
        calls: Vec<usize>,
        bytes: Vec<u8>,
    }

    impl AsyncWrite for Recorder {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.calls.push(buf.len());
            self.bytes.extend_from_slice(buf);
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let total = bufs.iter().map(|buf| buf.len()).sum();
            self.calls.push(total);
            for buf in bufs {
                self.bytes.extend_from_slice(buf);
            }
            Poll::Ready(Ok(total))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8).collect()
    }

    #[tokio::test]
    async fn large_writes_are_cut_and_nothing_is_lost() {
        let data = pattern(4 * 1024 * 1024 + 7);
        let mut stream = ChunkedStream::new(Recorder::default());
        stream.write_all(&data).await.unwrap();
        let recorder = stream.into_inner();
        assert_eq!(recorder.calls.iter().max(), Some(&MAX_PIECE));
        assert_eq!(recorder.calls.len(), 257);
        assert_eq!(recorder.bytes, data);
    }

    #[tokio::test]
    async fn small_writes_pass_unchanged() {
        let mut stream = ChunkedStream::new(Recorder::default());
        stream.write_all(&pattern(MAX_PIECE)).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.write(b"").await.unwrap(), 0);
        assert_eq!(stream.get_ref().calls, [MAX_PIECE, 1, 0]);
    }

    #[tokio::test]
    async fn vectored_writes_are_limited_in_sum() {
        let (header, body) = (pattern(10), pattern(40_000));
        let mut stream = ChunkedStream::new(Recorder::default());
        let bufs = [
            IoSlice::new(&[]),
            IoSlice::new(&header),
            IoSlice::new(&body),
        ];
        assert_eq!(stream.write_vectored(&bufs).await.unwrap(), MAX_PIECE);
        let recorder = stream.into_inner();
        assert_eq!(recorder.bytes[..10], header);
        assert_eq!(recorder.bytes[10..], body[..MAX_PIECE - 10]);
    }

    #[tokio::test]
    async fn vectored_writes_of_many_or_empty_buffers_make_progress() {
        let byte = [7u8];
        let mut bufs = vec![IoSlice::new(&[]); 20];
        bufs.extend([IoSlice::new(&byte); 20]);
        let mut stream = ChunkedStream::new(Recorder::default());
        assert_eq!(stream.write_vectored(&bufs).await.unwrap(), MAX_SLICES);
        assert!(stream.is_write_vectored());
    }

    #[tokio::test]
    async fn reads_and_shutdown_pass_through() {
        let (near, mut far) = tokio::io::duplex(MAX_PIECE * 3);
        let mut stream = ChunkedStream::new(near);
        far.write_all(&pattern(MAX_PIECE * 2)).await.unwrap();
        let mut buf = vec![0; MAX_PIECE * 2];
        assert_eq!(stream.read(&mut buf).await.unwrap(), MAX_PIECE * 2);
        assert_eq!(buf, pattern(MAX_PIECE * 2));
        stream.shutdown().await.unwrap();
        assert_eq!(far.read(&mut buf).await.unwrap(), 0);
    }
}
