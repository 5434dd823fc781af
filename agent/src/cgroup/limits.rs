// SPDX-License-Identifier: Apache-2.0
//! OCI limits as the values of control files. Owns the arithmetic of both
//! cgroup versions, as pure functions; never writes anything.
//!
//! Memory, CPU, cpuset and process limits are here. Block I/O, huge pages,
//! network classes, device rules and the rest of `linux.resources` are not
//! applied yet; [`unapplied`] names the ones a container asked for.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::CgroupError;

/// One value for one control file of cgroup v2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub controller: &'static str,
    pub file: &'static str,
    pub value: String,
    /// What to do when the kernel does not have the file.
    pub absent: Absent,
}

/// What a missing control file means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absent {
    /// The limit cannot be kept: an error.
    Fails,
    /// The value is a hint (a share, a preference, a placement): a warning.
    Warns,
    /// Nothing is lost, because there is nothing to limit (no swap at all).
    Ignored,
}

impl Setting {
    fn new(controller: &'static str, file: &'static str, value: impl ToString) -> Self {
        Self {
            controller,
            file,
            value: value.to_string(),
            absent: Absent::Fails,
        }
    }

    fn when_absent(mut self, absent: Absent) -> Self {
        self.absent = absent;
        self
    }
}

/// The settings of cgroup v2, in the order in which to write them.
pub(super) fn v2(resources: &LinuxResources) -> Result<Vec<Setting>, CgroupError> {
    let mut settings = Vec::new();
    if let Some(cpu) = resources.cpu() {
        cpuset(cpu, &mut settings);
        if let Some(shares) = given(cpu.shares()) {
            let weight = Setting::new("cpu", "cpu.weight", weight_of_shares(shares));
            settings.push(weight.when_absent(Absent::Warns));
        }
        // cpu.max takes "quota period", or the quota alone. A period alone
        // needs the quota in force: see `Cgroup::apply`.
        match (quota_of(cpu)?, given(cpu.period())) {
            (Some(quota), Some(period)) => {
                let value = format!("{} {period}", or_max(quota));
                settings.push(Setting::new("cpu", "cpu.max", value));
            }
            (Some(quota), None) => settings.push(Setting::new("cpu", "cpu.max", or_max(quota))),
            (None, Some(period)) => {
                let value = format!("{KEEP_QUOTA} {period}");
                settings.push(Setting::new("cpu", "cpu.max", value));
            }
            (None, None) => {}
        }
    }
    if let Some(memory) = resources.memory() {
        memory_v2(memory, &mut settings)?;
    }
    pids(resources, &mut settings);
    Ok(settings)
}

/// The limits of cgroup v1; -1 is "no limit" where a number is signed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct V1 {
    pub cpus: Option<String>,
    pub mems: Option<String>,
    pub shares: Option<u64>,
    pub period: Option<u64>,
    pub quota: Option<i64>,
    pub memory: Option<i64>,
    /// Memory and swap together, as OCI counts them too.
    pub memory_and_swap: Option<i64>,
    pub soft: Option<i64>,
    pub pids: Option<i64>,
}

/// The limits of cgroup v1.
pub(super) fn v1(resources: &LinuxResources) -> Result<V1, CgroupError> {
    let mut limits = V1::default();
    if let Some(cpu) = resources.cpu() {
        limits.cpus = cpu.cpus().clone().filter(|c| !c.is_empty());
        limits.mems = cpu.mems().clone().filter(|m| !m.is_empty());
        limits.shares = given(cpu.shares()).map(|s| s.clamp(MIN_SHARES, MAX_SHARES));
        limits.period = given(cpu.period());
        limits.quota = quota_of(cpu)?.map(|quota| quota.unwrap_or(-1));
    }
    if let Some(memory) = resources.memory() {
        limits.memory = bytes("memory.limit", memory.limit())?.map(|l| l.unwrap_or(-1));
        limits.memory_and_swap = bytes("memory.swap", memory.swap())?
            .map(|s| s.unwrap_or(-1))
            // Memory without a limit leaves no sense to a limit of both together.
            .or(limits.memory.filter(|&limit| limit == -1));
        limits.soft = bytes("memory.reservation", memory.reservation())?.map(|s| s.unwrap_or(-1));
    }
    limits.pids = resources.pids().as_ref().map(|pids| pids.limit());
    Ok(limits)
}

/// Stands in a `cpu.max` value for the quota that is in force.
pub(super) const KEEP_QUOTA: &str = "keep";

/// The limits a container asked for that are not applied yet, for one line of log.
pub(super) fn unapplied(resources: &LinuxResources) -> Vec<&'static str> {
    let mut names = Vec::new();
    let mut note = |asked: bool, name| {
        if asked {
            names.push(name);
        }
    };
    note(resources.block_io().is_some(), "blockIO");
    let huge = resources.hugepage_limits();
    note(
        huge.as_ref().is_some_and(|l| !l.is_empty()),
        "hugepageLimits",
    );
    note(resources.network().is_some(), "network");
    note(
        resources.rdma().as_ref().is_some_and(|r| !r.is_empty()),
        "rdma",
    );
    if let Some(cpu) = resources.cpu() {
        let realtime = given(cpu.realtime_period()).is_some()
            || cpu.realtime_runtime().is_some_and(|r| r != 0);
        note(realtime, "cpu.realtime");
    }
    if let Some(memory) = resources.memory() {
        note(memory.kernel().is_some_and(|k| k != 0), "memory.kernel");
        note(memory.swappiness().is_some(), "memory.swappiness");
        note(
            memory.disable_oom_killer() == Some(true),
            "memory.disableOOMKiller",
        );
    }
    names
}

const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;

/// Maps the 2..=262144 of shares onto the 1..=10000 of weights (OCI runtime
/// specification, cgroup v2 conversion); values beyond the ends count as the ends.
fn weight_of_shares(shares: u64) -> u64 {
    let above = shares.clamp(MIN_SHARES, MAX_SHARES) - MIN_SHARES;
    1 + above * 9_999 / (MAX_SHARES - MIN_SHARES)
}

fn cpuset(cpu: &LinuxCpu, settings: &mut Vec<Setting>) {
    // Placement only: hosts send CPU numbers of their own that a guest may not have.
    if let Some(cpus) = cpu.cpus().as_ref().filter(|c| !c.is_empty()) {
        settings.push(Setting::new("cpuset", "cpuset.cpus", cpus).when_absent(Absent::Warns));
    }
    if let Some(mems) = cpu.mems().as_ref().filter(|m| !m.is_empty()) {
        settings.push(Setting::new("cpuset", "cpuset.mems", mems));
    }
}

fn memory_v2(memory: &LinuxMemory, settings: &mut Vec<Setting>) -> Result<(), CgroupError> {
    let limit = bytes("memory.limit", memory.limit())?;
    let swap = bytes("memory.swap", memory.swap())?;
    if let Some(low) = bytes("memory.reservation", memory.reservation())? {
        let low = Setting::new("memory", "memory.low", or_max(low));
        settings.push(low.when_absent(Absent::Warns));
    }
    // Swap before memory: when both shrink, what memory.max pushes out must
    // not go beyond the new swap limit.
    if let Some(swap) = swap_only(limit, swap)? {
        let swap = Setting::new("memory", "memory.swap.max", or_max(swap));
        settings.push(swap.when_absent(Absent::Ignored));
    }
    if let Some(limit) = limit {
        settings.push(Setting::new("memory", "memory.max", or_max(limit)));
    }
    Ok(())
}

/// OCI's `swap` limits memory and swap together, `memory.swap.max` limits swap
/// alone. The outer option says whether anything was asked, the inner one
/// whether there is a limit.
fn swap_only(
    limit: Option<Option<i64>>,
    swap: Option<Option<i64>>,
) -> Result<Option<Option<i64>>, CgroupError> {
    let refuse = |reason| {
        Err(CgroupError::Value {
            limit: "memory.swap",
            reason,
        })
    };
    match (limit, swap) {
        (Some(None), None) | (_, Some(None)) => Ok(Some(None)),
        (_, None) => Ok(None),
        (Some(Some(limit)), Some(Some(both))) if both >= limit => Ok(Some(Some(both - limit))),
        (Some(Some(_)), Some(Some(_))) => {
            refuse("it counts memory too, so it cannot be below memory.limit")
        }
        (_, Some(Some(_))) => refuse("it counts memory too, so it needs memory.limit"),
    }
}

fn pids(resources: &LinuxResources, settings: &mut Vec<Setting>) {
    if let Some(pids) = resources.pids() {
        let limit = Some(pids.limit()).filter(|&limit| limit > 0);
        settings.push(Setting::new("pids", "pids.max", or_max(limit)));
    }
}

/// A number of bytes: unset or 0 asks nothing, -1 means no limit.
fn bytes(limit: &'static str, value: Option<i64>) -> Result<Option<Option<i64>>, CgroupError> {
    match value {
        None | Some(0) => Ok(None),
        Some(-1) => Ok(Some(None)),
        Some(value) if value > 0 => Ok(Some(Some(value))),
        Some(_) => Err(CgroupError::Value {
            limit,
            reason: "it is negative",
        }),
    }
}

fn quota_of(cpu: &LinuxCpu) -> Result<Option<Option<i64>>, CgroupError> {
    bytes("cpu.quota", cpu.quota())
}

fn given(value: Option<u64>) -> Option<u64> {
    value.filter(|&value| value != 0)
}

fn or_max(value: Option<i64>) -> String {
    value.map_or_else(|| "max".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPids};

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

    fn written(settings: Result<Vec<Setting>, CgroupError>) -> Vec<(&'static str, String)> {
        let settings = settings.unwrap();
        settings.into_iter().map(|s| (s.file, s.value)).collect()
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
        assert_eq!(written(v2(&resources)), [("cpu.weight", "1".into())]);
        assert_eq!(v1(&resources).unwrap().shares, Some(2));
    }

    #[test]
    fn bug_swap_of_v2_does_not_count_memory() {
        let resources = memory(|m| m.limit(100i64).swap(150i64));
        assert_eq!(
            written(v2(&resources)),
            [
                ("memory.swap.max", "50".into()),
                ("memory.max", "100".into())
            ]
        );
        let limits = v1(&resources).unwrap();
        assert_eq!(
            (limits.memory, limits.memory_and_swap),
            (Some(100), Some(150))
        );
        let equal = memory(|m| m.limit(100i64).swap(100i64));
        assert_eq!(written(v2(&equal))[0], ("memory.swap.max", "0".into()));
    }

    #[test]
    fn no_limit_is_minus_one() {
        let resources = memory(|m| m.limit(-1i64));
        assert_eq!(
            written(v2(&resources)),
            [
                ("memory.swap.max", "max".into()),
                ("memory.max", "max".into())
            ]
        );
        let limits = v1(&resources).unwrap();
        assert_eq!(
            (limits.memory, limits.memory_and_swap),
            (Some(-1), Some(-1))
        );
        let quota = cpu(|c| c.quota(-1i64).period(50_000u64));
        assert_eq!(written(v2(&quota)), [("cpu.max", "max 50000".into())]);
        let mut none = LinuxResources::default();
        let mut limit = LinuxPids::default();
        limit.set_limit(-1);
        none.set_pids(Some(limit));
        assert_eq!(written(v2(&none)), [("pids.max", "max".into())]);
    }

    #[test]
    fn nothing_asked_nothing_written() {
        let empty = LinuxResources::default();
        assert!(written(v2(&empty)).is_empty() && v1(&empty).unwrap() == V1::default());
        let zeros = cpu(|c| c.shares(0u64).quota(0i64).period(0u64).cpus("").mems(""));
        assert!(written(v2(&zeros)).is_empty() && v1(&zeros).unwrap() == V1::default());
        let zeros = memory(|m| m.limit(0i64).swap(0i64).reservation(0i64));
        assert!(written(v2(&zeros)).is_empty() && v1(&zeros).unwrap() == V1::default());
    }

    #[test]
    fn a_period_alone_keeps_the_quota() {
        let resources = cpu(|c| c.period(20_000u64));
        assert_eq!(written(v2(&resources)), [("cpu.max", "keep 20000".into())]);
        let limits = v1(&resources).unwrap();
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
            assert!(v2(&resources).unwrap_err().is_bad_input());
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
            let _ = v1(&resources);
            for setting in v2(&resources).unwrap_or_default() {
                proptest::prop_assert!(setting.value.bytes().all(|b| b != b'-'));
            }
        }
    }
}
