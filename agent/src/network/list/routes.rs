// SPDX-License-Identifier: Apache-2.0
//! The routes of the main table, as the kernel tells of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::libc::{
    AF_INET, AF_INET6, RT_TABLE_MAIN, RTA_DST, RTA_GATEWAY, RTA_METRICS, RTA_OIF, RTA_PREFSRC,
    RTA_PRIORITY, RTA_SRC, RTA_TABLE, RTM_F_CLONED, RTM_GETROUTE, RTM_NEWROUTE, RTN_UNICAST,
};

use super::super::netlink::{Message, NetlinkError, Socket, attributes, u32_at};
use super::links::place_of;
use super::{Family, Interface, family_request, ip, links};

/// Length of the fixed part: rtmsg.
const ROUTE: usize = 12;

/// A gateway of the other family (linux/rtnetlink.h; libc has it for glibc only).
pub(in crate::network) const RTA_VIA: u16 = 18;
/// The metric of a route that is its MTU; the only one the protocol has.
pub(in crate::network) const RTAX_MTU: u16 = 2;
/// The gateway is to be reached even though no address says so.
pub(in crate::network) const RTNH_F_ONLINK: u32 = 4;

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
pub(in crate::network) struct Entry {
    pub route: Route,
    /// Its priority among those to the same destination.
    pub metric: u32,
    /// The kernel's message, from which it can be made again.
    pub message: Vec<u8>,
}

/// The routes of the main table, version 4 first. Routes that name neither a
/// destination nor a gateway are left out. Blocks shortly.
///
/// # Errors
/// [`NetlinkError`].
pub fn routes() -> Result<Vec<Route>, NetlinkError> {
    let socket = Socket::open()?;
    let entries = entries(&socket, &links(&socket)?)?;
    Ok(entries.into_iter().map(|entry| entry.route).collect())
}

/// The same with all that it takes to put one back.
pub(in crate::network) fn entries(
    socket: &Socket,
    links: &[Interface],
) -> Result<Vec<Entry>, NetlinkError> {
    let take = |message: Message<'_>| {
        let (route, metric) = route_of(&message, links)?;
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

fn route_of(message: &Message<'_>, links: &[Interface]) -> Option<(Route, u32)> {
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
            RTA_OIF => {
                let place = place_of(links, u32_at(value, 0)?).ok()?;
                route.device = links[place].name.clone();
            }
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

#[cfg(test)]
mod tests {
    use super::super::tests::written;
    use super::*;
    use netlink_packet_route::route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteScope, RouteType,
    };
    use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

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
        route_of(&message, &[eth0()]).map(|(route, _)| route)
    }

    fn eth0() -> Interface {
        Interface {
            index: 2,
            name: "eth0".to_owned(),
            hw_addr: String::new(),
            mtu: 1500,
            flags: 0,
            addresses: Vec::new(),
        }
    }

    fn v4(text: &str) -> RouteAddress {
        RouteAddress::Inet(text.parse().unwrap())
    }

    fn v6(text: &str) -> RouteAddress {
        RouteAddress::Inet6(text.parse().unwrap())
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

    proptest::proptest! {
        #[test]
        fn any_message_can_be_read(payload: Vec<u8>) {
            let kind = RTM_NEWROUTE;
            let _ = route_of(&Message { kind, payload: &payload }, &[eth0()]);
        }
    }
}
