// SPDX-License-Identifier: Apache-2.0
//! The arithmetic of both versions.

use super::cpu::weight_of_shares;
use super::*;
use oci_spec::runtime::{
    LinuxBlockIoBuilder, LinuxCpuBuilder, LinuxHugepageLimit, LinuxMemoryBuilder, LinuxNetwork,
    LinuxPids, LinuxThrottleDevice, LinuxThrottleDeviceBuilder, LinuxWeightDeviceBuilder,
};

fn cpu(build: impl FnOnce(LinuxCpuBuilder) -> LinuxCpuBuilder) -> LinuxResources {
    let mut resources = LinuxResources::default();
    resources.set_cpu(Some(build(LinuxCpuBuilder::default()).build().unwrap()));
    resources
}

fn memory(build: impl FnOnce(LinuxMemoryBuilder) -> LinuxMemoryBuilder) -> LinuxResources {
    let mut resources = LinuxResources::default();
    let memory = build(LinuxMemoryBuilder::default()).build().unwrap();
    resources.set_memory(Some(memory));
    resources
}

fn written(settings: Result<Vec<Setting>, CgroupError>) -> Vec<(String, String)> {
    let settings = settings.unwrap();
    settings
        .into_iter()
        .map(|s| (s.file.into_owned(), s.value))
        .collect()
}

#[test]
fn bug_one_cpu_share_does_not_underflow() {
    for (shares, weight) in [
        (1, 1),
        (2, 1),
        (1024, 39),
        (262_144, 10_000),
        (u64::MAX, 10_000),
    ] {
        assert_eq!(weight_of_shares(shares), weight, "{shares}");
    }
    let resources = cpu(|c| c.shares(1u64));
    assert_eq!(written(v2_of(&resources)), [pair("cpu.weight", "1")]);
    assert_eq!(v1_of(&resources).unwrap().shares, Some(2));
}

#[test]
fn bug_swap_of_v2_does_not_count_memory() {
    let resources = memory(|m| m.limit(100i64).swap(150i64));
    assert_eq!(
        written(v2_of(&resources)),
        [pair("memory.swap.max", "50"), pair("memory.max", "100")]
    );
    let limits = v1_of(&resources).unwrap();
    assert_eq!(
        (limits.memory, limits.memory_and_swap),
        (Some(100), Some(150))
    );
    let equal = memory(|m| m.limit(100i64).swap(100i64));
    assert_eq!(written(v2_of(&equal))[0], pair("memory.swap.max", "0"));
}

#[test]
fn no_limit_is_minus_one() {
    let resources = memory(|m| m.limit(-1i64));
    assert_eq!(
        written(v2_of(&resources)),
        [pair("memory.swap.max", "max"), pair("memory.max", "max")]
    );
    let limits = v1_of(&resources).unwrap();
    assert_eq!(
        (limits.memory, limits.memory_and_swap),
        (Some(-1), Some(-1))
    );
    let quota = cpu(|c| c.quota(-1i64).period(50_000u64));
    assert_eq!(written(v2_of(&quota)), [pair("cpu.max", "max 50000")]);
    let mut none = LinuxResources::default();
    let mut limit = LinuxPids::default();
    limit.set_limit(-1);
    none.set_pids(Some(limit));
    assert_eq!(written(v2_of(&none)), [pair("pids.max", "max")]);
}

#[test]
fn nothing_asked_nothing_written() {
    let empty = LinuxResources::default();
    assert!(written(v2_of(&empty)).is_empty() && v1_of(&empty).unwrap() == V1::default());
    let zeros = cpu(|c| c.shares(0u64).quota(0i64).period(0u64).cpus("").mems(""));
    assert!(written(v2_of(&zeros)).is_empty() && v1_of(&zeros).unwrap() == V1::default());
    let zeros = memory(|m| m.limit(0i64).swap(0i64).reservation(0i64));
    assert!(written(v2_of(&zeros)).is_empty() && v1_of(&zeros).unwrap() == V1::default());
}

#[test]
fn a_period_alone_keeps_the_quota() {
    let resources = cpu(|c| c.period(20_000u64));
    assert_eq!(written(v2_of(&resources)), [pair("cpu.max", "keep 20000")]);
    let limits = v1_of(&resources).unwrap();
    assert_eq!((limits.period, limits.quota), (Some(20_000), None));
}

#[test]
fn impossible_values_are_bad_input() {
    for resources in [
        memory(|m| m.limit(100i64).swap(99i64)),
        memory(|m| m.swap(99i64)),
        memory(|m| m.limit(-1i64).swap(99i64)),
        memory(|m| m.limit(-2i64)),
        memory(|m| m.reservation(i64::MIN)),
        cpu(|c| c.quota(-7i64)),
    ] {
        assert!(v2_of(&resources).unwrap_err().is_bad_input());
    }
}

proptest::proptest! {
    #[test]
    fn no_number_panics(a: i64, b: i64, c: i64, shares: u64, period: u64, pids: i64) {
        let mut resources = memory(|m| m.limit(a).swap(b).reservation(c));
        let cpu = LinuxCpuBuilder::default().shares(shares).quota(a).period(period);
        resources.set_cpu(Some(cpu.build().unwrap()));
        let mut limit = LinuxPids::default();
        limit.set_limit(pids);
        resources.set_pids(Some(limit));
        let _ = v1_of(&resources);
        for setting in v2_of(&resources).unwrap_or_default() {
            proptest::prop_assert!(setting.value.bytes().all(|b| b != b'-'));
        }
    }
}

fn pair(file: &str, value: &str) -> (String, String) {
    (file.to_owned(), value.to_owned())
}

/// With no control file there at all.
fn v2_of(resources: &LinuxResources) -> Result<Vec<Setting>, CgroupError> {
    v2(resources, &|_, _| None)
}

fn v1_of(resources: &LinuxResources) -> Result<V1, CgroupError> {
    v1(resources, &|_, _| None)
}

fn with(files: &'static [(&str, &str)]) -> impl Fn(&'static str, &str) -> Option<String> {
    move |_, name| {
        let found = files.iter().find(|(file, _)| *file == name)?;
        Some(found.1.to_owned())
    }
}

fn io(build: impl FnOnce(LinuxBlockIoBuilder) -> LinuxBlockIoBuilder) -> LinuxResources {
    let mut resources = LinuxResources::default();
    let io = build(LinuxBlockIoBuilder::default()).build().unwrap();
    resources.set_block_io(Some(io));
    resources
}

fn rate(major: i64, minor: i64, rate: u64) -> LinuxThrottleDevice {
    let device = LinuxThrottleDeviceBuilder::default().major(major);
    device.minor(minor).rate(rate).build().unwrap()
}

fn all_of_io() -> LinuxResources {
    let weight = |minor: i64, weight: u16| {
        let device = LinuxWeightDeviceBuilder::default().major(254i64);
        device.minor(minor).weight(weight).build().unwrap()
    };
    io(|io| {
        io.weight(500u16)
            .weight_device([weight(0, 10), weight(16, 1000)])
            .throttle_read_bps_device([rate(254, 0, 1 << 20), rate(254, 16, 7)])
            .throttle_write_bps_device([rate(254, 0, 0)])
            .throttle_read_iops_device([rate(254, 16, 100)])
            .throttle_write_iops_device([rate(254, 0, 200)])
    })
}

#[test]
fn bug_each_device_has_its_own_weight_and_one_line_of_rates() {
    assert_eq!(
        written(v2(&all_of_io(), &with(&[("io.weight", "default 100")]))),
        [
            pair("io.weight", "4950"),
            pair("io.weight", "254:0 1"),
            pair("io.weight", "254:16 10000"),
            pair("io.max", "254:0 rbps=1048576 wbps=max wiops=200"),
            pair("io.max", "254:16 rbps=7 riops=100"),
        ]
    );
}

#[test]
fn weights_go_to_every_mechanism_that_the_kernel_has() {
    let weight = io(|io| io.weight(5u16));
    let both = with(&[("io.weight", ""), ("io.bfq.weight", "")]);
    let low = [pair("io.bfq.weight", "10"), pair("io.weight", "1")];
    assert_eq!(written(v2(&weight, &both)), low);
    let bfq = with(&[("io.bfq.weight", "")]);
    assert_eq!(written(v2(&weight, &bfq)), low[..1]);
    let none = v2_of(&weight).unwrap();
    assert_eq!((none.len(), none[0].absent), (1, Absent::Warns));
}

#[test]
fn io_of_v1_has_a_line_for_each_rate() {
    let limits = v1(&all_of_io(), &with(&[("blkio.bfq.weight", "")])).unwrap();
    assert_eq!(
        written(Ok(limits.rest)),
        [
            pair("blkio.bfq.weight", "500"),
            pair("blkio.bfq.weight_device", "254:0 10"),
            pair("blkio.bfq.weight_device", "254:16 1000"),
            pair("blkio.throttle.read_bps_device", "254:0 1048576"),
            pair("blkio.throttle.read_bps_device", "254:16 7"),
            pair("blkio.throttle.write_bps_device", "254:0 0"),
            pair("blkio.throttle.read_iops_device", "254:16 100"),
            pair("blkio.throttle.write_iops_device", "254:0 200"),
        ]
    );
    let old = v1_of(&io(|io| io.weight(500u16).leaf_weight(20u16))).unwrap();
    let expected = [pair("blkio.weight", "500"), pair("blkio.leaf_weight", "20")];
    assert_eq!(written(Ok(old.rest)), expected);
}

#[test]
fn huge_pages_are_limited_in_use_and_in_reserve() {
    let mut resources = LinuxResources::default();
    let mut limit = LinuxHugepageLimit::default();
    limit.set_page_size("2MB".to_owned()).set_limit(0);
    resources.set_hugepage_limits(Some(vec![limit]));
    assert_eq!(
        written(v2_of(&resources)),
        [
            pair("hugetlb.2MB.max", "0"),
            pair("hugetlb.2MB.rsvd.max", "0")
        ]
    );
    let rest = v1_of(&resources).unwrap().rest;
    assert_eq!(
        (rest[0].absent, rest[1].absent),
        (Absent::Lacks, Absent::Ignored)
    );
    let used = pair("hugetlb.2MB.limit_in_bytes", "0");
    let reserved = pair("hugetlb.2MB.rsvd.limit_in_bytes", "0");
    assert_eq!(written(Ok(rest)), [used, reserved]);
}

#[test]
fn network_marks_are_of_v1() {
    let network = |name: &str| {
        let mut priority = LinuxInterfacePriority::default();
        priority.set_name(name.to_owned()).set_priority(3);
        let mut network = LinuxNetwork::default();
        network
            .set_class_id(Some(0x10001))
            .set_priorities(Some(vec![priority]));
        let mut resources = LinuxResources::default();
        resources.set_network(Some(network));
        resources
    };
    let class = pair("net_cls.classid", "65537");
    let map = pair("net_prio.ifpriomap", "eth0 3");
    let rest = v1_of(&network("eth0")).unwrap().rest;
    assert_eq!(written(Ok(rest)), [class, map]);
    assert!(written(v2_of(&network("eth0"))).is_empty());
    for bad in ["", "a b", "a\nb", "a/b", "sixteen-letters-"] {
        assert!(v1_of(&network(bad)).unwrap_err().is_bad_input(), "{bad}");
    }
}

#[test]
#[allow(deprecated)]
fn bug_swappiness_is_no_swap_limit() {
    let odd = memory(|m| m.swappiness(60u64).kernel(4096i64).kernel_tcp(8192i64));
    assert!(written(v2_of(&odd)).is_empty());
    assert_eq!(
        written(v1_of(&odd).map(|limits| limits.rest)),
        [
            pair("memory.kmem.limit_in_bytes", "4096"),
            pair("memory.kmem.tcp.limit_in_bytes", "8192"),
            pair("memory.swappiness", "60"),
        ]
    );
    let hundred_one = memory(|m| m.swappiness(101u64));
    assert!(v1_of(&hundred_one).unwrap_err().is_bad_input());
    assert!(v2_of(&hundred_one).unwrap_err().is_bad_input());
}

#[test]
fn without_the_oom_killer_there_is_a_warning_on_v2() {
    let asked = memory(|m| m.disable_oom_killer(true));
    let settings = v2_of(&asked).unwrap();
    assert_eq!(settings[0].absent, Absent::Warns);
    let rest = v1_of(&asked).unwrap().rest;
    assert_eq!(rest[0].absent, Absent::Fails);
    assert_eq!(written(Ok(rest)), [pair("memory.oom_control", "1")]);
}

#[test]
fn realtime_is_an_error_only_where_it_is_asked_for() {
    let asked = cpu(|c| c.realtime_runtime(9000i64).realtime_period(10_000u64));
    assert!(matches!(v2_of(&asked), Err(CgroupError::Controller { .. })));
    let rest = v1_of(&asked).unwrap().rest;
    assert!(rest[0].may_wait && rest[1].absent == Absent::Fails);
    let period = pair("cpu.rt_period_us", "10000");
    assert_eq!(
        written(Ok(rest)),
        [period, pair("cpu.rt_runtime_us", "9000")]
    );
    for nothing in [0i64, -1] {
        let asked = cpu(|c| c.realtime_runtime(nothing));
        assert!(written(v2_of(&asked)).is_empty());
    }
}

#[test]
fn an_update_of_swap_alone_counts_the_memory_in_force() {
    let swap = memory(|m| m.swap(150i64));
    let limited = with(&[("memory.max", "100\n")]);
    let expected = [pair("memory.swap.max", "50")];
    assert_eq!(written(v2(&swap, &limited)), expected);
    let less = with(&[("memory.max", "200\n")]);
    assert!(v2(&swap, &less).unwrap_err().is_bad_input());
    let unlimited = with(&[("memory.max", "max\n")]);
    assert!(v2(&swap, &unlimited).unwrap_err().is_bad_input());
}

#[test]
fn negative_device_numbers_are_bad_input() {
    let bad = io(|io| io.throttle_read_bps_device([rate(-1, 0, 1)]));
    assert!(v1_of(&bad).unwrap_err().is_bad_input());
    assert!(v2_of(&bad).unwrap_err().is_bad_input());
}
