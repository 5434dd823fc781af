// SPDX-License-Identifier: Apache-2.0
//! AddARPNeighbors (protocol 10.5): entries of the neighbour tables, of either
//! family. Those before one that is refused are taken back.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use nix::errno::Errno;
use nix::libc::{NDA_DST, NDA_LLADDR, RTM_DELNEIGH, RTM_GETNEIGH, RTM_NEWNEIGH};

use super::NetworkError;
use super::list::{self, Names};
use super::netlink::{NetlinkError, Socket};
use super::plan::NeighbourPlan;
use super::request::{Changes, Request, family, is_without_ipv6, together};

/// Carries out plans. Blocks shortly.
///
/// # Errors
/// [`NetworkError::NoLink`] before anything is changed, and what the kernel refuses.
pub(super) fn add(socket: &Socket, plans: &[NeighbourPlan]) -> Result<(), NetworkError> {
    let links = list::links(socket)?;
    let names = Names::new(&links);
    let mut entries = Vec::with_capacity(plans.len());
    for plan in plans {
        entries.push((plan, names.index_of(&plan.device)?));
    }
    together(socket, |changes| {
        entries.into_iter().try_for_each(|(plan, index)| {
            put(socket, changes, plan, index).map_err(|source| NetworkError::Neighbour {
                ip: plan.ip,
                device: plan.device.to_string(),
                source,
            })
        })
    })
}

/// Adds an entry, or replaces the one that is there.
fn put(
    socket: &Socket,
    changes: &mut Changes<'_, Socket>,
    plan: &NeighbourPlan,
    index: u32,
) -> Result<(), NetlinkError> {
    let new = request(plan, index);
    let undo = key(plan, index).turned("remove a neighbour", RTM_DELNEIGH, 0);
    match changes.make(&new, undo) {
        Err(error) if error.errno() == Some(Errno::EEXIST) => {
            let old = socket.answer(&key(plan, index))?;
            let replace = NLM_F_CREATE | NLM_F_REPLACE;
            let undo = Request::new("put a neighbour back", RTM_NEWNEIGH, replace, &old);
            changes.make(&new.turned(new.step, RTM_NEWNEIGH, replace), undo)
        }
        Err(error) if is_without_ipv6(plan.ip, &error) => {
            log::warn!("Neighbour {} is left out: IPv6 is disabled", plan.ip);
            Ok(())
        }
        other => other,
    }
}

/// ndmsg and attributes.
fn request(plan: &NeighbourPlan, index: u32) -> Request {
    let fixed = fixed(plan, index, plan.state, plan.flags);
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let request = Request::new("add a neighbour", RTM_NEWNEIGH, flags, &fixed);
    let request = request.with_ip(NDA_DST, plan.ip);
    match plan.mac {
        Some(mac) => request.with(NDA_LLADDR, mac.bytes()),
        None => request,
    }
}

/// What names an entry. A proxied address is in a table of its own.
fn key(plan: &NeighbourPlan, index: u32) -> Request {
    let fixed = fixed(plan, index, 0, plan.flags & nix::libc::NTF_PROXY);
    let request = Request::new("look for a neighbour", RTM_GETNEIGH, 0, &fixed);
    request.with_ip(NDA_DST, plan.ip)
}

fn fixed(plan: &NeighbourPlan, index: u32, state: u8, flags: u8) -> Vec<u8> {
    let mut fixed = vec![family(plan.ip), 0, 0, 0];
    fixed.extend(index.to_ne_bytes());
    fixed.extend(u16::from(state).to_ne_bytes());
    fixed.extend([flags, 0]);
    fixed
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader};
    use netlink_packet_route::neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourState,
    };
    use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

    #[test]
    fn entries_as_another_implementation_reads_them() {
        for (ip, family, address) in [
            (
                "10.0.0.7",
                AddressFamily::Inet,
                NeighbourAddress::Inet("10.0.0.7".parse().unwrap()),
            ),
            (
                "fd00::7",
                AddressFamily::Inet6,
                NeighbourAddress::Inet6("fd00::7".parse().unwrap()),
            ),
        ] {
            let plan = NeighbourPlan::new(ip, "eth0", "02:00:00:00:00:07", 0, 0x80).unwrap();
            let mut header = NetlinkHeader::default();
            header.message_type = RTM_NEWNEIGH;
            let payload = request(&plan, 3).payload;
            let read = RouteNetlinkMessage::deserialize(&header, &payload).unwrap();
            let RouteNetlinkMessage::NewNeighbour(read) = read else {
                panic!("{read:?}")
            };
            assert_eq!((read.header.family, read.header.ifindex), (family, 3));
            assert_eq!(read.header.state, NeighbourState::Permanent);
            assert_eq!(read.header.flags, NeighbourFlags::Router);
            let mac = vec![2, 0, 0, 0, 0, 7];
            assert_eq!(
                read.attributes,
                [
                    NeighbourAttribute::Destination(address),
                    NeighbourAttribute::LinkLayerAddress(mac),
                ]
            );
        }
    }
}
