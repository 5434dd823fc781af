// SPDX-License-Identifier: Apache-2.0
//! A conversation with the kernel over rtnetlink(7). Owns the socket and the
//! framing; what messages mean is for others. Blocks, but never for longer
//! than the kernel needs to answer.

use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    NlasIterator,
};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use super::request::{Kernel, Request};

/// The kernel fills at most this much at once (netlink(7)).
const PIECE: usize = 32 * 1024;
/// How often a dump is tried that changes while it is read.
const ATTEMPTS: usize = 4;
/// How much of a dump is kept. Containers that may change the guest's network
/// change the one that is listed here: they must not use up the guest's memory.
const MOST: usize = 64 * 1024;
/// nlmsghdr.
const HEADER: usize = 16;

/// What can go wrong in talking with the kernel about the network.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket failed, or the kernel refused.
    #[error("Netlink: failed to {step}")]
    Kernel {
        /// What was tried.
        step: &'static str,
        /// The kernel's reason.
        source: Errno,
    },
    /// An answer that cannot be read.
    #[error("Netlink: the answer to {step} is malformed")]
    Malformed {
        /// What was tried.
        step: &'static str,
    },
    /// More than anybody needs.
    #[error("Netlink: failed to {step}: there are more than {MOST}")]
    TooMany {
        /// What was tried.
        step: &'static str,
    },
}

impl NetlinkError {
    /// The kernel's reason, if it gave one.
    pub(super) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { source, .. } => Some(*source),
            Self::Malformed { .. } | Self::TooMany { .. } => None,
        }
    }
}

/// A socket to the kernel's routing part.
pub(super) struct Socket {
    fd: OwnedFd,
    /// Of the last request: answers to earlier ones are not taken for its own.
    number: Cell<u32>,
}

/// One message of an answer: its type and what follows the header.
pub(super) struct Message<'a> {
    pub kind: u16,
    pub payload: &'a [u8],
}

impl Socket {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        );
        let fd = socket.map_err(failed("open a socket"))?;
        let number = Cell::new(0);
        Ok(Self { fd, number })
    }

    /// Sends a request and gives its number.
    fn send(
        &self,
        step: &'static str,
        kind: u16,
        flags: u16,
        payload: &[u8],
    ) -> Result<u32, NetlinkError> {
        let number = self.number.get().wrapping_add(1);
        self.number.set(number);
        let message = frame(kind, NLM_F_REQUEST | flags, number, payload);
        send(self.fd.as_raw_fd(), &message, MsgFlags::empty()).map_err(failed(step))?;
        Ok(number)
    }

    /// The next datagram, as much of `buffer` as it fills.
    fn receive<'a>(
        &self,
        step: &'static str,
        buffer: &'a mut [u8],
    ) -> Result<&'a [u8], NetlinkError> {
        let read = loop {
            match recv(self.fd.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC) {
                Err(Errno::EINTR) => {}
                other => break other.map_err(failed(step))?,
            }
        };
        buffer.get(..read).ok_or(NetlinkError::Malformed { step })
    }

    /// Asks for one thing and gives what the kernel says of it; empty if that is
    /// only that it was done.
    pub(super) fn answer(&self, request: &Request) -> Result<Vec<u8>, NetlinkError> {
        let step = request.step;
        let flags = request.flags | NLM_F_ACK;
        let number = self.send(step, request.kind, flags, &request.payload)?;
        let (mut answer, mut buffer) = (Vec::new(), vec![0u8; PIECE]);
        loop {
            for message in messages(self.receive(step, &mut buffer)?) {
                let (header, payload) = message.ok_or(NetlinkError::Malformed { step })?;
                if header.sequence_number() != number {
                    continue;
                }
                if header.message_type() == NLMSG_ERROR {
                    check_code(step, payload)?;
                    return Ok(answer);
                }
                answer = payload.to_vec();
            }
        }
    }

    /// Asks for everything of a kind and gives each message to `take`, whose
    /// results are collected. `request` is the message without its header.
    ///
    /// What changes all the time is given as it was found at last: something that
    /// came or went in the meantime may be missing or be there twice.
    pub(super) fn dump<T>(
        &self,
        step: &'static str,
        kind: u16,
        request: &[u8],
        take: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let (mut found, mut count, mut consistent) = (Vec::new(), 0, false);
        for _ in 0..ATTEMPTS {
            (found, count) = (Vec::new(), 0);
            let number = self.send(step, kind, NLM_F_DUMP, request)?;
            let mut keep = |message: Message<'_>| {
                let new = take(message);
                count += usize::from(new.is_some());
                found.extend(new.filter(|_| count <= MOST));
            };
            // A dump that something changed under is read to its end and asked for again.
            consistent = self.read_dump(step, number, &mut keep)?;
            if consistent {
                break;
            }
        }
        if !consistent {
            log::warn!("Netlink: {step}: they change all the time");
        }
        match count <= MOST {
            true => Ok(found),
            false => Err(NetlinkError::TooMany { step }),
        }
    }

    /// Gives each message of a dump to `take`; false if something changed under it.
    fn read_dump(
        &self,
        step: &'static str,
        number: u32,
        take: &mut dyn FnMut(Message<'_>),
    ) -> Result<bool, NetlinkError> {
        let mut consistent = true;
        let mut buffer = vec![0u8; PIECE];
        loop {
            for message in messages(self.receive(step, &mut buffer)?) {
                let (header, payload) = message.ok_or(NetlinkError::Malformed { step })?;
                if header.sequence_number() != number {
                    continue;
                }
                consistent &= header.flags() & NLM_F_DUMP_INTR == 0;
                match header.message_type() {
                    NLMSG_DONE => {
                        check_code(step, payload)?;
                        return Ok(consistent);
                    }
                    NLMSG_ERROR => {
                        check_code(step, payload)?;
                        return Ok(true);
                    }
                    kind => take(Message { kind, payload }),
                }
            }
        }
    }
}

impl Kernel for Socket {
    fn ask(&self, request: &Request) -> Result<(), NetlinkError> {
        self.answer(request).map(drop)
    }
}

fn failed(step: &'static str) -> impl FnOnce(Errno) -> NetlinkError {
    move |source| NetlinkError::Kernel { step, source }
}

/// A request: header and payload.
fn frame(kind: u16, flags: u16, number: u32, payload: &[u8]) -> Vec<u8> {
    let length = HEADER + payload.len();
    let mut message = vec![0u8; HEADER];
    message.extend_from_slice(payload);
    let mut header = NetlinkBuffer::new(&mut message);
    header.set_length(u32::try_from(length).unwrap_or(u32::MAX));
    header.set_message_type(kind);
    header.set_flags(flags);
    header.set_sequence_number(number);
    message
}

/// The messages of one datagram; a broken one is `None`, and the last.
fn messages(datagram: &[u8]) -> impl Iterator<Item = Option<(NetlinkBuffer<&[u8]>, &[u8])>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Ok(header) = NetlinkBuffer::new_checked(rest) else {
            rest = &[];
            return Some(None);
        };
        // Checked above: at least a header, at most what is there.
        let length = usize::try_from(header.length()).unwrap_or(usize::MAX);
        let message = rest.get(..length).zip(rest.get(HEADER..length));
        let aligned = length.next_multiple_of(4).min(rest.len());
        rest = &rest[aligned..];
        Some(message.map(|(message, payload)| (NetlinkBuffer::new(message), payload)))
    })
}

/// Both an error and the end of a dump begin with a negated error number.
fn check_code(step: &'static str, payload: &[u8]) -> Result<(), NetlinkError> {
    match u32_at(payload, 0).map(u32::cast_signed) {
        None | Some(0) => Ok(()),
        Some(code) => Err(failed(step)(Errno::from_raw(code.wrapping_neg()))),
    }
}

/// The attributes after the fixed part of a message, up to a broken one.
pub(super) fn attributes(payload: &[u8], fixed: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = payload.get(fixed..).unwrap_or_default();
    std::iter::from_fn(move || {
        let attribute = NlasIterator::new(rest).next()?.ok()?;
        let (kind, end) = (attribute.kind(), 4 + attribute.value_length());
        let value = rest.get(4..end)?;
        rest = rest.get(end.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A number in the machine's byte order, as netlink has them.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::libc::RTM_GETLINK;
    use nix::sys::socket::socketpair;

    #[test]
    fn frames_are_read_as_written() {
        let mut datagram = frame(18, NLM_F_DUMP, 7, b"abcd");
        datagram.extend(frame(NLMSG_DONE, 0, 7, &[0; 4]));
        let read: Vec<_> = messages(&datagram).map(|m| m.unwrap()).collect();
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].0.message_type(), 18);
        assert_eq!(read[0].1, b"abcd");
        assert_eq!(read[1].0.sequence_number(), 7);
    }

    #[test]
    fn broken_frames_end_the_reading() {
        assert_eq!(messages(&[1, 2, 3]).filter(Option::is_none).count(), 1);
        let mut long = frame(18, 0, 7, b"abcd");
        long[0] = 200;
        assert!(messages(&long).all(|m| m.is_none()));
        let mut short = frame(18, 0, 7, b"abcd");
        short[0] = 3;
        assert!(messages(&short).all(|m| m.is_none()));
    }

    #[test]
    fn the_kernel_names_its_errors() {
        let socket = Socket::open().unwrap();
        let error = socket
            .dump("try", 0xfff0, &[0; 16], |_| Some(()))
            .unwrap_err();
        assert!(matches!(error, NetlinkError::Kernel { .. }), "{error}");
        // The same socket goes on, and answers do not get mixed up.
        let request = Request::new("look", RTM_GETLINK, 0, &lo());
        assert!(socket.answer(&request).unwrap().len() > 16);
        let refused = socket.ask(&Request::new("try", 0xfff0, 0, &[0; 16]));
        assert_eq!(refused.unwrap_err().errno(), Some(Errno::EOPNOTSUPP));
    }

    /// A kernel that gives a dump of as many messages as it is told, each
    /// time it is asked, the last with these flags.
    fn dumping(answers: Vec<(usize, u16)>) -> (Socket, std::thread::JoinHandle<usize>) {
        let kind = SockType::SeqPacket;
        let ends = socketpair(AddressFamily::Unix, kind, None, SockFlag::empty());
        let (ours, kernels) = ends.unwrap();
        let kernel = std::thread::spawn(move || {
            let mut asked = 0;
            let mut buffer = [0; PIECE];
            while recv(kernels.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap() > 0 {
                let number = NetlinkBuffer::new(&buffer[..]).sequence_number();
                let (count, flags) = answers[asked];
                asked += 1;
                let tell = |datagram: &[u8]| {
                    send(kernels.as_raw_fd(), datagram, MsgFlags::empty()).unwrap();
                };
                // Left over from before.
                tell(&frame(18, 0, number.wrapping_sub(1), b"old."));
                let entry = frame(18, 0, number, &u32::try_from(asked).unwrap().to_ne_bytes());
                let full = PIECE / entry.len();
                for done in (0..count).step_by(full) {
                    tell(&entry.repeat(full.min(count - done)));
                }
                tell(&frame(NLMSG_DONE, flags, number, &[0; 4]));
            }
            asked
        });
        let number = Cell::new(7);
        (Socket { fd: ours, number }, kernel)
    }

    fn dump(socket: &Socket) -> Result<Vec<u32>, NetlinkError> {
        socket.dump("list links", RTM_GETLINK, &[0; 16], |message| {
            u32_at(message.payload, 0)
        })
    }

    #[test]
    fn a_dump_that_changes_is_asked_for_again() {
        let (socket, kernel) = dumping(vec![(3, NLM_F_DUMP_INTR), (2, 0)]);
        assert_eq!(dump(&socket).unwrap(), [2, 2]);
        drop(socket);
        assert_eq!(kernel.join().unwrap(), 2);
        // One that never stops changing is taken as it is.
        let (socket, kernel) = dumping(vec![(1, NLM_F_DUMP_INTR); ATTEMPTS]);
        assert_eq!(dump(&socket).unwrap(), [4]);
        drop(socket);
        assert_eq!(kernel.join().unwrap(), ATTEMPTS);
    }

    #[test]
    fn a_dump_is_kept_up_to_a_limit() {
        let (socket, _kernel) = dumping(vec![(MOST, 0), (MOST + 1, 0), (1, 0)]);
        assert_eq!(dump(&socket).unwrap().len(), MOST);
        let error = dump(&socket).unwrap_err();
        assert!(matches!(error, NetlinkError::TooMany { .. }), "{error}");
        // It was read to its end.
        assert_eq!(dump(&socket).unwrap(), [3]);
    }

    fn lo() -> [u8; 16] {
        let mut fixed = [0; 16];
        fixed[4] = 1;
        fixed
    }

    proptest::proptest! {
        #[test]
        fn any_datagram_can_be_read(datagram: Vec<u8>, fixed in 0usize..20) {
            for (header, payload) in messages(&datagram).flatten() {
                let _ = (header.message_type(), check_code("read", payload));
                attributes(payload, fixed).for_each(drop);
            }
            attributes(&datagram, fixed).for_each(drop);
        }
    }
}
