// SPDX-License-Identifier: Apache-2.0
//! Guests without vsock: the agent at a virtio-serial port.

use protobuf::Message;
use protocols::agent::GuestDetailsRequest;
use tests::wire::REQUEST;
use tests::{Code, Container, Vm, vm_story};

const SERVICE: &str = "grpc.AgentService";

/// As many come at once when another has left, while the agent may still be looking for somebody.
const HOSTS: u32 = 60;

/// Much in both directions, which no vsock device carries.
async fn expect_streams(vm: &Vm) {
    let numbers = "seq 1 300000";
    let there = vm.container("in").sh("md5sum").start().await;
    let here = vm.sh("out", numbers).await;
    let lines = here.ok();
    let expected: String = (1..=300_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(lines, expected.trim_end());
    for piece in expected.as_bytes().chunks(1 << 20) {
        there.write(piece).await;
    }
    there.close_stdin().await;
    let sum = there.output().await;
    let own = vm.sh("sum", &format!("{numbers} | md5sum")).await;
    assert_eq!(sum.ok(), own.ok());
    there.remove().await;
}

#[test]
fn a_guest_without_vsock_is_served_at_a_port() {
    vm_story(async {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("agent.sock");
        let mut vm = Vm::boot_at_port(&socket, |g| g).await;
        vm.create_sandbox(|_| ()).await;
        let vsock = vm
            .sh(
                "none",
                "ls /sys/bus/virtio/drivers/vmw_vsock_virtio_transport",
            )
            .await;
        assert!(!vsock.stdout.contains("virtio"), "{}", vsock.stdout);
        expect_streams(&vm).await;

        // One host after the other; what the first has made is there for the next.
        let kept = vm.container("kept").sh("read line; exit 7").start().await;
        let left = tokio::spawn(async move { kept.try_wait().await });
        vm.rpc().check().await.expect("Check");
        left.abort();
        assert!(left.await.expect_err("it was waiting").is_cancelled());
        for host in 1..=HOSTS {
            vm.leave(host).await;
            vm.come_back().await;
            vm.rpc().check().await.expect("Check");
        }
        let kept = Container::known(&vm, "kept");
        kept.write(b"end\n").await;
        assert_eq!(kept.wait().await, 7);
        kept.remove().await;
        drop(kept);

        // One that leaves within a frame.
        vm.leave(HOSTS + 1).await;
        let mut wire = vm.wire().await;
        let request = GuestDetailsRequest::new().write_to_bytes().expect("bytes");
        let reply = wire.ask(SERVICE, "GetGuestDetails", &request).await;
        assert_eq!(reply.code, Code::OK);
        wire.send_header(1000, 3, REQUEST).await;
        drop(wire);
        vm.expect_left(HOSTS + 2).await;
        vm.come_back().await;
        vm.rpc().check().await.expect("Check after half a frame");
        vm.expect_power_off().await;
    });
}
