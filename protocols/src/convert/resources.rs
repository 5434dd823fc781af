// SPDX-License-Identifier: Apache-2.0

//! Resource limits, of a new container or of an update.

use super::ConvertError;
use super::field::{limit, list, non_zero, refused, text, try_list, unknown, word};
use crate::oci;
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxHugepageLimit, LinuxInterfacePriority,
    LinuxMemory, LinuxNetwork, LinuxPids, LinuxResources, LinuxThrottleDevice,
    LinuxThrottleDeviceBuilder, LinuxWeightDevice, LinuxWeightDeviceBuilder,
};

/// Converts resource limits. What is unset in the result is to be left as it is.
///
/// # Errors
///
/// See [`ConvertError`].
pub fn resources_from_wire(wire: &oci::LinuxResources) -> Result<LinuxResources, ConvertError> {
    let memory = wire.Memory.as_ref().map(memory).transpose()?;
    let cpu = wire.CPU.as_ref().map(cpu).transpose()?;
    let pids = wire.Pids.as_ref().map(pids).transpose()?.flatten();
    let block_io = wire.BlockIO.as_ref().map(block_io).transpose()?;
    let mut resources = LinuxResources::default();
    resources
        .set_devices(try_list(&wire.Devices, device_rule)?)
        .set_memory(memory)
        .set_cpu(cpu)
        .set_pids(pids)
        .set_block_io(block_io)
        .set_hugepage_limits(try_list(&wire.HugepageLimits, hugepage_limit)?)
        .set_network(wire.Network.as_ref().map(network));
    Ok(resources)
}

fn memory(wire: &oci::LinuxMemory) -> Result<LinuxMemory, ConvertError> {
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(limit("LinuxMemory.Limit", wire.Limit)?)
        .set_reservation(limit("LinuxMemory.Reservation", wire.Reservation)?)
        .set_swap(limit("LinuxMemory.Swap", wire.Swap)?)
        .set_kernel_tcp(limit("LinuxMemory.KernelTCP", wire.KernelTCP)?)
        .set_swappiness(non_zero(wire.Swappiness))
        .set_disable_oom_killer(non_zero(wire.DisableOOMKiller));
    // Deprecated because cgroup v2 has no such limit; v1 guests do.
    #[allow(deprecated)]
    memory.set_kernel(limit("LinuxMemory.Kernel", wire.Kernel)?);
    Ok(memory)
}

fn cpu(wire: &oci::LinuxCPU) -> Result<LinuxCpu, ConvertError> {
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(non_zero(wire.Shares))
        .set_quota(limit("LinuxCPU.Quota", wire.Quota)?)
        .set_period(non_zero(wire.Period))
        .set_realtime_runtime(limit("LinuxCPU.RealtimeRuntime", wire.RealtimeRuntime)?)
        .set_realtime_period(non_zero(wire.RealtimePeriod))
        .set_cpus(text(&wire.Cpus))
        .set_mems(text(&wire.Mems));
    Ok(cpu)
}

/// A message with limit 0 says no more than none at all: the field cannot tell 0 from unset.
fn pids(wire: &oci::LinuxPids) -> Result<Option<LinuxPids>, ConvertError> {
    let limit = limit("LinuxPids.Limit", wire.Limit)?;
    Ok(limit.map(|limit| {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        pids
    }))
}

/// A rule of the device filter. In the result, an unset number and -1 both stand for any device.
///
/// Major 0 is unset: hosts send it for a rule without numbers, and no device has it. Minor 0 is an
/// ordinary number, and so kept, unless the major number is unset as well.
fn device_rule(wire: &oci::LinuxDeviceCgroup) -> Result<LinuxDeviceCgroup, ConvertError> {
    let typ = (!wire.Type.is_empty())
        .then(|| word("LinuxDeviceCgroup.Type", &wire.Type))
        .transpose()?;
    let major = non_zero(wire.Major);
    let minor = match major {
        Some(_) => Some(wire.Minor),
        None => non_zero(wire.Minor),
    };
    if !wire.Access.bytes().all(|access| b"rwm".contains(&access)) {
        return Err(unknown("LinuxDeviceCgroup.Access", &wire.Access));
    }
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(wire.Allow)
        .set_typ(typ)
        .set_major(major)
        .set_minor(minor)
        .set_access(text(&wire.Access));
    Ok(rule)
}

fn block_io(wire: &oci::LinuxBlockIO) -> Result<LinuxBlockIo, ConvertError> {
    let mut io = LinuxBlockIo::default();
    io.set_weight(weight("LinuxBlockIO.Weight", wire.Weight)?)
        .set_leaf_weight(weight("LinuxBlockIO.LeafWeight", wire.LeafWeight)?)
        .set_weight_device(try_list(&wire.WeightDevice, weight_device)?)
        .set_throttle_read_bps_device(try_list(&wire.ThrottleReadBpsDevice, throttle_device)?)
        .set_throttle_write_bps_device(try_list(&wire.ThrottleWriteBpsDevice, throttle_device)?)
        .set_throttle_read_iops_device(try_list(&wire.ThrottleReadIOPSDevice, throttle_device)?)
        .set_throttle_write_iops_device(try_list(&wire.ThrottleWriteIOPSDevice, throttle_device)?);
    Ok(io)
}

/// A weight, unset for 0. The OCI configuration has 16 bits for it.
fn weight(field: &'static str, value: u32) -> Result<Option<u16>, ConvertError> {
    u16::try_from(value)
        .map(non_zero)
        .map_err(|_| ConvertError::OutOfRange {
            field,
            value: value.into(),
        })
}

fn weight_device(wire: &oci::LinuxWeightDevice) -> Result<LinuxWeightDevice, ConvertError> {
    let mut device = LinuxWeightDeviceBuilder::default()
        .major(wire.Major)
        .minor(wire.Minor);
    if let Some(value) = weight("LinuxWeightDevice.Weight", wire.Weight)? {
        device = device.weight(value);
    }
    if let Some(value) = weight("LinuxWeightDevice.LeafWeight", wire.LeafWeight)? {
        device = device.leaf_weight(value);
    }
    device.build().map_err(refused("LinuxWeightDevice"))
}

/// A rate of 0 is kept: it lifts a limit.
fn throttle_device(wire: &oci::LinuxThrottleDevice) -> Result<LinuxThrottleDevice, ConvertError> {
    LinuxThrottleDeviceBuilder::default()
        .major(wire.Major)
        .minor(wire.Minor)
        .rate(wire.Rate)
        .build()
        .map_err(refused("LinuxThrottleDevice"))
}

/// The page size becomes part of the name of a cgroup file, so its form matters.
/// Limits above what `i64` holds cannot be reached, and are taken as its greatest value.
fn hugepage_limit(wire: &oci::LinuxHugepageLimit) -> Result<LinuxHugepageLimit, ConvertError> {
    if !is_page_size(&wire.Pagesize) {
        return Err(unknown("LinuxHugepageLimit.Pagesize", &wire.Pagesize));
    }
    let mut limit = LinuxHugepageLimit::default();
    limit
        .set_page_size(wire.Pagesize.clone())
        .set_limit(wire.Limit.try_into().unwrap_or(i64::MAX));
    Ok(limit)
}

/// Digits and a unit, e.g. `64KB`, `2MB`, `1GB`.
fn is_page_size(value: &str) -> bool {
    let digits = ["KB", "MB", "GB"]
        .iter()
        .find_map(|unit| value.strip_suffix(unit))
        .unwrap_or_default();
    !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit())
}

fn network(wire: &oci::LinuxNetwork) -> LinuxNetwork {
    let mut network = LinuxNetwork::default();
    network
        .set_class_id(non_zero(wire.ClassID))
        .set_priorities(list(&wire.Priorities, interface_priority));
    network
}

fn interface_priority(wire: &oci::LinuxInterfacePriority) -> LinuxInterfacePriority {
    let mut priority = LinuxInterfacePriority::default();
    priority
        .set_name(wire.Name.clone())
        .set_priority(wire.Priority);
    priority
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use oci_spec::runtime::LinuxDeviceType;
    use protobuf::MessageField;

    fn device_rule(
        rule: oci::LinuxDeviceCgroup,
    ) -> Result<oci_spec::runtime::LinuxDeviceCgroup, ConvertError> {
        let wire = oci::LinuxResources {
            Devices: vec![rule],
            ..Default::default()
        };
        resources_from_wire(&wire).map(|resources| resources.devices().as_ref().unwrap()[0].clone())
    }

    fn with_pids(limit: i64) -> oci::LinuxResources {
        oci::LinuxResources {
            Pids: MessageField::some(oci::LinuxPids {
                Limit: limit,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn bug_pids_limit_is_not_inverted() {
        let limit = |wire: &oci::LinuxResources| {
            let resources = resources_from_wire(wire).unwrap();
            resources.pids().map(|pids| pids.limit())
        };
        assert_eq!(limit(&with_pids(100)), Some(100));
        assert_eq!(limit(&with_pids(-1)), Some(-1));
        assert_eq!(limit(&with_pids(0)), None);
        assert_eq!(limit(&oci::LinuxResources::default()), None);
        assert_out_of_range(resources_from_wire(&with_pids(-2)), "LinuxPids.Limit");
    }

    #[test]
    fn empty_resources_set_nothing() {
        let resources = resources_from_wire(&oci::LinuxResources {
            Memory: MessageField::some(Default::default()),
            CPU: MessageField::some(Default::default()),
            BlockIO: MessageField::some(Default::default()),
            Network: MessageField::some(Default::default()),
            ..Default::default()
        })
        .unwrap();
        assert_eq!(resources.memory(), &Some(Default::default()));
        assert_eq!(resources.cpu(), &Some(Default::default()));
        assert_eq!(resources.block_io(), &Some(Default::default()));
        assert_eq!(resources.network(), &Some(Default::default()));
        assert!(resources.devices().is_none() && resources.hugepage_limits().is_none());
    }

    #[test]
    fn bug_unlimited_memory_is_kept() {
        let resources = resources_from_wire(&oci::LinuxResources {
            Memory: MessageField::some(oci::LinuxMemory {
                Limit: -1,
                Reservation: 4096,
                Swap: -1,
                Swappiness: 60,
                DisableOOMKiller: true,
                ..Default::default()
            }),
            ..Default::default()
        })
        .unwrap();
        let memory = resources.memory().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (Some(-1), Some(-1)));
        assert_eq!(
            (memory.reservation(), memory.swappiness()),
            (Some(4096), Some(60))
        );
        assert_eq!(memory.disable_oom_killer(), Some(true));
    }

    #[test]
    fn bug_unlimited_cpu_quota_is_kept() {
        let resources = resources_from_wire(&oci::LinuxResources {
            CPU: MessageField::some(oci::LinuxCPU {
                Quota: -1,
                Period: 100_000,
                Shares: 1,
                Cpus: "0-1".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        })
        .unwrap();
        let cpu = resources.cpu().clone().unwrap();
        assert_eq!(
            (cpu.quota(), cpu.period(), cpu.shares()),
            (Some(-1), Some(100_000), Some(1))
        );
        assert_eq!(
            (cpu.cpus().as_deref(), cpu.mems().as_deref()),
            (Some("0-1"), None)
        );
    }

    #[test]
    fn limits_below_minus_one_are_errors() {
        let memory = oci::LinuxMemory {
            Swap: -2,
            ..Default::default()
        };
        let cpu = oci::LinuxCPU {
            Quota: i64::MIN,
            ..Default::default()
        };
        let wire = oci::LinuxResources {
            Memory: MessageField::some(memory),
            ..Default::default()
        };
        assert_out_of_range(resources_from_wire(&wire), "LinuxMemory.Swap");
        let wire = oci::LinuxResources {
            CPU: MessageField::some(cpu),
            ..Default::default()
        };
        assert_out_of_range(resources_from_wire(&wire), "LinuxCPU.Quota");
    }

    #[test]
    fn bug_device_wildcard_minus_one_is_kept() {
        let rule = device_rule(oci::LinuxDeviceCgroup {
            Allow: true,
            Type: "c".to_owned(),
            Major: 136,
            Minor: -1,
            Access: "rwm".to_owned(),
            ..Default::default()
        })
        .unwrap();
        assert!(rule.allow());
        assert_eq!(rule.typ(), Some(LinuxDeviceType::C));
        assert_eq!((rule.major(), rule.minor()), (Some(136), Some(-1)));
        assert_eq!(rule.access().as_deref(), Some("rwm"));
    }

    #[test]
    fn device_number_zero_is_unset_only_for_major() {
        let numbers = |major, minor| {
            let rule = device_rule(oci::LinuxDeviceCgroup {
                Type: "b".to_owned(),
                Major: major,
                Minor: minor,
                ..Default::default()
            });
            let rule = rule.unwrap();
            (rule.major(), rule.minor())
        };
        assert_eq!(numbers(0, 0), (None, None));
        assert_eq!(numbers(8, 0), (Some(8), Some(0)));
        assert_eq!(numbers(-1, 0), (Some(-1), Some(0)));
        assert_eq!(numbers(0, 3), (None, Some(3)));
    }

    #[test]
    fn a_bare_deny_rule_means_all_devices() {
        let rule = device_rule(oci::LinuxDeviceCgroup {
            Access: "rwm".to_owned(),
            ..Default::default()
        })
        .unwrap();
        assert!(!rule.allow());
        assert_eq!((rule.typ(), rule.major(), rule.minor()), (None, None, None));
    }

    #[test]
    fn bug_unknown_device_rule_type_is_an_error_not_all() {
        let typ = oci::LinuxDeviceCgroup {
            Type: "d".to_owned(),
            ..Default::default()
        };
        assert_unknown(device_rule(typ), "LinuxDeviceCgroup.Type", "d");
        let access = oci::LinuxDeviceCgroup {
            Access: "rwx".to_owned(),
            ..Default::default()
        };
        assert_unknown(device_rule(access), "LinuxDeviceCgroup.Access", "rwx");
    }

    #[test]
    fn block_io_weights_fit_or_fail() {
        let convert = |weight, leaf| {
            resources_from_wire(&oci::LinuxResources {
                BlockIO: MessageField::some(oci::LinuxBlockIO {
                    Weight: weight,
                    WeightDevice: vec![oci::LinuxWeightDevice {
                        Major: 8,
                        LeafWeight: leaf,
                        ..Default::default()
                    }],
                    ThrottleReadBpsDevice: vec![oci::LinuxThrottleDevice {
                        Major: 8,
                        Minor: 16,
                        Rate: 1 << 40,
                        ..Default::default()
                    }],
                    ..Default::default()
                }),
                ..Default::default()
            })
        };
        let io = convert(500, 10).unwrap().block_io().clone().unwrap();
        assert_eq!((io.weight(), io.leaf_weight()), (Some(500), None));
        let weight = io.weight_device().as_ref().unwrap()[0];
        assert_eq!(
            (weight.major(), weight.weight(), weight.leaf_weight()),
            (8, None, Some(10))
        );
        let throttle = io.throttle_read_bps_device().as_ref().unwrap()[0];
        assert_eq!((throttle.minor(), throttle.rate()), (16, 1 << 40));
        assert!(io.throttle_write_bps_device().is_none());
        assert_out_of_range(convert(65_536, 0), "LinuxBlockIO.Weight");
        assert_out_of_range(convert(0, u32::MAX), "LinuxWeightDevice.LeafWeight");
    }

    #[test]
    fn hugepage_sizes_are_sizes() {
        let convert = |size: &str, limit| {
            resources_from_wire(&oci::LinuxResources {
                HugepageLimits: vec![oci::LinuxHugepageLimit {
                    Pagesize: size.to_owned(),
                    Limit: limit,
                    ..Default::default()
                }],
                ..Default::default()
            })
        };
        for size in ["64KB", "2MB", "1GB"] {
            let resources = convert(size, u64::MAX).unwrap();
            let limit = resources.hugepage_limits().as_ref().unwrap()[0].clone();
            assert_eq!(
                (limit.page_size().as_str(), limit.limit()),
                (size, i64::MAX)
            );
        }
        for size in ["", "MB", "2", "2M", "2mb", "../2MB", "+2MB"] {
            assert_unknown(convert(size, 1), "LinuxHugepageLimit.Pagesize", size);
        }
    }
}
