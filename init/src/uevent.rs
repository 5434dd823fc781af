// SPDX-License-Identifier: Apache-2.0
//! The kernel's messages about devices: a parser and a socket.
//!
//! Owns the message format (`ACTION@DEVPATH`, then NUL-separated `KEY=value`
//! items) and the subscription to it. It never acts on an event, and never
//! trusts a message that was not sent by the kernel itself.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt,
    socket, sockopt,
};
use thiserror::Error;

/// The multicast group to which the kernel sends (group 2 is udev's).
const KERNEL_GROUP: u32 = 1;

/// The kernel builds a message in 2 KiB (UEVENT_BUFFER_SIZE) and puts the
/// action and the path before it.
const MESSAGE_SIZE: usize = 8 * 1024;

/// Room for a burst, such as the 512 blocks of 64 GiB plugged at once at about
/// a kilobyte each. The memory is only used while messages wait.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// The uevent socket does not work.
#[derive(Debug, Error)]
pub enum UeventError {
    /// No netlink socket.
    #[error("Cannot open the uevent socket")]
    Open(#[source] Errno),
    /// The kernel's group could not be joined.
    #[error("Cannot subscribe to the kernel's uevents")]
    Bind(#[source] Errno),
    /// Reading failed.
    #[error("Cannot read from the uevent socket")]
    Receive(#[source] Errno),
}

/// One message, borrowed from the buffer it was received into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uevent<'a> {
    /// What happened: `add`, `remove`, `change`, `move`, `online`, `offline`,
    /// `bind` or `unbind`.
    pub action: &'a str,
    /// The device's directory below `/sys`, with a leading slash.
    pub devpath: &'a str,
    /// `block`, `net`, `memory`, `cpu`, …; empty if the kernel gave none.
    pub subsystem: &'a str,
    /// The node below `/dev`, without a leading slash (`vda1`).
    pub devname: Option<&'a str>,
    /// The interface, for network devices.
    pub interface: Option<&'a str>,
    items: &'a str,
}

impl<'a> Uevent<'a> {
    /// Reads a message. `None` if it is not one of the kernel's: no
    /// `ACTION@DEVPATH` in front, not UTF-8, or without ACTION or DEVPATH.
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(message).ok()?;
        let (header, items) = text.split_once('\0')?;
        if !header.contains('@') {
            return None;
        }
        let mut event = Self {
            action: "",
            devpath: "",
            subsystem: "",
            devname: None,
            interface: None,
            items,
        };
        for (key, value) in event.items() {
            match key {
                "ACTION" => event.action = value,
                "DEVPATH" => event.devpath = value,
                "SUBSYSTEM" => event.subsystem = value,
                "DEVNAME" => event.devname = Some(value),
                "INTERFACE" => event.interface = Some(value),
                _ => {}
            }
        }
        let valid = !event.action.is_empty() && event.devpath.starts_with('/');
        valid.then_some(event)
    }

    /// All `KEY=value` items, in the kernel's order.
    pub fn items(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.items
            .split('\0')
            .filter_map(|item| item.split_once('='))
    }

    /// The value of one item, such as `SEQNUM`, `MAJOR` or `NEW_VMGENID`.
    pub fn value(&self, key: &str) -> Option<&'a str> {
        self.items().find(|&(k, _)| k == key).map(|(_, v)| v)
    }
}

/// What [`UeventSocket::receive`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// A message.
    Event(Uevent<'a>),
    /// The kernel had to drop messages: whatever is waited for must be looked
    /// up in `/sys` again.
    Overflow,
    /// Nothing more for now.
    Empty,
}

/// A subscription to the kernel's messages, non-blocking.
pub struct UeventSocket {
    socket: OwnedFd,
    buffer: Box<[u8]>,
}

impl UeventSocket {
    /// Subscribes. Every event from now on is received; look in `/sys` *after*
    /// this for what was there before.
    pub fn open() -> Result<Self, UeventError> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )
        .map_err(UeventError::Open)?;
        // Without CAP_NET_ADMIN the ordinary buffer must do; overflow is seen.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
        let group = NetlinkAddr::new(0, KERNEL_GROUP);
        bind(socket.as_raw_fd(), &group).map_err(UeventError::Bind)?;
        Ok(Self {
            socket,
            buffer: vec![0; MESSAGE_SIZE].into_boxed_slice(),
        })
    }

    /// The next message; does not wait. Messages from other processes and
    /// unreadable ones are skipped.
    pub fn receive(&mut self) -> Result<Received<'_>, UeventError> {
        let length = loop {
            match recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), &mut self.buffer) {
                // The kernel's netlink port is 0, and only the kernel has it.
                Ok((length, Some(sender)))
                    if sender.pid() == 0 && Uevent::parse(&self.buffer[..length]).is_some() =>
                {
                    break length;
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(Received::Empty),
                Err(Errno::ENOBUFS) => return Ok(Received::Overflow),
                Err(errno) => return Err(UeventError::Receive(errno)),
            }
        };
        let event = Uevent::parse(&self.buffer[..length]);
        Ok(event.map_or(Received::Empty, Received::Event))
    }
}

impl AsFd for UeventSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for UeventSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADD_DISK: &[u8] = b"add@/devices/pci0000:00/0000:00:03.0/virtio1/block/vda\0\
        ACTION=add\0DEVPATH=/devices/pci0000:00/0000:00:03.0/virtio1/block/vda\0\
        SUBSYSTEM=block\0MAJOR=254\0MINOR=0\0DEVNAME=vda\0DEVTYPE=disk\0SEQNUM=1234\0";

    #[test]
    fn a_disk_arrives() {
        let event = Uevent::parse(ADD_DISK).unwrap();
        assert_eq!(event.action, "add");
        assert_eq!(event.subsystem, "block");
        assert_eq!(event.devname, Some("vda"));
        assert_eq!(event.interface, None);
        assert_eq!(event.value("SEQNUM"), Some("1234"));
        assert_eq!(event.value("SEQ"), None);
        assert!(event.devpath.ends_with("/block/vda"));
    }

    #[test]
    fn bug_a_last_item_without_nul_counts() {
        let event = Uevent::parse(b"add@/d\0ACTION=add\0DEVPATH=/d\0INTERFACE=eth0").unwrap();
        assert_eq!(event.interface, Some("eth0"));
    }

    #[test]
    fn foreign_messages_are_refused() {
        for message in [
            &b""[..],
            b"\0",
            b"libudev\0\xfe\xed\xca\xfe",
            b"add@/x",
            b"add@/x\0ACTION=add\0",
            b"add@/x\0ACTION=add\0DEVPATH=relative\0",
            b"no header\0ACTION=add\0DEVPATH=/x\0",
            b"add@/x\0ACTION=add\0DEVPATH=/x\0BAD=\xff\0",
        ] {
            assert_eq!(Uevent::parse(message), None, "{message:?}");
        }
    }

    #[test]
    fn values_may_hold_equals_signs() {
        let event =
            Uevent::parse(b"change@/d\0ACTION=change\0DEVPATH=/d\0A=b=c\0=x\0junk\0").unwrap();
        assert_eq!(event.value("A"), Some("b=c"));
        assert_eq!(event.value("junk"), None);
    }

    #[test]
    fn an_idle_socket_is_empty() {
        let mut socket = match UeventSocket::open() {
            Ok(socket) => socket,
            Err(err) => {
                eprintln!("SKIPPED an_idle_socket_is_empty: no uevent socket here: {err}");
                return;
            }
        };
        // The machine that runs the test may have events of its own.
        for _ in 0..10_000 {
            if socket.receive().unwrap() == Received::Empty {
                return;
            }
        }
        panic!("the socket never runs empty");
    }

    proptest! {
        #[test]
        fn any_bytes(message in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Uevent::parse(&message);
        }

        #[test]
        fn any_items(items in proptest::collection::vec("[A-Z]{0,8}=?[ -~]{0,12}", 0..12)) {
            let message = format!("add@/d\0ACTION=add\0DEVPATH=/d\0{}", items.join("\0"));
            let event = Uevent::parse(message.as_bytes());
            prop_assert!(event.is_some_and(|e| e.items().count() >= 2) || message.contains("DEVPATH=") );
        }
    }
}
