// SPDX-License-Identifier: Apache-2.0
//! The network by the agent's calls, in a network namespace with virtual links: what iproute2 says afterwards.

mod interface;
mod iptables;
mod routes;

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use protocols::types::Interface;
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

/// So many may be served between these stories' calls, a few for each, by an agent that does one thing at a time. One that does not serves
/// thousands.
const SLIPPED: u32 = 50;

/// The answer to a call, or to several, that takes so long that others have to be served meanwhile.
async fn meanwhile<T>(agent: &Service, call: impl Future<Output = T>) -> T {
    let other = agent.another_connection().await;
    tokio::pin!(call);
    let mut checks = 0u32;
    loop {
        tokio::select! {
            answer = &mut call => {
                assert!(checks > SLIPPED, "nobody was served in the meantime: {checks}");
                return answer;
            }
            check = other.rpc().check() => {
                check.expect("Check is answered");
                checks += 1;
            }
        }
    }
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

/// A script that runs until this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Everything that changes in the agent's network namespace.
struct Monitor {
    child: Running,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Monitor {
    fn start(agent: &Service) -> Monitor {
        let mut command = agent.script("exec ip -o monitor link address route");
        let child = command.stdout(Stdio::piped()).spawn();
        let mut child = child.expect("ip monitor runs");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let child = Running(child);
        let mut monitor = Monitor { child, lines };
        // Whether it listens shows only when something happens.
        let id = monitor.child.0.id();
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
