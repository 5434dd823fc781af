// SPDX-License-Identifier: Apache-2.0
//! The order of calls that no well-behaved host gets wrong: duplicates, starts out of turn, disconnects.

use std::time::Duration;

use protobuf::Message;
use protocols::agent::CreateContainerRequest;
use tests::{Code, Service, expect_refusal, service_story};

#[test]
fn it_says_who_it_is() {
    service_story(async {
        let agent = Service::start().await;
        let version = agent.rpc().version().await.expect("Version is answered");
        assert!(!version.agent_version.is_empty());
        assert!(!version.grpc_version.is_empty());
        let details = agent
            .rpc()
            .get_guest_details(&Default::default())
            .await
            .expect("GetGuestDetails");
        assert!(!details.agent_details.init_daemon, "it is a service here");
        assert!(!details.agent_details.storage_handlers.is_empty());
        assert!(details.agent_details.supports_seccomp);
        assert_eq!(details.agent_details.extra_features, ["seccomp"]);
    });
}

#[test]
fn a_container_lives_and_leaves_nothing() {
    service_story(async {
        let agent = Service::start().await;
        let c = agent
            .container("c1")
            .sh("echo out; echo err >&2; exit 42")
            .start()
            .await;
        let output = c.output().await;
        assert_eq!(
            (output.code, &*output.stdout, &*output.stderr),
            (42, "out\n", "err\n")
        );
        c.remove().await;
        agent.container("c1").sh("true").run().await.ok();
    });
}

#[test]
fn a_launcher_that_dies_is_replaced() {
    service_story(async {
        let agent = Service::start().await;
        let c = agent.container("c1").args(&["sleep", "1000"]).start().await;
        c.sh("true").await.ok();
        // What waits for its start was the launcher's copy, connection and all.
        let created = agent.container("c0").sh("exit 3").create().await;
        agent.kill_launcher().await;
        assert_eq!(c.sh("echo again").await.ok(), "again");
        agent.container("c2").sh("true").run().await.ok();
        created.start().await;
        assert_eq!(created.wait().await, 3);
        created.remove().await;
        c.kill_and_remove().await;
    });
}

/// The bundle went first, or rather did not: no container with such a storage could be removed.
#[test]
fn bug_storages_in_the_bundle_do_not_keep_the_container() {
    service_story(async {
        let agent = Service::start().await;
        let bundles = async || {
            let look = agent.container("look").bind("/mnt", "/run/kata-containers");
            look.sh("ls /mnt").run().await.ok().to_owned()
        };
        for (driver, source, stays) in [("bind", "/run/image", false), ("ephemeral", "tmpfs", true)]
        {
            let place = format!("/run/kata-containers/{driver}-c/inner/data");
            let kind = if stays { "tmpfs" } else { "bind" };
            let id = format!("{driver}-c");
            for _ in 0..2 {
                let storage = tests::vm::storage(driver, source, kind, &place, &[]);
                let c = agent.container(&id).storage(storage).bind("/data", &place);
                let c = c.sh("ls /data").create().await;
                c.remove().await;
                // What belongs to the pod outlives the container, and so does its place.
                assert_eq!(bundles().await.contains(&id), stays, "{driver}");
                let storage = tests::vm::storage(driver, source, kind, &place, &[]);
                let c = agent.container(&id).storage(storage).root("/no/such/root");
                assert!(c.try_create().await.is_err());
                assert_eq!(bundles().await.contains(&id), stays, "{driver}");
            }
        }
    });
}

/// Without containers there is no process namespace to share: the first one's has ended with it.
#[test]
fn bug_a_shared_process_namespace_can_be_made_again() {
    service_story(async {
        let agent = Service::start().await;
        for id in ["first", "second"] {
            let c = agent.container(id).args(&["sleep", "1000"]).start().await;
            let other = agent.container("other").sandbox_pids().sh("echo joined");
            assert_eq!(other.run().await.ok(), "joined");
            c.kill_and_remove().await;
            let alone = agent.container("alone").sandbox_pids().sh("echo alone");
            assert_eq!(alone.run().await.ok(), "alone");
        }
    });
}

/// In a shared process namespace execs go on after the first process. Its id stays its own.
#[test]
fn bug_no_exec_takes_the_container_s_id() {
    service_story(async {
        let agent = Service::start().await;
        let pod = agent
            .container("pod")
            .args(&["sleep", "1000"])
            .start()
            .await;
        let c = agent
            .container("own-id")
            .sandbox_pids()
            .sh("exit 7")
            .start()
            .await;
        assert_eq!(c.wait().await, 7);
        let exec = c.exec(&["true"]).id("own-id").try_start().await.map(drop);
        expect_refusal(exec, Code::ALREADY_EXISTS, "own-id");
        c.remove().await;
        pod.kill_and_remove().await;
    });
}

/// The reference rolls back the duplicate by its id, which destroys the first container.
#[test]
fn a_duplicate_id_does_not_touch_the_first() {
    service_story(async {
        let agent = Service::start().await;
        let c = agent
            .container("twin")
            .args(&["sleep", "1000"])
            .start()
            .await;
        let second = agent
            .container("twin")
            .sh("true")
            .try_create()
            .await
            .map(drop);
        expect_refusal(second, Code::ALREADY_EXISTS, "twin");
        assert_eq!(c.sh("echo still here").await.ok(), "still here");
        c.kill_and_remove().await;
    });
}

#[test]
fn a_duplicate_exec_id_is_refused() {
    service_story(async {
        let agent = Service::start().await;
        let c = agent.container("c1").args(&["sleep", "1000"]).start().await;
        let first = c.exec(&["sleep", "1000"]).id("e1").start().await;
        for id in ["e1", "c1"] {
            let second = c.exec(&["true"]).id(id).try_start().await.map(drop);
            expect_refusal(second, Code::ALREADY_EXISTS, id);
        }
        first.signal(9).await;
        assert_eq!(first.wait().await, 137);
        // Once it has been waited for the id is free.
        assert_eq!(c.exec(&["true"]).id("e1").run().await.code, 0);
        c.kill_and_remove().await;
    });
}

#[test]
fn a_second_start_is_refused() {
    service_story(async {
        let agent = Service::start().await;
        let c = agent
            .container("once")
            .args(&["sleep", "1000"])
            .start()
            .await;
        expect_refusal(c.try_start().await, Code::FAILED_PRECONDITION, "once");
        agent.expect_alive().await;
        c.kill_all().await;
        assert_eq!(c.wait().await, 137);
        expect_refusal(c.try_start().await, Code::FAILED_PRECONDITION, "once");
        c.remove().await;
    });
}

/// The reference opens the start gate blocking, with the lock of everything held.
#[test]
fn a_start_after_the_init_died_is_refused() {
    service_story(async {
        let agent = Service::start().await;
        let c = agent
            .container("stillborn")
            .args(&["sleep", "1000"])
            .create()
            .await;
        c.kill_all().await;
        let gone = tokio::time::timeout(Duration::from_secs(60), c.wait()).await;
        assert_eq!(gone.expect("the init process ends"), 137);
        expect_refusal(c.try_start().await, Code::FAILED_PRECONDITION, "stillborn");
        agent.expect_alive().await;
        c.remove().await;
    });
}

#[test]
fn waiting_before_the_start_is_legal() {
    service_story(async {
        let agent = Service::start().await;
        let c = agent.container("early").sh("exit 5").create().await;
        let waiter = tokio::spawn({
            let c = c.clone();
            async move { c.wait().await }
        });
        agent.expect_alive().await;
        c.start().await;
        assert_eq!(waiter.await.expect("the waiter ends"), 5);
        c.remove().await;
    });
}

#[test]
fn a_created_container_can_be_removed_without_a_start() {
    service_story(async {
        let agent = Service::start().await;
        for _ in 0..3 {
            agent
                .container("never")
                .args(&["sleep", "1000"])
                .create()
                .await
                .remove()
                .await;
        }
        agent.expect_alive().await;
    });
}

#[test]
fn a_running_container_can_be_removed() {
    service_story(async {
        let agent = Service::start().await;
        let c = agent
            .container("busy")
            .args(&["sleep", "1000"])
            .start()
            .await;
        c.exec(&["sleep", "1000"]).start().await;
        c.remove().await;
        agent.container("busy").sh("true").run().await.ok();
    });
}

/// A host that loses its connection while it waits asks again on the next one.
#[test]
fn a_wait_survives_its_connection() {
    service_story(async {
        let agent = Service::start().await;
        let c = agent
            .container("kept")
            .sh("read line; exit 9")
            .start()
            .await;
        {
            let mut wire = agent.wire().await;
            let request = protobuf::Message::write_to_bytes(&c.wait_request()).expect("it encodes");
            wire.send_request("grpc.AgentService", "WaitProcess", &request)
                .await;
            wire.expect_alive().await;
        }
        c.write(b"go\n").await;
        let other = agent.another_connection().await;
        assert_eq!(c.through(&other).wait().await, 9);
        c.remove().await;
    });
}

#[test]
fn a_disconnect_during_creation_leaves_all_or_nothing() {
    service_story(async {
        let agent = Service::start().await;
        for round in 0..20 {
            let id = format!("cut-{round}");
            let request = agent.container(&id).args(&["sleep", "1000"]).into_request();
            let bytes = request.write_to_bytes().expect("it encodes");
            {
                let mut wire = agent.wire().await;
                wire.send_request("grpc.AgentService", "CreateContainer", &bytes)
                    .await;
                tokio::time::sleep(Duration::from_millis(round)).await;
            }
            expect_whole(&agent, request).await;
        }
    });
}

#[test]
fn a_deadline_during_creation_leaves_all_or_nothing() {
    service_story(async {
        let agent = Service::start().await;
        for round in 1..20 {
            let id = format!("late-{round}");
            let request = agent.container(&id).args(&["sleep", "1000"]).into_request();
            let bytes = request.write_to_bytes().expect("it encodes");
            let limit = Duration::from_millis(round);
            let mut wire = agent.wire().await;
            wire.ask_within(limit, "grpc.AgentService", "CreateContainer", &bytes)
                .await;
            expect_whole(&agent, request).await;
        }
    });
}

/// Whatever became of an earlier attempt at `request`, once its work has ended the id either names a whole container or is free.
async fn expect_whole(agent: &Service, request: CreateContainerRequest) {
    let c = tests::Container::known(agent, &request.container_id);
    if let Err(refusal) = agent.rpc().create_container(&request).await {
        assert_eq!(refusal.code, Some(Code::ALREADY_EXISTS), "{refusal}");
    }
    while c.try_start().await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(c.sh("echo whole").await.ok(), "whole");
    c.kill_and_remove().await;
}

#[test]
fn destroying_the_sandbox_ends_the_service() {
    service_story(async {
        let agent = Service::start().await;
        agent
            .rpc()
            .create_sandbox(&Default::default())
            .await
            .expect("CreateSandbox");
        agent
            .container("left")
            .args(&["sleep", "1000"])
            .start()
            .await;
        agent
            .rpc()
            .destroy_sandbox(&Default::default())
            .await
            .expect("DestroySandbox");
        agent.expect_end().await;
    });
}

/// Hosts do not wait for the answer to the end.
#[test]
fn destroying_goes_on_without_the_host() {
    service_story(async {
        let agent = Service::start().await;
        agent
            .container("left")
            .args(&["sleep", "1000"])
            .start()
            .await;
        let mut wire = agent.wire().await;
        let at_once = Duration::from_nanos(1);
        wire.ask_within(at_once, "grpc.AgentService", "DestroySandbox", &[])
            .await;
        agent.expect_end().await;
    });
}

/// The reference empties everything below its directory, through bind mounts, into the containers' own files.
#[test]
fn a_second_sandbox_does_not_empty_the_first() {
    service_story(async {
        let agent = Service::start().await;
        agent
            .rpc()
            .create_sandbox(&Default::default())
            .await
            .expect("CreateSandbox");
        let c = agent.container("c1").args(&["sleep", "1000"]).start().await;
        // Whether it is refused or not is the agent's choice; what is there must stay.
        let _ = agent.rpc().create_sandbox(&Default::default()).await;
        assert_eq!(c.sh("ls /bin | wc -l").await.code, 0);
        agent.container("c2").sh("test -x /bin/sh").run().await.ok();
        c.kill_and_remove().await;
    });
}
