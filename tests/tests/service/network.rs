// SPDX-License-Identifier: Apache-2.0
//! The network by the agent's calls, in a network namespace with virtual links: what iproute2 says afterwards.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use protobuf::Message;
use protocols::types::{IPFamily, Interface, Route};
use tests::net::{interface, neighbour, route};
use tests::{Code, Service, expect_refusal, service_story};

const A: &str = "02:00:00:00:00:0a";
const B: &str = "02:00:00:00:00:0b";

/// A link with its other end, both down: `a` with the hardware address [`A`], or `b` with [`B`].
fn link(agent: &Service, name: &str) {
    let mac = if name == "a" { A } else { B };
    agent.sh(&format!(
        "ip link add name {name} address {mac} type veth peer name {name}-end && ip link set dev {name}-end up"
    ));
}

fn has(agent: &Service, command: &str, parts: &[&str]) {
    let said = agent.sh(command);
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}

fn has_not(agent: &Service, command: &str, parts: &[&str]) {
    let said = agent.sh(command);
    for part in parts {
        assert!(!said.contains(part), "{part:?} is in {said}");
    }
}

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
fn a_repeated_call_changes_nothing() {
    service_story(async {
        let agent = Service::start().await;
        link(&agent, "a");
        let mut wanted = interface("eth0", A, &["10.0.0.2/24", "10.0.0.4/24", "fd00::2/64"]);
        wanted.mtu = 1400;
        let routes = || {
            let mut near = route("10.0.0.0/24", "", "eth0");
            near.source = "10.0.0.2".to_owned();
            let mut sized = route("10.9.0.0/16", "10.0.0.9", "eth0");
            sized.mtu = 1300;
            let far = route("", "fd00::1", "eth0");
            vec![near, sized, far, route("", "10.0.0.1", "eth0")]
        };
        agent.interface(wanted.clone()).await;
        agent.routes(routes()).await;
        // The first duplicate address detection of the link's own address has to be over.
        let mut monitor = Monitor::start(&agent);
        monitor.sync(&agent, "first");
        agent.interface(wanted).await;
        agent.routes(routes()).await;
        let seen = monitor.sync(&agent, "second");
        assert!(seen.iter().all(|line| !is_ours(line)), "{seen:#?}");
    });
}

/// The kernel's own news of the link are those of its own address.
fn is_ours(line: &str) -> bool {
    line.contains("eth0") && !line.contains("fe80::") && !line.contains("ff00::")
}

/// Everything that changes in the agent's network namespace.
struct Monitor {
    child: std::process::Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Monitor {
    fn start(agent: &Service) -> Monitor {
        let mut command = agent.script("exec ip -o monitor link address route");
        let child = command.stdout(Stdio::piped()).spawn();
        let mut child = child.expect("ip monitor runs");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut monitor = Monitor { child, lines };
        // Whether it listens shows only when something happens.
        let id = monitor.child.id();
        let heard = std::thread::scope(|scope| {
            let first = scope.spawn(|| monitor.lines.next().is_some());
            while !first.is_finished() {
                agent.sh("ip link add early type bridge && ip link del early");
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            first.join()
        });
        assert!(heard.is_ok_and(|heard| heard), "ip monitor {id} ended");
        monitor
    }

    /// What was seen up to now.
    fn sync(&mut self, agent: &Service, mark: &str) -> Vec<String> {
        agent.sh(&format!("ip link add {mark} type bridge"));
        let mut seen = Vec::new();
        for line in &mut self.lines {
            let line = line.expect("a line of ip monitor");
            if line.contains(mark) {
                return seen;
            }
            seen.push(line);
        }
        panic!("ip monitor ended: {seen:#?}");
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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

#[test]
fn what_is_no_network_is_refused_at_the_door() {
    service_story(async {
        let agent = Service::start().await;
        link(&agent, "a");
        let before = agent.sh("ip addr; ip route; ip -6 route; ip neigh");
        let spoilt = |spoil: fn(&mut Interface)| {
            let mut wanted = interface("eth0", A, &["10.0.0.2/24"]);
            spoil(&mut wanted);
            wanted
        };
        let interfaces: [(&str, Interface); 15] = [
            ("interface name", spoilt(|i| i.name.clear())),
            ("interface name", spoilt(|i| i.name = "lo".into())),
            ("interface name", spoilt(|i| i.name = "../eth0".into())),
            ("interface name", spoilt(|i| i.name = "x".repeat(16))),
            ("interface name", spoilt(|i| i.name = "x".repeat(1 << 20))),
            ("MAC address", spoilt(|i| i.hwAddr = "02:00".into())),
            (
                "MAC address",
                spoilt(|i| i.hwAddr = "00:00:00:00:00:00".into()),
            ),
            (
                "MAC address",
                spoilt(|i| i.hwAddr = "ff:ff:ff:ff:ff:ff".into()),
            ),
            (
                "prefix length",
                spoilt(|i| i.IPAddresses[0].mask = "33".into()),
            ),
            (
                "prefix length",
                spoilt(|i| i.IPAddresses[0].mask = "x".into()),
            ),
            (
                "address",
                spoilt(|i| i.IPAddresses[0].address = "10.0.0".into()),
            ),
            ("MTU", spoilt(|i| i.mtu = u64::MAX)),
            (
                "Invalid PCI path for network interface",
                spoilt(|i| i.devicePath = "zz".into()),
            ),
            ("PCI path", spoilt(|i| i.devicePath = "02/".repeat(1 << 18))),
            (
                "addresses",
                spoilt(|i| i.IPAddresses = vec![Default::default(); 2000]),
            ),
        ];
        for (part, wanted) in interfaces {
            let result = agent.try_interface(wanted).await;
            expect_refusal(result, Code::INVALID_ARGUMENT, part);
        }
        let routes = [
            ("destination", route("10.0.0.0.0/8", "", "a")),
            ("prefix length", route("10.0.0.0/33", "", "a")),
            ("gateway", route("10.0.0.0/8", "x", "a")),
            ("gateway", route("fd00::/64", "10.0.0.1", "a")),
            ("interface name", route("10.0.0.0/8", "", "")),
        ];
        for (part, wanted) in routes {
            let result = agent.try_routes(vec![wanted]).await;
            expect_refusal(result, Code::INVALID_ARGUMENT, part);
        }
        let result = agent.try_routes(vec![route("", "", "a"); 40_000]).await;
        expect_refusal(result, Code::INVALID_ARGUMENT, "routes in one request");
        for (ip, mac) in [("", A), ("10.0.0", A), ("10.0.0.7", "02")] {
            let result = agent.try_neighbours(vec![neighbour(ip, mac, "a")]).await;
            expect_refusal(result, Code::INVALID_ARGUMENT, "");
        }
        let mut wire = agent.wire().await;
        for method in ["UpdateInterface", "UpdateRoutes", "AddARPNeighbors"] {
            let reply = wire.ask("grpc.AgentService", method, &[]).await;
            assert_eq!(reply.code, Code::INVALID_ARGUMENT, "{method}");
        }
        assert_eq!(agent.sh("ip addr; ip route; ip -6 route; ip neigh"), before);
        agent.expect_alive().await;
    });
}

#[test]
fn routes_of_both_families() {
    service_story(async {
        let agent = Service::start().await;
        link(&agent, "a");
        agent
            .interface(interface("eth0", A, &["10.0.0.2/24", "fd00::2/64"]))
            .await;
        // Routers before the routes that lead to them, as no host should send them.
        let mut sized = route("10.9.0.0/16", "10.0.0.1", "eth0");
        (sized.mtu, sized.source) = (1400, "10.0.0.2/32".to_owned());
        let mut wrong_family = route("fd09::/64", "fd00::1", "eth0");
        wrong_family.family = IPFamily::v4.into();
        wrong_family.source = "fd00::2".to_owned();
        let all = vec![
            route("", "192.168.7.1", "eth0"),
            route("192.168.7.1", "", "eth0"),
            sized,
            // Nothing leads there: it is on the link all the same.
            route("172.16.0.0/12", "169.254.1.1", "eth0"),
            wrong_family,
            route("", "fe80::9", "eth0"),
            route("10.0.0.0/24", "", "eth0"),
            // The same once more.
            route("192.168.7.1", "", "eth0"),
        ];
        let answer = agent.routes(all.clone()).await;
        let v4 = "ip route show";
        has(
            &agent,
            v4,
            &[
                "default via 192.168.7.1 dev eth0",
                "10.9.0.0/16 via 10.0.0.1 dev eth0 src 10.0.0.2 mtu 1400",
                "172.16.0.0/12 via 169.254.1.1 dev eth0 onlink",
                // The kernel's own, with its source.
                "10.0.0.0/24 dev eth0 proto kernel scope link src 10.0.0.2",
            ],
        );
        has(
            &agent,
            "ip -6 route show",
            &[
                "default via fe80::9 dev eth0",
                "fd09::/64 via fd00::1 dev eth0 src fd00::2",
            ],
        );
        let find = |dest: &str| {
            let found = answer.iter().find(|route| route.dest == dest);
            found.unwrap_or_else(|| panic!("{dest} is not in {answer:#?}"))
        };
        assert_eq!(find("::/0").gateway, "fe80::9");
        assert_eq!(find("::/0").family, IPFamily::v6.into());
        let sized = find("10.9.0.0/16");
        assert_eq!(
            (sized.mtu, &*sized.source, &*sized.gateway),
            (1400, "10.0.0.2", "10.0.0.1")
        );
        // What is not in a list stays; another router takes the place of the one before.
        agent
            .routes(vec![route("10.9.0.0/16", "10.0.0.77", "eth0")])
            .await;
        has(
            &agent,
            v4,
            &[
                "default via 192.168.7.1",
                "10.9.0.0/16 via 10.0.0.77 dev eth0",
            ],
        );
        has_not(&agent, v4, &["10.9.0.0/16 via 10.0.0.1 "]);
    });
}

#[test]
fn a_refused_route_leaves_none_behind() {
    service_story(async {
        let agent = Service::start().await;
        link(&agent, "a");
        agent
            .interface(interface("eth0", A, &["10.0.0.2/24", "fd00::2/64"]))
            .await;
        let mut sized = route("10.8.0.0/16", "10.0.0.1", "eth0");
        sized.mtu = 1400;
        agent
            .routes(vec![sized, route("fd08::/64", "fd00::1", "eth0")])
            .await;
        let before = agent.sh("ip route; ip -6 route");
        let mut wrong = route("10.9.0.0/16", "10.0.0.1", "eth0");
        wrong.source = "10.0.0.99".to_owned();
        let list = vec![
            route("10.7.0.0/16", "", "eth0"),
            route("10.8.0.0/16", "10.0.0.9", "eth0"),
            route("fd08::/64", "fd00::9", "eth0"),
            route("fd07::/64", "fd00::9", "eth0"),
            wrong,
        ];
        let result = agent.try_routes(list).await;
        expect_refusal(
            result,
            Code::INTERNAL,
            "Failed to update routes: 10.9.0.0/16 via 10.0.0.1",
        );
        assert_eq!(agent.sh("ip route; ip -6 route"), before);
    });
}

/// #11200, #2768: a guest without IPv6.
#[test]
fn bug_11200_without_ipv6_the_rest_is_done() {
    service_story(async {
        let agent = Service::start().await;
        link(&agent, "a");
        agent.sh("for f in all default; do echo 1 > /proc/sys/net/ipv6/conf/$f/disable_ipv6; done");
        agent
            .interface(interface("eth0", A, &["fd00::2/64", "10.0.0.2/24"]))
            .await;
        let list = vec![
            route("fd09::/64", "fd00::1", "eth0"),
            route("fd00::/64", "", "eth0"),
            route("", "10.0.0.1", "eth0"),
        ];
        agent.routes(list).await;
        has(&agent, "ip addr show eth0", &["10.0.0.2/24"]);
        has(&agent, "ip route", &["default via 10.0.0.1"]);
        let log = agent.log();
        assert!(log.contains("Address fd00::2/64 is left out"), "{log}");
        assert!(
            log.contains("Routes left out because IPv6 is disabled: 2"),
            "{log}"
        );
    });
}

#[test]
fn neighbours_of_both_families() {
    service_story(async {
        let agent = Service::start().await;
        link(&agent, "a");
        agent
            .interface(interface("eth0", A, &["10.0.0.2/24", "fd00::2/64"]))
            .await;
        let both = |mac| {
            vec![
                neighbour("10.0.0.7", mac, "eth0"),
                neighbour("fd00::7", mac, "eth0"),
            ]
        };
        for mac in [A, B, B] {
            agent.neighbours(both(mac)).await;
            has(
                &agent,
                "ip neigh",
                &[
                    &format!("10.0.0.7 dev eth0 lladdr {mac} PERMANENT"),
                    &format!("fd00::7 dev eth0 lladdr {mac} PERMANENT"),
                ],
            );
        }
        // One that cannot be: the kernel wants a hardware address.
        let mut list = both(A);
        list.insert(0, neighbour("10.0.0.8", A, "eth0"));
        list.push(neighbour("10.0.0.9", "", "eth0"));
        let result = agent.try_neighbours(list).await;
        expect_refusal(
            result,
            Code::INTERNAL,
            "Failed to add ARP neighbours: 10.0.0.9 on eth0",
        );
        has_not(&agent, "ip neigh", &["10.0.0.8", A]);
        has(&agent, "ip neigh", &[B]);
    });
}

/// Ten thousand of each, and everybody else is served in the meantime.
#[test]
fn ten_thousand_routes_do_not_keep_others_waiting() {
    service_story(async {
        let agent = Service::start().await;
        link(&agent, "a");
        agent.interface(interface("eth0", A, &["10.0.0.2/8"])).await;
        let dest = |n: u32| format!("11.{}.{}.0/24", n >> 8, n & 255);
        let list: Vec<Route> = (0..10_000)
            .map(|n| route(&dest(n), "10.0.0.1", "eth0"))
            .collect();
        let other = agent.another_connection().await;
        let update = agent.routes(list.clone());
        tokio::pin!(update);
        let mut checks = 0u32;
        let answer = loop {
            tokio::select! {
                answer = &mut update => break answer,
                check = other.rpc().check() => {
                    check.expect("Check is answered");
                    checks += 1;
                }
            }
        };
        assert!(checks > 0, "nobody was served in the meantime");
        assert!(answer.len() >= 10_000, "{}", answer.len());
        // All there already.
        agent.routes(list).await;
        let count = agent.sh("ip route | grep -c '^11\\.'");
        assert_eq!(count.trim(), "10000");
    });
}

const RULES: &str = "*filter\n-A INPUT -p tcp -m tcp --dport 8080 -j DROP\nCOMMIT\n";

async fn tables_go_in_and_come_out(agent: &Service) {
    for is_ipv6 in [false, true] {
        assert!(
            !agent
                .tables(is_ipv6)
                .await
                .expect("it is saved")
                .contains("8080")
        );
        agent
            .set_tables(is_ipv6, RULES.as_bytes())
            .await
            .expect("it is restored");
        let saved = agent.tables(is_ipv6).await.expect("it is saved");
        assert!(
            saved.contains("-A INPUT -p tcp -m tcp --dport 8080 -j DROP"),
            "{saved}"
        );
        // What was saved can be restored.
        agent
            .set_tables(is_ipv6, saved.as_bytes())
            .await
            .expect("it is restored");
        let result = agent
            .set_tables(is_ipv6, b"*filter\n-A NOWHERE -j DROP\nCOMMIT\n")
            .await;
        expect_refusal(result, Code::INTERNAL, "ended with exit status");
    }
}

/// Either program reads and writes its own family's tables, by its right name.
#[test]
fn bug_iptables_of_both_families_go_in_and_come_out() {
    service_story(async {
        let agent = Service::start().await;
        tables_go_in_and_come_out(&agent).await;
        // The same with the programs that do without nftables.
        let agent = Service::start().await;
        agent.sh("mount --bind /usr/sbin/xtables-legacy-multi /usr/sbin/xtables-nft-multi");
        has(&agent, "iptables --version", &["legacy"]);
        tables_go_in_and_come_out(&agent).await;
    });
}

/// Puts a script in the place of all of the guest's iptables programs.
fn replace_iptables(agent: &Service, script: &str) {
    agent.sh(&format!(
        "printf '#!/bin/sh\\n%s\\n' '{script}' > /run/script && chmod 755 /run/script &&
         mount --bind /run/script /usr/sbin/xtables-nft-multi"
    ));
}

#[test]
fn iptables_that_misbehave() {
    service_story(async {
        let agent = Service::start().await;
        replace_iptables(&agent, "echo broken >&2; exit 3");
        let result = agent.tables(false).await;
        expect_refusal(
            result,
            Code::INTERNAL,
            "iptables-save ended with exit status 3: broken",
        );
        replace_iptables(&agent, "head -c 5000000 /dev/zero");
        expect_refusal(
            agent.tables(true).await,
            Code::INTERNAL,
            "printed more than",
        );
        replace_iptables(&agent, "head -c 5000000 /dev/zero >&2; exit 1");
        expect_refusal(agent.tables(true).await, Code::INTERNAL, "exit status 1");
        // It does not read what it is given.
        replace_iptables(&agent, "exec sleep 1000");
        let result = agent.set_tables(false, &vec![b'#'; 1 << 20]).await;
        expect_refusal(
            result,
            Code::INTERNAL,
            "timeout waiting for stdin writer to complete",
        );
        agent.expect_alive().await;
        agent.sh("while grep -qs sleep /proc/[0-9]*/comm; do sleep 0.01; done");
        agent.sh("mount -t tmpfs tmpfs /usr/sbin");
        expect_refusal(
            agent.tables(false).await,
            Code::INTERNAL,
            "iptables-save is neither in",
        );
        agent.expect_alive().await;
    });
}

/// The requests of this story are as long as they may be.
#[test]
fn a_message_of_the_largest_size_is_taken() {
    service_story(async {
        let agent = Service::start().await;
        let mut request = protocols::agent::SetIPTablesRequest::new();
        request.data = vec![b'#'; 4_100_000];
        *request.data.last_mut().expect("it is long") = b'\n';
        let message = request.write_to_bytes().expect("it encodes");
        let mut wire = agent.wire().await;
        let reply = wire.ask("grpc.AgentService", "SetIPTables", &message).await;
        assert!(
            [Code::OK, Code::INTERNAL].contains(&reply.code),
            "{}",
            reply.text
        );
        agent.expect_alive().await;
    });
}
