// SPDX-License-Identifier: Apache-2.0
//! StatsContainer and GetOOMEvent where there is nothing to tell.

use protocols::agent::{GetOOMEventRequest, StatsContainerRequest};
use tests::{Code, Service, expect_refusal, service_story};

#[test]
fn an_unknown_container_has_no_statistics() {
    service_story(async {
        let agent = Service::start().await;
        let mut request = StatsContainerRequest::new();
        request.container_id = "nobody".to_owned();
        let answer = agent.rpc().stats_container(&request).await;
        expect_refusal(answer, Code::INVALID_ARGUMENT, "Invalid container id");
        agent.expect_alive().await;
    });
}

/// Whoever asks waits, on any connection; at the end of the sandbox all are told. A host that is refused earlier asks again at once.
#[test]
fn the_next_oom_event_is_waited_for_until_the_sandbox_ends() {
    service_story(async {
        let agent = Service::start().await;
        let other = agent.another_connection().await;
        let request = GetOOMEventRequest::new();
        let calls = async {
            tokio::join!(
                agent.rpc().get_oom_event(&request),
                other.rpc().get_oom_event(&request)
            )
        };
        tokio::pin!(calls);
        tokio::select! {
            biased;
            early = &mut calls => panic!("there is no event: {early:?}"),
            check = async { tokio::join!(agent.rpc().check(), other.rpc().check()) } => {
                assert!(check.0.is_ok() && check.1.is_ok());
            }
        }
        let last = agent.another_connection().await;
        let end = Default::default();
        let ((one, two), _) = tokio::join!(calls, last.rpc().destroy_sandbox(&end));
        expect_refusal(one, Code::INTERNAL, "Sandbox has ended");
        expect_refusal(two, Code::INTERNAL, "Sandbox has ended");
        agent.expect_end().await;
    });
}
