// SPDX-License-Identifier: Apache-2.0
//! Listening sockets and the ttrpc server on them.
//!
//! A socket listens as early in the boot as the kernel allows; until the server
//! runs, the kernel's backlog keeps whoever connects. Hosts without vsock may
//! have a virtio-serial port instead.

mod port;
mod reset;

use std::io;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener as StdUnixListener};
use std::time::Duration;

use futures::Stream;
use futures::stream::unfold;
use protocols::chunked::ChunkedStream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use ttrpc::r#async::transport::Listener;

use port::Port;
use reset::Resettable;

/// An address that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Not one of `vsock://CID:PORT`, `virtio-serial://NAME`, `unix://PATH`, `unix://@NAME`, `tcp://HOST:PORT`.
    #[error(
        "Invalid address '{0}': expected vsock://CID:PORT, virtio-serial://NAME, unix://PATH, unix://@NAME or tcp://HOST:PORT"
    )]
    Address(String),
    /// The kernel's answer.
    #[error("Cannot listen on '{address}'")]
    Bind {
        /// Where.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What takes connections.
#[derive(Debug)]
pub enum Socket {
    /// AF_VSOCK.
    Vsock(VsockListener),
    /// A virtio-serial port, one connection after the other.
    Serial(Port),
    /// AF_UNIX, a path or an abstract name.
    Unix(UnixListener),
    /// TCP.
    Tcp(TcpListener),
}

/// A stream of any of them.
pub trait Connection: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Connection for T {}

/// Opens the socket of an address. Must be called inside the runtime.
///
/// # Errors
/// [`ListenError`].
pub fn listen(address: &str) -> Result<Socket, ListenError> {
    let invalid = || ListenError::Address(address.to_owned());
    let bound = match address.split_once("://").ok_or_else(invalid)? {
        ("vsock", place) => {
            let (cid, port) = vsock_address(place).ok_or_else(invalid)?;
            VsockListener::bind(VsockAddr::new(cid, port)).map(Socket::Vsock)
        }
        ("virtio-serial", name) if !name.is_empty() => Ok(Socket::Serial(Port::named(name))),
        ("unix", place) if !place.is_empty() => listen_unix(place).map(Socket::Unix),
        ("tcp", place) => listen_tcp(place).map(Socket::Tcp),
        _ => return Err(invalid()),
    };
    bound.map_err(|source| ListenError::Bind {
        address: address.to_owned(),
        source,
    })
}

/// CID -1, or none, is any.
fn vsock_address(place: &str) -> Option<(u32, u32)> {
    let (cid, port) = place.rsplit_once(':')?;
    let cid = if cid.is_empty() || cid == "-1" {
        VMADDR_CID_ANY
    } else {
        cid.parse().ok()?
    };
    Some((cid, port.parse().ok()?))
}

fn listen_unix(place: &str) -> io::Result<UnixListener> {
    use std::os::linux::net::SocketAddrExt;
    let address = match place.strip_prefix('@') {
        Some(name) => UnixAddr::from_abstract_name(name)?,
        None => {
            // Left by an agent before us; somebody else's file is not removed.
            let stale = std::fs::symlink_metadata(place);
            if stale.is_ok_and(|meta| std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()))
            {
                std::fs::remove_file(place)?;
            }
            UnixAddr::from_pathname(place)?
        }
    };
    let listener = StdUnixListener::bind_addr(&address)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

fn listen_tcp(place: &str) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(place)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

impl Socket {
    /// The next connection; over vsock, the host's next.
    ///
    /// # Errors
    /// The errno of `accept4(2)`.
    pub async fn accept(&mut self) -> io::Result<Box<dyn Connection>> {
        Ok(match self {
            Self::Vsock(listener) => Box::new(Resettable::new(accept_host(listener).await?)?),
            Self::Serial(port) => Box::new(port.accept().await?),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
        })
    }

    /// As a listener for ttrpc. Writes are cut into pieces that every VMM's
    /// vsock device takes.
    #[must_use]
    pub fn into_listener(self) -> Listener {
        Listener::new(connections(self))
    }
}

/// A container reaches the guest's own vsock ports as well, through the
/// loopback: only the host is let in.
async fn accept_host(listener: &mut VsockListener) -> io::Result<VsockStream> {
    loop {
        let (stream, peer) = listener.accept().await?;
        if peer.cid() == VMADDR_CID_HOST {
            return Ok(stream);
        }
        log::debug!("A connection from context {} is refused", peer.cid());
    }
}

fn connections(
    socket: Socket,
) -> impl Stream<Item = io::Result<ChunkedStream<Box<dyn Connection>>>> {
    unfold(socket, |mut socket| async move {
        let accepted = socket.accept().await;
        if accepted.is_err() {
            // Out of descriptors, most likely: do not spin until some are back.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some((accepted.map(ChunkedStream::new), socket))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vsock_addresses() {
        assert_eq!(vsock_address("-1:1024"), Some((VMADDR_CID_ANY, 1024)));
        assert_eq!(vsock_address(":1024"), Some((VMADDR_CID_ANY, 1024)));
        assert_eq!(vsock_address("3:1"), Some((3, 1)));
        for bad in ["", "1024", "x:1", "1:x", "1:-1", "4294967296:1"] {
            assert_eq!(vsock_address(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn bad_addresses_are_named() {
        for bad in [
            "",
            "unix://",
            "virtio-serial://",
            "ftp://x",
            "vsock://x",
            "/run/sock",
        ] {
            let error = listen(bad).unwrap_err();
            assert!(
                matches!(error, ListenError::Address(ref address) if address == bad),
                "{bad}: {error}"
            );
        }
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_but_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let address = format!("unix://{}", path.display());
        drop(listen(&address).unwrap());
        drop(listen(&address).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(listen(&address).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
