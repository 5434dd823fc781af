// SPDX-License-Identifier: Apache-2.0
//! Memory and processors that come and go while containers run.

use guest_kernel::Arch;
use protocols::agent::{MemHotplugByProbeRequest, OnlineCPUMemRequest};
use tests::vm::Guest;
use tests::{Agent, Code, Container, Refusal, Vm, artifacts, expect_refusal, roots, vm_story};

const V1: &str = "systemd.unified_cgroup_hierarchy=0";
const V2: &str = "systemd.unified_cgroup_hierarchy=1";

/// Linux's choice on both architectures for guests of these sizes.
const BLOCK_MIB: u64 = 128;

/// Asks for so many processors in all, and for memory.
async fn ask_for(agent: &Agent, cpus: u32, cpu_only: bool) -> Result<(), Refusal> {
    let mut request = OnlineCPUMemRequest::new();
    request.nb_cpus = cpus;
    request.cpu_only = cpu_only;
    agent.rpc().online_cpu_mem(&request).await.map(drop)
}

/// A container that can be looked into by further processes.
async fn idle(vm: &Vm, id: &str, cpus: &str) -> Container {
    let idle = vm.container(id).args(&["sleep", "100000"]);
    let limited = idle.linux(|linux| {
        let resources = linux.Resources.mut_or_insert_default();
        resources.CPU.mut_or_insert_default().Cpus = cpus.to_owned();
    });
    limited.start().await
}

/// How many blocks are in each state.
async fn blocks(c: &Container) -> (u32, u32) {
    let script = "cd /sys/devices/system/memory; echo $(cat memory*/state | grep -c ^online) $(cat memory*/state | grep -vc ^online)";
    let output = c.sh(script).await;
    let numbers = output
        .ok()
        .split_whitespace()
        .map(|n| n.parse().unwrap_or(0));
    match numbers.collect::<Vec<_>>()[..] {
        [online, other] => (online, other),
        _ => panic!("{output:?}"),
    }
}

/// Waits until so many blocks are in use: nobody tells a container of that.
async fn expect_blocks(c: &Container, online: u32) {
    let script = format!(
        "cd /sys/devices/system/memory; until [ $(cat memory*/state | grep -c ^online) = {online} ]; do sleep 0.1; done"
    );
    c.sh(&script).await.ok();
    assert_eq!(blocks(c).await, (online, 0));
}

async fn memory_total_mib(c: &Container) -> u64 {
    let output = c
        .sh("awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo")
        .await;
    output.ok().trim().parse().expect("a number")
}

#[test]
fn memory_comes_and_goes() {
    vm_story(async {
        let shape = |guest: Guest| {
            let guest = guest.firmware(roots::firmware_for_nvdimm());
            // The kernel's own word for memory that can be pulled out again.
            let words =
                "memory_hotplug.online_policy=auto-movable memory_hotplug.memmap_on_memory=1";
            guest.room_for_memory(64).virtio_mem(1024).words(words)
        };
        let vm = Vm::boot(shape).await;
        vm.create_sandbox(|_| ()).await;
        let c = idle(&vm, "memory", "").await;
        let mut monitor = vm.monitor().await;
        let (base, other) = blocks(&c).await;
        assert_eq!(other, 0);
        let before = memory_total_mib(&c).await;

        // A DIMM, without anybody asking for it.
        monitor.plug_memory("dimm0", 2 * BLOCK_MIB).await;
        expect_blocks(&c, base + 2).await;
        assert!(memory_total_mib(&c).await > before + BLOCK_MIB);
        // Asking is no error, and nothing is left to do.
        ask_for(&vm, 0, false).await.expect("memory");
        monitor.unplug("dimm0").await;
        assert_eq!(blocks(&c).await, (base, 0));

        // virtio-mem, both ways.
        monitor.resize_virtio_mem(4 * BLOCK_MIB).await;
        expect_blocks(&c, base + 4).await;
        monitor.resize_virtio_mem(BLOCK_MIB).await;
        expect_blocks(&c, base + 1).await;
        monitor.resize_virtio_mem(0).await;
        assert_eq!(blocks(&c).await, (base, 0));

        // runtime#2872: the kernel's messages about many blocks at once.
        monitor.plug_memory("dimm1", 256 * BLOCK_MIB).await;
        expect_blocks(&c, base + 256).await;

        // And messages that are lost because there are too many.
        let all = base + 258;
        let there = format!("[ $(ls -d /mnt/sys/devices/system/memory/memory* | wc -l) = {all} ]");
        let plug = monitor.plug_memory("dimm2", 2 * BLOCK_MIB);
        vm.unheard(plug, &there).await;
        expect_blocks(&c, all).await;

        let mut request = MemHotplugByProbeRequest::new();
        request.memHotplugProbeAddr = vec![0x1_4000_0001];
        let answer = vm.rpc().mem_hotplug_by_probe(&request).await;
        expect_refusal(answer, Code::INTERNAL, "/sys/devices/system/memory/probe");
        vm.expect_power_off().await;
    });
}

/// The processors that a process of the container may run on, and the list in its cgroup that follows what there is.
async fn allowed(c: &Container) -> (String, String) {
    let script = "awk '/^Cpus_allowed_list/ { print $2 }' /proc/self/status; \
                  cat /sys/fs/cgroup/cpuset.cpus.effective /sys/fs/cgroup/cpuset/cpuset.effective_cpus 2>/dev/null; true";
    let output = c.sh(script).await;
    let (allowed, effective) = output.ok().split_once('\n').expect("two lines");
    (allowed.to_owned(), effective.trim_end().to_owned())
}

async fn expect_allowed(c: &Container, list: &str) {
    assert_eq!(allowed(c).await, (list.to_owned(), list.to_owned()));
    let count = c.sh("nproc").await;
    let (first, last) = list.split_once('-').unwrap_or((list, list));
    let number = |text: &str| text.parse::<u32>().expect("a number");
    assert_eq!(number(count.ok().trim()), number(last) - number(first) + 1);
}

/// A guest with one processor, and three more that are plugged in (x86_64) or there and out of use (`-smp 4` and `maxcpus=1`: QEMU
/// cannot plug any into an aarch64 machine).
async fn processors_come_and_go(version: &str) {
    let plugs = artifacts::arch() == Arch::X86_64;
    let vm = Vm::boot(|guest| match plugs {
        true => guest.sockets(4).words(version),
        false => guest.cpus(4).words("maxcpus=1").words(version),
    })
    .await;
    vm.create_sandbox(|_| ()).await;
    let c = idle(&vm, "all", "").await;
    let pinned = idle(&vm, "pinned", "2-3").await;
    expect_allowed(&c, "0").await;
    expect_allowed(&pinned, "0").await;
    // What is there is there; a total of none asks for none.
    ask_for(&vm, 0, true).await.expect("no processor");
    ask_for(&vm, 1, true).await.expect("the first processor");

    // More than there will ever be: the answer comes, and others meanwhile.
    let other = vm.another_connection().await;
    let late = tokio::spawn(async move { ask_for(&other, 9, true).await });
    for _ in 0..10 {
        vm.rpc().check().await.expect("Check is answered");
    }
    assert!(!late.is_finished());
    if plugs {
        let mut monitor = vm.monitor().await;
        for _ in 0..3 {
            monitor.plug_cpu().await;
        }
    }
    let answer = late.await.expect("a task of ours");
    expect_refusal(answer.clone(), Code::INTERNAL, "failed to online 9 CPU(s)");
    // All that came were brought into use, and are told.
    expect_refusal(answer, Code::INTERNAL, "4 online (0-3)");
    expect_allowed(&c, "0-3").await;
    expect_allowed(&pinned, "2-3").await;
    ask_for(&vm, 4, false).await.expect("all four");
    ask_for(&vm, 2, false).await.expect("more than enough");

    // Out of use by hand: all that the kernel of a machine without plugs can do.
    let probe = vm.probe("probe").await;
    let switch = |state: u8| {
        format!("for n in 1 2 3; do echo {state} > /mnt/sys/devices/system/cpu/cpu$n/online; done")
    };
    probe.sh(&switch(0)).await.ok();
    expect_allowed(&c, "0").await;
    // It has lost all it asked for, and gets what there is.
    expect_allowed(&pinned, "0").await;
    // They come back to whom they belonged.
    ask_for(&vm, 4, true).await.expect("all four again");
    expect_allowed(&c, "0-3").await;
    expect_allowed(&pinned, "2-3").await;
    if plugs {
        pull_out(&vm, &c, &pinned, &probe).await;
    }
    vm.expect_power_off().await;
}

/// The processors go while they are in use, except for one that is out of use already.
async fn pull_out(vm: &Vm, c: &Container, pinned: &Container, probe: &Container) {
    let busy = c.exec(&["sh", "-c", "while :; do :; done"]).start().await;
    let bound = pinned.exec(&["sh", "-c", "while :; do :; done"]);
    let bound = bound.start().await;
    let mut monitor = vm.monitor().await;
    monitor.unplug_cpu("cpu3").await;
    assert_eq!(present(c).await, "cpu0 cpu1 cpu2 0-2");
    expect_allowed(c, "0-2").await;
    expect_allowed(pinned, "2").await;
    let switch = "echo 0 > /mnt/sys/devices/system/cpu/cpu2/online";
    probe.sh(switch).await.ok();
    monitor.unplug_cpu("cpu2").await;
    expect_allowed(c, "0-1").await;
    // It has lost all it asked for, and gets what there is.
    expect_allowed(pinned, "0-1").await;
    monitor.unplug_cpu("cpu1").await;
    assert_eq!(present(c).await, "cpu0 0");
    expect_allowed(c, "0").await;
    expect_allowed(pinned, "0").await;
    // Nobody was lost with them, and limits can be set as before.
    for process in [busy, bound] {
        process.signal(9).await;
        assert_eq!(process.wait().await, 137);
    }
    c.update(|r| r.CPU.mut_or_insert_default().Cpus = "0".to_owned())
        .await;
    ask_for(vm, 1, false).await.expect("the last one");
    assert_eq!(vm.sh("after", "nproc").await.ok(), "1");
}

/// The processors that a container finds in sysfs, and the list of them.
async fn present(c: &Container) -> String {
    let script = "cd /sys/devices/system/cpu; echo $(ls -d cpu[0-9]*) $(cat present)";
    c.sh(script).await.ok().to_owned()
}

#[test]
fn processors_come_and_go_on_v2() {
    vm_story(processors_come_and_go(V2));
}

#[test]
fn bug_processors_come_and_go_on_v1() {
    vm_story(processors_come_and_go(V1));
}
