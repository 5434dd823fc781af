// SPDX-License-Identifier: Apache-2.0
//! The signals that `run` receives as events instead of dying of them.

use std::io;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals passed on to the container, and the one that tells of a new window size.
const WANTED: [i32; 7] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
];

/// Receives the signals; while it lives none of them has its default effect.
#[derive(Debug)]
pub struct Signals {
    streams: Vec<(i32, Signal)>,
}

impl Signals {
    /// Starts to receive. From here to the end of the process the signals' default effects are off.
    pub fn install() -> io::Result<Signals> {
        let stream = |number| Ok((number, signal(SignalKind::from_raw(number))?));
        Ok(Signals {
            streams: WANTED.into_iter().map(stream).collect::<io::Result<_>>()?,
        })
    }

    /// Waits for the next signal; its number.
    pub async fn next(&mut self) -> i32 {
        std::future::poll_fn(|cx| {
            for (number, stream) in &mut self.streams {
                if stream.poll_recv(cx).is_ready() {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Waits for a signal that means that the run shall end.
    pub async fn next_ending(&mut self) -> i32 {
        loop {
            match self.next().await {
                libc::SIGWINCH | libc::SIGUSR1 | libc::SIGUSR2 => {}
                number => return number,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal as Number, raise};

    #[tokio::test]
    async fn signals_come_as_events() {
        let mut signals = Signals::install().unwrap();
        raise(Number::SIGWINCH).unwrap();
        assert_eq!(signals.next().await, libc::SIGWINCH);
        raise(Number::SIGUSR1).unwrap();
        raise(Number::SIGHUP).unwrap();
        assert_eq!(signals.next_ending().await, libc::SIGHUP);
    }
}
