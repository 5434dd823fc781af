// SPDX-License-Identifier: Apache-2.0
//! Two containers of one sandbox, and processes that outlive their parents.

use tests::{Vm, vm_story};

#[test]
fn containers_share_ipc_uts_and_if_asked_pids() {
    vm_story(async {
        let vm = Vm::boot(|g| g).await;
        vm.create_sandbox(|r| {
            r.hostname = "the-pod".to_owned();
            r.sandbox_pidns = true;
        })
        .await;
        let pause = vm
            .container("pause")
            .args(&["sleep", "99999"])
            .sandbox_pids()
            .start()
            .await;
        let joined = vm
            .container("joined")
            .args(&["sleep", "100000"])
            .sandbox_pids()
            .start()
            .await;
        let apart = vm
            .container("apart")
            .args(&["sleep", "100000"])
            .start()
            .await;

        let look = "for n in ipc uts pid mnt; do readlink /proc/self/ns/$n; done";
        let (first, second, third) = (
            pause.sh(look).await,
            joined.sh(look).await,
            apart.sh(look).await,
        );
        let lines = |output| tests::Output::ok(output).lines().collect::<Vec<_>>();
        let (first, second, third) = (lines(&first), lines(&second), lines(&third));
        assert_eq!(first[..3], second[..3], "ipc, uts and pid are shared");
        assert_eq!(first[..2], third[..2], "ipc and uts are shared");
        assert_ne!(
            first[2], third[2],
            "pid is not shared without being asked for"
        );
        assert_ne!(first[3], second[3], "mounts never are");

        assert_eq!(joined.sh("hostname").await.ok(), "the-pod");
        assert!(joined.sh("ps").await.ok().contains("sleep 99999"));
        assert!(!apart.sh("ps").await.ok().contains("sleep 99999"));
        assert_eq!(
            apart.sh("cat /proc/1/cmdline | tr '\\0' ' '").await.ok(),
            "sleep 100000"
        );

        pause.sh("touch /dev/mqueue/letterbox").await.ok();
        assert_eq!(joined.sh("ls /dev/mqueue").await.ok(), "letterbox");
        vm.expect_power_off().await;
    });
}

/// Processes whose parents have gone come to PID 1, the agent, which must collect them all.
#[test]
fn orphans_are_reaped() {
    vm_story(async {
        let vm = Vm::shared().await;
        let probe = vm.probe("pod-orphans").await;
        let script = "for i in $(seq 500); do sh -c 'true & sleep 0 & exit 0'; done
            for try in $(seq 100); do
                left=$(cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ')
                test $left = 0 && break
                sleep 0.1
            done
            echo $left";
        assert_eq!(probe.sh(script).await.ok(), "0", "zombies are left");
        vm.expect_alive().await;
        probe.kill_and_remove().await;
    });
}

#[test]
fn processes_of_a_container_go_with_it() {
    vm_story(async {
        let vm = Vm::shared().await;
        let probe = vm.probe("pod-probe").await;
        let c = vm
            .container("pod-going")
            .args(&["sleep", "100000"])
            .start()
            .await;
        c.exec(&[
            "sh",
            "-c",
            "setsid sleep 77777 & setsid sleep 77777 & exit 0",
        ])
        .run()
        .await
        .ok();
        assert_eq!(
            probe.sh("ps | grep -c '[s]leep 77777'").await.stdout.trim(),
            "2"
        );
        c.kill_and_remove().await;
        let left = probe.sh("ps | grep -c '[s]leep 77777'").await;
        assert_eq!(left.stdout.trim(), "0");
        probe.kill_and_remove().await;
    });
}
