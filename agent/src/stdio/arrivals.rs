// SPDX-License-Identifier: Apache-2.0
//! Connections that the host opens ahead for the streams of a process, by the
//! host's port (protocol section 11.5). Owns them until CreateContainer or
//! ExecProcess names the port; what is copied through them is in `copy`.
//!
//! Only the host is let in: a container reaches the guest's vsock ports too.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{VMADDR_CID_ANY, VMADDR_CID_HOST};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, getpeername, listen, socket,
};
use rustix::net::{SocketFlags, accept_with};
use tokio::io::Interest;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How many connections wait at most; the oldest makes room. A process takes three.
const MOST: usize = 256;

/// How long a connection waits for its request.
const KEPT: Duration = Duration::from_secs(60);

/// How long a request waits for its connections.
const PATIENCE: Duration = Duration::from_millis(300);

/// Connections that nobody has connected yet, as the kernel keeps them.
const BACKLOG: i32 = 128;

/// How long to rest when no connection can be taken, for lack of descriptors.
const REST: Duration = Duration::from_millis(50);

/// The connections of one process; an absent one was not asked for or not there.
#[derive(Debug, Default)]
pub struct Passed {
    /// Read for standard input.
    pub stdin: Option<OwnedFd>,
    /// Gets standard output, or that of the terminal.
    pub stdout: Option<OwnedFd>,
    /// Gets standard error.
    pub stderr: Option<OwnedFd>,
}

/// What waits for its request; one per agent.
#[derive(Default)]
pub struct Arrivals {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Default)]
struct State {
    open: bool,
    /// The oldest first.
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    port: u32,
    until: Instant,
    stream: OwnedFd,
}

/// How far taking connections came.
enum Accepted {
    All,
    Some,
    Failed,
}

impl Arrivals {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change leaves a queue that is in order.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if there is a port for such connections at all.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state().open
    }

    /// Takes connections at a vsock port for as long as the agent lives. Must
    /// be called inside the runtime.
    ///
    /// # Errors
    /// When the port cannot be opened.
    pub async fn serve(&self, port: u32) -> io::Result<()> {
        let listener = crate::watch::watch_for(open(port)?, Interest::READABLE)?;
        self.state().open = true;
        loop {
            let next = self.expire();
            tokio::select! {
                ready = listener.readable() => {
                    match self.accept(listener.get_ref()) {
                        Accepted::All => ready?.clear_ready(),
                        // Containers can connect without end.
                        Accepted::Some => tokio::task::yield_now().await,
                        Accepted::Failed => tokio::time::sleep(REST).await,
                    }
                }
                () = sleep_until(next) => {}
            }
        }
    }

    /// Takes the connections that are there, up to a backlog of them.
    fn accept(&self, listener: &OwnedFd) -> Accepted {
        for _ in 0..BACKLOG {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let stream = match accept_with(listener, flags) {
                Ok(stream) => stream,
                Err(rustix::io::Errno::AGAIN) => return Accepted::All,
                // The peer went away before it was its turn.
                Err(rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => continue,
                Err(_) => return Accepted::Failed,
            };
            match getpeername::<VsockAddr>(stream.as_raw_fd()) {
                Ok(peer) if peer.cid() == VMADDR_CID_HOST => self.add(peer.port(), stream),
                Ok(peer) => log::debug!("A stream from context {} is refused", peer.cid()),
                // Gone already.
                Err(_) => {}
            }
        }
        Accepted::Some
    }

    /// Lets go what has waited too long; says when that is due next.
    fn expire(&self) -> Option<Instant> {
        let mut state = self.state();
        let now = Instant::now();
        while let Some(oldest) = state.waiting.front() {
            if oldest.until > now {
                return Some(oldest.until);
            }
            log::debug!("The stream from port {} was not asked for", oldest.port);
            state.waiting.pop_front();
        }
        None
    }

    fn add(&self, port: u32, stream: OwnedFd) {
        {
            let mut state = self.state();
            // A port is used again only when its connection is no more.
            state.waiting.retain(|waiting| waiting.port != port);
            if state.waiting.len() >= MOST {
                state.waiting.pop_front();
            }
            let until = Instant::now() + KEPT;
            state.waiting.push_back(Waiting {
                port,
                until,
                stream,
            });
        }
        log::debug!("A stream from port {port} waits for its process");
        self.arrived.notify_waiters();
    }

    /// The connections that a request names, in the order stdin, stdout, stderr;
    /// 0 names none. `None` when it names no connection at all. One that does
    /// not come in time is left out, as by the reference.
    pub async fn take(&self, ports: [u32; 3]) -> Option<Passed> {
        if ports == [0; 3] {
            return None;
        }
        let deadline = Instant::now() + PATIENCE;
        let [stdin, stdout, stderr] = ports;
        Some(Passed {
            stdin: self.take_one(stdin, deadline).await,
            stdout: self.take_one(stdout, deadline).await,
            stderr: self.take_one(stderr, deadline).await,
        })
    }

    async fn take_one(&self, port: u32, deadline: Instant) -> Option<OwnedFd> {
        if port == 0 {
            return None;
        }
        loop {
            // Before the look, or an arrival between the two were missed.
            let arrived = self.arrived.notified();
            {
                let mut state = self.state();
                let at = state
                    .waiting
                    .iter()
                    .position(|waiting| waiting.port == port);
                if let Some(found) = at.and_then(|at| state.waiting.remove(at)) {
                    return Some(found.stream);
                }
            }
            if tokio::time::timeout_at(deadline, arrived).await.is_err() {
                log::warn!("No stream came from port {port}: the process goes without");
                return None;
            }
        }
    }
}

fn open(port: u32) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    bind(fd.as_raw_fd(), &VsockAddr::new(VMADDR_CID_ANY, port))?;
    listen(&fd, Backlog::new(BACKLOG).map_err(|_| Errno::EINVAL)?)?;
    Ok(fd)
}

async fn sleep_until(next: Option<Instant>) {
    match next {
        Some(next) => tokio::time::sleep_until(next).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    /// A connection, and the host's end of it.
    fn stream() -> (OwnedFd, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours.into(), theirs)
    }

    fn is_closed(host: &UnixStream) -> bool {
        use std::io::Read;
        let mut host = host;
        matches!(host.read(&mut [0]), Ok(0))
    }

    #[tokio::test]
    async fn streams_are_taken_by_port_and_once() {
        let arrivals = Arrivals::default();
        let (one, host_one) = stream();
        let (two, _host_two) = stream();
        arrivals.add(1, one);
        arrivals.add(2, two);
        assert!(arrivals.take([0, 0, 0]).await.is_none());
        let passed = arrivals.take([2, 0, 0]).await.unwrap();
        assert!(passed.stdin.is_some() && passed.stdout.is_none() && passed.stderr.is_none());
        let passed = arrivals.take([0, 1, 0]).await.unwrap();
        assert!(passed.stdin.is_none() && passed.stdout.is_some());
        assert!(!is_closed(&host_one));
        drop(passed);
        assert!(is_closed(&host_one));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_its_streams_but_not_for_ever() {
        let arrivals = Arc::new(Arrivals::default());
        let taken = tokio::spawn({
            let arrivals = arrivals.clone();
            async move { arrivals.take([7, 0, 8]).await }
        });
        tokio::task::yield_now().await;
        let (late, _host) = stream();
        arrivals.add(7, late);
        let start = Instant::now();
        let passed = taken.await.unwrap().unwrap();
        assert!(passed.stdin.is_some() && passed.stderr.is_none());
        // Together, not each: time is the test's own here.
        assert!(Instant::now() - start <= PATIENCE);
    }

    /// The reference keeps them for ever, as many as come.
    #[tokio::test(start_paused = true)]
    async fn bug_what_nobody_asks_for_is_let_go() {
        let arrivals = Arrivals::default();
        let (first, host) = stream();
        arrivals.add(1, first);
        assert_eq!(arrivals.expire(), Some(Instant::now() + KEPT));
        tokio::time::advance(KEPT).await;
        assert_eq!(arrivals.expire(), None);
        assert!(is_closed(&host));
        let (oldest, host) = stream();
        arrivals.add(1, oldest);
        for port in 2..=MOST as u32 + 1 {
            arrivals.add(port, stream().0);
        }
        assert!(is_closed(&host), "the oldest makes room");
        assert_eq!(arrivals.state().waiting.len(), MOST);
    }

    #[tokio::test]
    async fn a_port_that_is_used_again_means_the_new_connection() {
        let arrivals = Arrivals::default();
        let (old, host) = stream();
        arrivals.add(9, old);
        arrivals.add(9, stream().0);
        assert!(is_closed(&host));
        assert_eq!(arrivals.state().waiting.len(), 1);
    }
}
