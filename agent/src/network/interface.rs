// SPDX-License-Identifier: Apache-2.0
//! UpdateInterface (protocol 10.1): finds the link that is meant and makes it
//! what it shall be. What is so already is left alone, and a change that fails
//! takes those before it back: no link is lost.

use std::net::IpAddr;

use nix::errno::Errno;
use nix::libc::{IFF_LOOPBACK, IFF_NOARP, IFF_UP};

use super::NetworkError;
use super::list::{self, Address, Held, Interface, hw_addr};
use super::netlink::{NetlinkError, Socket};
use super::plan::{InterfacePlan, Mac};
use super::request::{
    Changes, Kernel, Request, add_address, is_without_ipv6, remove_address, set_flags, set_mac,
    set_mtu, set_name, set_up, together,
};

const UP: u32 = IFF_UP as u32;
const NOARP: u32 = IFF_NOARP as u32;
const LOOPBACK: u32 = IFF_LOOPBACK as u32;

/// Carries out a plan. `below` are the links of its device, if it names one.
/// Blocks shortly.
///
/// # Errors
/// [`NetworkError::NoLink`], and what the kernel refuses.
pub(super) fn update(
    socket: &Socket,
    plan: &InterfacePlan,
    below: &[u32],
) -> Result<(), NetworkError> {
    let links = list::links(socket)?;
    let link = find(&links, plan, below)?;
    let held = || list::addresses(socket, Some(link.index));
    together(socket, |changes| {
        bring(changes, &links, link, plan)?;
        readdress(changes, link.index, &plan.addresses, held)
    })
    .map_err(|source| NetworkError::Interface {
        name: plan.name.to_string(),
        source,
    })
}

/// The link that is meant: of those of the device that is named, or else of
/// all, the one with the hardware address. Without such a one, the device's
/// first, or the one that has the name already: a virtual machine that was
/// made from a template has the template's hardware addresses.
fn find<'a>(
    links: &'a [Interface],
    plan: &InterfacePlan,
    below: &[u32],
) -> Result<&'a Interface, NetworkError> {
    let mac = plan.mac.map(|mac| hw_addr(mac.bytes()));
    let named = |link: &&Interface| link.name == plan.name.as_str();
    let candidates = || {
        links.iter().filter(|link| match below {
            [] => link.flags & LOOPBACK == 0,
            below => below.contains(&link.index),
        })
    };
    // Links on top of others share their hardware addresses, and came later.
    let same = || candidates().filter(|link| mac.as_ref() == Some(&link.hw_addr));
    let by_mac = same()
        .find(named)
        .or_else(|| same().min_by_key(|l| l.index));
    let other = || match below {
        [] => candidates().find(named),
        _ => candidates().min_by_key(|link| link.index),
    };
    by_mac
        .or_else(other)
        .ok_or_else(|| NetworkError::NoLink(plan.name.to_string()))
}

/// Everything but the addresses.
fn bring<K: Kernel>(
    changes: &mut Changes<'_, K>,
    links: &[Interface],
    link: &Interface,
    plan: &InterfacePlan,
) -> Result<(), NetlinkError> {
    let mut flags = link.flags;
    if let Some(mac) = plan.mac {
        readdress_link(changes, link, mac, &mut flags)?;
    }
    if link.name != plan.name.as_str() {
        rename(changes, links, link, plan.name.as_str(), &mut flags)?;
    }
    if let Some(mtu) = plan.mtu.filter(|&mtu| mtu != link.mtu) {
        changes.make(&set_mtu(link.index, mtu), set_mtu(link.index, link.mtu))?;
    }
    let wanted = UP | if plan.arp { 0 } else { NOARP };
    let mask = UP | NOARP;
    if flags & mask != wanted {
        let undo = set_flags(link.index, flags & mask, mask);
        changes.make(&set_flags(link.index, wanted, mask), undo)?;
    }
    Ok(())
}

fn readdress_link<K: Kernel>(
    changes: &mut Changes<'_, K>,
    link: &Interface,
    mac: Mac,
    flags: &mut u32,
) -> Result<(), NetlinkError> {
    let Some(old) = Some(hw_bytes(&link.hw_addr)).filter(|old| old != mac.bytes()) else {
        return Ok(());
    };
    log::info!(
        "{} gets the hardware address {}",
        link.name,
        hw_addr(mac.bytes())
    );
    let change = set_mac(link.index, mac.bytes());
    live_or_down(
        changes,
        link.index,
        flags,
        &change,
        set_mac(link.index, &old),
    )
}

/// The bytes of what [`hw_addr`] wrote.
fn hw_bytes(text: &str) -> Vec<u8> {
    let groups = text.split(':');
    groups
        .filter_map(|group| u8::from_str_radix(group, 16).ok())
        .collect()
}

/// Gives a link its name. A link that has it gets the other's in exchange, by
/// way of a third.
fn rename<K: Kernel>(
    changes: &mut Changes<'_, K>,
    links: &[Interface],
    link: &Interface,
    name: &str,
    flags: &mut u32,
) -> Result<(), NetlinkError> {
    let mut call = |index, flags: &mut u32, old: &str, new: &str| {
        let undo = set_name(index, old);
        live_or_down(changes, index, flags, &set_name(index, new), undo)
    };
    let Some(other) = links.iter().find(|other| other.name == name) else {
        return call(link.index, flags, &link.name, name);
    };
    let aside = free_name(links, other.index);
    let mut other_flags = other.flags;
    call(other.index, &mut other_flags, name, &aside)?;
    call(link.index, flags, &link.name, name)?;
    call(other.index, &mut other_flags, &aside, &link.name)?;
    if other_flags != other.flags {
        changes.make(&set_up(other.index, true), set_up(other.index, false))?;
    }
    Ok(())
}

/// A name for a moment that no link has, of 15 bytes at most.
fn free_name(links: &[Interface], index: u32) -> String {
    let mut names = (0..10).map(|n| format!("kln{n}-{index}"));
    let free = |name: &String| links.iter().all(|link| link.name != *name);
    // One of ten is free, or the kernel says that it is not.
    names.find(free).unwrap_or_default()
}

/// Makes a change that old kernels and some drivers refuse while a link is up:
/// only then it is set down, since that costs it its routes.
fn live_or_down<K: Kernel>(
    changes: &mut Changes<'_, K>,
    index: u32,
    flags: &mut u32,
    change: &Request,
    undo: Request,
) -> Result<(), NetlinkError> {
    match changes.make(change, undo.clone()) {
        Err(error) if error.errno() == Some(Errno::EBUSY) && *flags & UP != 0 => {
            changes.make(&set_up(index, false), set_up(index, true))?;
            *flags &= !UP;
            changes.make(change, undo)
        }
        other => other,
    }
}

/// Gives a link the addresses that it shall have, and takes away what else it
/// was given.
fn readdress<K: Kernel>(
    changes: &mut Changes<'_, K>,
    index: u32,
    wanted: &[Address],
    look: impl Fn() -> Result<Vec<Held>, NetlinkError>,
) -> Result<(), NetlinkError> {
    let mut held = look()?;
    let gone: Vec<_> = held
        .iter()
        .filter(|held| held.given && !wanted.contains(&held.address))
        .copied()
        .collect();
    for Held { address, peer, .. } in &gone {
        let undo = add_address(index, *address, *peer);
        match changes.make(&remove_address(index, *address, *peer), undo) {
            // Went with the address that it was secondary to.
            Err(error) if error.errno() == Some(Errno::EADDRNOTAVAIL) => {}
            other => other?,
        }
    }
    if !gone.is_empty() {
        // Other addresses may have gone with them.
        held = look()?;
    }
    let missing = wanted
        .iter()
        .filter(|&&address| held.iter().all(|held| held.address != address));
    missing.copied().try_for_each(|a| add(changes, index, a))
}

fn add<K: Kernel>(
    changes: &mut Changes<'_, K>,
    index: u32,
    address: Address,
) -> Result<(), NetlinkError> {
    let ip: IpAddr = address.ip;
    let undo = remove_address(index, address, ip);
    match changes.make(&add_address(index, address, ip), undo) {
        Err(error) if is_without_ipv6(ip, &error) => {
            log::warn!("Address {address} is left out: IPv6 is disabled");
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::LinkName;
    use super::super::request::fake::Fake;
    use super::*;
    use std::cell::Cell;

    fn link(index: u32, name: &str, mac: &str, flags: u32) -> Interface {
        Interface {
            index,
            name: name.to_owned(),
            hw_addr: mac.to_owned(),
            mtu: 1500,
            flags,
            addresses: Vec::new(),
        }
    }

    const A: &str = "02:00:00:00:00:0A";
    const B: &str = "02:00:00:00:00:0B";

    fn links() -> Vec<Interface> {
        vec![
            link(1, "lo", "00:00:00:00:00:00", UP | LOOPBACK),
            link(2, "eth0", A, UP),
            link(3, "eth1", B, 0),
            link(9, "vlan", B, UP),
        ]
    }

    fn plan(name: &str, mac: &str) -> InterfacePlan {
        InterfacePlan {
            name: LinkName::parse(name).unwrap(),
            mac: Mac::optional(mac).unwrap(),
            addresses: Vec::new(),
            mtu: None,
            arp: true,
            device: None,
        }
    }

    fn found(name: &str, mac: &str, below: &[u32]) -> Option<u32> {
        let (links, plan) = (links(), plan(name, mac));
        find(&links, &plan, below).ok().map(|link| link.index)
    }

    #[test]
    fn which_link_is_meant() {
        assert_eq!(found("net9", A, &[]), Some(2));
        // Several have it: the oldest, or the one with the name.
        assert_eq!(found("net9", B, &[]), Some(3));
        assert_eq!(found("vlan", B, &[]), Some(9));
        // A template's hardware address.
        assert_eq!(found("eth0", "02:00:00:00:00:99", &[]), Some(2));
        assert_eq!(found("eth0", "", &[]), Some(2));
        assert_eq!(found("net9", "02:00:00:00:00:99", &[]), None);
        // The loopback is never meant.
        assert_eq!(found("lo", "", &[]), None);
        // The device decides.
        assert_eq!(found("eth0", A, &[3]), Some(3));
        assert_eq!(found("net9", B, &[2, 3]), Some(3));
        assert_eq!(found("net9", A, &[77]), None);
    }

    #[test]
    fn hosts_find_their_three_words() {
        let error = find(&links(), &plan("net9", ""), &[]).unwrap_err();
        assert_eq!(error.to_string(), "Link not found (Name: net9)");
    }

    fn brought<F: Fn(&Request, usize) -> Option<Errno>>(
        kernel: &Fake<F>,
        plan: &InterfacePlan,
    ) -> Result<(), NetlinkError> {
        let links = links();
        let link = find(&links, plan, &[]).unwrap();
        together(kernel, |changes| bring(changes, &links, link, plan))
    }

    #[test]
    fn what_is_so_already_is_left_alone() {
        let kernel = Fake::new(|_, _| None);
        brought(&kernel, &plan("eth0", A)).unwrap();
        assert!(kernel.steps().is_empty());
    }

    #[test]
    fn a_name_that_is_taken_is_exchanged() {
        let kernel = Fake::new(|_, _| None);
        brought(&kernel, &plan("eth1", A)).unwrap();
        let asked = kernel.asked.borrow();
        let aside = set_name(3, "kln0-3");
        assert_eq!(asked[..], [aside, set_name(2, "eth1"), set_name(3, "eth0")]);
    }

    #[test]
    fn a_failed_exchange_gives_the_names_back() {
        let kernel = Fake::new(|_, n| (n == 2).then_some(Errno::EEXIST));
        brought(&kernel, &plan("eth1", A)).unwrap_err();
        let asked = kernel.asked.borrow();
        assert_eq!(asked[3..], [set_name(2, "eth0"), set_name(3, "eth1")]);
    }

    /// Kernels before 6.2 rename no link that is up.
    #[test]
    fn a_link_is_set_down_only_if_it_must_be() {
        let is_down = Cell::new(false);
        let kernel = Fake::new(|request, _| {
            let busy = *request == set_name(2, "eth1") && !is_down.get();
            is_down.set(is_down.get() || *request == set_up(2, false));
            busy.then_some(Errno::EBUSY)
        });
        brought(&kernel, &plan("eth1", A)).unwrap();
        let asked = kernel.asked.borrow();
        assert_eq!(
            asked[1..4],
            [set_name(2, "eth1"), set_up(2, false), set_name(2, "eth1")]
        );
        // And up again at the end.
        assert_eq!(asked[5], set_flags(2, UP, UP | NOARP));
        drop(asked);
        // The one that gives way comes up again too.
        let kernel = Fake::new(|request, n| {
            let busy = n == 0 && *request == set_name(2, "kln0-2");
            busy.then_some(Errno::EBUSY)
        });
        brought(&kernel, &plan("eth0", B)).unwrap();
        assert!(kernel.asked.borrow().contains(&set_up(2, true)));
    }

    #[test]
    fn temporary_names_fit_and_are_free() {
        assert!(free_name(&[], u32::MAX).len() < 16);
        let taken = [link(4, "kln0-7", A, 0)];
        assert_eq!(free_name(&taken, 7), "kln1-7");
    }

    #[test]
    fn a_hardware_address_is_retargeted_by_name() {
        let kernel = Fake::new(|_, n| (n == 1).then_some(Errno::EINVAL));
        let mut plan = plan("eth0", "02:00:00:00:00:99");
        plan.mtu = Some(9000);
        brought(&kernel, &plan).unwrap_err();
        let asked = kernel.asked.borrow();
        assert_eq!(asked[0], set_mac(2, &[2, 0, 0, 0, 0, 0x99]));
        assert_eq!(asked[2], set_mac(2, &[2, 0, 0, 0, 0, 0xa]));
    }

    #[test]
    fn mtu_and_flags() {
        let kernel = Fake::new(|_, _| None);
        let mut plan = plan("eth1", B);
        (plan.mtu, plan.arp) = (Some(9000), false);
        brought(&kernel, &plan).unwrap();
        let flags = set_flags(3, UP | NOARP, UP | NOARP);
        assert_eq!(kernel.asked.borrow()[..], [set_mtu(3, 9000), flags]);
    }

    fn address(text: &str) -> Address {
        let (ip, prefix) = text.split_once('/').unwrap();
        super::super::plan::address(ip, prefix).unwrap()
    }

    fn held(text: &str, given: bool) -> Held {
        let address = address(text);
        Held {
            index: 2,
            address,
            peer: address.ip,
            given,
        }
    }

    #[test]
    fn addresses_are_made_what_they_shall_be() {
        let kernel = Fake::new(|_, _| None);
        let looks = Cell::new(0);
        let all = || {
            looks.set(looks.get() + 1);
            let mut all = vec![held("10.0.0.2/24", true), held("fe80::1/64", false)];
            if looks.get() == 1 {
                all.extend([held("10.0.0.1/24", true), held("10.0.0.3/24", true)]);
            }
            Ok(all)
        };
        // .1 is not wanted, and .3, which is, goes with it.
        let wanted = ["10.0.0.2/24", "10.0.0.3/24", "fd00::1/64"].map(address);
        together(&kernel, |c| readdress(c, 2, &wanted, all)).unwrap();
        let one = address("10.0.0.1/24");
        let asked = kernel.asked.borrow();
        assert_eq!(asked[0], remove_address(2, one, one.ip));
        let added = wanted[1..].iter().map(|&a| add_address(2, a, a.ip));
        assert_eq!(asked[1..], added.collect::<Vec<_>>());
    }

    #[test]
    fn bug_11200_addresses_of_ipv6_are_left_out_where_it_is_disabled() {
        let kernel = Fake::new(|_, _| Some(Errno::EACCES));
        let wanted = [address("fd00::1/64")];
        together(&kernel, |c| readdress(c, 2, &wanted, || Ok(Vec::new()))).unwrap();
        let wanted = [address("10.0.0.1/8")];
        together(&kernel, |c| readdress(c, 2, &wanted, || Ok(Vec::new()))).unwrap_err();
    }
}
