// SPDX-License-Identifier: Apache-2.0
//! The guest's network: interfaces, routes, neighbours, iptables.

use std::sync::Arc;

use protobuf::Message;
use protocols::agent::{
    AddARPNeighborsRequest, GetIPTablesRequest, GetIPTablesResponse, Interfaces, Routes,
    SetIPTablesRequest, SetIPTablesResponse, UpdateInterfaceRequest, UpdateRoutesRequest,
};
use protocols::empty::Empty;
use protocols::types;

use super::status::{Coded, missing};
use crate::network::list::{self, Family};
use crate::network::plan::{
    self, InterfacePlan, LinkName, MAX_ADDRESSES, MAX_ENTRIES, Mac, NeighbourPlan, RoutePlan,
    RouteWords,
};
use crate::network::{NetworkError, iptables};
use crate::sandbox::Sandbox;

/// The kernel's flag of links that resolve no addresses, the only one that counts here.
const NO_ARP: u32 = libc::IFF_NOARP as u32;

/// Bytes of a message that one answer holds (protocol 1.1), less what goes around it.
const ROOM: u64 = (4 << 20) - 64;

pub async fn update_interface(
    sandbox: &Arc<Sandbox>,
    request: UpdateInterfaceRequest,
) -> ttrpc::Result<types::Interface> {
    let wanted = request.interface.into_option();
    let wanted = wanted.ok_or_else(|| missing("interface"))?;
    let plan = interface_plan(&wanted).map_err(Coded::status)?;
    let done = sandbox.network().update_interface(plan).await;
    done.map_err(Coded::status)?;
    Ok(wanted)
}

pub async fn update_routes(
    sandbox: &Arc<Sandbox>,
    request: &UpdateRoutesRequest,
) -> ttrpc::Result<Routes> {
    let wanted = request.routes.as_ref().ok_or_else(|| missing("routes"))?;
    let plans = all("routes", MAX_ENTRIES, &wanted.Routes, route_plan).map_err(Coded::status)?;
    let done = sandbox.network().update_routes(plans, routes).await;
    done.map_err(Coded::status)
}

pub async fn add_neighbours(
    sandbox: &Arc<Sandbox>,
    request: &AddARPNeighborsRequest,
) -> ttrpc::Result<Empty> {
    let wanted = request.neighbors.as_ref();
    let wanted = wanted.ok_or_else(|| missing("neighbours"))?;
    let plans = all(
        "neighbours",
        MAX_ENTRIES,
        &wanted.ARPNeighbors,
        neighbour_plan,
    );
    let plans = plans.map_err(Coded::status)?;
    let done = sandbox.network().add_neighbours(plans).await;
    done.map_err(Coded::status)?;
    Ok(Empty::new())
}

pub async fn get_tables(
    sandbox: &Arc<Sandbox>,
    request: &GetIPTablesRequest,
) -> ttrpc::Result<GetIPTablesResponse> {
    let children = &sandbox.network().children;
    let data = iptables::save(children, request.is_ipv6).await;
    Ok(GetIPTablesResponse {
        data: data.map_err(Coded::status)?,
        ..Default::default()
    })
}

pub async fn set_tables(
    sandbox: &Arc<Sandbox>,
    request: SetIPTablesRequest,
) -> ttrpc::Result<SetIPTablesResponse> {
    let children = &sandbox.network().children;
    let data = iptables::restore(children, request.is_ipv6, request.data).await;
    Ok(SetIPTablesResponse {
        data: data.map_err(Coded::status)?,
        ..Default::default()
    })
}

pub async fn list_interfaces(sandbox: &Arc<Sandbox>) -> ttrpc::Result<Interfaces> {
    let all = sandbox.network().interfaces(interfaces).await;
    all.map_err(Coded::status)
}

pub async fn list_routes(sandbox: &Arc<Sandbox>) -> ttrpc::Result<Routes> {
    let all = sandbox.network().routes(routes).await;
    all.map_err(Coded::status)
}

/// Checks each of what may be many.
fn all<W, P>(
    what: &'static str,
    most: usize,
    words: &[W],
    check: fn(&W) -> Result<P, NetworkError>,
) -> Result<Vec<P>, NetworkError> {
    if words.len() > most {
        return Err(NetworkError::TooMany { what, most });
    }
    words.iter().map(check).collect()
}

fn interface_plan(wanted: &types::Interface) -> Result<InterfacePlan, NetworkError> {
    let address = |words: &types::IPAddress| plan::address(&words.address, &words.mask);
    Ok(InterfacePlan {
        name: LinkName::changeable(&wanted.name)?,
        mac: Mac::optional(&wanted.hwAddr)?,
        addresses: all("addresses", MAX_ADDRESSES, &wanted.IPAddresses, address)?,
        mtu: plan::mtu(wanted.mtu)?,
        arp: wanted.raw_flags & NO_ARP == 0,
        device: plan::device(&wanted.devicePath)?,
    })
}

fn route_plan(wanted: &types::Route) -> Result<RoutePlan, NetworkError> {
    RoutePlan::new(RouteWords {
        dest: &wanted.dest,
        gateway: &wanted.gateway,
        device: &wanted.device,
        source: &wanted.source,
        scope: wanted.scope,
        family: match wanted.family.enum_value_or_default() {
            types::IPFamily::v4 => Family::V4,
            types::IPFamily::v6 => Family::V6,
        },
        flags: wanted.flags,
        mtu: wanted.mtu,
    })
}

fn neighbour_plan(wanted: &types::ARPNeighbor) -> Result<NeighbourPlan, NetworkError> {
    let ip = wanted.toIPAddress.as_ref().map_or("", |ip| &ip.address);
    let (device, mac) = (&wanted.device, &wanted.lladdr);
    NeighbourPlan::new(ip, device, mac, wanted.state, wanted.flags)
}

/// An answer, unless there is no room for it: the wire's own refusal would blame
/// the request, and come after what was done.
fn fitting<M: Message>(what: &'static str, answer: M) -> Result<M, NetworkError> {
    let bytes = answer.compute_size();
    match bytes > ROOM {
        true => Err(NetworkError::TooLong { what, bytes }),
        false => Ok(answer),
    }
}

fn interfaces(all: Vec<list::Interface>) -> Result<Interfaces, NetworkError> {
    let answer = Interfaces {
        Interfaces: all.into_iter().map(interface).collect(),
        ..Default::default()
    };
    fitting("interfaces", answer)
}

fn interface(link: list::Interface) -> types::Interface {
    let addresses = link.addresses.into_iter().map(|address| types::IPAddress {
        family: if address.ip.is_ipv4() {
            types::IPFamily::v4
        } else {
            types::IPFamily::v6
        }
        .into(),
        address: address.ip.to_string(),
        mask: address.prefix.to_string(),
        ..Default::default()
    });
    types::Interface {
        name: link.name,
        IPAddresses: addresses.collect(),
        mtu: u64::from(link.mtu),
        hwAddr: link.hw_addr,
        ..Default::default()
    }
}

fn routes(all: Vec<list::Route>) -> Result<Routes, NetworkError> {
    let answer = Routes {
        Routes: all.into_iter().map(route).collect(),
        ..Default::default()
    };
    fitting("routes", answer)
}

fn route(route: list::Route) -> types::Route {
    types::Route {
        dest: route.dest,
        gateway: route.gateway,
        device: route.device,
        source: route.source,
        scope: route.scope,
        family: match route.family {
            Family::V4 => types::IPFamily::v4,
            Family::V6 => types::IPFamily::v6,
        }
        .into(),
        flags: route.flags,
        mtu: route.mtu,
        ..Default::default()
    }
}
