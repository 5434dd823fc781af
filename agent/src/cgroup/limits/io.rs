// SPDX-License-Identifier: Apache-2.0
//! Block I/O: weights and rates.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use super::{Absent, InForce, Setting};
use crate::cgroup::CgroupError;

const MIN_WEIGHT: u16 = 10;
const MAX_WEIGHT: u16 = 1000;

/// The four kinds of rates: OCI's list, the file of v1, the word of v2.
type Rates<'a> = [(&'a [LinuxThrottleDevice], &'static str, &'static str); 4];

fn rates(block: &LinuxBlockIo) -> Rates<'_> {
    fn list(devices: &Option<Vec<LinuxThrottleDevice>>) -> &[LinuxThrottleDevice] {
        devices.as_deref().unwrap_or_default()
    }
    [
        (
            list(block.throttle_read_bps_device()),
            "blkio.throttle.read_bps_device",
            "rbps",
        ),
        (
            list(block.throttle_write_bps_device()),
            "blkio.throttle.write_bps_device",
            "wbps",
        ),
        (
            list(block.throttle_read_iops_device()),
            "blkio.throttle.read_iops_device",
            "riops",
        ),
        (
            list(block.throttle_write_iops_device()),
            "blkio.throttle.write_iops_device",
            "wiops",
        ),
    ]
}

/// Weights by BFQ and by the I/O cost model, whichever the kernel has: a disk
/// is under one of them or none, and another disk may be under the other.
pub(super) fn v2(
    block: &LinuxBlockIo,
    in_force: InForce<'_>,
    settings: &mut Vec<Setting>,
) -> Result<(), CgroupError> {
    let has = |file| in_force("io", file).is_some();
    let bfq = has("io.bfq.weight");
    let cost = has("io.weight") || !bfq;
    let mut weigh = |device: Option<&str>, weight: u16| {
        let weight = weight.clamp(MIN_WEIGHT, MAX_WEIGHT);
        let line = |weight: u32| match device {
            Some(device) => format!("{device} {weight}"),
            None => weight.to_string(),
        };
        if bfq {
            let weight = Setting::new("io", "io.bfq.weight", line(weight.into()));
            settings.push(weight.when_absent(Absent::Warns));
        }
        if cost {
            let weight = Setting::new("io", "io.weight", line(cost_weight(weight)));
            settings.push(weight.when_absent(Absent::Warns));
        }
    };
    if let Some(weight) = block.weight() {
        weigh(None, weight);
    }
    for device in block.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            weigh(Some(&numbers(device.major(), device.minor())?), weight);
        }
    }
    // One line says all of a device; what it leaves out stays as it is.
    let mut lines: Vec<(String, String)> = Vec::new();
    for (devices, _, word) in rates(block) {
        for device in devices {
            let numbers = numbers(device.major(), device.minor())?;
            let rate = match device.rate() {
                0 => format!(" {word}=max"),
                rate => format!(" {word}={rate}"),
            };
            match lines.iter_mut().find(|(of, _)| *of == numbers) {
                Some((_, line)) => line.push_str(&rate),
                None => lines.push((numbers, rate)),
            }
        }
    }
    settings.extend(lines.into_iter().map(|(device, line)| {
        Setting::new("io", "io.max", device + &line).when_absent(Absent::NoDevice)
    }));
    Ok(())
}

pub(super) fn v1(
    block: &LinuxBlockIo,
    in_force: InForce<'_>,
    settings: &mut Vec<Setting>,
) -> Result<(), CgroupError> {
    let (weight, of_device) = match in_force("blkio", "blkio.bfq.weight") {
        Some(_) => ("blkio.bfq.weight", "blkio.bfq.weight_device"),
        None => ("blkio.weight", "blkio.weight_device"),
    };
    let mut weigh = |file: &'static str, device: Option<&str>, weight: Option<u16>| {
        let Some(weight) = weight.map(|weight| weight.clamp(MIN_WEIGHT, MAX_WEIGHT)) else {
            return;
        };
        let value = match device {
            Some(device) => format!("{device} {weight}"),
            None => weight.to_string(),
        };
        settings.push(Setting::new("blkio", file, value).when_absent(Absent::Warns));
    };
    // Weights of leaves went with the CFQ scheduler in Linux 5.0: a warning there.
    weigh(weight, None, block.weight());
    weigh("blkio.leaf_weight", None, block.leaf_weight());
    for device in block.weight_device().iter().flatten() {
        let numbers = numbers(device.major(), device.minor())?;
        weigh(of_device, Some(&numbers), device.weight());
        let leaf = "blkio.leaf_weight_device";
        weigh(leaf, Some(&numbers), device.leaf_weight());
    }
    for (devices, file, _) in rates(block) {
        for device in devices {
            let numbers = numbers(device.major(), device.minor())?;
            // 0 lifts a limit here.
            let line = format!("{numbers} {}", device.rate());
            settings.push(Setting::new("blkio", file, line).when_absent(Absent::NoDevice));
        }
    }
    Ok(())
}

/// Maps the 10..=1000 of OCI onto the 1..=10000 of the cost model.
fn cost_weight(weight: u16) -> u32 {
    1 + u32::from(weight - MIN_WEIGHT) * 9_999 / u32::from(MAX_WEIGHT - MIN_WEIGHT)
}

fn numbers(major: i64, minor: i64) -> Result<String, CgroupError> {
    if major < 0 || minor < 0 {
        return Err(CgroupError::Value {
            limit: "blockIO",
            reason: "a device number is negative",
        });
    }
    Ok(format!("{major}:{minor}"))
}
