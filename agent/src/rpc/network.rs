// SPDX-License-Identifier: Apache-2.0
//! ListInterfaces and ListRoutes.

use protocols::agent::{Interfaces, Routes};
use protocols::types;

use super::status::Coded;
use crate::network::list::{self, Family};

pub fn list_interfaces() -> ttrpc::Result<Interfaces> {
    let all = list::interfaces().map_err(Coded::status)?;
    Ok(Interfaces {
        Interfaces: all.into_iter().map(interface).collect(),
        ..Default::default()
    })
}

pub fn list_routes() -> ttrpc::Result<Routes> {
    let all = list::routes().map_err(Coded::status)?;
    Ok(Routes {
        Routes: all.into_iter().map(route).collect(),
        ..Default::default()
    })
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
