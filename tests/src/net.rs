// SPDX-License-Identifier: Apache-2.0
//! The network as hosts ask for it: interfaces, routes and neighbours in one line each.

use protocols::agent::{
    AddARPNeighborsRequest, GetIPTablesRequest, SetIPTablesRequest, UpdateInterfaceRequest,
    UpdateRoutesRequest,
};
use protocols::types::{ARPNeighbor, IPAddress, IPFamily, Interface, Route};

use crate::agent::{Agent, Refusal};

/// An interface with addresses written `10.0.0.2/24`.
pub fn interface(name: &str, mac: &str, addresses: &[&str]) -> Interface {
    let mut interface = Interface::new();
    interface.name = name.to_owned();
    interface.hwAddr = mac.to_owned();
    interface.IPAddresses = addresses.iter().map(|text| address(text)).collect();
    interface
}

fn address(text: &str) -> IPAddress {
    let (ip, mask) = text.split_once('/').unwrap_or((text, ""));
    let mut address = IPAddress::new();
    address.family = family(ip).into();
    address.address = ip.to_owned();
    address.mask = mask.to_owned();
    address
}

fn family(text: &str) -> IPFamily {
    if text.contains(':') {
        IPFamily::v6
    } else {
        IPFamily::v4
    }
}

/// A route, by way of a router or, without one, on the link itself.
pub fn route(dest: &str, gateway: &str, device: &str) -> Route {
    let mut route = Route::new();
    route.dest = dest.to_owned();
    route.gateway = gateway.to_owned();
    route.device = device.to_owned();
    route.family = family(&format!("{dest}{gateway}")).into();
    // As hosts send them: RT_SCOPE_LINK.
    route.scope = if gateway.is_empty() { 253 } else { 0 };
    route
}

/// A neighbour for good.
pub fn neighbour(ip: &str, mac: &str, device: &str) -> ARPNeighbor {
    let mut neighbour = ARPNeighbor::new();
    neighbour.toIPAddress = Some(address(ip)).into();
    neighbour.lladdr = mac.to_owned();
    neighbour.device = device.to_owned();
    neighbour
}

impl Agent {
    /// UpdateInterface.
    pub async fn try_interface(&self, interface: Interface) -> Result<Interface, Refusal> {
        let mut request = UpdateInterfaceRequest::new();
        request.interface = Some(interface).into();
        self.rpc().update_interface(&request).await
    }

    /// The same; insists that it succeeds and that the answer is what was asked for.
    pub async fn interface(&self, interface: Interface) {
        let answer = self.try_interface(interface.clone()).await;
        let answer = answer.unwrap_or_else(|e| panic!("UpdateInterface: {e}"));
        assert_eq!(answer, interface, "the answer to UpdateInterface");
    }

    /// UpdateRoutes.
    pub async fn try_routes(&self, routes: Vec<Route>) -> Result<Vec<Route>, Refusal> {
        let mut request = UpdateRoutesRequest::new();
        request.routes.mut_or_insert_default().Routes = routes;
        Ok(self.rpc().update_routes(&request).await?.Routes)
    }

    /// The same; insists that it succeeds.
    pub async fn routes(&self, routes: Vec<Route>) -> Vec<Route> {
        let answer = self.try_routes(routes).await;
        answer.unwrap_or_else(|e| panic!("UpdateRoutes: {e}"))
    }

    /// AddARPNeighbors.
    pub async fn try_neighbours(&self, neighbours: Vec<ARPNeighbor>) -> Result<(), Refusal> {
        let mut request = AddARPNeighborsRequest::new();
        let list = request.neighbors.mut_or_insert_default();
        list.ARPNeighbors = neighbours;
        self.rpc().add_arp_neighbors(&request).await.map(drop)
    }

    /// The same; insists that it succeeds.
    pub async fn neighbours(&self, neighbours: Vec<ARPNeighbor>) {
        let answer = self.try_neighbours(neighbours).await;
        answer.unwrap_or_else(|e| panic!("AddARPNeighbors: {e}"));
    }

    /// ListInterfaces.
    pub async fn interfaces(&self) -> Result<Vec<Interface>, Refusal> {
        let answer = self.rpc().list_interfaces(&Default::default()).await?;
        Ok(answer.Interfaces)
    }

    /// ListRoutes.
    pub async fn all_routes(&self) -> Result<Vec<Route>, Refusal> {
        Ok(self.rpc().list_routes(&Default::default()).await?.Routes)
    }

    /// The interface of that name as ListInterfaces has it.
    pub async fn listed(&self, name: &str) -> Interface {
        let all = self.interfaces().await;
        let all = all.unwrap_or_else(|e| panic!("ListInterfaces: {e}"));
        let found = all.into_iter().find(|i| i.name == name);
        found.unwrap_or_else(|| panic!("{name} is not listed"))
    }

    /// GetIPTables.
    pub async fn tables(&self, is_ipv6: bool) -> Result<String, Refusal> {
        let mut request = GetIPTablesRequest::new();
        request.is_ipv6 = is_ipv6;
        let answer = self.rpc().get_ip_tables(&request).await?;
        Ok(String::from_utf8_lossy(&answer.data).into_owned())
    }

    /// SetIPTables.
    pub async fn set_tables(&self, is_ipv6: bool, rules: &[u8]) -> Result<(), Refusal> {
        let mut request = SetIPTablesRequest::new();
        request.is_ipv6 = is_ipv6;
        request.data = rules.to_vec();
        self.rpc().set_ip_tables(&request).await.map(drop)
    }
}
