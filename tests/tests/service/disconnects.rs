// SPDX-License-Identifier: Apache-2.0
//! Hosts that go away in the middle of create, exec and remove, at random points.

use tests::figures::Figures;
use tests::{Service, cuts, service_story};

#[test]
fn five_hundred_disconnects_do_nothing_by_halves() {
    service_story(async {
        let agent = Service::start().await;
        let probe = agent.probe("probe").await;
        // The first make what stays for good, such as the cgroup above all containers'.
        agent.container("warm-up").sh("true").run().await.ok();
        let before = Figures::of(&probe, agent.scope()).await;
        cuts::rounds(&agent, 500).await;
        let after = Figures::of(&probe, agent.scope()).await;
        assert_eq!(after.counts, before.counts);
        agent.expect_alive().await;
    });
}
