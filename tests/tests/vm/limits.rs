// SPDX-License-Identifier: Apache-2.0
//! Every limit bites, can be changed while the container runs, and shows in the statistics; on both cgroup versions.
//!
//! The guest's kernel is our own: a distributor's may know limits of memory for one version only. No story measures time: what is
//! compared are the kernel's counters, and who comes first.

use std::future::Future;
use std::path::Path;

use protocols::agent::CgroupStats;
use protocols::oci;
use tempfile::TempDir;
use tests::container::Builder;
use tests::facts::Facts;
use tests::vm::{ext4_image, storage};
use tests::{Code, Container, Vm, expect_refusal, vm_story};

const MIB: i64 = 1 << 20;
/// Where the guest mounts the disk that writers share.
const DISK: &str = "/run/kata-containers/sandbox/storage/disk";
/// The exit code of what the OOM killer killed.
const KILLED: i32 = 137;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}
use Version::{V1, V2};

/// The guest of a story, and the container that looks into its cgroups.
struct Ground {
    vm: Vm,
    probe: Container,
    version: Version,
    _dir: TempDir,
}

/// A control file: its controller, its name and what it holds in version 1, its name and what it holds in version 2.
type Expected<'a> = (&'a str, (&'a str, &'a str), (&'a str, &'a str));

impl Ground {
    async fn new(version: Version) -> Ground {
        let dir = TempDir::new().expect("a temporary directory");
        let disk = ext4_image(&dir.path().join("disk.img"), 64, None);
        let vm = Vm::boot_through_init(|g| shaped(g, version, &disk)).await;
        vm.create_sandbox(|r| {
            r.storages
                .push(storage("blk", "/dev/vda", "ext4", DISK, &[]))
        })
        .await;
        let probe = vm.probe("probe").await;
        Ground {
            vm,
            probe,
            version,
            _dir: dir,
        }
    }

    /// A container that sleeps, with these limits and the disk at `/mnt`.
    async fn sleeper(&self, id: &str, limits: impl FnOnce(&mut oci::LinuxResources)) -> Container {
        self.builder(id, limits).start().await
    }

    fn builder(&self, id: &str, limits: impl FnOnce(&mut oci::LinuxResources)) -> Builder {
        self.vm
            .container(id)
            .linux(|l| limits(l.Resources.mut_or_insert_default()))
            .bind("/mnt", DISK)
            .args(&["sleep", "100000"])
    }

    /// What a file of the container's cgroup holds.
    async fn file(&self, c: &Container, controller: &str, name: &str) -> String {
        let group = match self.version {
            V1 => format!("{controller}/stories"),
            V2 => "stories".to_owned(),
        };
        let path = format!("/mnt/sys/fs/cgroup/{group}/{}/{name}", c.id());
        self.probe.exec(&["cat", &path]).run().await.ok().to_owned()
    }

    /// Insists on what a file of the container's cgroup holds.
    async fn expect(&self, c: &Container, (controller, v1, v2): Expected<'_>) {
        let (name, value) = match self.version {
            V1 => v1,
            V2 => v2,
        };
        let seen = self.file(c, controller, name).await;
        assert_eq!(seen, value, "{:?}: {name} of {}", self.version, c.id());
    }
}

fn shaped(guest: tests::vm::Guest, version: Version, disk: &Path) -> tests::vm::Guest {
    let unified = u8::from(version == V2);
    let words = format!("systemd.unified_cgroup_hierarchy={unified} hugepagesz=2M hugepages=8");
    guest.cpus(2).disk(disk).words(&words)
}

fn memory(resources: &mut oci::LinuxResources) -> &mut oci::LinuxMemory {
    resources.Memory.mut_or_insert_default()
}

fn cpu(resources: &mut oci::LinuxResources) -> &mut oci::LinuxCPU {
    resources.CPU.mut_or_insert_default()
}

fn pids(resources: &mut oci::LinuxResources, limit: i64) {
    resources.Pids.mut_or_insert_default().Limit = limit;
}

fn huge_pages(resources: &mut oci::LinuxResources, mib: u64) {
    let mut limit = oci::LinuxHugepageLimit::new();
    limit.Pagesize = "2MB".to_owned();
    limit.Limit = mib << 20;
    resources.HugepageLimits = vec![limit];
}

/// What a subcommand of the probe reports in a container.
async fn facts(c: &Container, args: &[&str]) -> Facts {
    let output = c.exec(&[&["probe"], args].concat()).run().await;
    Facts::parse(output.ok())
}

fn number(facts: &Facts, name: &str) -> u64 {
    facts.expect(name).parse().expect("a number")
}

/// Uses so many MiB of memory; the exit code says whether it was let.
async fn eat(c: &Container, mib: i64) -> i32 {
    let args = ["probe", "eat-memory", &mib.to_string()];
    c.exec(&args).run().await.code
}

async fn memory_bites(g: &Ground) {
    let c = g.sleeper("memory", |r| memory(r).Limit = 24 * MIB).await;
    assert_eq!((eat(&c, 12).await, eat(&c, 40).await), (0, KILLED));
    let stats = c.stats().await;
    let usage = &stats.memory_stats.usage;
    assert_eq!(usage.limit, 24 << 20);
    assert!(
        (20 << 20..=24 << 20).contains(&usage.max_usage),
        "it came up to its limit: {usage:?}"
    );
    // What is held is counted, and given back.
    let held = c.exec(&["probe", "eat-memory", "10", "hold"]).start().await;
    held.expect("eaten=10").await;
    let holding = c.stats().await.memory_stats.usage.usage;
    assert!((10 << 20..24 << 20).contains(&holding), "{holding}");
    held.close_stdin().await;
    assert_eq!(held.wait().await, 0);
    assert!(c.stats().await.memory_stats.usage.usage + (9 << 20) < holding);

    c.update(|r| memory(r).Limit = 64 * MIB).await;
    assert_eq!((eat(&c, 40).await, eat(&c, 80).await), (0, KILLED));
    // 0 says nothing, -1 lifts, and there is nothing below that.
    c.update(|r| memory(r).Limit = 0).await;
    assert_eq!(c.stats().await.memory_stats.usage.limit, 64 << 20);
    let below = c.try_update(|r| memory(r).Limit = -2).await;
    expect_refusal(below, Code::INVALID_ARGUMENT, "Limit");
    c.update(|r| memory(r).Limit = -1).await;
    let unlimited = c.stats().await.memory_stats.usage.limit;
    assert!(unlimited > 1 << 40, "{unlimited}");
    assert_eq!(eat(&c, 80).await, 0);
    // Less than what is in use is refused, or what is too much is killed: never a limit that does not hold.
    let held = c.exec(&["probe", "eat-memory", "40", "hold"]).start().await;
    held.expect("eaten=40").await;
    let limit = match c.try_update(|r| memory(r).Limit = 16 * MIB).await {
        Ok(()) => {
            assert_eq!(held.wait().await, KILLED);
            16 << 20
        }
        Err(refusal) => {
            assert!(refusal.code.is_some(), "{refusal}");
            held.close_stdin().await;
            assert_eq!(held.wait().await, 0);
            unlimited
        }
    };
    assert_eq!(c.stats().await.memory_stats.usage.limit, limit);
    assert_eq!(c.sh("echo alive").await.ok(), "alive");
    c.kill_and_remove().await;
}

/// The reference writes the sum of memory and swap where version 2 wants swap alone.
async fn bug_memory_and_swap_add_up(g: &Ground) {
    let limits = |limit: i64, both: i64| {
        move |r: &mut oci::LinuxResources| {
            (memory(r).Limit, memory(r).Swap) = (limit * MIB, both * MIB);
        }
    };
    let c = g.sleeper("swap", limits(32, 48)).await;
    let swap = async |both: &str, swap: &str| {
        let (v1, v2) = (
            ("memory.memsw.limit_in_bytes", both),
            ("memory.swap.max", swap),
        );
        g.expect(&c, ("memory", v1, v2)).await;
    };
    let mib = |n: i64| (n * MIB).to_string();
    swap(&mib(48), &mib(16)).await;
    // Of one alone the other counts on; both at once in either direction.
    c.update(|r| memory(r).Swap = 64 * MIB).await;
    swap(&mib(64), &mib(32)).await;
    c.update(limits(96, 128)).await;
    swap(&mib(128), &mib(32)).await;
    c.update(limits(16, 24)).await;
    swap(&mib(24), &mib(8)).await;
    g.expect(
        &c,
        (
            "memory",
            ("memory.limit_in_bytes", &mib(16)),
            ("memory.max", &mib(16)),
        ),
    )
    .await;
    let less = c.try_update(limits(64, 32)).await;
    expect_refusal(less, Code::INVALID_ARGUMENT, "");
    // Version 1 finds out halfway: the kernel compares the two.
    if g.version == V2 {
        swap(&mib(24), &mib(8)).await;
    }
    c.update(|r| memory(r).Swap = -1).await;
    swap("9223372036854771712", "max").await;
    c.update(|r| memory(r).Reservation = 8 * MIB).await;
    // The kernel's version 1 takes a soft limit and forgets it.
    if g.version == V2 {
        let low = g.file(&c, "memory", "memory.low").await;
        assert_eq!(low, mib(8));
    }
    c.kill_and_remove().await;
}

async fn pids_bite(g: &Ground) {
    let c = g.sleeper("pids", |r| pids(r, 10)).await;
    let fork = async |number: &str| facts(&c, &["fork", number]).await;
    let tried = fork("20").await;
    assert_eq!(tried.get("errno"), Some("EAGAIN"));
    assert_eq!(
        tried.get("forked"),
        Some("8"),
        "besides sleep and the probe"
    );
    let held = c.exec(&["probe", "fork", "5", "hold"]).start().await;
    held.expect("forked=5").await;
    let figures = async || {
        let stats = c.stats().await;
        (stats.pids_stats.current, stats.pids_stats.limit)
    };
    assert_eq!(figures().await, (7, 10));
    // Less than there are: nobody dies, nobody is born.
    c.update(|r| pids(r, 3)).await;
    assert_eq!(figures().await, (7, 3));
    // Version 1 counts who is born in a group, and not who joins it.
    let joined = c.exec(&["true"]).try_start().await;
    assert_eq!(joined.is_ok(), g.version == V1);
    if let Ok(process) = joined {
        process.wait().await;
    }
    held.close_stdin().await;
    assert_eq!(held.wait().await, 0);
    c.update(|r| pids(r, 30)).await;
    assert_eq!(fork("20").await.get("forked"), Some("20"));
    c.update(|r| pids(r, 0)).await;
    assert_eq!(figures().await.1, 30, "0 says nothing");
    let below = c.try_update(|r| pids(r, -2)).await;
    expect_refusal(below, Code::INVALID_ARGUMENT, "Limit");
    c.update(|r| pids(r, -1)).await;
    assert_eq!(figures().await.1, 0, "which is how no limit is told");
    assert_eq!(fork("50").await.get("forked"), Some("50"));
    c.kill_and_remove().await;
}

fn throttled(stats: &CgroupStats) -> (u64, u64) {
    let data = stats.cpu_stats.throttling_data.clone().unwrap_or_default();
    (data.throttled_periods, data.throttled_time)
}

async fn bandwidth_bites(g: &Ground) {
    let limits = |quota: i64, period: u64| {
        move |r: &mut oci::LinuxResources| (cpu(r).Quota, cpu(r).Period) = (quota, period)
    };
    let c = g.sleeper("bandwidth", limits(10_000, 100_000)).await;
    let quota = async |both: &str, quota: &str| {
        let (v1, v2) = (("cpu.cfs_quota_us", quota), ("cpu.max", both));
        g.expect(&c, ("cpu", v1, v2)).await;
    };
    quota("10000 100000", "10000").await;
    let before = c.stats().await;
    let spun = facts(&c, &["spin", "1"]).await;
    let (wall, used) = (number(&spun, "wall_us"), number(&spun, "cpu_us"));
    assert!(used * 3 < wall, "a tenth was granted: {used} of {wall} us");
    let after = c.stats().await;
    assert!(throttled(&after).0 >= throttled(&before).0 + 3, "{after:?}");
    assert!(throttled(&after).1 > throttled(&before).1, "{after:?}");
    let total = |stats: &CgroupStats| stats.cpu_stats.cpu_usage.total_usage;
    let counted = (total(&after) - total(&before)) / 1000;
    // The kernel works out the two in different ways.
    assert!(
        counted * 10 >= used * 9,
        "{counted} us counted of {used} us used"
    );

    c.update(limits(0, 50_000)).await;
    quota("10000 50000", "10000").await;
    g.expect(
        &c,
        (
            "cpu",
            ("cpu.cfs_period_us", "50000"),
            ("cpu.max", "10000 50000"),
        ),
    )
    .await;
    let below = c.try_update(limits(-2, 0)).await;
    expect_refusal(below, Code::INVALID_ARGUMENT, "Quota");
    c.update(limits(-1, 0)).await;
    quota("max 50000", "-1").await;
    let lifted = throttled(&c.stats().await).0;
    facts(&c, &["spin", "1"]).await;
    assert_eq!(
        throttled(&c.stats().await).0,
        lifted,
        "nothing holds it back"
    );
    c.kill_and_remove().await;
}

async fn shares_and_processors_bite(g: &Ground) {
    let limits = |shares: u64| {
        move |r: &mut oci::LinuxResources| {
            (cpu(r).Shares, cpu(r).Cpus, cpu(r).Mems) = (shares, "0".into(), "0".into());
        }
    };
    // One that is always busy, and one that spins for a while beside it.
    let busy = g
        .builder("busy", limits(8192))
        .sh("echo busy; while :; do :; done")
        .start()
        .await;
    busy.expect("busy").await;
    let c = g.sleeper("shares", limits(512)).await;
    g.expect(&c, ("cpu", ("cpu.shares", "512"), ("cpu.weight", "20")))
        .await;
    g.expect(&c, ("cpuset", ("cpuset.cpus", "0"), ("cpuset.cpus", "0")))
        .await;
    g.expect(&c, ("cpuset", ("cpuset.mems", "0"), ("cpuset.mems", "0")))
        .await;
    let had = async || {
        let spun = facts(&c, &["spin", "1"]).await;
        (number(&spun, "cpu_us"), number(&spun, "wall_us"))
    };
    let (used, wall) = had().await;
    assert!(used * 3 < wall, "one in seventeen: {used} of {wall} us");
    busy.update(|r| cpu(r).Shares = 512).await;
    c.update(|r| cpu(r).Shares = 8192).await;
    g.expect(&c, ("cpu", ("cpu.shares", "8192"), ("cpu.weight", "313")))
        .await;
    let (used, wall) = had().await;
    assert!(used * 2 > wall, "sixteen in seventeen: {used} of {wall} us");
    // The least and the most, and what the reference takes for a large number.
    for (shares, v1, weight) in [
        (1, "2", "1"),
        (262_144, "262144", "10000"),
        (1024, "1024", "39"),
    ] {
        c.update(|r| cpu(r).Shares = shares).await;
        g.expect(&c, ("cpu", ("cpu.shares", v1), ("cpu.weight", weight)))
            .await;
    }
    let allowed = "grep Cpus_allowed_list: /proc/self/status | cut -f 2";
    assert_eq!(c.sh(allowed).await.ok(), "0");
    c.update(|r| cpu(r).Cpus = "1".to_owned()).await;
    assert_eq!(c.sh(allowed).await.ok(), "1");
    c.update(|r| cpu(r).Cpus = "0-1".to_owned()).await;
    assert_eq!(c.sh(allowed).await.ok(), "0-1");
    c.kill_and_remove().await;
    busy.kill_and_remove().await;
}

/// Bytes written to the disk, as the statistics have them.
fn written(stats: &CgroupStats) -> u64 {
    let entries = stats.blkio_stats.io_service_bytes_recursive.iter();
    entries.filter(|e| e.op == "write").map(|e| e.value).sum()
}

async fn disk_throttle_bites(g: &Ground) {
    let numbers = g
        .probe
        .sh("cat /sys/class/block/vda/dev")
        .await
        .ok()
        .to_owned();
    let (major, minor) = numbers.split_once(':').expect("two numbers");
    let device = |rate: u64| {
        let mut device = oci::LinuxThrottleDevice::new();
        let number = |text: &str| text.parse().expect("a device number");
        (device.Major, device.Minor) = (number(major), number(minor));
        device.Rate = rate;
        vec![device]
    };
    let rate = |rate: u64| {
        let device = device(rate);
        move |r: &mut oci::LinuxResources| {
            r.BlockIO.mut_or_insert_default().ThrottleWriteBpsDevice = device;
        }
    };
    let held = async |c: &Container, v1: &str, v2: &str| {
        g.expect(
            c,
            (
                "blkio",
                ("blkio.throttle.write_bps_device", v1),
                ("io.max", v2),
            ),
        )
        .await;
    };
    let slow = g.sleeper("slow", rate(MIB as u64)).await;
    let fast = g.sleeper("fast", |_| ()).await;
    let line = format!("{numbers} rbps=max wbps=1048576 riops=max wiops=max");
    held(&slow, &format!("{numbers} 1048576"), &line).await;
    // The slow one begins, the fast one has written as much before the slow one is done: at 1 MiB a second that takes it 24 s.
    let (before, size) = (written(&slow.stats().await), (24 << 20).to_string());
    let slow_write = ["probe", "write", "/mnt/slow", &size, "direct"];
    let slow_write = slow.exec(&slow_write).start().await;
    let slow_write = tokio::spawn(async move { slow_write.output().await });
    let begun = async || written(&slow.stats().await) > before;
    while !begun().await {
        g.vm.expect_alive().await;
    }
    let fast_write = facts(&fast, &["write", "/mnt/fast", &size, "direct"]).await;
    assert_eq!(fast_write.get("written"), Some(&*size));
    assert!(!slow_write.is_finished(), "it was held back");
    // 0 lifts it, also for what waits already.
    slow.update(rate(0)).await;
    held(&slow, "", "").await;
    let output = slow_write.await.expect("it ends");
    assert_eq!(Facts::parse(output.ok()).get("written"), Some(&*size));
    for c in [&slow, &fast] {
        // Version 1 counts nothing in a group before it is throttled for the first time.
        let counted = written(&c.stats().await);
        let uncounted = g.version == V1 && c.id() == "fast";
        assert!(uncounted || counted >= 24 << 20, "{}: {counted}", c.id());
    }
    // The other three rates, each where it belongs.
    let device = device(50);
    slow.update(|r| {
        let io = r.BlockIO.mut_or_insert_default();
        io.ThrottleReadBpsDevice = device.clone();
        io.ThrottleReadIOPSDevice = device.clone();
        io.ThrottleWriteIOPSDevice = device;
    })
    .await;
    let line = format!("{numbers} rbps=50 wbps=max riops=50 wiops=50");
    held(&slow, "", &line).await;
    for file in ["read_bps", "read_iops", "write_iops"] {
        let name = format!("blkio.throttle.{file}_device");
        g.expect(
            &slow,
            (
                "blkio",
                (&name, &format!("{numbers} 50")),
                ("io.max", &line),
            ),
        )
        .await;
    }
    slow.kill_and_remove().await;
    fast.kill_and_remove().await;
}

async fn huge_pages_bite(g: &Ground) {
    let limited = g.builder("huge", |r| huge_pages(r, 4));
    let c = limited
        .mount(
            "/home",
            "hugetlbfs",
            "hugetlbfs",
            &["pagesize=2M", "mode=1777"],
        )
        .start()
        .await;
    let file = async |value: &str| {
        let (v1, v2) = (
            ("hugetlb.2MB.limit_in_bytes", value),
            ("hugetlb.2MB.max", value),
        );
        g.expect(&c, ("hugetlb", v1, v2)).await;
    };
    let take = async |mib: u32| {
        let script = format!("fallocate -l {mib}M /home/pages && rm /home/pages");
        let code = c.sh(&script).await.code;
        c.sh("rm -f /home/pages").await.ok();
        code == 0
    };
    file("4194304").await;
    assert!(take(4).await && !take(6).await);
    c.sh("fallocate -l 4M /home/held").await.ok();
    let stats = c.stats().await;
    assert_eq!(stats.hugetlb_stats["2MB"].usage, 4 << 20, "{stats:?}");
    c.sh("rm /home/held").await.ok();
    c.update(|r| huge_pages(r, 8)).await;
    file("8388608").await;
    assert!(take(8).await && !take(10).await);
    c.update(|r| huge_pages(r, 0)).await;
    file("0").await;
    assert!(!take(2).await, "none is less than one");
    let mut unknown = oci::LinuxHugepageLimit::new();
    unknown.Pagesize = "7MB".to_owned();
    // A size that the processor does not have limits nothing.
    let _ = c.try_update(|r| r.HugepageLimits = vec![unknown]).await;
    assert_eq!(c.sh("echo alive").await.ok(), "alive");
    c.kill_and_remove().await;
}

/// An update without a word, and one for nobody.
async fn empty_updates(g: &Ground) {
    let c = g.sleeper("empty", |r| pids(r, 12)).await;
    c.update(|_| ()).await;
    let request = |id: &str| protocols::agent::UpdateContainerRequest {
        container_id: id.to_owned(),
        ..Default::default()
    };
    g.vm.rpc()
        .update_container(&request("empty"))
        .await
        .expect("nothing to do");
    assert_eq!(c.stats().await.pids_stats.limit, 12);
    let nobody = g.vm.rpc().update_container(&request("nobody")).await;
    expect_refusal(nobody, Code::INVALID_ARGUMENT, "nobody");
    c.kill_and_remove().await;
}

async fn named<'a>(name: &'static str, part: impl Future<Output = ()> + 'a) {
    tests::story::say(name);
    part.await;
}

async fn all_limits_bite(version: Version) {
    let g = Ground::new(version).await;
    named("memory", memory_bites(&g)).await;
    named("memory and swap", bug_memory_and_swap_add_up(&g)).await;
    named("pids", pids_bite(&g)).await;
    named("cpu bandwidth", bandwidth_bites(&g)).await;
    named("cpu shares, cpuset", shares_and_processors_bite(&g)).await;
    named("disk", disk_throttle_bites(&g)).await;
    named("hugetlb", huge_pages_bite(&g)).await;
    named("empty updates", empty_updates(&g)).await;
}

#[test]
fn all_limits_bite_on_version_2() {
    vm_story(all_limits_bite(V2));
}

#[test]
fn all_limits_bite_on_version_1() {
    vm_story(all_limits_bite(V1));
}
