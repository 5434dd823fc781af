// SPDX-License-Identifier: Apache-2.0
//! Memory and swap.

use oci_spec::runtime::LinuxMemory;

use super::{Absent, InForce, Setting, V1, bytes, or_max};
use crate::cgroup::CgroupError;

/// A percentage, as it was when OCI took it up.
const MAX_SWAPPINESS: u64 = 100;

pub(super) fn v2(
    memory: &LinuxMemory,
    in_force: InForce<'_>,
    settings: &mut Vec<Setting>,
) -> Result<(), CgroupError> {
    // Swappiness has no place here, and kernel and socket memory count as memory.
    swappiness(memory)?;
    let limit = bytes("memory.limit", memory.limit())?;
    let swap = bytes("memory.swap", memory.swap())?;
    if let Some(low) = bytes("memory.reservation", memory.reservation())? {
        let low = Setting::new("memory", "memory.low", or_max(low));
        settings.push(low.when_absent(Absent::Warns));
    }
    // Of an update of swap alone, the other half is in force already.
    let total_of = match (limit, swap) {
        (None, Some(Some(_))) => in_force("memory", "memory.max")
            .and_then(|text| text.trim_end().parse().ok())
            .map(Some),
        _ => limit,
    };
    // Swap before memory: when both shrink, what memory.max pushes out must
    // not go beyond the new swap limit.
    if let Some(swap) = swap_only(total_of, swap)? {
        let swap = Setting::new("memory", "memory.swap.max", or_max(swap));
        settings.push(swap.when_absent(Absent::Ignored));
    }
    if let Some(limit) = limit {
        settings.push(Setting::new("memory", "memory.max", or_max(limit)));
    }
    if memory.disable_oom_killer() == Some(true) {
        // A file of version 1: version 2 has no such mode. That the killer
        // stays is the safer half of what was asked, so it is a warning, as
        // for container engines, and no error.
        let control = Setting::new("memory", "memory.oom_control", 1);
        settings.push(control.when_absent(Absent::Warns));
    }
    Ok(())
}

pub(super) fn v1(memory: &LinuxMemory, limits: &mut V1) -> Result<(), CgroupError> {
    limits.memory = bytes("memory.limit", memory.limit())?.map(|l| l.unwrap_or(-1));
    limits.memory_and_swap = bytes("memory.swap", memory.swap())?
        .map(|s| s.unwrap_or(-1))
        // Memory without a limit leaves no sense to a limit of both together.
        .or(limits.memory.filter(|&limit| limit == -1));
    limits.soft = bytes("memory.reservation", memory.reservation())?.map(|s| s.unwrap_or(-1));
    #[allow(deprecated)]
    let kernel = bytes("memory.kernel", memory.kernel())?;
    if let Some(limit) = kernel {
        // Obsolete since Linux 5.4 and without effect since 5.16, where the
        // memory limit has long counted it.
        let file = "memory.kmem.limit_in_bytes";
        let limit = Setting::new("memory", file, limit.unwrap_or(-1));
        limits.rest.push(limit.when_absent(Absent::Warns));
    }
    if let Some(limit) = bytes("memory.kernelTCP", memory.kernel_tcp())? {
        let file = "memory.kmem.tcp.limit_in_bytes";
        let setting = Setting::new("memory", file, limit.unwrap_or(-1));
        let absent = limit.map_or(Absent::Ignored, |_| Absent::Fails);
        limits.rest.push(setting.when_absent(absent));
    }
    if let Some(value) = swappiness(memory)? {
        let value = Setting::new("memory", "memory.swappiness", value);
        limits.rest.push(value.when_absent(Absent::Warns));
    }
    if let Some(disable) = memory.disable_oom_killer() {
        let value = Setting::new("memory", "memory.oom_control", u8::from(disable));
        limits.rest.push(value);
    }
    Ok(())
}

fn swappiness(memory: &LinuxMemory) -> Result<Option<u64>, CgroupError> {
    match memory.swappiness() {
        Some(value) if value > MAX_SWAPPINESS => Err(CgroupError::Value {
            limit: "memory.swappiness",
            reason: "it is above 100",
        }),
        other => Ok(other),
    }
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
