// SPDX-License-Identifier: Apache-2.0
//! Calls that do not fit the state of their container, and what each is answered (protocol sections 3.0 and 3.2).

use protobuf::Message;
use protocols::agent::*;
use protocols::oci;
use tests::{Code, Service, expect_refusal, service_story};

fn encoded(message: &impl Message) -> Vec<u8> {
    message.write_to_bytes().expect("a request encodes")
}

/// Pause-, Resume- and UpdateContainer begin with the same field.
fn container(id: &str) -> Vec<u8> {
    let mut request = PauseContainerRequest::new();
    request.container_id = id.to_owned();
    encoded(&request)
}

fn diagnostics(id: &str, kind: &str) -> Vec<u8> {
    let mut request = GetDiagnosticDataRequest::new();
    request.container_id = id.to_owned();
    request.log_type = kind.to_owned();
    encoded(&request)
}

#[test]
fn an_unknown_container_cannot_be_managed() {
    service_story(async {
        let agent = Service::start().await;
        let text = "Invalid container id";
        let log = "termination_log";
        let rows = [
            (
                "PauseContainer",
                container("no"),
                Code::INVALID_ARGUMENT,
                text,
            ),
            (
                "ResumeContainer",
                container("no"),
                Code::INVALID_ARGUMENT,
                text,
            ),
            (
                "UpdateContainer",
                container("no"),
                Code::INVALID_ARGUMENT,
                text,
            ),
            (
                "GetDiagnosticData",
                diagnostics("no", log),
                Code::INTERNAL,
                "Invalid container id: no",
            ),
            (
                "GetDiagnosticData",
                diagnostics("no", "x"),
                Code::INVALID_ARGUMENT,
                "unsupported diagnostic log_type: x",
            ),
        ];
        let mut wire = agent.wire().await;
        for (method, message, code, part) in rows {
            let reply = wire.ask("grpc.AgentService", method, &message).await;
            assert_eq!(reply.code, code, "{method}: {}", reply.text);
            assert!(reply.text.contains(part), "{method}: {}", reply.text);
        }
    });
}

#[test]
fn what_is_stopped_takes_nothing_more() {
    service_story(async {
        let agent = Service::start().await;
        let c = agent.container("over").sh("exit 3").start().await;
        assert_eq!(c.wait().await, 3);
        for _ in 0..2 {
            let refused = c.exec(&["true"]).try_start().await.map(drop);
            expect_refusal(refused, Code::FAILED_PRECONDITION, "Container is stopped");
        }
        let refused = c.try_pause().await;
        expect_refusal(refused, Code::INTERNAL, "current status is: stopped");
        let refused = c.try_resume().await;
        expect_refusal(
            refused,
            Code::INTERNAL,
            "container status is: stopped, not paused",
        );
        expect_refusal(
            c.try_start().await,
            Code::FAILED_PRECONDITION,
            "started before",
        );
        // Killing what is dead is no mistake, and no limits are no change.
        c.kill_all().await;
        let mut nothing = UpdateContainerRequest::new();
        nothing.container_id = "over".to_owned();
        agent
            .rpc()
            .update_container(&nothing)
            .await
            .expect("UpdateContainer without resources");
        c.remove().await;
    });
}

#[test]
fn a_hook_s_path_must_be_absolute() {
    service_story(async {
        let agent = Service::start().await;
        let with = |kind: fn(&mut oci::Hooks) -> &mut Vec<oci::Hook>, path: &str| {
            let mut hook = oci::Hook::new();
            hook.Path = path.to_owned();
            agent
                .container("hooked")
                .sh("true")
                .spec(|s| kind(s.Hooks.mut_or_insert_default()).push(hook))
                .try_create()
        };
        let kinds: [fn(&mut oci::Hooks) -> &mut Vec<oci::Hook>; 6] = [
            |h| &mut h.Prestart,
            |h| &mut h.CreateRuntime,
            |h| &mut h.CreateContainer,
            |h| &mut h.StartContainer,
            |h| &mut h.Poststart,
            |h| &mut h.Poststop,
        ];
        for kind in kinds {
            let refused = with(kind, "bin/true").await.map(drop);
            expect_refusal(refused, Code::INVALID_ARGUMENT, "must be absolute");
        }
        let refused = with(kinds[1], "/no/such/hook").await.map(drop);
        expect_refusal(refused, Code::INTERNAL, "/no/such/hook");
        agent.container("hooked").sh("true").run().await.ok();
    });
}

/// A list of arguments without even a name made the reference panic.
#[test]
fn bug_a_hook_without_arguments_is_run() {
    service_story(async {
        let agent = Service::start().await;
        let mut hook = oci::Hook::new();
        hook.Path = "/bin/true".to_owned();
        let output = agent
            .container("bare")
            .sh("echo ran")
            .spec(|s| s.Hooks.mut_or_insert_default().CreateRuntime.push(hook))
            .run()
            .await;
        assert_eq!(output.ok(), "ran");
    });
}
