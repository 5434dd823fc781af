// SPDX-License-Identifier: Apache-2.0
//! Network cards that come while the agent waits for them, and two guests that talk to each other through them.

use std::path::Path;

use tests::net::{interface, neighbour, route};
use tests::plug::port_path;
use tests::{Code, Container, Vm, expect_refusal, vm_story};

const A: &str = "02:00:00:00:00:0a";
const B: &str = "02:00:00:00:00:0b";

/// The names and hardware addresses of the network cards that a running container sees.
async fn cards(c: &Container) -> Vec<String> {
    let script = "cd /sys/class/net; for card in eth*; do echo $card $(cat $card/address); done";
    let seen = c.sh(script).await;
    seen.ok().lines().map(str::to_owned).collect()
}

#[test]
fn a_card_is_waited_for_and_a_container_has_it() {
    vm_story(async {
        let vm = Vm::boot(|g| g.ports(2).words("keelson.tcp_congestion=bbr")).await;
        vm.create_sandbox(|_| ()).await;
        let mut monitor = vm.monitor().await;
        let mut wanted = interface("eth0", A, &["10.0.0.2/24", "fd00::2/64"]);
        wanted.devicePath = port_path(0);
        wanted.mtu = 9000;
        // Asked for before it is there; nobody else has to wait.
        let other = vm.another_connection().await;
        let waiting = tokio::spawn(async move { other.try_interface(wanted).await });
        let result = vm.try_interface(interface("eth7", A, &[])).await;
        expect_refusal(result, Code::INTERNAL, "Link not found (Name: eth7)");
        monitor.plug_card(0, A).await;
        waiting
            .await
            .expect("it ends")
            .unwrap_or_else(|e| panic!("UpdateInterface: {e}"));
        let script = "ip addr show eth0; cat /proc/sys/net/ipv4/tcp_congestion_control";
        let seen = vm.sh("sees", script).await;
        for part in ["UP", "mtu 9000", "10.0.0.2/24", "fd00::2/64", "bbr"] {
            assert!(seen.ok().contains(part), "{part} is not in {}", seen.stdout);
        }

        let c = vm.container("stays").args(&["sleep", "100000"]);
        let c = c.start().await;
        assert_eq!(cards(&c).await, ["eth0 02:00:00:00:00:0a"]);

        // The next wants that name and gets it, and the hardware address that the host gives it now.
        monitor.plug_card(1, B).await;
        let mut wanted = interface("eth0", "02:00:00:00:00:0c", &["10.1.0.2/24"]);
        wanted.devicePath = port_path(1);
        vm.interface(wanted).await;
        assert_eq!(vm.listed("eth0").await.hwAddr, "02:00:00:00:00:0C");
        assert_eq!(vm.listed("eth1").await.hwAddr.to_lowercase(), A);
        let seen = vm.sh("again", "ip addr show eth1").await;
        assert!(seen.ok().contains("10.0.0.2/24"), "{}", seen.stdout);
        let both = ["eth0 02:00:00:00:00:0c", "eth1 02:00:00:00:00:0a"];
        assert_eq!(cards(&c).await, both);
        // It goes while a container has it in sight; its name is free again, and the container sees that too.
        monitor.unplug_card(1).await;
        assert_eq!(cards(&c).await, ["eth1 02:00:00:00:00:0a"]);
        vm.interface(interface("eth0", A, &["10.0.0.2/24"])).await;
        assert_eq!(cards(&c).await, ["eth0 02:00:00:00:00:0a"]);
        // One of its name, which was never asked for, comes and goes under the eyes of the container.
        monitor.plug_card(1, B).await;
        let come = "until [ -e /sys/class/net/eth1 ]; do sleep 0.1; done";
        c.sh(come).await.ok();
        monitor.unplug_card(1).await;
        assert_eq!(cards(&c).await, ["eth0 02:00:00:00:00:0a"]);
    });
}

/// One end of a cable between two guests; the first end has to be there before the second.
fn cable(mac: &str, end: &str, socket: &Path) -> [String; 4] {
    let socket = socket.display();
    [
        "-netdev".to_owned(),
        format!("stream,id=cable,server={end},addr.type=unix,addr.path={socket}"),
        "-device".to_owned(),
        format!("virtio-net-pci,netdev=cable,mac={mac}"),
    ]
}

async fn guest(first: Option<&Vm>, mac: &str, socket: &Path) -> Vm {
    let end = if first.is_none() { "on" } else { "off" };
    let arguments = cable(mac, end, socket);
    let arguments = arguments.each_ref().map(String::as_str);
    let plug_in = |g: tests::vm::Guest| g.qemu(&arguments);
    let vm = match first {
        None => Vm::boot(plug_in).await,
        Some(first) => Vm::boot_beside(first, plug_in).await,
    };
    vm.create_sandbox(|_| ()).await;
    vm
}

/// Whole packets of 9000 bytes go to and fro, and much data one way.
async fn expect_traffic(from: &Vm, to: &Vm) {
    // An address behind the other guest's own, for which a route is needed.
    for ip in ["10.0.0.2", "10.9.0.1", "fd00::2", "fd09::1"] {
        let header = if ip.contains(':') { 48 } else { 28 };
        let script = format!("ping -c 2 -W 20 -s {} {ip}", 9000 - header);
        from.sh("ping", &script).await.ok();
    }
    let seen = from
        .sh("whole", "grep ^Ip: /proc/net/snmp; cat /proc/net/snmp6")
        .await;
    let fragments: Vec<&str> = seen.ok().lines().collect();
    assert_eq!(column(&fragments, "FragCreates"), "0", "{}", seen.stdout);
    assert!(
        fragments
            .iter()
            .any(|l| l.split_whitespace().eq(["Ip6FragCreates", "0"]))
    );
    let listener = to
        .container("listener")
        .sh("nc -l -p 5000 | wc -c")
        .start()
        .await;
    let send = "cut -d ' ' -f 1 /proc/uptime
        dd if=/dev/zero bs=64k count=1600 2>/dev/null | nc 10.9.0.1 5000
        cut -d ' ' -f 1 /proc/uptime";
    to.container("ready")
        .sh("until grep -q :1388 /proc/net/tcp*; do :; done")
        .run()
        .await
        .ok();
    let clock = from.sh("send", send).await;
    assert_eq!(listener.output().await.ok(), "104857600");
    let times: Vec<f64> = clock.ok().lines().flat_map(str::parse).collect();
    let rate = 104.8576 / (times[1] - times[0]);
    tests::story::say(&format!("{rate:.0} MB/s by TCP between two guests"));
}

/// The figure below a word in the two lines that begin with `Ip:`.
fn column<'a>(lines: &[&'a str], word: &str) -> &'a str {
    let mut ip = lines.iter().filter(|line| line.starts_with("Ip:"));
    let (names, figures) = (ip.next().expect("names"), ip.next().expect("figures"));
    let at = names.split_whitespace().position(|name| name == word);
    figures
        .split_whitespace()
        .nth(at.expect("the column is there"))
        .expect("its figure")
}

#[test]
fn two_guests_talk_over_routes_with_known_neighbours() {
    vm_story(async {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("cable");
        let near = guest(None, A, &socket).await;
        let far = guest(Some(&near), B, &socket).await;
        let mut wanted = interface("eth0", A, &["10.0.0.1/24", "fd00::1/64"]);
        wanted.mtu = 9000;
        near.interface(wanted).await;
        let ours = ["10.0.0.2/24", "fd00::2/64", "10.9.0.1/32", "fd09::1/128"];
        let mut wanted = interface("eth0", B, &ours);
        wanted.mtu = 9000;
        far.interface(wanted).await;
        near.routes(vec![
            route("10.9.0.0/16", "10.0.0.2", "eth0"),
            route("fd09::/64", "fd00::2", "eth0"),
        ])
        .await;
        near.neighbours(vec![
            neighbour("10.0.0.2", B, "eth0"),
            neighbour("fd00::2", B, "eth0"),
        ])
        .await;
        expect_traffic(&near, &far).await;
        let seen = near.sh("neighbours", "ip neigh").await;
        assert!(
            seen.ok().matches("PERMANENT").count() == 2,
            "{}",
            seen.stdout
        );
    });
}
