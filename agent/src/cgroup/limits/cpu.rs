// SPDX-License-Identifier: Apache-2.0
//! Processor time and placement.

use oci_spec::runtime::LinuxCpu;

use super::{Absent, Setting, V1, bytes, given, or_max};
use crate::cgroup::CgroupError;

/// Stands in a `cpu.max` value for the quota that is in force.
pub(in crate::cgroup) const KEEP_QUOTA: &str = "keep";

const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;

pub(super) fn v2(cpu: &LinuxCpu, settings: &mut Vec<Setting>) -> Result<(), CgroupError> {
    cpuset(cpu, settings);
    if let Some(shares) = given(cpu.shares()) {
        let weight = Setting::new("cpu", "cpu.weight", weight_of_shares(shares));
        settings.push(weight.when_absent(Absent::Warns));
    }
    // cpu.max takes "quota period", or the quota alone. A period alone
    // needs the quota in force: see `Unified::apply`.
    let max = match (quota_of(cpu)?, given(cpu.period())) {
        (Some(quota), Some(period)) => Some(format!("{} {period}", or_max(quota))),
        (Some(quota), None) => Some(or_max(quota)),
        (None, Some(period)) => Some(format!("{KEEP_QUOTA} {period}")),
        (None, None) => None,
    };
    settings.extend(max.map(|max| Setting::new("cpu", "cpu.max", max)));
    // Version 2 has no realtime share at all; "no limit" is what it gives.
    if matches!(runtime_of(cpu)?, Some(Some(_))) || given(cpu.realtime_period()).is_some() {
        return Err(CgroupError::Controller {
            controller: "cpu",
            file: "cpu.rt_runtime_us".into(),
        });
    }
    Ok(())
}

pub(super) fn v1(cpu: &LinuxCpu, limits: &mut V1) -> Result<(), CgroupError> {
    limits.cpus = cpu.cpus().clone().filter(|c| !c.is_empty());
    limits.mems = cpu.mems().clone().filter(|m| !m.is_empty());
    limits.shares = given(cpu.shares()).map(|s| s.clamp(MIN_SHARES, MAX_SHARES));
    limits.period = given(cpu.period());
    limits.quota = quota_of(cpu)?.map(|quota| quota.unwrap_or(-1));
    if let Some(period) = given(cpu.realtime_period()) {
        let period = Setting::new("cpu", "cpu.rt_period_us", period);
        limits.rest.push(period.may_wait());
    }
    if let Some(runtime) = runtime_of(cpu)? {
        let absent = runtime.map_or(Absent::Ignored, |_| Absent::Fails);
        let runtime = Setting::new("cpu", "cpu.rt_runtime_us", runtime.unwrap_or(-1));
        limits.rest.push(runtime.when_absent(absent));
    }
    Ok(())
}

/// Maps the 2..=262144 of shares onto the 1..=10000 of weights (OCI runtime
/// specification, cgroup v2 conversion); values beyond the ends count as the ends.
pub(super) fn weight_of_shares(shares: u64) -> u64 {
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

fn quota_of(cpu: &LinuxCpu) -> Result<Option<Option<i64>>, CgroupError> {
    bytes("cpu.quota", cpu.quota())
}

fn runtime_of(cpu: &LinuxCpu) -> Result<Option<Option<i64>>, CgroupError> {
    bytes("cpu.realtimeRuntime", cpu.realtime_runtime())
}
