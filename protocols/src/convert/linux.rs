// SPDX-License-Identifier: Apache-2.0

//! The Linux section, without its resources and seccomp profile.

use super::ConvertError;
use super::field::{list, map, non_zero, path, refused, text, try_list, unknown, word};
use super::{resources::resources_from_wire, seccomp::seccomp_from_wire};
use crate::oci;
use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceType, LinuxIdMapping, LinuxIdMappingBuilder, LinuxIntelRdt,
    LinuxNamespace, LinuxNamespaceType,
};

/// Values of `rootfsPropagation`: mount_namespaces(7), each also for the whole tree.
const PROPAGATIONS: [&str; 8] = [
    "private",
    "rprivate",
    "rshared",
    "rslave",
    "runbindable",
    "shared",
    "slave",
    "unbindable",
];

pub(super) fn linux_from_wire(wire: &oci::Linux) -> Result<Linux, ConvertError> {
    let resources = wire
        .Resources
        .as_ref()
        .map(resources_from_wire)
        .transpose()?;
    let seccomp = wire.Seccomp.as_ref().map(seccomp_from_wire).transpose()?;
    let mut linux = Linux::default();
    linux
        .set_uid_mappings(try_list(&wire.UIDMappings, id_mapping)?)
        .set_gid_mappings(try_list(&wire.GIDMappings, id_mapping)?)
        .set_sysctl(map(&wire.Sysctl))
        .set_resources(resources)
        .set_cgroups_path(path(&wire.CgroupsPath))
        .set_namespaces(try_list(&wire.Namespaces, namespace)?)
        .set_devices(try_list(&wire.Devices, device)?)
        .set_seccomp(seccomp)
        .set_rootfs_propagation(propagation(&wire.RootfsPropagation)?)
        .set_masked_paths(list(&wire.MaskedPaths, String::clone))
        .set_readonly_paths(list(&wire.ReadonlyPaths, String::clone))
        .set_mount_label(text(&wire.MountLabel))
        .set_intel_rdt(wire.IntelRdt.as_ref().map(intel_rdt));
    Ok(linux)
}

fn id_mapping(wire: &oci::LinuxIDMapping) -> Result<LinuxIdMapping, ConvertError> {
    LinuxIdMappingBuilder::default()
        .host_id(wire.HostID)
        .container_id(wire.ContainerID)
        .size(wire.Size)
        .build()
        .map_err(refused("LinuxIDMapping"))
}

fn namespace(wire: &oci::LinuxNamespace) -> Result<LinuxNamespace, ConvertError> {
    let typ = LinuxNamespaceType::try_from(wire.Type.as_str())
        .map_err(|_| unknown("LinuxNamespace.Type", &wire.Type))?;
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(typ).set_path(path(&wire.Path));
    Ok(namespace)
}

/// Device numbers are kept as sent: the host's numbers are replaced by the guest's before a node is made.
/// Owner 0:0 is the default anyway, so it is set; permissions of 0 are unset.
fn device(wire: &oci::LinuxDevice) -> Result<LinuxDevice, ConvertError> {
    let mut device = LinuxDevice::default();
    device
        .set_path(wire.Path.as_str().into())
        .set_typ(device_type(&wire.Type)?)
        .set_major(wire.Major)
        .set_minor(wire.Minor)
        .set_file_mode(non_zero(wire.FileMode))
        .set_uid(Some(wire.UID))
        .set_gid(Some(wire.GID));
    Ok(device)
}

/// `a`, which stands for every type in device rules, is no type of a node.
fn device_type(value: &str) -> Result<LinuxDeviceType, ConvertError> {
    match word("LinuxDevice.Type", value)? {
        LinuxDeviceType::A => Err(unknown("LinuxDevice.Type", value)),
        typ => Ok(typ),
    }
}

fn propagation(value: &str) -> Result<Option<String>, ConvertError> {
    if value.is_empty() || PROPAGATIONS.contains(&value) {
        return Ok(text(value));
    }
    Err(unknown("Linux.RootfsPropagation", value))
}

fn intel_rdt(wire: &oci::LinuxIntelRdt) -> LinuxIntelRdt {
    let mut rdt = LinuxIntelRdt::default();
    rdt.set_l3_cache_schema(text(&wire.L3CacheSchema));
    rdt
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;

    #[test]
    fn an_empty_linux_section_gets_no_defaults() {
        let linux = linux_from_wire(&oci::Linux::default()).unwrap();
        assert!(
            linux.namespaces().is_none() && linux.devices().is_none() && linux.seccomp().is_none()
        );
        assert!(linux.masked_paths().is_none() && linux.readonly_paths().is_none());
        assert!(
            linux.resources().is_none()
                && linux.cgroups_path().is_none()
                && linux.sysctl().is_none()
        );
        assert!(linux.uid_mappings().is_none() && linux.gid_mappings().is_none());
        assert!(linux.rootfs_propagation().is_none() && linux.mount_label().is_none());
    }

    fn with_namespace(typ: &str, path: &str) -> oci::Linux {
        oci::Linux {
            Namespaces: vec![oci::LinuxNamespace {
                Type: typ.to_owned(),
                Path: path.to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn every_namespace_type_is_known() {
        use LinuxNamespaceType as Ns;
        for (word, wanted) in [
            ("pid", Ns::Pid),
            ("net", Ns::Network),
            ("network", Ns::Network),
            ("mnt", Ns::Mount),
            ("mount", Ns::Mount),
            ("ipc", Ns::Ipc),
            ("uts", Ns::Uts),
            ("user", Ns::User),
            ("cgroup", Ns::Cgroup),
            ("time", Ns::Time),
        ] {
            let linux = linux_from_wire(&with_namespace(word, "")).unwrap();
            let namespace = linux.namespaces().as_ref().unwrap()[0].clone();
            assert_eq!(
                (namespace.typ(), namespace.path()),
                (wanted, &None),
                "{word}"
            );
        }
        let linux = linux_from_wire(&with_namespace("ipc", "/run/ns")).unwrap();
        let path = linux.namespaces().as_ref().unwrap()[0].path().clone();
        assert_eq!(path.unwrap().to_str(), Some("/run/ns"));
    }

    #[test]
    fn bug_unknown_namespace_type_is_an_error() {
        for word in ["", "PID", "pidns", "net "] {
            assert_unknown(
                linux_from_wire(&with_namespace(word, "")),
                "LinuxNamespace.Type",
                word,
            );
        }
    }

    #[test]
    fn bug_unknown_device_type_is_an_error_not_a_panic() {
        for word in ["", "a", "x", "block"] {
            let wire = oci::Linux {
                Devices: vec![oci::LinuxDevice {
                    Type: word.to_owned(),
                    ..Default::default()
                }],
                ..Default::default()
            };
            assert_unknown(linux_from_wire(&wire), "LinuxDevice.Type", word);
        }
    }

    #[test]
    fn devices_are_kept() {
        let linux = linux_from_wire(&oci::Linux {
            Devices: vec![oci::LinuxDevice {
                Path: "/dev/vda".to_owned(),
                Type: "b".to_owned(),
                Major: 254,
                FileMode: 0o660,
                GID: 6,
                ..Default::default()
            }],
            ..Default::default()
        })
        .unwrap();
        let device = &linux.devices().as_ref().unwrap()[0];
        assert_eq!(device.path().to_str(), Some("/dev/vda"));
        assert_eq!(device.typ(), LinuxDeviceType::B);
        assert_eq!((device.major(), device.minor()), (254, 0));
        assert_eq!(
            (device.file_mode(), device.uid(), device.gid()),
            (Some(0o660), Some(0), Some(6))
        );
    }

    #[test]
    fn unknown_propagation_is_an_error() {
        let wire = |word: &str| oci::Linux {
            RootfsPropagation: word.to_owned(),
            ..Default::default()
        };
        let linux = linux_from_wire(&wire("rslave")).unwrap();
        assert_eq!(linux.rootfs_propagation().as_deref(), Some("rslave"));
        assert_unknown(
            linux_from_wire(&wire("public")),
            "Linux.RootfsPropagation",
            "public",
        );
    }

    #[test]
    fn id_mappings_are_not_swapped() {
        let linux = linux_from_wire(&oci::Linux {
            UIDMappings: vec![oci::LinuxIDMapping {
                HostID: 100_000,
                ContainerID: 7,
                Size: 65_536,
                ..Default::default()
            }],
            ..Default::default()
        })
        .unwrap();
        let mapping = linux.uid_mappings().as_ref().unwrap()[0];
        assert_eq!(
            (mapping.host_id(), mapping.container_id(), mapping.size()),
            (100_000, 7, 65_536)
        );
        assert!(linux.gid_mappings().is_none());
    }
}
