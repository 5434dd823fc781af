// SPDX-License-Identifier: Apache-2.0
//! What travels between the agent, the launcher and a child before it becomes
//! the container's process.
//!
//! Agent to launcher: one fixed [`Order`] with descriptors. Launcher to agent:
//! one fixed [`Receipt`]. Agent to child, over the child's own control socket:
//! the [`ChildPlan`](crate::container::plan::ChildPlan), then single bytes.
//! Child to agent: [`Report`]s. A child that is to run a hook gets a
//! [`HookOrder`] instead and answers with the hook's [`HookEnd`]. Both ends are
//! the same binary, so the encoding (postcard) needs no versions.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

use crate::container::plan::Hook;

/// Descriptors that one message can carry (`SCM_MAX_FD` is 253).
pub const MAX_FDS: usize = 64;

/// The byte by which the agent tells a child to go on (id maps written, hooks
/// run, or StartContainer called).
pub const GO: u8 = 1;

/// A plan larger than this is refused: a request is at most 4 MiB on the wire.
pub const MAX_PLAN: usize = 8 << 20;

/// What the launcher needs to know to clone; the rest goes to the child itself.
/// Followed by its descriptors: the child's control socket, then, if the flags
/// say so, the pid namespace to join and the cgroup directory to start in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// `CLONE_NEW*` bits of the namespaces to create with the process.
    pub namespaces: u64,
    /// The second descriptor is a pid namespace to join.
    pub joins_pid: bool,
    /// The last descriptor is a cgroup v2 directory.
    pub into_cgroup: bool,
    /// What the child is for.
    pub task: Task,
}

/// What a child is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Becomes a process of a container, by a plan.
    Process,
    /// Runs one hook in the guest and ends.
    Hook,
    /// Takes one mount from one container to another and ends.
    Share,
}

/// The launcher's answer to an [`Order`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Receipt {
    /// The child's pid in the agent's pid namespace.
    Started(i32),
    /// The errno of the failed step, and which one it was.
    Failed(LaunchStep, i32),
}

/// The steps at which a launch can fail before there is a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LaunchStep {
    /// The order could not be read.
    Order,
    /// `setns(2)` into the pid namespace.
    JoinPid,
    /// `clone3(2)`.
    Clone,
}

/// What a child says of itself: at the end exactly one `Ready` or `Failed`,
/// then the socket closes when the program has been executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// Waits for its user and group id maps.
    NeedsIdMaps,
    /// Waits for the hooks that run in the guest: the namespaces are there and
    /// the container's root is still beside the guest's.
    NeedsHooks,
    /// A hook of the child's own has said something.
    HookSaid {
        /// Its path.
        hook: String,
        /// The beginning of its output.
        output: String,
    },
    /// Everything but the execution is done. With a terminal its master side
    /// comes along as a descriptor.
    Ready,
    /// A step failed; the child is gone after this.
    Failed {
        /// Name of the step, see `container::child::STEPS`.
        step: String,
        /// What went wrong, with the object.
        error: String,
        /// The request was wrong rather than the guest.
        bad_request: bool,
    },
}

/// A hook to be run in the guest, and its standard input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookOrder {
    /// The program.
    pub hook: Hook,
    /// The container's OCI state.
    pub state: String,
}

/// What became of a hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookEnd {
    /// What went wrong, if anything.
    pub failure: Option<String>,
    /// The beginning of its output.
    pub output: String,
}

/// A mount to be taken over; the namespaces of both containers come along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareOrder {
    /// Where it is, in the one.
    pub source: String,
    /// Where it is to be, in the other.
    pub target: String,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareEnd {
    /// What went wrong, if anything.
    pub failure: Option<String>,
}

/// Sends `bytes` as one piece with `fds` attached to its first byte.
///
/// # Errors
/// The errno of `sendmsg(2)`.
pub fn send_with_fds(socket: RawFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    loop {
        match sendmsg::<()>(
            socket,
            &[IoSlice::new(bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Receives at most `buffer.len()` bytes and the descriptors that came along,
/// all of them close-on-exec.
///
/// # Errors
/// The errno of `recvmsg(2)`; `EMSGSIZE` when descriptors were cut off.
pub fn receive_with_fds(socket: RawFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; MAX_FDS]);
    let mut pieces = [IoSliceMut::new(buffer)];
    let message = loop {
        match recvmsg::<()>(
            socket,
            &mut pieces,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            fds.extend(received.into_iter().map(adopt));
        }
    }
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(Errno::EMSGSIZE.into());
    }
    Ok((message.bytes, fds))
}

#[allow(unsafe_code)]
fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just installed this descriptor for us with
    // SCM_RIGHTS; nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Encodes a message with its length in front (u32, little endian).
///
/// # Errors
/// When the encoder runs out of memory or the message exceeds [`MAX_PLAN`].
pub fn encode_frame<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut bytes = postcard::to_extend(message, vec![0; 4]).map_err(io::Error::other)?;
    let length = bytes.len() - 4;
    if length > MAX_PLAN {
        return Err(Errno::E2BIG.into());
    }
    bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// Decodes the first frame of [`encode_frame`] and tells how many bytes it took;
/// `None` while it is not complete.
///
/// # Errors
/// `InvalidData` for a frame that cannot be decoded.
pub fn decode_frame<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> io::Result<Option<(T, usize)>> {
    let Some((head, body)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*head) as usize;
    if length > MAX_PLAN {
        return Err(io::ErrorKind::InvalidData.into());
    }
    match body.get(..length) {
        Some(body) => postcard::from_bytes(body)
            .map(|message| Some((message, 4 + length)))
            .map_err(|_| io::ErrorKind::InvalidData.into()),
        None => Ok(None),
    }
}

/// Reads one frame of [`encode_frame`] and the descriptors attached to it, blocking.
///
/// # Errors
/// `UnexpectedEof` when the other side has gone, `InvalidData` for a frame that
/// cannot be decoded.
pub fn read_frame<T: for<'a> Deserialize<'a>>(
    socket: &mut UnixStream,
) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut head = [0; 4];
    let (got, fds) = receive_with_fds(socket.as_raw_fd(), &mut head)?;
    if got == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    socket.read_exact(&mut head[got..])?;
    let length = u32::from_le_bytes(head) as usize;
    if length > MAX_PLAN {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body)?;
    let message = postcard::from_bytes(&body).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((message, fds))
}

/// Writes one frame with descriptors attached, blocking.
///
/// # Errors
/// The error of the socket; `EPIPE` when the other side has gone.
pub fn write_frame<T: Serialize>(
    socket: &mut UnixStream,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let frame = encode_frame(message)?;
    let sent = send_with_fds(socket.as_raw_fd(), &frame, fds)?;
    socket.write_all(&frame[sent..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_frame_arrives_with_its_descriptors() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let report = Report::Failed {
            step: "mounts".into(),
            error: "x".repeat(100_000),
            bad_request: true,
        };
        let expected = report.clone();
        let writer = std::thread::spawn(move || {
            let null = std::fs::File::open("/dev/null").unwrap();
            write_frame(&mut a, &report, &[null.as_fd(), null.as_fd()]).unwrap();
        });
        let (got, fds): (Report, _) = read_frame(&mut b).unwrap();
        writer.join().unwrap();
        assert_eq!(got, expected);
        assert_eq!(fds.len(), 2);
    }

    #[test]
    fn a_closed_peer_is_an_end_of_file() {
        let (a, mut b) = UnixStream::pair().unwrap();
        drop(a);
        let error = read_frame::<Report>(&mut b).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn an_absurd_length_is_refused_before_it_is_allocated() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        a.write_all(&u32::MAX.to_le_bytes()).unwrap();
        let error = read_frame::<Report>(&mut b).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
