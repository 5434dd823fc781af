// SPDX-License-Identifier: Apache-2.0
//! Routes and neighbours of both families.

use protocols::types::{IPFamily, Route};
use tests::net::{interface, neighbour, route};
use tests::{Code, Service, expect_refusal, service_story};

use super::{A, B, has, has_not, link, meanwhile};

/// An agent with one interface that has an address of each family.
async fn with_eth0() -> Service {
    let agent = Service::start().await;
    link(&agent, "a");
    let wanted = interface("eth0", A, &["10.0.0.2/24", "fd00::2/64"]);
    agent.interface(wanted).await;
    agent
}

#[test]
fn routes_of_both_families() {
    service_story(async {
        let agent = with_eth0().await;
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
        let agent = with_eth0().await;
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

#[test]
fn neighbours_of_both_families() {
    service_story(async {
        let agent = with_eth0().await;
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

/// Ten thousand, and everybody else is served in the meantime.
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
        let answer = meanwhile(&agent, agent.routes(list.clone())).await;
        assert!(answer.len() >= 10_000, "{}", answer.len());
        // All there already.
        agent.routes(list).await;
        let count = agent.sh("ip route | grep -c '^11\\.'");
        assert_eq!(count.trim(), "10000");
    });
}

/// Forty thousand with long names: what no frame holds is refused by a clear word, and nothing is done that cannot be told.
#[test]
fn routes_that_no_answer_holds_are_refused() {
    service_story(async {
        let agent = Service::start().await;
        link(&agent, "a");
        let own = "fd00:1111:2222:3333:4444:5555:6666:7777";
        let router = "fd00:1111:2222:3333:4444:5555:6666:8888";
        let name = "fifteen-letters";
        agent
            .interface(interface(name, A, &[&format!("{own}/64")]))
            .await;
        agent.sh(&format!(
            "for n in 1 2 3 4; do
                 route='route add fd09:1111:2222:3333:4444:5555:'$n':& via {router} dev {name} src {own}'
                 seq 9999 | sed \"s/.*/$route/\" | ip -6 -batch -
             done"
        ));
        let list = agent.all_routes().await;
        expect_refusal(list, Code::RESOURCE_EXHAUSTED, "than an answer holds");
        let before = agent.sh("ip route; ip -6 route");
        let wanted = || vec![route("fd08::/64", router, name)];
        let result = agent.try_routes(wanted()).await;
        expect_refusal(result, Code::RESOURCE_EXHAUSTED, "than an answer holds");
        assert!(
            agent.sh("ip route; ip -6 route") == before,
            "a route is left"
        );
        // The connection is the same all the time, and the rest goes on.
        agent.listed(name).await;
        agent.sh("ip -6 route flush root fd09:1111:2222:3333:4444:5555:1:0/112");
        agent.sh("ip -6 route flush root fd09:1111:2222:3333:4444:5555:2:0/112");
        let answer = agent.routes(wanted()).await;
        assert!(answer.len() > 19_998, "{}", answer.len());
    });
}
