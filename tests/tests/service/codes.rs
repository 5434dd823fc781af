// SPDX-License-Identifier: Apache-2.0
//! The status codes of protocol section 3.0, as tables: what is answered for a container or process that is not there.

use protobuf::Message;
use protocols::agent::*;
use tests::{Code, Service, service_story};

/// A method, an encoded request for it, and the answer due.
type Row = (&'static str, Vec<u8>, Code, &'static str);

fn encoded(message: &impl Message) -> Vec<u8> {
    message.write_to_bytes().expect("a request encodes")
}

fn read(cid: &str, exec: &str) -> Vec<u8> {
    let mut request = ReadStreamRequest::new();
    request.container_id = cid.to_owned();
    request.exec_id = exec.to_owned();
    request.len = 1024;
    encoded(&request)
}

fn write(cid: &str, exec: &str) -> Vec<u8> {
    let mut request = WriteStreamRequest::new();
    request.container_id = cid.to_owned();
    request.exec_id = exec.to_owned();
    request.data = b"data".to_vec();
    encoded(&request)
}

fn signal(cid: &str, exec: &str, number: u32) -> Vec<u8> {
    let mut request = SignalProcessRequest::new();
    request.container_id = cid.to_owned();
    request.exec_id = exec.to_owned();
    request.signal = number;
    encoded(&request)
}

/// WaitProcess, CloseStdin and TtyWinResize begin with the same two fields.
fn process(cid: &str, exec: &str) -> Vec<u8> {
    let mut request = WaitProcessRequest::new();
    request.container_id = cid.to_owned();
    request.exec_id = exec.to_owned();
    encoded(&request)
}

fn container(cid: &str) -> Vec<u8> {
    let mut request = StartContainerRequest::new();
    request.container_id = cid.to_owned();
    encoded(&request)
}

fn exec(cid: &str) -> Vec<u8> {
    let mut request = ExecProcessRequest::new();
    request.container_id = cid.to_owned();
    request.exec_id = "x".to_owned();
    request.process = Some(tests::spec::process(&["true"])).into();
    encoded(&request)
}

async fn expect_answers(agent: &Service, rows: Vec<Row>) {
    let mut wire = agent.wire().await;
    for (method, message, code, part) in rows {
        let reply = wire.ask("grpc.AgentService", method, &message).await;
        assert_eq!(reply.code, code, "{method}: {}", reply.text);
        assert!(
            reply.text.contains(part),
            "{method}: {part:?} is not in {:?}",
            reply.text
        );
        assert!(
            !reply.text.contains('"'),
            "{method}: Debug text on the wire: {:?}",
            reply.text
        );
        wire.expect_alive().await;
    }
}

#[test]
fn an_unknown_container() {
    service_story(async {
        let agent = Service::start().await;
        let text = "Invalid container id";
        let rows = vec![
            ("StartContainer", container("nobody"), Code::INTERNAL, text),
            ("RemoveContainer", container("nobody"), Code::INTERNAL, text),
            ("ExecProcess", exec("nobody"), Code::INTERNAL, text),
            (
                "SignalProcess",
                signal("nobody", "", 9),
                Code::INTERNAL,
                text,
            ),
            (
                "SignalProcess",
                signal("nobody", "", 15),
                Code::INVALID_ARGUMENT,
                text,
            ),
            (
                "SignalProcess",
                signal("nobody", "nobody", 9),
                Code::INVALID_ARGUMENT,
                text,
            ),
            (
                "SignalProcess",
                signal("nobody", "e1", 9),
                Code::INVALID_ARGUMENT,
                text,
            ),
            (
                "WaitProcess",
                process("nobody", ""),
                Code::INVALID_ARGUMENT,
                text,
            ),
            (
                "WaitProcess",
                process("nobody", "e1"),
                Code::INVALID_ARGUMENT,
                text,
            ),
            (
                "ReadStdout",
                read("nobody", ""),
                Code::INVALID_ARGUMENT,
                text,
            ),
            (
                "ReadStderr",
                read("nobody", ""),
                Code::INVALID_ARGUMENT,
                text,
            ),
            (
                "CloseStdin",
                process("nobody", ""),
                Code::INVALID_ARGUMENT,
                text,
            ),
            (
                "TtyWinResize",
                process("nobody", ""),
                Code::INVALID_ARGUMENT,
                text,
            ),
            ("WriteStdin", write("nobody", ""), Code::INTERNAL, text),
        ];
        expect_answers(&agent, rows).await;
    });
}

#[test]
fn an_unknown_process_of_a_known_container() {
    service_story(async {
        let agent = Service::start().await;
        let c = agent
            .container("known")
            .args(&["sleep", "1000"])
            .start()
            .await;
        let rows = vec![
            (
                "SignalProcess",
                signal("known", "e1", 9),
                Code::NOT_FOUND,
                "",
            ),
            ("WaitProcess", process("known", "e1"), Code::NOT_FOUND, ""),
            ("ReadStdout", read("known", "e1"), Code::NOT_FOUND, ""),
            ("ReadStderr", read("known", "e1"), Code::NOT_FOUND, ""),
            ("CloseStdin", process("known", "e1"), Code::NOT_FOUND, ""),
            ("TtyWinResize", process("known", "e1"), Code::NOT_FOUND, ""),
            (
                "WriteStdin",
                write("known", "e1"),
                Code::INTERNAL,
                "Process not found: invalid exec id",
            ),
        ];
        expect_answers(&agent, rows).await;
        c.kill_and_remove().await;
    });
}

#[test]
fn a_process_that_has_been_waited_for() {
    service_story(async {
        let agent = Service::start().await;
        let c = agent.container("over").sh("exit 7").start().await;
        assert_eq!(c.wait().await, 7);
        for exec in ["", "over"] {
            let rows = vec![
                ("WaitProcess", process("over", exec), Code::NOT_FOUND, ""),
                ("ReadStdout", read("over", exec), Code::NOT_FOUND, ""),
                ("ReadStderr", read("over", exec), Code::NOT_FOUND, ""),
                ("CloseStdin", process("over", exec), Code::NOT_FOUND, ""),
                ("TtyWinResize", process("over", exec), Code::NOT_FOUND, ""),
                (
                    "SignalProcess",
                    signal("over", exec, 15),
                    Code::NOT_FOUND,
                    "",
                ),
                (
                    "WriteStdin",
                    write("over", exec),
                    Code::INTERNAL,
                    "Process not found",
                ),
            ];
            expect_answers(&agent, rows).await;
        }
        c.remove().await;
        let gone = vec![(
            "WaitProcess",
            process("over", ""),
            Code::INVALID_ARGUMENT,
            "over",
        )];
        expect_answers(&agent, gone).await;
    });
}

#[test]
fn a_terminal_call_on_a_process_without_one() {
    service_story(async {
        let agent = Service::start().await;
        let c = agent
            .container("plain")
            .args(&["sleep", "1000"])
            .start()
            .await;
        let rows = vec![(
            "TtyWinResize",
            process("plain", ""),
            Code::UNAVAILABLE,
            "no tty",
        )];
        expect_answers(&agent, rows).await;
        c.kill_and_remove().await;
    });
}

#[test]
fn a_signal_that_does_not_exist() {
    service_story(async {
        let agent = Service::start().await;
        let c = agent
            .container("sig")
            .args(&["sleep", "1000"])
            .start()
            .await;
        let mut wire = agent.wire().await;
        for number in [65, 1000, u32::MAX] {
            let reply = wire
                .ask(
                    "grpc.AgentService",
                    "SignalProcess",
                    &signal("sig", "sig", number),
                )
                .await;
            assert!(
                [Code::INTERNAL, Code::INVALID_ARGUMENT].contains(&reply.code),
                "{number}: {}",
                reply.text
            );
        }
        // Signal 0 asks whether the process is there.
        let reply = wire
            .ask(
                "grpc.AgentService",
                "SignalProcess",
                &signal("sig", "sig", 0),
            )
            .await;
        assert_eq!(reply.code, Code::OK, "{}", reply.text);
        c.kill_and_remove().await;
    });
}

#[test]
fn missing_entropy_and_missing_process() {
    service_story(async {
        let agent = Service::start().await;
        let c = agent.container("c1").args(&["sleep", "1000"]).start().await;
        let mut without = ExecProcessRequest::new();
        without.container_id = "c1".to_owned();
        without.exec_id = "e".to_owned();
        let mut wire = agent.wire().await;
        for (method, message) in [
            ("ReseedRandomDev", Vec::new()),
            ("ExecProcess", encoded(&without)),
        ] {
            let reply = wire.ask("grpc.AgentService", method, &message).await;
            assert!(
                [Code::INTERNAL, Code::INVALID_ARGUMENT].contains(&reply.code),
                "{method}: {}",
                reply.text
            );
            assert!(!reply.text.is_empty(), "{method}");
        }
        c.kill_and_remove().await;
    });
}
