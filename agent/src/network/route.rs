// SPDX-License-Identifier: Apache-2.0
//! UpdateRoutes (protocol 10.2): puts routes into the main table, those that
//! need no router first. A route that is there already is left alone. Routes
//! that are not in the list stay: nobody says which of them are the host's, and
//! which the kernel's or a workload's own.

use std::collections::HashMap;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE};
use nix::errno::Errno;
use nix::libc::{
    RT_TABLE_MAIN, RTA_DST, RTA_GATEWAY, RTA_METRICS, RTA_OIF, RTA_PREFSRC, RTM_DELROUTE,
    RTM_NEWROUTE, RTN_UNICAST, RTPROT_BOOT,
};

use super::list::{self, Entry, Family, Interface, Names, RTA_VIA, RTAX_MTU, RTNH_F_ONLINK, Route};
use super::netlink::{NetlinkError, Socket};
use super::plan::RoutePlan;
use super::request::{Changes, Kernel, Request, family, is_without_ipv6, together};
use super::{NetworkError, Tell};

/// What a route of IPv6 gets for a metric that is not given (net/ipv6_route.h);
/// one of IPv4 gets none.
const METRIC_V6: u32 = 1024;

/// What the table has for a destination, and how many routes to it this request
/// has had.
type Table = HashMap<String, (Vec<Entry>, usize)>;

/// Carries out plans and tells what routes there are then. Blocks shortly.
///
/// # Errors
/// [`NetworkError::NoLink`] before anything is changed, what the kernel refuses,
/// and what cannot be told.
pub(super) fn update<A>(
    socket: &Socket,
    plans: &[RoutePlan],
    tell: Tell<Route, A>,
) -> Result<A, NetworkError> {
    let links = list::links(socket)?;
    let mut table = Table::new();
    for entry in list::entries(socket, &links)? {
        let same = table.entry(entry.route.dest.clone()).or_default();
        same.0.push(entry);
    }
    together(socket, |changes| {
        put(changes, plans, &links, table)?;
        let entries = list::entries(socket, &links)?;
        tell(entries.into_iter().map(|entry| entry.route).collect())
    })
}

fn put<K: Kernel>(
    changes: &mut Changes<'_, K>,
    plans: &[RoutePlan],
    links: &[Interface],
    mut table: Table,
) -> Result<(), NetworkError> {
    let names = Names::new(links);
    let mut routes = Vec::with_capacity(plans.len());
    for plan in plans {
        routes.push((plan, names.index_of(&plan.device)?));
    }
    let mut left_out = 0usize;
    // What needs no router makes routers reachable.
    let near = routes.iter().filter(|(plan, _)| plan.gateway.is_none());
    let far = routes.iter().filter(|(plan, _)| plan.gateway.is_some());
    for &(plan, index) in near.chain(far) {
        let (there, count) = table.entry(plan.dest.to_string()).or_default();
        *count += 1;
        match put_one(changes, plan, index, there, *count == 1) {
            Err(error) if is_without_ipv6(plan.dest.ip, &error) => left_out += 1,
            other => other.map_err(|source| NetworkError::Route {
                route: plan.to_string(),
                source,
            })?,
        }
    }
    if left_out > 0 {
        log::warn!("Routes left out because IPv6 is disabled: {left_out}");
    }
    Ok(())
}

/// The first route to a destination takes the place of the one that is there;
/// further ones of the same request are put after it.
fn put_one<K: Kernel>(
    changes: &mut Changes<'_, K>,
    plan: &RoutePlan,
    index: u32,
    there: &[Entry],
    first: bool,
) -> Result<(), NetlinkError> {
    if there.iter().any(|entry| is_met(plan, &entry.route)) {
        return Ok(());
    }
    let metric = match plan.family() {
        Family::V4 => 0,
        Family::V6 => METRIC_V6,
    };
    let replaced = there.iter().find(|entry| first && entry.metric == metric);
    let manner = if first { NLM_F_REPLACE } else { NLM_F_APPEND };
    let mut add = |onlink| {
        let request = request(plan, index, onlink, NLM_F_CREATE | manner);
        let undo = match replaced {
            Some(entry) => Request::new(
                "put a route back",
                RTM_NEWROUTE,
                NLM_F_CREATE | NLM_F_REPLACE,
                &entry.message,
            ),
            None => request.turned("remove a route", RTM_DELROUTE, 0),
        };
        changes.make(&request, undo)
    };
    match (add(plan.onlink), plan.gateway) {
        // An equal one: from a moment ago, or earlier in the list.
        (Err(error), _) if error.errno() == Some(Errno::EEXIST) => Ok(()),
        // Nothing leads to the router, but it is said to be on that link.
        (Err(error), Some(_)) if !plan.onlink && is_unreachable(&error) => add(true),
        (other, _) => other,
    }
}

fn is_unreachable(error: &NetlinkError) -> bool {
    matches!(
        error.errno(),
        Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH)
    )
}

/// Whether a route does what is wanted. What is not asked for does not count: the
/// kernel's own routes to a link's network name a source.
fn is_met(plan: &RoutePlan, route: &Route) -> bool {
    let gateway = plan.gateway.map_or_else(String::new, |ip| ip.to_string());
    let source = plan.source.map(|ip| ip.to_string());
    route.device == plan.device.as_str()
        && route.gateway == gateway
        && source.is_none_or(|source| source == route.source)
        && route.mtu == plan.mtu
        && (plan.family() == Family::V6 || route.scope == u32::from(plan.scope))
        && (!plan.onlink || route.flags & RTNH_F_ONLINK != 0)
}

/// rtmsg and attributes.
fn request(plan: &RoutePlan, index: u32, onlink: bool, flags: u16) -> Request {
    let dest = plan.dest;
    let own = family(dest.ip);
    let (table, protocol, kind) = (RT_TABLE_MAIN, RTPROT_BOOT, RTN_UNICAST);
    let mut fixed = vec![own, dest.prefix, 0, 0, table, protocol, plan.scope, kind];
    fixed.extend(if onlink { RTNH_F_ONLINK } else { 0 }.to_ne_bytes());
    let mut request = Request::new("add a route", RTM_NEWROUTE, flags, &fixed)
        .with_ip(RTA_DST, dest.ip)
        .with(RTA_OIF, &index.to_ne_bytes());
    if let Some(gateway) = plan.gateway {
        request = if gateway.is_ipv4() == dest.ip.is_ipv4() {
            request.with_ip(RTA_GATEWAY, gateway)
        } else {
            let mut via = u16::from(family(gateway)).to_ne_bytes().to_vec();
            if let std::net::IpAddr::V6(ip) = gateway {
                via.extend(ip.octets());
            }
            request.with(RTA_VIA, &via)
        };
    }
    if let Some(source) = plan.source {
        request = request.with_ip(RTA_PREFSRC, source);
    }
    if plan.mtu != 0 {
        let metric = Request::new("", 0, 0, &[]).with(RTAX_MTU, &plan.mtu.to_ne_bytes());
        request = request.with(RTA_METRICS, &metric.payload);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::super::plan::RouteWords;
    use super::super::request::fake::Fake;
    use super::*;
    use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader};
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol,
        RouteScope, RouteType, RouteVia,
    };

    fn plan(dest: &str, gateway: &str) -> RoutePlan {
        RoutePlan::new(RouteWords {
            dest,
            gateway,
            device: "eth0",
            source: "",
            scope: 0,
            family: Family::V4,
            flags: 0,
            mtu: 0,
        })
        .unwrap()
    }

    fn read(request: &Request) -> RouteMessage {
        let mut header = NetlinkHeader::default();
        header.message_type = RTM_NEWROUTE;
        match RouteNetlinkMessage::deserialize(&header, &request.payload).unwrap() {
            RouteNetlinkMessage::NewRoute(message) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn bug_the_source_is_preferred_and_no_selector() {
        let mut plan = plan("10.1.0.0/16", "10.0.0.1");
        plan.source = Some("10.0.0.2".parse().unwrap());
        (plan.mtu, plan.scope) = (1400, 253);
        let read = read(&request(&plan, 2, true, 0));
        let v4 = |text: &str| RouteAddress::Inet(text.parse().unwrap());
        assert_eq!(
            read.attributes,
            [
                RouteAttribute::Destination(v4("10.1.0.0")),
                RouteAttribute::Oif(2),
                RouteAttribute::Gateway(v4("10.0.0.1")),
                RouteAttribute::PrefSource(v4("10.0.0.2")),
                RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)]),
            ]
        );
        let header = read.header;
        assert_eq!(header.destination_prefix_length, 16);
        assert_eq!(header.source_prefix_length, 0);
        assert_eq!(header.protocol, RouteProtocol::Boot);
        assert_eq!(header.kind, RouteType::Unicast);
        assert_eq!(header.scope, RouteScope::Link);
        assert_eq!((header.table, header.flags), (254, RouteFlags::Onlink));
    }

    #[test]
    fn a_router_of_the_other_family() {
        let read = read(&request(&plan("10.1.0.0/16", "fe80::1"), 2, false, 0));
        let via = RouteVia::Inet6("fe80::1".parse().unwrap());
        assert!(read.attributes.contains(&RouteAttribute::Via(via)));
    }

    fn entry(dest: &str, gateway: &str, metric: u32) -> Entry {
        let route = Route {
            dest: dest.to_owned(),
            gateway: gateway.to_owned(),
            device: "eth0".to_owned(),
            source: "10.0.0.2".to_owned(),
            scope: 0,
            family: Family::V4,
            flags: 0,
            mtu: 0,
        };
        Entry {
            route,
            metric,
            message: vec![7; 12],
        }
    }

    fn put_all<F: Fn(&Request, usize) -> Option<Errno>>(
        kernel: &Fake<F>,
        plans: &[RoutePlan],
        table: Vec<Entry>,
    ) -> Result<(), NetworkError> {
        let eth0 = Interface {
            index: 2,
            name: "eth0".to_owned(),
            hw_addr: String::new(),
            mtu: 1500,
            flags: 0,
            addresses: Vec::new(),
        };
        let table = table
            .into_iter()
            .map(|e| (e.route.dest.clone(), (vec![e], 0)));
        together(kernel, |c| put(c, plans, &[eth0], table.collect()))
    }

    #[test]
    fn routes_without_a_router_come_first() {
        let kernel = Fake::new(|_, _| None);
        let plans = [plan("", "10.0.0.1"), plan("10.0.0.1", "")];
        put_all(&kernel, &plans, Vec::new()).unwrap();
        let asked = kernel.asked.borrow();
        assert_eq!(read(&asked[0]).header.destination_prefix_length, 32);
        assert_eq!(read(&asked[1]).header.destination_prefix_length, 0);
    }

    #[test]
    fn an_equal_route_is_left_alone() {
        let kernel = Fake::new(|_, _| None);
        let table = || vec![entry("10.1.0.0/16", "10.0.0.1", 0)];
        put_all(&kernel, &[plan("10.1.0.0/16", "10.0.0.1")], table()).unwrap();
        assert!(kernel.steps().is_empty());
        put_all(&kernel, &[plan("10.1.0.0/16", "10.0.0.9")], table()).unwrap();
        assert_eq!(kernel.steps(), ["add a route"]);
    }

    #[test]
    fn bug_736_an_equal_route_may_exist() {
        let kernel = Fake::new(|_, _| Some(Errno::EEXIST));
        put_all(&kernel, &[plan("10.1.0.0/16", "")], Vec::new()).unwrap();
    }

    #[test]
    fn bug_299_a_router_that_nothing_leads_to_is_on_the_link() {
        let kernel = Fake::new(|_, n| (n == 0).then_some(Errno::ENETUNREACH));
        put_all(&kernel, &[plan("", "169.254.1.1")], Vec::new()).unwrap();
        let asked = kernel.asked.borrow();
        assert_eq!(read(&asked[1]).header.flags, RouteFlags::Onlink);
        drop(asked);
        let kernel = Fake::new(|_, _| Some(Errno::ENETUNREACH));
        put_all(&kernel, &[plan("", "169.254.1.1")], Vec::new()).unwrap_err();
        assert_eq!(kernel.steps().len(), 2);
    }

    #[test]
    fn a_refused_route_takes_the_others_back() {
        let kernel = Fake::new(|_, n| (n == 2).then_some(Errno::EINVAL));
        let plans = ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"].map(|dest| plan(dest, ""));
        let table = vec![entry("10.1.0.0/16", "10.0.0.1", 0)];
        let error = put_all(&kernel, &plans, table).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Failed to update routes: 10.3.0.0/16 dev eth0"
        );
        assert_eq!(kernel.steps()[3..], ["remove a route", "put a route back"]);
        assert_eq!(kernel.asked.borrow()[4].payload, [7; 12]);
    }

    #[test]
    fn further_routes_to_a_destination_do_not_replace_the_first() {
        let kernel = Fake::new(|_, _| None);
        let plans = [plan("", "10.0.0.1"), plan("", "10.0.0.9")];
        put_all(&kernel, &plans, Vec::new()).unwrap();
        let flags: Vec<_> = kernel.asked.borrow().iter().map(|r| r.flags).collect();
        let (replace, append) = (NLM_F_CREATE | NLM_F_REPLACE, NLM_F_CREATE | NLM_F_APPEND);
        assert_eq!(flags, [replace, append]);
    }

    #[test]
    fn bug_11200_without_ipv6_its_routes_are_left_out() {
        let kernel = Fake::new(|_, _| Some(Errno::EACCES));
        put_all(&kernel, &[plan("fd01::/64", "fd00::1")], Vec::new()).unwrap();
        put_all(&kernel, &[plan("10.1.0.0/16", "")], Vec::new()).unwrap_err();
    }

    #[test]
    fn a_device_that_is_not_there_changes_nothing() {
        let kernel = Fake::new(|_, _| None);
        let mut other = plan("10.2.0.0/16", "");
        other.device = super::super::plan::LinkName::parse("eth7").unwrap();
        let error = put_all(&kernel, &[plan("10.1.0.0/16", ""), other], Vec::new());
        assert_eq!(
            error.unwrap_err().to_string(),
            "Link not found (Name: eth7)"
        );
        assert!(kernel.steps().is_empty());
    }
}
