// SPDX-License-Identifier: Apache-2.0
//! GetOOMEvent: every kill is told, once, to somebody who is there to hear it.

use protocols::agent::GetOOMEventRequest;
use tests::container::{Builder, Process};
use tests::{Container, Vm, vm_story};

const V1: &str = "systemd.unified_cgroup_hierarchy=0";
const KILLED: i32 = 137;

/// What eats all the memory it gets.
const HOG: &str = "tail /dev/zero";

/// A guest whose events nobody else takes; `words` may choose the cgroup version.
async fn guest(words: Option<&str>) -> Vm {
    let vm = Vm::boot(|g| match words {
        Some(words) => g.words(words),
        None => g,
    })
    .await;
    vm.create_sandbox(|_| ()).await;
    vm
}

/// A container with 24 MiB.
fn small(vm: &Vm, id: &str) -> Builder {
    let limit = |linux: &mut protocols::oci::Linux| {
        let resources = linux.Resources.mut_or_insert_default();
        resources.Memory.mut_or_insert_default().Limit = 24 << 20;
    };
    vm.container(id).linux(limit).args(&["sleep", "100000"])
}

async fn overeat(c: &Container) {
    let hog = c.exec(&["sh", "-c", &format!("exec {HOG}")]).start().await;
    assert_eq!(hog.wait().await, KILLED);
}

/// The next event is asked for and not there yet: the agent has the call by now, for it answers a later one on the same connection.
macro_rules! ask {
    ($agent:expr) => {{
        let rpc = $agent.rpc().clone();
        let mut call = Box::pin(async move {
            let answer = rpc.get_oom_event(&GetOOMEventRequest::new()).await;
            answer.map(|event| event.container_id)
        });
        tokio::select! {
            biased;
            early = &mut call => panic!("there is no event yet: {early:?}"),
            check = $agent.rpc().check() => drop(check.expect("Check is answered")),
        }
        call
    }};
}

async fn each_kill_is_told(words: Option<&str>) {
    let vm = guest(words).await;
    let one = small(&vm, "one").start().await;
    let two = small(&vm, "two").start().await;
    overeat(&one).await;
    overeat(&one).await;
    assert_eq!(vm.oom_event().await, "one");
    // Both kills may have been counted before they were looked at: then they are one.
    overeat(&two).await;
    let mut next = vm.oom_event().await;
    if next == "one" {
        next = vm.oom_event().await;
    }
    assert_eq!(next, "two");
    // Once looked at, the next is one of its own: the reference is silent on version 2 after the first.
    for _ in 0..3 {
        overeat(&one).await;
        assert_eq!(vm.oom_event().await, "one");
    }
    // SIGKILL and removal are no lack of memory: the next event is that of the other container.
    one.kill_and_remove().await;
    overeat(&two).await;
    assert_eq!(vm.oom_event().await, "two");
    // The container's first process, and the container gone before anybody asks.
    let three = small(&vm, "three").sh(&format!("exec {HOG}")).start().await;
    assert_eq!(three.wait().await, KILLED);
    three.remove().await;
    assert_eq!(vm.oom_event().await, "three");
    two.kill_and_remove().await;
    vm.expect_power_off().await;
}

#[test]
fn bug_each_kill_is_told_on_version_2() {
    vm_story(each_kill_is_told(None));
}

#[test]
fn bug_each_kill_is_told_on_version_1() {
    vm_story(each_kill_is_told(Some(V1)));
}

/// A container engine inside: the limit is its own, and so is the group below.
#[test]
fn a_kill_in_a_group_below_is_told_on_version_2() {
    vm_story(async {
        let vm = guest(None).await;
        let options = ["nosuid", "noexec", "nodev", "rw"];
        let c = vm
            .container("outer")
            .spec(|s| {
                s.Mounts.retain(|m| m.destination != "/sys/fs/cgroup");
                s.Mounts.push(tests::spec::mount(
                    "/sys/fs/cgroup",
                    "cgroup",
                    "cgroup",
                    &options,
                ));
            })
            .args(&["sleep", "100000"])
            .start()
            .await;
        let nest = "set -e; cd /sys/fs/cgroup; mkdir init inner; for p in $(cat cgroup.procs); do echo $p > init/cgroup.procs || true; done 2>/dev/null
            echo +memory > cgroup.subtree_control; echo 16M > inner/memory.max";
        assert_eq!(c.sh(nest).await.ok(), "");
        for _ in 0..2 {
            let inner = format!("echo 0 > /sys/fs/cgroup/inner/cgroup.procs && exec {HOG}");
            assert_eq!(c.sh(&inner).await.code, KILLED);
            assert_eq!(vm.oom_event().await, "outer");
        }
        c.kill_and_remove().await;
    });
}

/// The victim's counter is the one of the group below, the limit and the report are the container's.
#[test]
fn a_kill_in_a_group_below_is_told_on_version_1() {
    vm_story(async {
        let vm = guest(Some(V1)).await;
        let c = small(&vm, "outer").start().await;
        let probe = vm.probe("probe").await;
        let group = "/mnt/sys/fs/cgroup/memory/stories/outer";
        let made = probe.sh(&format!("mkdir {group}/inner")).await;
        made.ok();
        for _ in 0..2 {
            let hog = waiting_hog(&c).await;
            let moved = format!(
                "for p in $(cat {group}/cgroup.procs); do grep -q sleep /proc/$p/comm || echo $p > {group}/inner/cgroup.procs; done
                wc -l < {group}/inner/cgroup.procs"
            );
            assert_eq!(probe.sh(&moved).await.ok(), "1");
            hog.write(b"go\n").await;
            assert_eq!(hog.wait().await, KILLED);
            assert_eq!(vm.oom_event().await, "outer");
        }
        c.kill_and_remove().await;
    });
}

/// A process that will eat all memory once it is told to.
async fn waiting_hog(c: &Container) -> Process {
    let script = format!("echo ready; read go; exec {HOG}");
    let hog = c.exec(&["sh", "-c", &script]).start().await;
    hog.expect("ready").await;
    hog
}

/// The reference dead-locks two callers, and loses the event of one that went away.
#[test]
fn bug_callers_share_events_and_lose_none() {
    vm_story(async {
        let vm = guest(None).await;
        let (one, two) = (vm.another_connection().await, vm.another_connection().await);
        let (first, second) = (ask!(one), ask!(two));
        let a = small(&vm, "aa").start().await;
        let b = small(&vm, "bb").start().await;
        overeat(&a).await;
        overeat(&b).await;
        let (first, second) = tokio::join!(first, second);
        let mut told = [first.expect("an event"), second.expect("an event")];
        told.sort();
        assert_eq!(told, ["aa", "bb"]);

        // The host's connection breaks while it waits; it asks again over a new one.
        let gone = vm.another_connection().await;
        let call = ask!(gone);
        drop((call, gone));
        let back = vm.another_connection().await;
        let call = ask!(back);
        overeat(&a).await;
        assert_eq!(call.await.expect("an event"), "aa");
        a.kill_and_remove().await;
        b.kill_and_remove().await;
    });
}
