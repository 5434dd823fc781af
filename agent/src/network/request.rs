// SPDX-License-Identifier: Apache-2.0
//! What the kernel is asked to change over rtnetlink(7): requests as bytes, and
//! series of them that are taken back when one fails. Owns the layout of the
//! fixed parts; which change is made when is for others.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use nix::errno::Errno;
use nix::libc::{
    AF_INET, AF_INET6, AF_UNSPEC, IFA_ADDRESS, IFA_BROADCAST, IFA_LOCAL, IFF_UP, IFLA_ADDRESS,
    IFLA_IFNAME, IFLA_MTU, RTM_DELADDR, RTM_NEWADDR, RTM_SETLINK,
};

use super::list::Address;
use super::netlink::NetlinkError;
use crate::rpc::status::chain;

/// No other station is asked whether it has that address already: the host gave
/// it, and a second of waiting is all that would come of it (linux/if_addr.h;
/// libc does not have it).
const IFA_F_NODAD: u8 = 2;

/// One request: its type, its flags, and what follows the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    /// What it does, for errors.
    pub step: &'static str,
    pub kind: u16,
    pub flags: u16,
    pub payload: Vec<u8>,
}

impl Request {
    pub(super) fn new(step: &'static str, kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let payload = fixed.to_vec();
        Self {
            step,
            kind,
            flags,
            payload,
        }
    }

    /// Adds an attribute.
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        // 16 bits: the longest of our values is an address.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.payload.extend(length.to_ne_bytes());
        self.payload.extend(kind.to_ne_bytes());
        self.payload.extend(value);
        self.payload
            .resize(self.payload.len().next_multiple_of(4), 0);
        self
    }

    /// Adds an attribute that is an address.
    pub(super) fn with_ip(self, kind: u16, ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => self.with(kind, &ip.octets()),
            IpAddr::V6(ip) => self.with(kind, &ip.octets()),
        }
    }

    /// The same payload with another meaning.
    pub(super) fn turned(&self, step: &'static str, kind: u16, flags: u16) -> Self {
        Self::new(step, kind, flags, &self.payload)
    }
}

/// The kernel's name of an address's family, which has one byte.
pub(super) fn family(ip: IpAddr) -> u8 {
    let family = if ip.is_ipv4() { AF_INET } else { AF_INET6 };
    u8::try_from(family).unwrap_or(0)
}

/// A change of a link: ifinfomsg with the flags to be set and which they are.
fn link(step: &'static str, index: u32, flags: u32, mask: u32) -> Request {
    let mut fixed = [0u8; 16];
    fixed[0] = u8::try_from(AF_UNSPEC).unwrap_or(0);
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&mask.to_ne_bytes());
    Request::new(step, RTM_SETLINK, 0, &fixed)
}

pub(super) fn set_flags(index: u32, flags: u32, mask: u32) -> Request {
    link("set the flags of a link", index, flags, mask)
}

pub(super) fn set_up(index: u32, up: bool) -> Request {
    let flag = IFF_UP as u32;
    let (step, flags) = match up {
        true => ("set a link up", flag),
        false => ("set a link down", 0),
    };
    link(step, index, flags, flag)
}

pub(super) fn set_mtu(index: u32, mtu: u32) -> Request {
    link("set an MTU", index, 0, 0).with(IFLA_MTU, &mtu.to_ne_bytes())
}

pub(super) fn set_mac(index: u32, mac: &[u8]) -> Request {
    link("set a MAC address", index, 0, 0).with(IFLA_ADDRESS, mac)
}

pub(super) fn set_name(index: u32, name: &str) -> Request {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    link("rename a link", index, 0, 0).with(IFLA_IFNAME, &bytes)
}

/// Adds an address to a link; `peer` is the other end of a point-to-point link,
/// and else the address itself.
pub(super) fn add_address(index: u32, address: Address, peer: IpAddr) -> Request {
    let Address { ip, prefix } = address;
    let flags = if ip.is_ipv6() { IFA_F_NODAD } else { 0 };
    let mut fixed = vec![family(ip), prefix, flags, 0];
    fixed.extend(index.to_ne_bytes());
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    let request = Request::new("add an address", RTM_NEWADDR, flags, &fixed)
        .with_ip(IFA_LOCAL, ip)
        .with_ip(IFA_ADDRESS, peer);
    match address.broadcast() {
        Some(broadcast) => request.with_ip(IFA_BROADCAST, broadcast),
        None => request,
    }
}

pub(super) fn remove_address(index: u32, address: Address, peer: IpAddr) -> Request {
    let added = add_address(index, address, peer);
    added.turned("remove an address", RTM_DELADDR, 0)
}

/// Whoever carries out requests.
pub(super) trait Kernel {
    /// Carries one out.
    fn ask(&self, request: &Request) -> Result<(), NetlinkError>;
}

/// Changes that belong together.
pub(super) struct Changes<'a, K: Kernel> {
    kernel: &'a K,
    undo: Vec<Request>,
}

impl<K: Kernel> Changes<'_, K> {
    /// Makes a change and remembers what takes it back.
    pub(super) fn make(&mut self, change: &Request, undo: Request) -> Result<(), NetlinkError> {
        self.kernel.ask(change)?;
        self.undo.push(undo);
        Ok(())
    }

    fn take_back(self) {
        for request in self.undo.iter().rev() {
            if let Err(error) = self.kernel.ask(request) {
                log::error!("A change of the network stays: {}", chain(&error));
            }
        }
    }
}

/// Makes changes; those before one that fails are taken back, the last first.
pub(super) fn together<K: Kernel, T, E>(
    kernel: &K,
    work: impl FnOnce(&mut Changes<'_, K>) -> Result<T, E>,
) -> Result<T, E> {
    let mut changes = Changes {
        kernel,
        undo: Vec::new(),
    };
    let result = work(&mut changes);
    if result.is_err() {
        changes.take_back();
    }
    result
}

/// Whether a refusal says that there is no IPv6 here, which is no fault of the
/// request's (#11200): switched off for the link, for all, or for good.
pub(super) fn is_without_ipv6(ip: IpAddr, error: &NetlinkError) -> bool {
    let off = [Errno::EACCES, Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP];
    ip.is_ipv6() && error.errno().is_some_and(|errno| off.contains(&errno))
}

#[cfg(test)]
pub(super) mod fake {
    //! A kernel that refuses what it is told to refuse.

    use std::cell::RefCell;

    use super::*;

    /// Which requests came, and the answers that are not "done".
    pub struct Fake<F> {
        pub asked: RefCell<Vec<Request>>,
        pub refuse: F,
    }

    impl<F: Fn(&Request, usize) -> Option<Errno>> Fake<F> {
        /// `refuse` sees a request and how many came before.
        pub fn new(refuse: F) -> Self {
            let asked = RefCell::default();
            Self { asked, refuse }
        }

        pub fn steps(&self) -> Vec<&'static str> {
            self.asked.borrow().iter().map(|r| r.step).collect()
        }
    }

    impl<F: Fn(&Request, usize) -> Option<Errno>> Kernel for Fake<F> {
        fn ask(&self, request: &Request) -> Result<(), NetlinkError> {
            let mut asked = self.asked.borrow_mut();
            let refusal = (self.refuse)(request, asked.len());
            asked.push(request.clone());
            match refusal {
                None => Ok(()),
                Some(source) => Err(NetlinkError::Kernel {
                    step: request.step,
                    source,
                }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::Fake;
    use super::*;
    use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader};
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags};
    use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};

    fn read(request: &Request) -> RouteNetlinkMessage {
        let mut header = NetlinkHeader::default();
        header.message_type = request.kind;
        RouteNetlinkMessage::deserialize(&header, &request.payload).unwrap()
    }

    fn read_link(request: &Request) -> LinkMessage {
        match read(request) {
            RouteNetlinkMessage::SetLink(message) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn links_as_another_implementation_reads_them() {
        let renamed = read_link(&set_name(7, "eth0"));
        assert_eq!(renamed.header.index, 7);
        assert_eq!(renamed.header.change_mask, LinkFlags::empty());
        assert_eq!(renamed.attributes, [LinkAttribute::IfName("eth0".into())]);
        let mtu = read_link(&set_mtu(7, 9000));
        assert_eq!(mtu.attributes, [LinkAttribute::Mtu(9000)]);
        let mac = read_link(&set_mac(7, &[2, 0, 0, 0, 0, 1]));
        let expected = LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]);
        assert_eq!(mac.attributes, [expected]);
        let (up, down) = (read_link(&set_up(7, true)), read_link(&set_up(7, false)));
        assert_eq!(up.header.flags, LinkFlags::Up);
        assert_eq!(down.header.flags, LinkFlags::empty());
        assert_eq!(down.header.change_mask, LinkFlags::Up);
    }

    #[test]
    fn addresses_as_another_implementation_reads_them() {
        let ip: IpAddr = "10.0.0.2".parse().unwrap();
        let address = Address { ip, prefix: 24 };
        let RouteNetlinkMessage::NewAddress(added) = read(&add_address(3, address, ip)) else {
            panic!("no new address")
        };
        assert_eq!((added.header.index, added.header.prefix_len), (3, 24));
        assert_eq!(
            added.attributes,
            [
                AddressAttribute::Local(ip),
                AddressAttribute::Address(ip),
                AddressAttribute::Broadcast("10.0.0.255".parse().unwrap()),
            ]
        );
        let ip: IpAddr = "fd00::2".parse().unwrap();
        let address = Address { ip, prefix: 64 };
        let removed = remove_address(3, address, ip);
        let RouteNetlinkMessage::DelAddress(removed) = read(&removed) else {
            panic!("no removal")
        };
        assert_eq!(removed.header.flags, AddressHeaderFlags::Nodad);
        assert_eq!(removed.attributes.len(), 2);
    }

    #[test]
    fn what_was_done_is_taken_back_last_first() {
        let kernel = Fake::new(|_, n| (n == 2).then_some(Errno::EINVAL));
        let result: Result<(), NetlinkError> = together(&kernel, |changes| {
            changes.make(&set_mtu(1, 9000), set_mtu(1, 1500))?;
            changes.make(&set_name(1, "b"), set_name(1, "a"))?;
            changes.make(&set_up(1, true), set_up(1, false))
        });
        assert!(result.is_err());
        let asked = kernel.asked.borrow();
        assert_eq!(asked.len(), 5);
        assert_eq!(asked[3], set_name(1, "a"));
        assert_eq!(asked[4], set_mtu(1, 1500));
    }

    #[test]
    fn bug_11200_only_ipv6_can_be_switched_off() {
        let error = |source| NetlinkError::Kernel { step: "x", source };
        let v6: IpAddr = "::1".parse().unwrap();
        let v4: IpAddr = "10.0.0.1".parse().unwrap();
        assert!(is_without_ipv6(v6, &error(Errno::EACCES)));
        assert!(!is_without_ipv6(v4, &error(Errno::EACCES)));
        assert!(!is_without_ipv6(v6, &error(Errno::EPERM)));
    }
}
