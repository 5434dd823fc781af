// SPDX-License-Identifier: Apache-2.0
//! Interfaces: names, addresses, flags, and which link is meant.

use std::time::Instant;

use protocols::types::IPFamily;
use tests::net::{interface, neighbour, route};
use tests::story::say;
use tests::{Code, Service, expect_refusal, service_story};

use super::{A, B, Running, has, has_not, link, meanwhile};

#[test]
fn an_interface_becomes_what_it_shall_be() {
    service_story(async {
        let agent = Service::start().await;
        link(&agent, "a");
        let mut wanted = interface("eth0", A, &["10.0.0.2/255.255.255.0", "fd00::2/64"]);
        // The text tells the family.
        wanted.IPAddresses[1].family = IPFamily::v4.into();
        wanted.mtu = 9000;
        agent.interface(wanted.clone()).await;
        let listed = agent.listed("eth0").await;
        assert_eq!((listed.mtu, &*listed.hwAddr), (9000, "02:00:00:00:00:0A"));
        let addresses = listed.IPAddresses.iter();
        let addresses: Vec<_> = addresses
            .map(|a| format!("{}/{}", a.address, a.mask))
            .collect();
        assert!(
            addresses.contains(&"10.0.0.2/24".to_owned()),
            "{addresses:?}"
        );
        assert!(
            addresses.contains(&"fd00::2/64".to_owned()),
            "{addresses:?}"
        );
        has(
            &agent,
            "ip link show eth0",
            &["<BROADCAST,MULTICAST,UP,LOWER_UP>"],
        );
        has(&agent, "ip addr show eth0", &["brd 10.0.0.255"]);
        // Usable at once: nobody else is asked for it.
        has_not(
            &agent,
            "ip -6 addr show dev eth0 to fd00::/64",
            &["tentative"],
        );
        has(&agent, "ip -6 addr show dev eth0", &["fe80::"]);

        // Other addresses take the place of those, an MTU of 0 changes nothing, and the link's own address stays.
        let mut other = interface("eth0", A, &["10.0.0.3/24", "fd00::3/64"]);
        other.raw_flags = 0x80;
        agent.interface(other).await;
        let all = "ip addr show eth0";
        has(
            &agent,
            all,
            &["NOARP", "mtu 9000", "10.0.0.3/24", "fd00::3/64", "fe80::"],
        );
        has_not(&agent, all, &["10.0.0.2/24", "fd00::2/64"]);
        agent.interface(interface("eth0", A, &[])).await;
        has_not(&agent, all, &["NOARP", "10.0.0.3", "fd00::3"]);
    });
}

#[test]
fn names_are_exchanged_and_no_link_is_lost() {
    service_story(async {
        let agent = Service::start().await;
        for name in ["a", "b"] {
            link(&agent, name);
        }
        agent
            .interface(interface("fifteen-letters", A, &["10.0.0.2/24"]))
            .await;
        agent
            .interface(interface("eth0", B, &["10.1.0.2/24"]))
            .await;
        // Both are up, and the one wants the other's name.
        agent
            .interface(interface("fifteen-letters", B, &["10.1.0.2/24"]))
            .await;
        let mac = async |name| agent.listed(name).await.hwAddr.to_lowercase();
        assert_eq!(
            (mac("fifteen-letters").await, mac("eth0").await),
            (B.into(), A.into())
        );
        has(&agent, "ip addr show eth0", &["UP", "10.0.0.2/24"]);
        has(
            &agent,
            "ip addr show fifteen-letters",
            &["UP", "10.1.0.2/24"],
        );
        // An MTU that the link cannot have: names and addresses are as before.
        let mut wrong = interface("eth0", B, &["10.2.0.2/24"]);
        wrong.mtu = 65_536;
        let result = agent.try_interface(wrong).await;
        expect_refusal(result, Code::INTERNAL, "Failed to update interface eth0");
        assert_eq!(
            (mac("fifteen-letters").await, mac("eth0").await),
            (B.into(), A.into())
        );
        has(
            &agent,
            "ip addr show fifteen-letters",
            &["UP", "10.1.0.2/24"],
        );
        // An address that is refused after others were put in the place of the old ones.
        let wrong = interface("fifteen-letters", B, &["10.2.0.2/24", "ff02::9/64"]);
        let result = agent.try_interface(wrong).await;
        expect_refusal(result, Code::INTERNAL, "add an address");
        has(&agent, "ip addr show fifteen-letters", &["10.1.0.2/24"]);
        has_not(&agent, "ip addr show fifteen-letters", &["10.2.0.2"]);
    });
}

/// A VM from a template has the template's hardware addresses until its host tells it its own.
#[test]
fn a_hardware_address_is_retargeted_by_name() {
    service_story(async {
        let agent = Service::start().await;
        link(&agent, "a");
        agent.interface(interface("eth0", A, &[])).await;
        agent
            .interface(interface("eth0", B, &["10.0.0.2/24"]))
            .await;
        assert_eq!(agent.listed("eth0").await.hwAddr.to_lowercase(), B);
        // Hosts look for these words and ask again.
        let result = agent.try_interface(interface("eth1", A, &[])).await;
        expect_refusal(result, Code::INTERNAL, "Link not found (Name: eth1)");
        let result = agent.try_routes(vec![route("", "10.0.0.1", "eth1")]).await;
        expect_refusal(result, Code::INTERNAL, "Link not found (Name: eth1)");
        let neighbours = vec![neighbour("10.0.0.7", B, "eth1")];
        let result = agent.try_neighbours(neighbours).await;
        expect_refusal(result, Code::INTERNAL, "Link not found (Name: eth1)");
    });
}

/// Pairs of links, all down, each end with an address. All in one conversation with the kernel; pairs, because the kernel makes two
/// at a time and takes them away quickly.
fn pairs(agent: &Service, count: u32) {
    agent.sh(&format!(
        "seq {count} | sed 's/.*/link add name a& type veth peer name b&/' | ip -batch -
         for end in a b; do
             seq {count} | sed \"s/.*/addr add fd00:$end::&\\/64 dev $end&/\" | ip -batch -
         done"
    ));
}

/// Ten thousand, each with an address, and everybody else is served in the meantime.
#[test]
fn ten_thousand_interfaces_do_not_keep_others_waiting() {
    service_story(async {
        let agent = Service::start().await;
        let start = Instant::now();
        pairs(&agent, 5000);
        link(&agent, "a");
        let made = start.elapsed();
        let start = Instant::now();
        let all = agent.interfaces().await.expect("they are listed");
        let (count, listed) = (all.len(), start.elapsed());
        say(&format!(
            "{count} links made in {made:.1?}, listed in {listed:.1?}"
        ));
        let expected = agent.sh("ip -o link | wc -l");
        assert_eq!(count.to_string(), expected.trim());
        assert!(count > 10_000, "{count}");
        for (end, n) in [("a", 1), ("b", 1), ("a", 5000), ("b", 2500)] {
            let name = format!("{end}{n}");
            let link = all.iter().find(|link| link.name == name);
            let addresses = &link.expect("it is listed").IPAddresses;
            assert_eq!(addresses.len(), 1, "{addresses:?}");
            assert_eq!(addresses[0].address, format!("fd00:{end}::{n}"));
        }
        // Each is over so soon that a busy machine may have no time for others, but not all of them.
        meanwhile(&agent, change_some(&agent, count)).await;
    });
}

/// Calls of every kind where there are so many links.
async fn change_some(agent: &Service, count: usize) {
    // One of them that takes another's name.
    agent
        .interface(interface("b2500", A, &["10.0.0.2/24"]))
        .await;
    has(agent, "ip addr show b2500", &[A, "UP", "10.0.0.2/24"]);
    has(agent, "ip addr show a", &["fd00:b::2500/64"]);
    let answer = agent.routes(vec![route("", "10.0.0.1", "b2500")]).await;
    assert!(answer.iter().any(|route| route.device == "b2500"));
    agent
        .neighbours(vec![neighbour("10.0.0.7", B, "b2500")])
        .await;
    let list = agent.all_routes().await.expect("they are listed");
    assert_eq!(list, answer);

    // While another comes and goes the kernel says that the list has changed under the reader.
    let script = "while :; do ip link add c type veth peer name d; ip link del c; done";
    let _flapping = Running(agent.script(script).spawn().expect("nsenter runs"));
    for _ in 0..3 {
        let list = agent.interfaces().await.expect("they are listed");
        assert!(list.len() >= count, "{}", list.len());
    }
    agent.interface(interface("eth0", A, &[])).await;
}
