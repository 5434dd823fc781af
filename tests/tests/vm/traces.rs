// SPDX-License-Identifier: Apache-2.0
//! What containers leave behind in the guest: nothing, not even lines on the console.

use tests::{Container, Vm, vm_story};

/// What is counted: PID 1's descriptors and mounts, cgroups, bundles, and processes that are not the kernel's.
const COUNTS: &str = r#"
    echo fds $(ls /mnt/proc/1/fd | wc -l)
    echo mounts $(wc -l < /mnt/proc/1/mountinfo)
    echo cgroups $(find /mnt/sys/fs/cgroup -type d | wc -l)
    echo bundles $(ls /mnt/run/kata-containers | wc -l)
    echo shm $(ipcs -m | grep -c 0x)
"#;

async fn counts(probe: &Container) -> String {
    probe.sh(COUNTS).await.ok().to_owned()
}

/// One container as a host handles it: streams read to their ends, an exec or two, one of them in vain.
async fn one_life(vm: &Vm, id: &str) {
    let c = vm
        .container(id)
        .sh("echo hello; read line; exit 1")
        .start()
        .await;
    c.exec(&["echo", "from an exec"]).run().await.ok();
    assert!(c.exec(&["no-such-program"]).try_start().await.is_err());
    c.write(b"end\n").await;
    let output = c.output().await;
    assert_eq!((output.code, output.stdout.as_str()), (1, "hello\n"));
    c.remove().await;
}

#[test]
fn fifty_containers_leave_nothing() {
    vm_story(async {
        let vm = Vm::boot(|g| g).await;
        vm.create_sandbox(|_| ()).await;
        let probe = vm.probe("probe").await;
        // The first may make what stays for good, such as the parent cgroup.
        one_life(&vm, "warm-up").await;
        let before = counts(&probe).await;
        for number in 0..50 {
            one_life(&vm, &format!("leak-{number}")).await;
        }
        assert_eq!(counts(&probe).await, before);
    });
}

/// Hosts do not always read what a process wrote; in the reference every such stream kept its descriptor for good.
#[test]
fn unread_streams_and_killed_containers_leave_nothing() {
    vm_story(async {
        let vm = Vm::boot(|g| g).await;
        vm.create_sandbox(|_| ()).await;
        let probe = vm.probe("probe").await;
        one_life(&vm, "warm-up").await;
        let before = counts(&probe).await;
        for number in 0..10 {
            let c = vm
                .container(&format!("unread-{number}"))
                .sh("echo unread; sleep 100000")
                .start()
                .await;
            c.exec(&["echo", "unread"]).start().await.wait().await;
            c.exec(&["sh", "-c", "echo unread; sleep 100000"])
                .tty()
                .start()
                .await;
            c.kill_and_remove().await;
            vm.container(&format!("never-{number}"))
                .sh("true")
                .create()
                .await
                .remove()
                .await;
            let bad = vm
                .container(&format!("bad-{number}"))
                .bind("/mnt", "/no/such/source")
                .try_create()
                .await;
            assert!(bad.is_err());
        }
        assert_eq!(counts(&probe).await, before);
    });
}

/// A serial console costs milliseconds per line; in the reference it is half of a container's creation.
#[test]
fn containers_print_nothing_on_the_console() {
    vm_story(async {
        let vm = Vm::boot(|g| g).await;
        vm.create_sandbox(|_| ()).await;
        one_life(&vm, "warm-up").await;
        let before = vm.console();
        for number in 0..5 {
            one_life(&vm, &format!("quiet-{number}")).await;
        }
        // The kernel refines the TSC a second after its start and tells, whatever containers do.
        let after = vm.console();
        let of_containers: Vec<&String> = after[before.len()..]
            .iter()
            .filter(|line| !(line.contains("] tsc: ") || line.contains("] clocksource: ")))
            .collect();
        assert!(
            of_containers.is_empty(),
            "lines that containers put on the console: {of_containers:?}"
        );
    });
}
