// SPDX-License-Identifier: Apache-2.0
//! Links and their addresses, as the kernel tells of them.

use std::fmt::Write;
use std::net::IpAddr;

use nix::libc::{
    AF_UNSPEC, IFA_ADDRESS, IFA_LOCAL, IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, RT_SCOPE_LINK,
    RTM_GETADDR, RTM_GETLINK, RTM_NEWADDR, RTM_NEWLINK,
};

use super::super::NetworkError;
use super::super::netlink::{Message, NetlinkError, Socket, attributes, u32_at};
use super::super::plan::LinkName;
use super::{Address, family_request, ip};

/// Lengths of the fixed parts: ifinfomsg, ifaddrmsg.
const LINK: usize = 16;
const ADDRESS: usize = 8;

/// The address is nobody's but an administrator's (linux/if_addr.h).
const IFA_F_PERMANENT: u8 = 0x80;

/// An address that a link has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::network) struct Held {
    /// The link.
    pub index: u32,
    /// The address.
    pub address: Address,
    /// The other end of a point-to-point link, and else the address itself.
    pub peer: IpAddr,
    /// It was given, and not made by the kernel from what it heard or by itself.
    pub given: bool,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number.
    pub index: u32,
    /// Such as `eth0`.
    pub name: String,
    /// `AA:BB:…`, or empty for links without one.
    pub hw_addr: String,
    /// In bytes.
    pub mtu: u32,
    /// `IFF_*`.
    pub flags: u32,
    /// In the kernel's order.
    pub addresses: Vec<Address>,
}

/// All interfaces with their addresses, `lo` included. Blocks shortly.
///
/// # Errors
/// [`NetlinkError`].
pub fn interfaces() -> Result<Vec<Interface>, NetlinkError> {
    let socket = Socket::open()?;
    let mut interfaces = links(&socket)?;
    for held in addresses(&socket, None)? {
        // Not there if it came after the links were listed.
        if let Ok(owner) = place_of(&interfaces, held.index) {
            interfaces[owner].addresses.push(held.address);
        }
    }
    Ok(interfaces)
}

/// The addresses of a link, or of all.
pub(in crate::network) fn addresses(
    socket: &Socket,
    of: Option<u32>,
) -> Result<Vec<Held>, NetlinkError> {
    let any = family_request(AF_UNSPEC, ADDRESS);
    let is_asked_for = |held: &Held| of.is_none_or(|index| index == held.index);
    socket.dump("list addresses", RTM_GETADDR, &any, |message| {
        address_of(message).filter(is_asked_for)
    })
}

/// All links by their numbers, without their addresses.
pub(in crate::network) fn links(socket: &Socket) -> Result<Vec<Interface>, NetlinkError> {
    let any = family_request(AF_UNSPEC, LINK);
    let mut links = socket.dump("list links", RTM_GETLINK, &any, link_of)?;
    // Older kernels have them in no order.
    links.sort_unstable_by_key(|link| link.index);
    Ok(links)
}

/// Where in [`links`] the one with the number is.
pub(super) fn place_of(links: &[Interface], index: u32) -> Result<usize, usize> {
    links.binary_search_by_key(&index, |link| link.index)
}

/// Links by their names: there may be as many of them as of what names them.
pub(in crate::network) struct Names<'a>(Vec<&'a Interface>);

impl<'a> Names<'a> {
    pub(in crate::network) fn new(links: &'a [Interface]) -> Self {
        let mut links: Vec<_> = links.iter().collect();
        links.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Self(links)
    }

    /// The number of the link that has the name.
    pub(in crate::network) fn index_of(&self, name: &LinkName) -> Result<u32, NetworkError> {
        let order = |link: &&Interface| link.name.as_str().cmp(name.as_str());
        match self.0.binary_search_by(order) {
            Ok(place) => Ok(self.0[place].index),
            Err(_) => Err(NetworkError::NoLink(name.to_string())),
        }
    }
}

fn link_of(message: Message<'_>) -> Option<Interface> {
    if message.kind != RTM_NEWLINK {
        return None;
    }
    let mut interface = Interface {
        index: u32_at(message.payload, 4)?,
        name: String::new(),
        hw_addr: String::new(),
        mtu: 0,
        flags: u32_at(message.payload, 8)?,
        addresses: Vec::new(),
    };
    for (kind, value) in attributes(message.payload, LINK) {
        match kind {
            IFLA_IFNAME => interface.name = text(value),
            IFLA_ADDRESS => interface.hw_addr = hw_addr(value),
            IFLA_MTU => interface.mtu = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(interface)
}

fn address_of(message: Message<'_>) -> Option<Held> {
    if message.kind != RTM_NEWADDR {
        return None;
    }
    let &[family, prefix, flags, scope, ..] = message.payload else {
        return None;
    };
    let index = u32_at(message.payload, 4)?;
    let (mut local, mut address) = (None, None);
    for (kind, value) in attributes(message.payload, ADDRESS) {
        match kind {
            // On point-to-point links the other one is the peer's.
            IFA_LOCAL => local = ip(family, value),
            IFA_ADDRESS => address = ip(family, value),
            _ => {}
        }
    }
    let ip = local.or(address)?;
    // Of IPv6 the kernel makes the link's own by itself, and others from what routers say.
    let own = ip.is_ipv6() && scope == RT_SCOPE_LINK;
    Some(Held {
        index,
        address: Address { ip, prefix },
        peer: address.unwrap_or(ip),
        given: flags & IFA_F_PERMANENT != 0 && !own,
    })
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// `AA:BB:…`, as links' addresses are told.
pub(in crate::network) fn hw_addr(value: &[u8]) -> String {
    let mut text = String::with_capacity(value.len() * 3);
    for (n, byte) in value.iter().enumerate() {
        let colon = if n > 0 { ":" } else { "" };
        // Writing to a string cannot fail.
        let _ = write!(text, "{colon}{byte:02X}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::tests::written;
    use super::*;
    use netlink_packet_route::address::{
        AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
    };
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};
    use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

    #[test]
    fn a_link_with_its_address() {
        let mut link = LinkMessage::default();
        link.header.index = 7;
        link.attributes = vec![
            LinkAttribute::IfName("eth0".into()),
            LinkAttribute::Mtu(1450),
            LinkAttribute::Address(vec![2, 0, 0xab, 0xcd, 0xef, 1]),
        ];
        let payload = written(&RouteNetlinkMessage::NewLink(link));
        let message = Message {
            kind: RTM_NEWLINK,
            payload: &payload,
        };
        let interface = link_of(message).unwrap();
        assert_eq!((interface.index, interface.mtu), (7, 1450));
        assert_eq!(interface.name, "eth0");
        assert_eq!(interface.hw_addr, "02:00:AB:CD:EF:01");
    }

    #[test]
    fn bug_families_are_not_swapped() {
        for (family, text, prefix) in [
            (AddressFamily::Inet, "10.0.0.2", 24),
            (AddressFamily::Inet6, "fd00::2", 64),
        ] {
            let ip: IpAddr = text.parse().unwrap();
            let mut address = AddressMessage::default();
            address.header.family = family;
            address.header.prefix_len = prefix;
            address.header.index = 3;
            address.attributes = vec![AddressAttribute::Address(ip)];
            let payload = written(&RouteNetlinkMessage::NewAddress(address));
            let message = Message {
                kind: RTM_NEWADDR,
                payload: &payload,
            };
            let held = address_of(message).unwrap();
            assert_eq!((held.index, held.address), (3, Address { ip, prefix }));
            assert!(!held.given && held.peer == ip);
        }
    }

    #[test]
    fn the_local_end_of_a_point_to_point_link_counts() {
        let mut address = AddressMessage::default();
        address.header.family = AddressFamily::Inet;
        address.attributes = vec![
            AddressAttribute::Address("10.0.0.1".parse().unwrap()),
            AddressAttribute::Local("10.0.0.2".parse().unwrap()),
        ];
        let payload = written(&RouteNetlinkMessage::NewAddress(address));
        let message = Message {
            kind: RTM_NEWADDR,
            payload: &payload,
        };
        let held = address_of(message).unwrap();
        assert_eq!(held.address.ip.to_string(), "10.0.0.2");
        assert_eq!(held.peer.to_string(), "10.0.0.1");
    }

    #[test]
    fn the_kernels_own_addresses_are_not_given() {
        let given = |ip: &str, scope, flags| {
            let mut address = AddressMessage::default();
            let ip: IpAddr = ip.parse().unwrap();
            let v4 = ip.is_ipv4();
            let families = [AddressFamily::Inet6, AddressFamily::Inet];
            address.header.family = families[usize::from(v4)];
            address.header.scope = scope;
            address.header.flags = flags;
            address.attributes = vec![AddressAttribute::Address(ip)];
            let payload = written(&RouteNetlinkMessage::NewAddress(address));
            let kind = RTM_NEWADDR;
            let payload = &payload;
            address_of(Message { kind, payload }).unwrap().given
        };
        let (link, all) = (AddressScope::Link, AddressScope::Universe);
        let permanent = AddressHeaderFlags::Permanent;
        assert!(given("10.0.0.2", all, permanent) && given("169.254.0.2", link, permanent));
        assert!(given("fd00::2", all, permanent) && !given("fe80::2", link, permanent));
        assert!(!given("2001:db8::2", all, AddressHeaderFlags::empty()));
    }

    #[test]
    fn links_are_found_by_number_and_by_name() {
        let link = |index, name: &str| Interface {
            index,
            name: name.to_owned(),
            hw_addr: String::new(),
            mtu: 1500,
            flags: 0,
            addresses: Vec::new(),
        };
        let links = [link(1, "lo"), link(3, "eth0"), link(4, "b")];
        assert_eq!(place_of(&links, 4), Ok(2));
        assert!(place_of(&links, 2).is_err() && place_of(&[], 1).is_err());
        let names = Names::new(&links);
        let find = |name| names.index_of(&LinkName::parse(name).unwrap()).ok();
        assert_eq!(["b", "eth0", "lo"].map(find), [Some(4), Some(3), Some(1)]);
        assert_eq!(["a", "eth", "zz"].map(find), [None, None, None]);
    }

    proptest::proptest! {
        #[test]
        fn any_message_can_be_read(payload: Vec<u8>) {
            let message = |kind| Message { kind, payload: &payload };
            let _ = link_of(message(RTM_NEWLINK));
            let _ = address_of(message(RTM_NEWADDR));
        }
    }
}
