// SPDX-License-Identifier: Apache-2.0
//! Paused, stopped and dying containers on both cgroup versions, and what is asked of them meanwhile (protocol section 3.2).

use protocols::agent::{GetDiagnosticDataRequest, RemoveContainerRequest, UpdateContainerRequest};
use tests::{Code, Container, Refusal, Vm, artifacts, expect_refusal, vm_story};

const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;

/// The word that gives a guest cgroup v1.
const V1: &str = "systemd.unified_cgroup_hierarchy=0";

/// Whether the kernel says that a container of the tests stands still.
async fn is_frozen(probe: &Container, id: &str) -> bool {
    let script = format!(
        "cd /mnt/sys/fs/cgroup; if test -d freezer; then cat freezer/stories/{id}/freezer.state; \
         else grep frozen stories/{id}/cgroup.events; fi"
    );
    match probe.sh(&script).await.ok() {
        "FROZEN" | "frozen 1" => true,
        "THAWED" | "frozen 0" => false,
        other => panic!("{id} is {other}"),
    }
}

async fn sleeper(vm: &Vm, id: &str) -> Container {
    vm.container(id).args(&["sleep", "100000"]).start().await
}

/// Everything that may be asked of a container while it is paused.
async fn paused(vm: &Vm) {
    let probe = vm.probe("pause-probe").await;
    let c = sleeper(vm, "pause-1").await;
    let exec = c.exec(&["sleep", "100000"]).start().await;
    expect_refusal(c.try_resume().await, Code::INTERNAL, "running, not paused");
    c.pause().await;
    assert!(is_frozen(&probe, c.id()).await);
    expect_refusal(
        c.try_pause().await,
        Code::INTERNAL,
        "current status is: paused",
    );
    expect_refusal(c.try_start().await, Code::FAILED_PRECONDITION, "paused");
    for _ in 0..3 {
        let refused = c.exec(&["true"]).try_start().await.map(drop);
        expect_refusal(refused, Code::FAILED_PRECONDITION, "Container is paused");
    }
    // Limits change, and nothing at all is no change.
    c.update(|r| r.Pids.mut_or_insert_default().Limit = 77)
        .await;
    let mut nothing = UpdateContainerRequest::new();
    nothing.container_id = c.id().to_owned();
    vm.rpc()
        .update_container(&nothing)
        .await
        .expect("UpdateContainer without resources");
    let pids = probe
        .sh("cat /mnt/sys/fs/cgroup/stories/pause-1/pids.max /mnt/sys/fs/cgroup/pids/stories/pause-1/pids.max 2>/dev/null; true")
        .await;
    assert_eq!(pids.ok(), "77");
    // A process dies of SIGKILL, and the others stay where they are.
    exec.signal(SIGKILL).await;
    assert_eq!(exec.wait().await, 137);
    assert!(is_frozen(&probe, c.id()).await);
    c.resume().await;
    assert!(!is_frozen(&probe, c.id()).await);
    expect_refusal(c.try_resume().await, Code::INTERNAL, "not paused");
    assert_eq!(c.sh("echo awake").await.ok(), "awake");

    // Each way to end one that is paused.
    c.pause().await;
    c.kill_all().await;
    assert_eq!(c.wait().await, 137);
    c.remove().await;
    for signal in [SIGKILL, SIGTERM] {
        let c = sleeper(vm, "pause-2").await;
        c.pause().await;
        c.signal(signal).await;
        assert_eq!(c.wait().await, 137);
        expect_refusal(c.try_resume().await, Code::INTERNAL, "stopped, not paused");
        expect_refusal(
            c.try_pause().await,
            Code::INTERNAL,
            "current status is: stopped",
        );
        c.remove().await;
    }
    let c = sleeper(vm, "pause-3").await;
    let exec = c.exec(&["sleep", "100000"]).start().await;
    let waiter = {
        let exec = exec.clone();
        tokio::spawn(async move { exec.try_wait().await })
    };
    c.pause().await;
    c.remove().await;
    let waited = waiter.await.expect("the waiter is answered");
    assert!(matches!(waited, Ok(137)) || waited.is_err(), "{waited:?}");

    // Paused before the start, which then still comes.
    let c = vm.container("pause-4").sh("exit 6").create().await;
    c.pause().await;
    expect_refusal(c.try_start().await, Code::FAILED_PRECONDITION, "paused");
    c.resume().await;
    c.start().await;
    assert_eq!(c.wait().await, 6);
    c.remove().await;
    probe.kill_and_remove().await;
}

/// Execs on their way when a pause comes arrive or are refused; none is lost, none hangs.
async fn execs_meet_a_pause(vm: &Vm) {
    let c = sleeper(vm, "pause-race").await;
    for _ in 0..10 {
        let execs: Vec<_> = (0..4)
            .map(|_| {
                let exec = c.exec(&["true"]);
                tokio::spawn(async move { exec.try_start().await })
            })
            .collect();
        c.pause().await;
        let mut arrived = Vec::new();
        for exec in execs {
            match exec.await.expect("each is answered") {
                Ok(process) => arrived.push(process),
                Err(refusal) => {
                    expect_refusal::<()>(Err(refusal), Code::FAILED_PRECONDITION, "paused")
                }
            }
        }
        c.resume().await;
        for process in arrived {
            assert_eq!(process.wait().await, 0);
        }
    }
    c.kill_and_remove().await;
}

/// An exec into a container that is dying is an answer at once, and the right one.
async fn execs_meet_the_end(vm: &Vm) {
    let is_right = |refusal: &Refusal| {
        refusal.code == Some(Code::FAILED_PRECONDITION) && refusal.text.contains("stopped")
    };
    for round in 0..10 {
        let c = sleeper(vm, "end-race").await;
        let execs: Vec<_> = (0..4)
            .map(|_| {
                let exec = c.exec(&["sleep", "100000"]);
                tokio::spawn(async move { exec.try_start().await })
            })
            .collect();
        match round % 2 {
            0 => c.kill_all().await,
            _ => c.signal(SIGKILL).await,
        }
        for exec in execs {
            match exec.await.expect("each is answered") {
                Ok(process) => assert_eq!(process.wait().await, 137),
                Err(refusal) => assert!(is_right(&refusal), "{refusal}"),
            }
        }
        assert_eq!(c.wait().await, 137);
        let refusal = c
            .exec(&["true"])
            .try_start()
            .await
            .err()
            .expect("it is refused");
        assert!(is_right(&refusal), "{refusal}");
        c.remove().await;
    }
}

#[test]
fn a_paused_container_on_cgroup_v2() {
    vm_story(async {
        let vm = Vm::shared().await;
        paused(&vm).await;
        execs_meet_a_pause(&vm).await;
    });
}

#[test]
fn a_dying_container_on_cgroup_v2() {
    vm_story(async {
        execs_meet_the_end(&Vm::shared().await).await;
    });
}

#[test]
fn paused_and_dying_containers_on_cgroup_v1() {
    vm_story(async {
        let vm = Vm::boot(|g| g.words(V1)).await;
        paused(&vm).await;
        execs_meet_a_pause(&vm).await;
        execs_meet_the_end(&vm).await;
        vm.expect_power_off().await;
    });
}

/// A pid namespace that others keep alive takes new processes after the end of the container's first one.
#[test]
fn an_exec_after_the_end_works_where_the_pid_namespace_is_shared() {
    vm_story(async {
        let vm = Vm::boot(|g| g).await;
        let pause = sleeper(&vm, "pause").await;
        let c = vm.container("c1").sandbox_pids().sh("exit 3").start().await;
        assert_eq!(c.wait().await, 3);
        assert_eq!(
            c.sh("echo still; cat /etc/hostname").await.ok(),
            "still\nimage"
        );
        c.remove().await;
        pause.kill_and_remove().await;
    });
}

fn removal(id: &str, timeout: u32) -> RemoveContainerRequest {
    let mut request = RemoveContainerRequest::new();
    request.container_id = id.to_owned();
    request.timeout = timeout;
    request
}

/// What makes this removal long is a hook; a process that is stuck in the kernel would do the same.
#[test]
fn a_removal_that_takes_too_long_goes_on() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("remove-slow")
            .spec(|s| {
                let mut hook = protocols::oci::Hook::new();
                hook.Path = format!("{}/bin/busybox", artifacts::ROOTFS);
                hook.Args = ["sh", "-c", "read never < /run/remove-slow"]
                    .map(str::to_owned)
                    .to_vec();
                hook.Timeout = 600;
                s.Hooks.mut_or_insert_default().Poststop.push(hook);
            })
            .args(&["sleep", "100000"])
            .start()
            .await;
        let probe = vm.probe("remove-probe").await;
        probe.sh("mkfifo /mnt/run/remove-slow").await.ok();
        let late = vm.rpc().remove_container(&removal(c.id(), 1)).await;
        expect_refusal(late, Code::INTERNAL, "ETIME");
        // It goes on meanwhile; what else is asked of the container says so at once.
        expect_refusal(
            c.try_remove().await,
            Code::FAILED_PRECONDITION,
            "being removed",
        );
        let refused = c.exec(&["true"]).try_start().await.map(drop);
        expect_refusal(refused, Code::FAILED_PRECONDITION, "being removed");
        expect_refusal(c.try_pause().await, Code::INTERNAL, "being removed");
        let update = c.try_update(|_| ()).await;
        expect_refusal(update, Code::FAILED_PRECONDITION, "being removed");
        assert_eq!(c.wait().await, 137);
        probe.sh("echo end > /mnt/run/remove-slow").await.ok();
        loop {
            match c.try_remove().await {
                Err(refusal) if refusal.text.contains("being removed") => {}
                other => break expect_refusal(other, Code::INTERNAL, "Invalid container id"),
            }
        }
        assert_eq!(vm.sh("remove-slow", "echo again").await.ok(), "again");
        probe.kill_and_remove().await;
    });
}

/// What a process that nobody waited for has left.
#[test]
fn processes_that_are_never_waited_for_leave_with_their_container() {
    vm_story(async {
        let vm = Vm::shared().await;
        let probe = vm.probe("unwaited-probe").await;
        let descriptors = async || {
            let count = probe.sh("ls /proc/1/fd | wc -l").await;
            count.ok().parse::<usize>().expect("a number")
        };
        let before = descriptors().await;
        let c = sleeper(&vm, "unwaited").await;
        for _ in 0..20 {
            c.exec(&["true"]).start().await;
        }
        assert!(descriptors().await > before);
        c.kill_all().await;
        c.remove().await;
        expect_refusal(c.try_wait().await, Code::INVALID_ARGUMENT, "unwaited");
        // Other stories of the shared guest come and go, but not by twenty.
        let after = descriptors().await;
        assert!(after < before + 20, "{before} descriptors, then {after}");
        probe.kill_and_remove().await;
    });
}

#[test]
fn the_termination_log_is_read_from_its_mount() {
    vm_story(async {
        let vm = Vm::shared().await;
        let probe = vm.probe("log-probe").await;
        probe.sh("touch /mnt/run/log-file").await.ok();
        let ask = |id: &str, kind: &str| {
            let mut request = GetDiagnosticDataRequest::new();
            request.container_id = id.to_owned();
            request.log_type = kind.to_owned();
            let vm = vm.clone();
            async move {
                vm.rpc()
                    .get_diagnostic_data(&request)
                    .await
                    .map(|answer| answer.data)
            }
        };
        let c = vm
            .container("log-1")
            .bind("/dev/termination-log", "/run/log-file")
            .spec(|s| {
                let path = "/dev/termination-log".to_owned();
                let key = "io.kubernetes.container.terminationMessagePath";
                s.Annotations.insert(key.to_owned(), path);
            })
            .sh("echo out of memory > /dev/termination-log")
            .start()
            .await;
        assert_eq!(c.wait().await, 0);
        let log = ask("log-1", "termination_log").await.expect("the log");
        assert_eq!(log, "out of memory\n");
        probe
            .sh("head -c 100000 /dev/zero > /mnt/run/log-file")
            .await
            .ok();
        let log = ask("log-1", "termination_log").await.expect("the log");
        assert_eq!(log.len(), 4096);
        expect_refusal(
            ask("log-1", "kernel_log").await,
            Code::INVALID_ARGUMENT,
            "unsupported diagnostic log_type: kernel_log",
        );
        c.remove().await;
        expect_refusal(
            ask("log-1", "termination_log").await,
            Code::INTERNAL,
            "Invalid container id",
        );
        let c = vm.container("log-2").sh("true").create().await;
        expect_refusal(
            ask("log-2", "termination_log").await,
            Code::INTERNAL,
            "terminationMessagePath",
        );
        c.kill_and_remove().await;
        probe.kill_and_remove().await;
    });
}
