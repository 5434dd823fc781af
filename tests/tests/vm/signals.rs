// SPDX-License-Identifier: Apache-2.0
//! SignalProcess: who gets which signal (protocol section 3.2).

use tests::{Code, Vm, expect_refusal, vm_story};

const SIGHUP: u32 = 1;
const SIGKILL: u32 = 9;
const SIGUSR1: u32 = 10;
const SIGTERM: u32 = 15;

/// The init of a process namespace ignores signals that it has no handler for, so the agent makes it a SIGKILL.
#[test]
fn sigterm_ends_an_init_without_a_handler() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("sig-plain")
            .args(&["sleep", "100000"])
            .start()
            .await;
        c.signal(SIGTERM).await;
        assert_eq!(c.wait().await, 137);
        c.remove().await;
    });
}

#[test]
fn sigterm_is_delivered_to_a_handler() {
    vm_story(async {
        let vm = Vm::shared().await;
        let script = "trap 'echo got it; exit 12' TERM; echo ready; while :; do sleep 0.1; done";
        let c = vm.container("sig-handler").sh(script).start().await;
        c.expect("ready").await;
        c.signal(SIGTERM).await;
        let output = c.output().await;
        assert_eq!((output.code, output.stdout.as_str()), (12, "got it\n"));
        c.remove().await;
    });
}

#[test]
fn an_ignored_sigterm_stays_ignored() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("sig-ignored")
            .sh("trap '' TERM; echo ready; sleep 100000")
            .start()
            .await;
        c.expect("ready").await;
        c.signal(SIGTERM).await;
        assert_eq!(c.sh("echo still here").await.ok(), "still here");
        c.kill_and_remove().await;
    });
}

#[test]
fn sigkill_without_an_exec_id_kills_all() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("sig-all")
            .args(&["sleep", "100000"])
            .start()
            .await;
        let exec = c.exec(&["sleep", "100000"]).start().await;
        let detached = c
            .exec(&["sh", "-c", "setsid sleep 100000 & sleep 100000"])
            .start()
            .await;
        c.kill_all().await;
        for process in [&*c, &exec, &detached] {
            assert_eq!(process.wait().await, 137);
        }
        c.remove().await;
    });
}

#[test]
fn a_signal_with_an_exec_id_goes_to_that_process_alone() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("sig-one")
            .args(&["sleep", "100000"])
            .start()
            .await;
        let first = c.exec(&["sleep", "100000"]).start().await;
        let second = c
            .exec(&[
                "sh",
                "-c",
                "trap 'exit 21' USR1; echo ready; while :; do sleep 0.1; done",
            ])
            .start()
            .await;
        second.expect("ready").await;
        first.signal(SIGKILL).await;
        assert_eq!(first.wait().await, 137);
        second.signal(SIGUSR1).await;
        assert_eq!(second.wait().await, 21);
        assert_eq!(c.sh("echo init lives").await.ok(), "init lives");
        c.kill_and_remove().await;
    });
}

#[test]
fn another_signal_without_an_exec_id_goes_to_the_init() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("sig-init")
            .sh("trap 'exit 5' HUP; echo ready; while :; do sleep 0.1; done")
            .start()
            .await;
        c.expect("ready").await;
        let mut request = protocols::agent::SignalProcessRequest::new();
        request.container_id = "sig-init".to_owned();
        request.signal = SIGHUP;
        vm.rpc()
            .signal_process(&request)
            .await
            .expect("SignalProcess");
        assert_eq!(c.wait().await, 5);
        c.remove().await;
    });
}

/// Hosts take both answers for "already gone"; anything else makes them complain.
#[test]
fn a_signal_after_the_end_is_success_or_not_found() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("sig-late")
            .args(&["sleep", "100000"])
            .start()
            .await;
        let process = c.exec(&["true"]).start().await;
        // Ended or not, and not waited for yet.
        process.signal(SIGTERM).await;
        process.wait().await;
        expect_refusal(process.try_signal(SIGTERM).await, Code::NOT_FOUND, "");
        c.kill_all().await;
        c.kill_all().await;
        assert_eq!(c.wait().await, 137);
        c.kill_all().await;
        c.remove().await;
    });
}

#[test]
fn a_created_container_can_be_killed() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("sig-created")
            .args(&["sleep", "100000"])
            .create()
            .await;
        c.signal(SIGKILL).await;
        assert_eq!(c.wait().await, 137);
        expect_refusal(
            c.try_start().await,
            Code::FAILED_PRECONDITION,
            "sig-created",
        );
        c.remove().await;
    });
}
