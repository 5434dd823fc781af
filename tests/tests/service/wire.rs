// SPDX-License-Identifier: Apache-2.0
//! Bad frames and envelopes (protocol sections 1.1 to 1.4).

use std::time::Duration;

use protobuf::Message;
use tests::wire::{DATA, LARGEST, REQUEST, envelope};
use tests::{Code, Service, service_story};

const AGENT: &str = "grpc.AgentService";

/// Every method of the agent service, protocol section 1.5.
const METHODS: [&str; 42] = [
    "CreateContainer",
    "StartContainer",
    "RemoveContainer",
    "ExecProcess",
    "SignalProcess",
    "WaitProcess",
    "UpdateContainer",
    "UpdateEphemeralMounts",
    "StatsContainer",
    "PauseContainer",
    "ResumeContainer",
    "RemoveStaleVirtiofsShareMounts",
    "GetDiagnosticData",
    "WriteStdin",
    "ReadStdout",
    "ReadStderr",
    "CloseStdin",
    "TtyWinResize",
    "UpdateInterface",
    "UpdateRoutes",
    "ListInterfaces",
    "ListRoutes",
    "AddARPNeighbors",
    "GetIPTables",
    "SetIPTables",
    "GetMetrics",
    "MemAgentMemcgSet",
    "MemAgentCompactSet",
    "CreateSandbox",
    "DestroySandbox",
    "OnlineCPUMem",
    "ReseedRandomDev",
    "GetGuestDetails",
    "MemHotplugByProbe",
    "SetGuestDateTime",
    "CopyFile",
    "GetOOMEvent",
    "AddSwap",
    "AddSwapPath",
    "GetVolumeStats",
    "ResizeVolume",
    "SetPolicy",
];

/// A field of a wire type that there is not: no decoder accepts it. (One that is longer than the message is taken for whole where it
/// is a message itself.)
const GARBAGE: [u8; 4] = [0x0f, 0xff, 0xff, 0x7f];

#[test]
fn a_truncated_header_costs_only_its_connection() {
    service_story(async {
        let agent = Service::start().await;
        for length in 1..10 {
            agent.wire().await.send_bytes(&vec![0; length]).await;
        }
        agent.expect_alive().await;
    });
}

#[test]
fn a_truncated_payload_costs_only_its_connection() {
    service_story(async {
        let agent = Service::start().await;
        for claimed in [11, 4096, LARGEST as u32, u32::MAX] {
            let mut wire = agent.wire().await;
            wire.send_header(claimed, 1, REQUEST).await;
            wire.send_bytes(b"half a mess").await;
        }
        agent.expect_alive().await;
    });
}

#[test]
fn an_oversized_request_is_refused_and_the_connection_stays() {
    service_story(async {
        let agent = Service::start().await;
        let mut wire = agent.wire().await;
        let stream = 1_000_001;
        wire.send_frame(stream, REQUEST, &vec![0; LARGEST + 1])
            .await;
        let reply = wire.reply(stream).await;
        assert_eq!(reply.code, Code::INVALID_ARGUMENT);
        assert_eq!(
            reply.text,
            "message length 4194305 exceed maximum message size of 4194304"
        );
        wire.expect_alive().await;
    });
}

#[test]
fn the_largest_request_is_read() {
    service_story(async {
        let agent = Service::start().await;
        let mut wire = agent.wire().await;
        let overhead = envelope("no.Such", "Method", &vec![0; LARGEST / 2]).len() - LARGEST / 2;
        let message = vec![0; LARGEST - overhead];
        assert!(envelope("no.Such", "Method", &message).len() > LARGEST - 4);
        let reply = wire.ask("no.Such", "Method", &message).await;
        assert_eq!(reply.text, "no.Such service does not exist");
        wire.expect_alive().await;
    });
}

#[test]
fn an_even_stream_id_is_refused() {
    service_story(async {
        let agent = Service::start().await;
        let mut wire = agent.wire().await;
        for stream in [0, 2, 0x8000_0000] {
            wire.send_frame(stream, REQUEST, &envelope("grpc.Health", "Check", &[]))
                .await;
            let reply = wire.reply(stream).await;
            assert_eq!(reply.code, Code::INVALID_ARGUMENT, "stream id {stream}");
            assert_eq!(reply.text, "stream id must be odd");
        }
        wire.expect_alive().await;
    });
}

#[test]
fn unknown_frame_types_are_dropped_and_stray_data_is_refused() {
    service_story(async {
        let agent = Service::start().await;
        let mut wire = agent.wire().await;
        for kind in [0, 2, 4, 255] {
            wire.send_frame(7, kind, b"whatever").await;
        }
        wire.send_frame(9, DATA, b"whatever").await;
        let reply = wire.reply(9).await;
        assert_eq!(
            (reply.code, &*reply.text),
            (Code::INVALID_ARGUMENT, "Stream is no longer active")
        );
        wire.expect_alive().await;
    });
}

#[test]
fn a_garbage_envelope_is_refused() {
    service_story(async {
        let agent = Service::start().await;
        let mut wire = agent.wire().await;
        wire.send_frame(1_000_001, REQUEST, &GARBAGE).await;
        assert_eq!(wire.reply(1_000_001).await.code, Code::INVALID_ARGUMENT);
        wire.expect_alive().await;
    });
}

#[test]
fn an_unknown_service_is_an_invalid_argument() {
    service_story(async {
        let agent = Service::start().await;
        let mut wire = agent.wire().await;
        for service in [
            "",
            "grpc",
            "grpc.agentservice",
            "grpc.AgentService ",
            "ttrpc.Health",
        ] {
            let reply = wire.ask(service, "Check", &[]).await;
            assert_eq!(reply.code, Code::INVALID_ARGUMENT, "{service:?}");
            assert_eq!(reply.text, format!("{service} service does not exist"));
        }
        wire.expect_alive().await;
    });
}

#[test]
fn an_unknown_method_is_unimplemented() {
    service_story(async {
        let agent = Service::start().await;
        let mut wire = agent.wire().await;
        for method in ["", "createcontainer", "Check", "CreateContainer2"] {
            let reply = wire.ask(AGENT, method, &[]).await;
            assert_eq!(reply.code, Code::UNIMPLEMENTED, "{method:?}");
            assert_eq!(reply.text, format!("{method} method"));
        }
        wire.expect_alive().await;
    });
}

#[test]
fn garbage_messages_are_refused_by_every_method() {
    service_story(async {
        let agent = Service::start().await;
        let mut wire = agent.wire().await;
        let health = ["Check", "Version"].map(|method| ("grpc.Health", method));
        for (service, method) in METHODS
            .map(|method| (AGENT, method))
            .into_iter()
            .chain(health)
        {
            let reply = wire.ask(service, method, &GARBAGE).await;
            // What is not implemented is not decoded either.
            let refused = [Code::UNKNOWN, Code::UNIMPLEMENTED].contains(&reply.code);
            assert!(refused, "{method}: {:?} {}", reply.code, reply.text);
        }
        wire.expect_alive().await;
    });
}

/// Methods that an empty request is not sent to, and why.
const NOT_FOR_EMPTY: [&str; 5] = [
    // Has nothing to report, and must then block: a host that is answered retries in a tight loop.
    "GetOOMEvent",
    // Do what they say. The clock and the memory would be those of the machine that runs the tests.
    "DestroySandbox",
    "SetGuestDateTime",
    "OnlineCPUMem",
    "MemHotplugByProbe",
];

#[test]
fn an_empty_message_never_hurts() {
    service_story(async {
        let agent = Service::start().await;
        let mut wire = agent.wire().await;
        for method in METHODS.into_iter().filter(|m| !NOT_FOR_EMPTY.contains(m)) {
            // Whatever the answer, there is one, and it is not that of a handler that fell over.
            let reply = wire.ask(AGENT, method, &[]).await;
            assert_ne!(reply.code, Code::UNKNOWN, "{method}: {}", reply.text);
            assert_ne!(
                reply.text,
                format!("{method} method"),
                "{method} is not served at all"
            );
            wire.expect_alive().await;
        }
    });
}

#[test]
fn what_is_not_implemented_says_so_by_name() {
    service_story(async {
        let agent = Service::start().await;
        let mut wire = agent.wire().await;
        for method in METHODS.into_iter().filter(|m| !NOT_FOR_EMPTY.contains(m)) {
            let reply = wire.ask(AGENT, method, &[]).await;
            if reply.code == Code::UNIMPLEMENTED {
                assert!(reply.text.contains(method), "{method}: {:?}", reply.text);
                assert!(
                    reply.text.len() > method.len() + 10,
                    "{method}: {:?} says nothing",
                    reply.text
                );
            }
        }
    });
}

#[test]
fn what_this_release_promises_is_implemented() {
    service_story(async {
        let agent = Service::start().await;
        let mut wire = agent.wire().await;
        let promised = [
            "GetGuestDetails",
            "CreateContainer",
            "StartContainer",
            "ExecProcess",
            "SignalProcess",
            "WaitProcess",
            "RemoveContainer",
            "WriteStdin",
            "ReadStdout",
            "ReadStderr",
            "CloseStdin",
            "TtyWinResize",
            "CopyFile",
            "ReseedRandomDev",
            "UpdateInterface",
            "UpdateRoutes",
            "AddARPNeighbors",
            "GetIPTables",
            "SetIPTables",
            "ListInterfaces",
            "ListRoutes",
            "CreateSandbox",
        ];
        for method in promised {
            let reply = wire.ask(AGENT, method, &[]).await;
            assert_ne!(reply.code, Code::UNIMPLEMENTED, "{method}: {}", reply.text);
        }
    });
}

#[test]
fn a_deadline_is_kept_and_the_process_stays() {
    service_story(async {
        let agent = Service::start().await;
        let c = agent
            .container("patient")
            .args(&["sleep", "1000"])
            .start()
            .await;
        let mut wire = agent.wire().await;
        let request = c.wait_request().write_to_bytes().expect("it encodes");
        let late = wire
            .ask_within(Duration::from_millis(50), AGENT, "WaitProcess", &request)
            .await;
        assert_eq!(
            (late.code, &*late.text),
            (Code::DEADLINE_EXCEEDED, "timeout")
        );
        agent.expect_alive().await;
        c.kill_all().await;
        assert_eq!(c.wait().await, 137);
    });
}

#[test]
fn a_waiting_request_does_not_delay_others_on_its_connection() {
    service_story(async {
        let agent = Service::start().await;
        let c = agent
            .container("slow")
            .args(&["sleep", "1000"])
            .start()
            .await;
        let waiter = tokio::spawn({
            let c = c.clone();
            async move { c.wait().await }
        });
        for _ in 0..100 {
            agent
                .rpc()
                .check()
                .await
                .expect("Check is answered while WaitProcess waits");
        }
        c.kill_all().await;
        assert_eq!(waiter.await.expect("the waiter ends"), 137);
    });
}

#[test]
fn many_connections_come_and_go() {
    service_story(async {
        let agent = Service::start().await;
        for _ in 0..50 {
            let mut wires = Vec::new();
            for _ in 0..10 {
                wires.push(agent.wire().await);
            }
            for wire in &mut wires {
                wire.send_request("grpc.Health", "Check", &[]).await;
            }
        }
        agent.expect_alive().await;
    });
}
