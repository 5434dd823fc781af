// SPDX-License-Identifier: Apache-2.0
//! The VM's vsock device: a `vhost-device-vsock` process, and connections to the guest through the unix socket it offers.
//!
//! With it no kernel support for vhost-vsock and no privilege is needed on the host. It speaks the "hybrid vsock" handshake that
//! Firecracker introduced: `CONNECT <port>\n` is answered by `OK <host port>\n`, after which the stream is the guest's.
//!
//! Two weaknesses of release 0.3 shape what is built on it: see `driver.rs` for connections that come too early, and `TX_BUFFER_SIZE`.
//! A third is left to its users: while the host keeps a connection full, the device does not pass on what it holds of the guest's
//! answers, so a guest that stops reading until its answer is taken stops for good. A ttrpc server reads on while it answers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::VmError;
use super::process::Child;
use super::wait_for_socket;

/// The credit the device grants to each of the guest's sockets. Its release 0.3 drops any packet longer than 32 KiB, and Linux sends such packets
/// since 6.17 (and 6.12 stable); a window below that keeps every packet small.
const TX_BUFFER_SIZE: u32 = 28_672;
/// How long one handshake may take before it is given up: the device answers within milliseconds or never.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest reply worth reading: `OK ` and a 32-bit number.
const REPLY_LIMIT: usize = 32;

/// Counts the VMs of this process, so that each guest has a context id of its own.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The vsock device of one VM.
#[derive(Debug)]
pub struct Vsock {
    /// The device's process.
    pub process: Child,
    /// The socket QEMU's `vhost-user-vsock-pci` connects to.
    pub device_socket: PathBuf,
    /// The socket the host's programs connect to.
    pub host_socket: PathBuf,
    /// The guest's context id.
    pub cid: u32,
}

impl Vsock {
    /// Starts the device with its sockets and its log in `dir`.
    pub async fn start(program: &Path, dir: &Path) -> Result<Vsock, VmError> {
        let device_socket = dir.join("vsock-device.sock");
        let host_socket = dir.join("vsock.sock");
        let cid = guest_cid(std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut command = Command::new(program);
        command.arg("--guest-cid").arg(cid.to_string());
        command.arg("--socket").arg(&device_socket);
        command.arg("--uds-path").arg(&host_socket);
        command
            .arg("--tx-buffer-size")
            .arg(TX_BUFFER_SIZE.to_string());
        let (process, _) =
            Child::spawn("vhost-device-vsock", command, &dir.join("vsock.log"), false)?;
        wait_for_socket(&process, &device_socket).await?;
        Ok(Vsock {
            process,
            device_socket,
            host_socket,
            cid,
        })
    }

    /// Tries once to reach `port` in the guest.
    ///
    /// Must not be called before the guest's vsock driver is there: the device then takes the connection, never answers, and stays deaf.
    pub async fn connect(&self, port: u32) -> Result<UnixStream, VmError> {
        connect(&self.host_socket, port).await
    }
}

/// A context id in the range the guest may have (3 and up), different for the VMs of one process and, most likely, for those of two.
fn guest_cid(pid: u32, count: u32) -> u32 {
    // Only the parties inside one device process ever compare them; uniqueness is for people who read logs.
    3 + (((pid & 0x3f_ffff) << 8 | count & 0xff) & 0x3fff_ffff)
}

/// Connects to `port` of the guest behind the hybrid-vsock socket `socket`.
pub async fn connect(socket: &Path, port: u32) -> Result<UnixStream, VmError> {
    let handshake = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .await?;
        let reply = read_line(&mut stream).await?;
        Ok::<_, std::io::Error>((stream, reply))
    };
    let refused = |reply: String| VmError::Refused { port, reply };
    let (stream, reply) = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| refused("no answer".into()))?
        .map_err(|source| VmError::Handshake { port, source })?;
    if reply.starts_with("OK ") {
        Ok(stream)
    } else {
        Err(refused(reply))
    }
}

/// Reads up to a line end, a byte at a time: what follows belongs to the guest's protocol.
async fn read_line(stream: &mut UnixStream) -> std::io::Result<String> {
    let mut line = Vec::new();
    while line.len() < REPLY_LIMIT {
        match stream.read_u8().await? {
            b'\n' => break,
            byte => line.push(byte),
        }
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    /// A device that reads one request and answers with `reply`.
    async fn fake(reply: &'static [u8], port: u32) -> (Result<UnixStream, VmError>, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 64];
            let n = stream.read(&mut request).await.unwrap();
            request.truncate(n);
            stream.write_all(reply).await.unwrap();
            request
        };
        tokio::join!(connect(&path, port), serve)
    }

    #[tokio::test]
    async fn handshake_leaves_the_guests_bytes_alone() {
        let (stream, request) = fake(b"OK 1073741824\nhello", 1024).await;
        assert_eq!(request, b"CONNECT 1024\n");
        let mut rest = String::new();
        stream.unwrap().read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "hello");
    }

    #[tokio::test]
    async fn a_closed_or_odd_answer_is_an_error() {
        let (closed, _) = fake(b"", 1).await;
        assert!(matches!(closed, Err(VmError::Handshake { port: 1, .. })));
        let (odd, _) = fake(b"NO\n", 2).await;
        assert!(matches!(odd, Err(VmError::Refused { port: 2, reply }) if reply == "NO"));
        let (endless, _) = fake(&[b'x'; 100], 3).await;
        assert!(matches!(endless, Err(VmError::Refused { port: 3, .. })));
    }

    #[test]
    fn context_ids_stay_in_the_guests_range() {
        for (pid, count) in [(0, 0), (1, 1), (u32::MAX, u32::MAX)] {
            let cid = guest_cid(pid, count);
            assert!((3..0x7fff_ffff).contains(&cid));
        }
        assert_ne!(guest_cid(7, 0), guest_cid(7, 1));
    }
}
