// SPDX-License-Identifier: Apache-2.0
//! StatsContainer: the figures agree with what the container did.

use protocols::agent::{CgroupStats, StatsContainerRequest};
use tests::vm::{ext4_image, storage};
use tests::{Container, Vm, vm_story};

const V1: &str = "systemd.unified_cgroup_hierarchy=0";
const MIB: u64 = 1 << 20;

fn bytes(stats: &CgroupStats, op: &str) -> u64 {
    let entries = stats.blkio_stats.io_service_bytes_recursive.iter();
    entries.filter(|e| e.op == op).map(|e| e.value).sum()
}

/// The container's own bookkeeping: what `times` says of the shell's children, in nanoseconds.
async fn burn(c: &Container) -> u64 {
    let script = "dd if=/dev/urandom of=/dev/null bs=1M count=100 2>/dev/null; times";
    let output = c.sh(script).await;
    let seconds = |word: &str| -> f64 {
        let (minutes, seconds) = word.trim_end_matches('s').split_once('m').expect("0m0.00s");
        minutes.parse::<f64>().expect("minutes") * 60.0 + seconds.parse::<f64>().expect("seconds")
    };
    let total: f64 = output.ok().split_whitespace().map(seconds).sum();
    assert!(total > 0.05, "{output:?}");
    (total * 1e9) as u64
}

async fn figures_agree(vm: &Vm, v1: bool) {
    let point = "/run/kata-containers/sandbox/storage/disk";
    let c = vm
        .container("worker")
        .storage(storage("blk", "/dev/vda", "ext4", point, &[]))
        .bind("/mnt", point)
        .linux(|l| {
            let resources = l.Resources.mut_or_insert_default();
            resources.Memory.mut_or_insert_default().Limit = 128 * MIB as i64;
            resources.Pids.mut_or_insert_default().Limit = 50;
        })
        .args(&["sleep", "100000"])
        .start()
        .await;
    if v1 {
        // Linux 6.10 and newer count nothing for a disk before it has been throttled once: 0 is no limit.
        let probe = vm.probe("probe").await;
        let file = "/mnt/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device";
        probe
            .sh(&format!(
                "echo \"$(cat /sys/class/block/vda/dev) 0\" > {file}"
            ))
            .await
            .ok();
        probe.kill_and_remove().await;
    }
    let before = c.stats().await;
    assert_eq!(
        (before.pids_stats.current, before.pids_stats.limit),
        (1, 50)
    );
    assert_eq!(before.memory_stats.usage.limit, 128 * MIB);

    let burnt = burn(&c).await;
    let after = c.stats().await;
    let cpu = |stats: &CgroupStats| stats.cpu_stats.cpu_usage.total_usage;
    let used = cpu(&after) - cpu(&before);
    // The clock of `times` ticks in hundredths; starting a shell costs something too.
    let (least, most) = (burnt - burnt / 10, burnt + burnt / 2 + 500_000_000);
    assert!(
        (least..most).contains(&used),
        "{used} ns used, {burnt} ns by its own account"
    );
    let modes = after.cpu_stats.cpu_usage.clone().unwrap_or_default();
    assert!(modes.usage_in_kernelmode > 0);
    assert_eq!(modes.percpu_usage.is_empty(), !v1);

    let file = "head -c 33554432 /dev/zero > /dev/shm/file; cat /dev/shm/file > /dev/null";
    c.sh(file).await.ok();
    let touched = c.stats().await;
    let memory = |stats: &CgroupStats| stats.memory_stats.usage.usage;
    let grown = memory(&touched) - memory(&before);
    assert!(
        (31 * MIB..48 * MIB).contains(&grown),
        "{grown} bytes more after 32 MiB"
    );
    assert!(
        touched.memory_stats.cache >= 32 * MIB,
        "bug_: the cache of version 2 is `file`"
    );
    assert!(touched.memory_stats.usage.max_usage >= memory(&touched));
    let working_set = if v1 {
        "total_inactive_file"
    } else {
        "inactive_file"
    };
    assert!(touched.memory_stats.stats.contains_key(working_set));

    // Direct: version 1 does not know whose a page is that is written back later.
    let write = "dd if=/dev/zero of=/mnt/file bs=1M count=8 oflag=direct 2>&1 && sync";
    c.sh(write).await.ok();
    let written = bytes(&c.stats().await, "write") - bytes(&touched, "write");
    assert!(
        (8 * MIB..10 * MIB).contains(&written),
        "{written} bytes after 8 MiB"
    );

    let script =
        "for i in 1 2 3; do sleep 100000 & done; echo ready; read end; kill $(jobs -p); wait";
    let crowd = c.exec(&["sh", "-c", script]).start().await;
    crowd.expect("ready").await;
    let pids = c.stats().await.pids_stats.current;
    assert_eq!(pids, 5, "the container's own, the shell and its three");
    crowd.close_stdin().await;
    crowd.wait().await;
    assert_eq!(c.stats().await.pids_stats.current, 1);
    c.kill_and_remove().await;
}

async fn guest(words: Option<&str>) -> (Vm, tempfile::TempDir) {
    let dir = tempfile::TempDir::new().expect("a temporary directory");
    let disk = ext4_image(&dir.path().join("disk.img"), 32, None);
    let vm = Vm::boot(|g| match words {
        Some(words) => g.disk(&disk).words(words),
        None => g.disk(&disk),
    })
    .await;
    vm.create_sandbox(|_| ()).await;
    (vm, dir)
}

#[test]
fn figures_agree_with_the_work_on_version_2() {
    vm_story(async {
        let (vm, _dir) = guest(None).await;
        figures_agree(&vm, false).await;
    });
}

#[test]
fn figures_agree_with_the_work_on_version_1() {
    vm_story(async {
        let (vm, _dir) = guest(Some(V1)).await;
        figures_agree(&vm, true).await;
    });
}

/// The reference leaves the time out on version 2.
#[test]
fn bug_throttled_time_is_counted_on_version_2() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("stats-cpu")
            .linux(|l| {
                let cpu = l
                    .Resources
                    .mut_or_insert_default()
                    .CPU
                    .mut_or_insert_default();
                (cpu.Quota, cpu.Period) = (10_000, 100_000);
            })
            .args(&["sleep", "100000"])
            .start()
            .await;
        burn(&c).await;
        let throttled = c
            .stats()
            .await
            .cpu_stats
            .throttling_data
            .clone()
            .unwrap_or_default();
        assert!(throttled.throttled_periods > 0, "{throttled:?}");
        assert!(
            throttled.periods >= throttled.throttled_periods,
            "{throttled:?}"
        );
        assert!(
            throttled.throttled_time > 1_000_000,
            "nanoseconds: {throttled:?}"
        );
        c.kill_and_remove().await;
    });
}

#[test]
fn every_size_of_huge_page_has_its_figures() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("stats-huge")
            .args(&["sleep", "100000"])
            .start()
            .await;
        let kernel = c.sh("ls /sys/kernel/mm/hugepages | grep -c .").await;
        let stats = c.stats().await;
        assert_eq!(
            stats.hugetlb_stats.len().to_string(),
            kernel.ok(),
            "{stats:?}"
        );
        assert!(stats.hugetlb_stats.contains_key("2MB"), "{stats:?}");
        c.kill_and_remove().await;
    });
}

#[test]
fn interfaces_are_those_that_the_container_sees() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("stats-net")
            .linux(|l| l.Namespaces.push(tests::spec::namespace("network")))
            .capabilities(&tests::spec::ALL_CAPABILITIES)
            .args(&["sleep", "100000"])
            .start()
            .await;
        let network = async || {
            let mut request = StatsContainerRequest::new();
            request.container_id = c.id().to_owned();
            let answer = vm.rpc().stats_container(&request).await;
            answer.expect("statistics").network_stats
        };
        assert_eq!(network().await, [], "loopback is not told");
        // Nobody answers on the bridge, but it is asked who has the address.
        let bridge = "ip link add near type bridge && ip link set near up && ip addr add 10.9.9.1/24 dev near
            ping -c 2 -W 1 10.9.9.2 > /dev/null; grep near: /proc/net/dev";
        let own = c
            .exec(&["sh", "-c", bridge])
            .process(|p| {
                p.Capabilities =
                    Some(tests::spec::capabilities(&tests::spec::ALL_CAPABILITIES)).into()
            })
            .run()
            .await;
        let stats = network().await;
        let [near] = &stats[..] else {
            panic!("{stats:?} {own:?}");
        };
        assert_eq!(near.name, "near");
        assert!(near.tx_packets > 0 && near.tx_bytes > 0, "{near:?} {own:?}");
        c.kill_all().await;
        c.wait().await;
        assert_eq!(network().await, [], "nobody is left to see them");
        c.remove().await;
    });
}
