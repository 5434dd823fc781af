// SPDX-License-Identifier: Apache-2.0
//! What ListInterfaces and ListRoutes tell (protocol 10.3, 10.4), and what is
//! compared with what is wanted. Owns the reading of rtnetlink's messages on
//! links, addresses and routes.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::libc::{
    AF_INET, AF_INET6, AF_UNSPEC, IFA_ADDRESS, IFA_LOCAL, IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU,
    RT_SCOPE_LINK, RT_TABLE_MAIN, RTA_DST, RTA_GATEWAY, RTA_METRICS, RTA_OIF, RTA_PREFSRC,
    RTA_PRIORITY, RTA_SRC, RTA_TABLE, RTM_F_CLONED, RTM_GETADDR, RTM_GETLINK, RTM_GETROUTE,
    RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, RTN_UNICAST,
};

use super::NetworkError;
use super::netlink::{Message, NetlinkError, Socket, attributes, u32_at};
use super::plan::LinkName;

/// Lengths of the fixed parts: ifinfomsg, ifaddrmsg, rtmsg.
const LINK: usize = 16;
const ADDRESS: usize = 8;
const ROUTE: usize = 12;

/// A gateway of the other family (linux/rtnetlink.h; libc has it for glibc only).
pub(super) const RTA_VIA: u16 = 18;
/// The metric of a route that is its MTU; the only one the protocol has.
pub(super) const RTAX_MTU: u16 = 2;
/// The gateway is to be reached even though no address says so.
pub(super) const RTNH_F_ONLINK: u32 = 4;
/// The address is nobody's but an administrator's (linux/if_addr.h).
const IFA_F_PERMANENT: u8 = 0x80;

/// An address and the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address itself; it tells its family.
    pub ip: IpAddr,
    /// At most 32 or 128.
    pub prefix: u8,
}

impl Address {
    /// The address of the network: all after the prefix is 0.
    #[must_use]
    pub fn network(self) -> Self {
        let prefix = u32::from(self.prefix);
        let ip = match self.ip {
            IpAddr::V4(ip) => IpAddr::from((u32::from(ip) & !(ones_v4(prefix))).to_be_bytes()),
            IpAddr::V6(ip) => {
                let rest = u128::MAX.checked_shr(prefix).unwrap_or(0);
                IpAddr::from((u128::from(ip) & !rest).to_be_bytes())
            }
        };
        Self { ip, ..self }
    }

    /// Where all stations of a network of IPv4 listen; none for links of two.
    pub(super) fn broadcast(self) -> Option<IpAddr> {
        match self.ip {
            IpAddr::V4(ip) if self.prefix < 31 => {
                let all = u32::from(ip) | ones_v4(u32::from(self.prefix));
                Some(IpAddr::from(all.to_be_bytes()))
            }
            _ => None,
        }
    }
}

/// Ones after the prefix.
fn ones_v4(prefix: u32) -> u32 {
    u32::MAX.checked_shr(prefix).unwrap_or(0)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// An address that a link has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    /// The link.
    pub index: u32,
    /// The address.
    pub address: Address,
    /// The other end of a point-to-point link, and else the address itself.
    pub peer: IpAddr,
    /// It was given, and not made by the kernel from what it heard or by itself.
    pub given: bool,
}

/// The family of a route's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
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

/// A unicast route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `address/prefix`; the default route is `0.0.0.0/0` or `::/0`.
    pub dest: String,
    /// Next hop, which may be of the other family, or empty.
    pub gateway: String,
    /// The interface's name, or empty (a route with several next hops).
    pub device: String,
    /// Where packets come from: the selector, with a prefix, or else the
    /// preferred source address. Empty when neither is set.
    pub source: String,
    /// `RT_SCOPE_*`.
    pub scope: u32,
    /// Of the destination.
    pub family: Family,
    /// `RTNH_F_ONLINK` or nothing; the others are states, not wishes.
    pub flags: u32,
    /// 0 when not set.
    pub mtu: u32,
}

/// A route as it is in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub route: Route,
    /// Its priority among those to the same destination.
    pub metric: u32,
    /// The kernel's message, from which it can be made again.
    pub message: Vec<u8>,
}

/// All interfaces with their addresses, `lo` included. Blocks shortly.
///
/// # Errors
/// [`NetlinkError`].
pub fn interfaces() -> Result<Vec<Interface>, NetlinkError> {
    let socket = Socket::open()?;
    let mut interfaces = links(&socket)?;
    for held in addresses(&socket)? {
        let owner = interfaces.iter_mut().find(|i| i.index == held.index);
        if let Some(owner) = owner {
            owner.addresses.push(held.address);
        }
    }
    Ok(interfaces)
}

/// The addresses of all links.
pub(super) fn addresses(socket: &Socket) -> Result<Vec<Held>, NetlinkError> {
    let any = family_request(AF_UNSPEC, ADDRESS);
    socket.dump("list addresses", RTM_GETADDR, &any, address_of)
}

/// The routes of the main table, version 4 first. Routes that name neither a
/// destination nor a gateway are left out. Blocks shortly.
///
/// # Errors
/// [`NetlinkError`].
pub fn routes() -> Result<Vec<Route>, NetlinkError> {
    let socket = Socket::open()?;
    let entries = entries(&socket, links(&socket)?)?;
    Ok(entries.into_iter().map(|entry| entry.route).collect())
}

/// The same with all that it takes to put one back.
pub(super) fn entries(socket: &Socket, links: Vec<Interface>) -> Result<Vec<Entry>, NetlinkError> {
    let names = links.into_iter().map(|link| (link.index, link.name));
    let names = names.collect();
    let take = |message: Message<'_>| {
        let (route, metric) = route_of(&message, &names)?;
        let message = message.payload.to_vec();
        Some(Entry {
            route,
            metric,
            message,
        })
    };
    let mut routes = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let request = family_request(family, ROUTE);
        routes.extend(socket.dump("list routes", RTM_GETROUTE, &request, take)?);
    }
    Ok(routes)
}

/// All links, without their addresses.
pub(super) fn links(socket: &Socket) -> Result<Vec<Interface>, NetlinkError> {
    let any = family_request(AF_UNSPEC, LINK);
    socket.dump("list links", RTM_GETLINK, &any, link_of)
}

/// The number of the link that has the name.
pub(super) fn index_of(links: &[Interface], name: &LinkName) -> Result<u32, NetworkError> {
    let named = links.iter().find(|link| link.name == name.as_str());
    let index = named.map(|link| link.index);
    index.ok_or_else(|| NetworkError::NoLink(name.to_string()))
}

/// The fixed part of a request that names nothing but a family.
fn family_request(family: i32, length: usize) -> Vec<u8> {
    let mut request = vec![0u8; length];
    request[0] = u8::try_from(family).unwrap_or(0);
    request
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

fn route_of(message: &Message<'_>, names: &HashMap<u32, String>) -> Option<(Route, u32)> {
    let &[
        family,
        dest_prefix,
        source_prefix,
        _,
        table,
        _,
        scope,
        kind,
        ..,
    ] = message.payload
    else {
        return None;
    };
    let flags = u32_at(message.payload, 8)?;
    if message.kind != RTM_NEWROUTE || kind != RTN_UNICAST || flags & RTM_F_CLONED != 0 {
        return None;
    }
    let (mut table, mut metric) = (u32::from(table), 0);
    let (mut dest, mut gateway, mut selector, mut preferred) = (None, None, None, None);
    let mut route = Route {
        dest: String::new(),
        gateway: String::new(),
        device: String::new(),
        source: String::new(),
        scope: u32::from(scope),
        family: Family::V4,
        flags: flags & RTNH_F_ONLINK,
        mtu: 0,
    };
    for (kind, value) in attributes(message.payload, ROUTE) {
        match kind {
            RTA_TABLE => table = u32_at(value, 0)?,
            RTA_DST => dest = ip(family, value),
            RTA_SRC => selector = ip(family, value),
            RTA_PREFSRC => preferred = ip(family, value),
            RTA_GATEWAY => gateway = ip(family, value),
            RTA_VIA => gateway = via(value),
            RTA_OIF => route.device = names.get(&u32_at(value, 0)?).cloned()?,
            RTA_PRIORITY => metric = u32_at(value, 0)?,
            RTA_METRICS => route.mtu = mtu(value),
            _ => {}
        }
    }
    if table != u32::from(RT_TABLE_MAIN) || (dest.is_none() && gateway.is_none()) {
        return None;
    }
    let dest = dest.or(unspecified(family))?;
    route.family = match dest {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    };
    route.dest = format!("{dest}/{dest_prefix}");
    route.gateway = gateway.map_or_else(String::new, |ip| ip.to_string());
    route.source = match (selector, preferred) {
        (Some(ip), _) => format!("{ip}/{source_prefix}"),
        (None, Some(ip)) => ip.to_string(),
        (None, None) => String::new(),
    };
    Some((route, metric))
}

fn unspecified(family: u8) -> Option<IpAddr> {
    match i32::from(family) {
        AF_INET => Some(Ipv4Addr::UNSPECIFIED.into()),
        AF_INET6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    }
}

fn ip(family: u8, value: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        AF_INET => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        AF_INET6 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    }
}

/// A gateway of the other family: its family, then the address (rtvia).
fn via(value: &[u8]) -> Option<IpAddr> {
    let (family, address) = value.split_first_chunk::<2>()?;
    ip(u8::try_from(u16::from_ne_bytes(*family)).ok()?, address)
}

fn mtu(metrics: &[u8]) -> u32 {
    let mut metrics = attributes(metrics, 0);
    let mtu = metrics.find(|(kind, _)| *kind == RTAX_MTU);
    mtu.and_then(|(_, value)| u32_at(value, 0)).unwrap_or(0)
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// `AA:BB:…`, as links' addresses are told.
pub(super) fn hw_addr(value: &[u8]) -> String {
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
    use super::*;
    use netlink_packet_core::NetlinkSerializable;
    use netlink_packet_route::address::{
        AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
    };
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};
    use netlink_packet_route::route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteScope, RouteType,
    };
    use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

    /// What another implementation writes, to be read by ours.
    fn written(message: &RouteNetlinkMessage) -> Vec<u8> {
        let mut payload = vec![0; message.buffer_len()];
        message.serialize(&mut payload);
        payload
    }

    fn route(family: AddressFamily, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = family;
        route.header.table = RT_TABLE_MAIN;
        route.header.kind = RouteType::Unicast;
        route.attributes = attributes;
        route
    }

    fn read(message: RouteMessage) -> Option<Route> {
        let payload = written(&RouteNetlinkMessage::NewRoute(message));
        let message = Message {
            kind: RTM_NEWROUTE,
            payload: &payload,
        };
        let names = HashMap::from([(2, "eth0".to_owned())]);
        route_of(&message, &names).map(|(route, _)| route)
    }

    fn v4(text: &str) -> RouteAddress {
        RouteAddress::Inet(text.parse().unwrap())
    }

    fn v6(text: &str) -> RouteAddress {
        RouteAddress::Inet6(text.parse().unwrap())
    }

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
    fn networks_of_addresses() {
        for (ip, prefix, network, broadcast) in [
            ("10.1.2.3", 0, "0.0.0.0/0", Some("255.255.255.255")),
            ("10.1.2.3", 20, "10.1.0.0/20", Some("10.1.15.255")),
            ("10.1.2.3", 31, "10.1.2.2/31", None),
            ("10.1.2.3", 32, "10.1.2.3/32", None),
            ("fd00::1:2:3", 0, "::/0", None),
            ("fd00::1:2:3", 64, "fd00::/64", None),
            ("fd00::1:2:3", 128, "fd00::1:2:3/128", None),
        ] {
            let ip = ip.parse().unwrap();
            let address = Address { ip, prefix };
            assert_eq!(address.network().to_string(), network);
            let broadcast = broadcast.map(|ip| ip.parse().unwrap());
            assert_eq!(address.broadcast(), broadcast, "{address}");
        }
    }

    #[test]
    fn bug_default_routes_are_networks() {
        let gateway = |a| vec![RouteAttribute::Gateway(a), RouteAttribute::Oif(2)];
        let four = read(route(AddressFamily::Inet, gateway(v4("10.0.0.1")))).unwrap();
        assert_eq!(four.dest, "0.0.0.0/0");
        assert_eq!(four.gateway, "10.0.0.1");
        assert_eq!(four.device, "eth0");
        let six = read(route(AddressFamily::Inet6, gateway(v6("fe80::1")))).unwrap();
        assert_eq!(six.dest, "::/0");
        assert_eq!((four.family, six.family), (Family::V4, Family::V6));
    }

    #[test]
    fn bug_routes_with_a_gateway_keep_their_destination() {
        let attributes = vec![
            RouteAttribute::Destination(v4("10.1.0.0")),
            RouteAttribute::Gateway(v4("10.0.0.1")),
            RouteAttribute::PrefSource(v4("10.0.0.2")),
            RouteAttribute::Metrics(vec![RouteMetric::Window(9), RouteMetric::Mtu(1300)]),
            RouteAttribute::Oif(2),
        ];
        let mut message = route(AddressFamily::Inet, attributes);
        message.header.destination_prefix_length = 16;
        message.header.scope = RouteScope::Link;
        message.header.flags = RouteFlags::Onlink | RouteFlags::Linkdown;
        let route = read(message).unwrap();
        assert_eq!(route.dest, "10.1.0.0/16");
        assert_eq!(route.source, "10.0.0.2");
        assert_eq!(
            (route.mtu, route.scope, route.flags),
            (1300, 253, RTNH_F_ONLINK)
        );
    }

    #[test]
    fn what_is_left_out() {
        let dest = || vec![RouteAttribute::Destination(v4("10.1.0.0"))];
        assert!(read(route(AddressFamily::Inet, dest())).is_some());
        assert!(read(route(AddressFamily::Inet, vec![RouteAttribute::Oif(2)])).is_none());
        let mut other = route(AddressFamily::Inet, dest());
        other.header.table = 255;
        assert!(read(other).is_none());
        let mut other = route(AddressFamily::Inet, dest());
        other.attributes.push(RouteAttribute::Table(1000));
        assert!(read(other).is_none());
        let mut cached = route(AddressFamily::Inet, dest());
        cached.header.flags = RouteFlags::Cloned;
        assert!(read(cached).is_none());
        let mut hole = route(AddressFamily::Inet, dest());
        hole.header.kind = RouteType::BlackHole;
        assert!(read(hole).is_none());
    }

    #[test]
    fn the_guest_itself() {
        let interfaces = interfaces().unwrap();
        let lo = interfaces.iter().find(|i| i.name == "lo").unwrap();
        assert_eq!(lo.hw_addr, "00:00:00:00:00:00");
        let known: Vec<_> = interfaces.iter().map(|i| i.name.as_str()).collect();
        for route in routes().unwrap() {
            assert!(route.device.is_empty() || known.contains(&&*route.device));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_message_can_be_read(payload: Vec<u8>) {
            let names = HashMap::new();
            let message = |kind| Message { kind, payload: &payload };
            let _ = link_of(message(RTM_NEWLINK));
            let _ = address_of(message(RTM_NEWADDR));
            let _ = route_of(&message(RTM_NEWROUTE), &names);
        }
    }
}
