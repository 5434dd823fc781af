// SPDX-License-Identifier: Apache-2.0
//! The tables of iptables, by the guest's own programs and by some that misbehave.

use protobuf::Message;
use tests::{Code, Service, expect_refusal, service_story};

use super::has;

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
