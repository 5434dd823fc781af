// SPDX-License-Identifier: Apache-2.0
//! What ListInterfaces and ListRoutes tell (protocol 10.3, 10.4), and what is
//! compared with what is wanted. Owns the reading of rtnetlink's messages on
//! links, addresses and routes.

mod links;
mod routes;

use std::fmt;
use std::net::IpAddr;

use nix::libc::{AF_INET, AF_INET6};

pub(super) use links::{Held, Names, addresses, hw_addr, links};
pub use links::{Interface, interfaces};
pub(super) use routes::{Entry, RTA_VIA, RTAX_MTU, RTNH_F_ONLINK, entries};
pub use routes::{Route, routes};

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
    pub(in crate::network) fn broadcast(self) -> Option<IpAddr> {
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

/// The family of a route's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The fixed part of a request that names nothing but a family.
fn family_request(family: i32, length: usize) -> Vec<u8> {
    let mut request = vec![0u8; length];
    request[0] = u8::try_from(family).unwrap_or(0);
    request
}

fn ip(family: u8, value: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        AF_INET => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        AF_INET6 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::NetlinkSerializable;
    use netlink_packet_route::RouteNetlinkMessage;

    /// What another implementation writes, to be read by ours.
    pub(super) fn written(message: &RouteNetlinkMessage) -> Vec<u8> {
        let mut payload = vec![0; message.buffer_len()];
        message.serialize(&mut payload);
        payload
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
    fn the_guest_itself() {
        let interfaces = interfaces().unwrap();
        let lo = interfaces.iter().find(|i| i.name == "lo").unwrap();
        assert_eq!(lo.hw_addr, "00:00:00:00:00:00");
        let known: Vec<_> = interfaces.iter().map(|i| i.name.as_str()).collect();
        for route in routes().unwrap() {
            assert!(route.device.is_empty() || known.contains(&&*route.device));
        }
    }
}
