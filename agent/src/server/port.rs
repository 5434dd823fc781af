// SPDX-License-Identifier: Apache-2.0
//! Connections over a virtio-serial port, for VMMs without vsock.
//!
//! A port is one stream that is always there. It shows when a host has the other
//! end open, and that is made into connections here: one after the other, each
//! from the host's opening to its closing. Owns the search for the port by its
//! name, and the kernel's ways with it (`drivers/char/virtio_console.c`): while
//! no host is there, polling says hang-up, reading gives nothing and writing
//! would block. The port stays open between connections: what a new host sends
//! at once must not be thrown away with an old descriptor.
//!
//! Never serves two hosts at once, and never lets one have what was meant for
//! the one before. The exception are hosts that follow each other so fast that the
//! agent sees nothing of it: the kernel shows a state and no history, and they are
//! one then.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use init::uevent::{Received, UeventSocket};
use rustix::event::{Timespec, epoll};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::watch::{watch, watch_for};

/// Where the kernel lists the ports, each with a file of its name.
const PORTS: &str = "/sys/class/virtio-ports";

/// Where the kernel makes their nodes.
const DEV: &str = "/dev";

/// How soon a port is tried again that is there and cannot be opened.
const RETRY: Duration = Duration::from_secs(1);

/// What is thrown away at one go.
const SCRAP: usize = 4096;

/// A virtio-serial port, by its name. Cheap until it is asked for a connection.
#[derive(Debug)]
pub struct Port {
    name: String,
    open: Option<OwnedFd>,
    /// Taken by the connection that there is.
    turn: Arc<Semaphore>,
    /// The agent has ended the last connection, and not the host: what that one
    /// still sends is nobody's.
    unfinished: Arc<AtomicBool>,
    /// Hosts so far.
    hosts: u64,
}

impl Port {
    /// The port that the host calls `name`; it may come later.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            open: None,
            turn: Arc::new(Semaphore::new(1)),
            unfinished: Arc::default(),
            hosts: 0,
        }
    }

    /// The next connection: after the end of the one before, when a host has
    /// the port open. Waits for the port itself, too.
    ///
    /// # Errors
    /// The errno of `epoll_ctl(2)` and its like.
    pub async fn accept(&mut self) -> io::Result<PortStream> {
        let turn = Arc::clone(&self.turn).acquire_owned().await;
        let turn = turn.map_err(io::Error::other)?;
        loop {
            let port = match self.open.take() {
                Some(port) => port,
                None => find(&self.name).await?,
            };
            match self.meet(&port).await {
                Ok(()) => {
                    let fd = watch(port.try_clone()?)?;
                    self.open = Some(port);
                    self.hosts += 1;
                    return Ok(PortStream {
                        fd,
                        host: self.hosts,
                        turn: Some(turn),
                        unfinished: Arc::clone(&self.unfinished),
                    });
                }
                // Pulled out; another may come by that name.
                Err(error) if is_gone(&error) => {
                    self.unfinished.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for a host, another than the one whose connection the agent has ended.
    async fn meet(&self, port: &OwnedFd) -> io::Result<()> {
        if self.unfinished.load(Ordering::Relaxed) {
            sit_out(port).await?;
            self.unfinished.store(false, Ordering::Relaxed);
        }
        wait_for_host(port).await
    }
}

/// Reads and forgets what a host sends until it closes its end.
async fn sit_out(port: &OwnedFd) -> io::Result<()> {
    let port = watch_for(port.try_clone()?, Interest::READABLE)?;
    loop {
        let mut ready = port.readable().await?;
        let mut scrap = [0; SCRAP];
        match rustix::io::read(port.get_ref(), &mut scrap) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            // It has left and is back, or another is.
            Err(rustix::io::Errno::AGAIN) if ready.ready().is_read_closed() => return Ok(()),
            Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            Err(errno) => return Err(errno.into()),
        }
        tokio::task::coop::consume_budget().await;
    }
}

/// Waits until a host has its end open. Reads nothing: what a host sends may be
/// there before the word that it has come.
///
/// The event loop takes a hang-up for final; a poll set of our own asks again after each change.
async fn wait_for_host(port: &OwnedFd) -> io::Result<()> {
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
    epoll::add(&set, port, epoll::EventData::new_u64(0), flags)?;
    let set = watch_for(set, Interest::READABLE)?;
    loop {
        let mut ready = set.readable().await?;
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }];
        if epoll::wait(set.get_ref(), &mut events[..], Some(&Timespec::default()))? == 0 {
            ready.clear_ready();
            continue;
        }
        let [event] = events;
        // The event has to be copied out of the packed struct.
        let flags = event.flags;
        if !flags.contains(epoll::EventFlags::HUP) {
            return Ok(());
        }
        // Of nothing, to hear whether the port is still there.
        rustix::io::read(port, &mut [0u8; 0])?;
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENODEV)
}

/// Opens the port, when it is there.
async fn find(name: &str) -> io::Result<OwnedFd> {
    // Subscribed first: what comes after a look is told.
    let events = UeventSocket::open().map_err(io::Error::other)?;
    let mut events = watch_for(events, Interest::READABLE)?;
    loop {
        match node_of(name, Path::new(PORTS), Path::new(DEV)).map(|node| open(&node)) {
            Some(Ok(port)) => {
                log::info!("listening on virtio-serial port {name}");
                return Ok(port);
            }
            Some(Err(error)) => {
                log::warn!("The virtio-serial port '{name}' cannot be opened: {error}");
                // Nobody tells when another process lets go of it.
                tokio::time::sleep(RETRY).await;
            }
            None => {
                log::warn!("There is no virtio-serial port '{name}' yet");
                news(&mut events).await?;
            }
        }
    }
}

/// The node of the port with the name. Unreadable names are passed over.
fn node_of(name: &str, ports: &Path, dev: &Path) -> Option<PathBuf> {
    let ports = fs::read_dir(ports).ok()?;
    ports.flatten().find_map(|port| {
        let told = fs::read_to_string(port.path().join("name")).ok()?;
        (told.trim_end_matches('\n') == name).then(|| dev.join(port.file_name()))
    })
}

fn open(node: &Path) -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK);
    Ok(options.open(node)?.into())
}

/// Waits for a message of the kernel's about a port, or for many about something.
async fn news(events: &mut AsyncFd<UeventSocket>) -> io::Result<()> {
    loop {
        let mut ready = events.readable_mut().await?;
        match ready.get_inner_mut().receive().map_err(io::Error::other)? {
            Received::Event(event) if event.subsystem == "virtio-ports" => return Ok(()),
            Received::Event(_) => {}
            Received::Overflow => return Ok(()),
            Received::Empty => ready.clear_ready(),
        }
        tokio::task::coop::consume_budget().await;
    }
}

/// One host's connection.
#[derive(Debug)]
pub struct PortStream {
    fd: AsyncFd<OwnedFd>,
    /// Its number, for the log.
    host: u64,
    /// Given up with the end: late answers have nowhere to go then.
    turn: Option<OwnedSemaphorePermit>,
    unfinished: Arc<AtomicBool>,
}

impl PortStream {
    fn end(&mut self, by_host: bool) {
        if let Some(turn) = self.turn.take() {
            self.unfinished.store(!by_host, Ordering::Relaxed);
            let whose = if by_host { "by itself" } else { "by the agent" };
            log::debug!("The connection of host {} ended {whose}", self.host);
            drop(turn);
        }
    }
}

impl Drop for PortStream {
    fn drop(&mut self) {
        self.end(false);
    }
}

impl AsyncRead for PortStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.turn.is_some() {
            let mut ready = ready!(this.fd.poll_read_ready(cx))?;
            match rustix::io::read(ready.get_inner(), buf.initialize_unfilled()) {
                Ok(0) => this.end(true),
                Ok(read) => {
                    buf.advance(read);
                    break;
                }
                // The host has left, and before that was seen came one that has sent nothing yet.
                Err(rustix::io::Errno::AGAIN) if ready.ready().is_read_closed() => this.end(true),
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                // Pulled out.
                Err(rustix::io::Errno::NODEV) => this.end(true),
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        while this.turn.is_some() {
            let mut ready = ready!(this.fd.poll_write_ready(cx))?;
            match rustix::io::write(ready.get_inner(), buf) {
                Ok(written) => return Poll::Ready(Ok(written)),
                // No host takes it any more; the reading side sees the end.
                Err(rustix::io::Errno::AGAIN) if ready.ready().is_write_closed() => break,
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    /// The kernel has taken all that was written.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().end(false);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A pair of sockets is a port as far as one connection goes.
    async fn connection(port: &mut Port) -> (PortStream, OwnedFd) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let (ours, theirs) = pair.unwrap();
        port.open = Some(ours);
        (port.accept().await.unwrap(), theirs)
    }

    #[tokio::test]
    async fn a_connection_lasts_until_the_host_closes_it() {
        let mut port = Port::named("x");
        let (mut stream, host) = connection(&mut port).await;
        rustix::io::write(&host, b"ask").unwrap();
        let mut asked = [0; 3];
        stream.read_exact(&mut asked).await.unwrap();
        stream.write_all(b"answer").await.unwrap();
        let mut answered = [0; 8];
        assert_eq!(rustix::io::read(&host, &mut answered).unwrap(), 6);
        // It would still take what is written.
        shutdown(&host, Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut asked).await.unwrap(), 0);
        // Nothing gets to the next host, which has its turn while the old connection is still held.
        let late = stream.write(b"late").await.unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::BrokenPipe);
        drop(host);
        let (mut next, host) = connection(&mut port).await;
        next.write_all(b"next").await.unwrap();
        assert_eq!(rustix::io::read(&host, &mut answered).unwrap(), 4);
        drop(stream);
        next.write_all(b"still").await.unwrap();
    }

    #[tokio::test]
    async fn what_follows_an_end_of_ours_is_nobodys() {
        let mut port = Port::named("x");
        let (stream, host) = connection(&mut port).await;
        drop(stream);
        rustix::io::write(&host, b"garbage").unwrap();
        let late = async {
            tokio::task::yield_now().await;
            drop(host);
        };
        let open = port.open.take().unwrap();
        let (met, ()) = tokio::join!(sit_out(&open), late);
        met.unwrap();
        assert!(port.unfinished.load(Ordering::Relaxed));
        // All was read.
        assert_eq!(rustix::io::read(&open, &mut [0; 8]).unwrap(), 0);
    }

    #[tokio::test]
    async fn one_host_at_a_time() {
        let mut port = Port::named("x");
        let (stream, _host) = connection(&mut port).await;
        let moment = Duration::from_millis(300);
        let second = tokio::time::timeout(moment, port.accept()).await;
        assert!(second.is_err(), "there were two");
        drop(stream);
    }

    #[test]
    fn a_port_is_found_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let (ports, dev) = (dir.path(), Path::new("/dev"));
        assert_eq!(node_of("b", &ports.join("absent"), dev), None);
        for (node, name) in [
            ("vport0p1", "a\n"),
            ("vport0p2", "b\n"),
            ("vport1p1", "bb\n"),
        ] {
            fs::create_dir(ports.join(node)).unwrap();
            fs::write(ports.join(node).join("name"), name).unwrap();
        }
        // The console's has no name.
        fs::create_dir(ports.join("vport0p0")).unwrap();
        assert_eq!(node_of("b", ports, dev), Some("/dev/vport0p2".into()));
        assert_eq!(node_of("", ports, dev), None);
        assert_eq!(node_of("c", ports, dev), None);
    }
}
