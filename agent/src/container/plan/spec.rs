// SPDX-License-Identifier: Apache-2.0
//! From the OCI specification of a CreateContainer request to a
//! [`ContainerPlan`]. Facts of the reference: protocol sections 4.2 to 4.5.

use std::collections::HashMap;

use nix::sys::stat::SFlag;
use oci_spec::runtime as oci;

use super::id::shorten;
use super::label::Modules;
use super::mount::plan_destination;
use super::{
    ChildHooks, ContainerId, ContainerPlan, DevicePlan, Given, Hook, Hooks, IdMap, InitPlan,
    Namespace, NamespaceSource, Namespaces, PlanError, RootPlan, mount, process, sysctl,
};
use crate::mount_options::propagation_flag;
use crate::seccomp;

/// Annotations under which containerd and CRI-O give the container's name.
const NAME_ANNOTATIONS: [&str; 2] = [
    "io.kubernetes.cri.container-name",
    "io.kubernetes.cri-o.ContainerName",
];

/// Checks a whole specification.
///
/// `shares_pid` is the request's `sandbox_pidns`.
///
/// # Errors
/// [`PlanError`] naming the first field that is wrong.
pub fn plan(
    id: ContainerId,
    spec: &oci::Spec,
    shares_pid: bool,
) -> Result<ContainerPlan, PlanError> {
    let linux = spec
        .linux()
        .as_ref()
        .ok_or(PlanError::Missing("OCI.Linux"))?;
    let root = spec.root().as_ref().ok_or(PlanError::Missing("OCI.Root"))?;
    let process = spec
        .process()
        .as_ref()
        .ok_or(PlanError::Missing("OCI.Process"))?;
    let namespaces = namespaces(linux, shares_pid)?;
    let hostname = spec.hostname().clone().filter(|name| !name.is_empty());
    require(
        &namespaces,
        hostname.is_some(),
        Namespace::Uts,
        "hostname needs a uts namespace",
    )?;
    let root = root_plan(spec, linux, root)?;
    let hides =
        !root.masked.is_empty() || !root.readonly_paths.is_empty() || !root.mounts.is_empty();
    require(
        &namespaces,
        hides,
        Namespace::Mount,
        "mounts and masked paths need a mount namespace",
    )?;
    sysctl::check(linux, &namespaces)?;
    let new_user = namespaces.get(&Namespace::User) == Some(&NamespaceSource::New);
    Ok(ContainerPlan {
        id,
        name: name(spec),
        uid_maps: id_maps(linux.uid_mappings(), new_user)?,
        gid_maps: id_maps(linux.gid_mappings(), new_user)?,
        cgroups_path: linux
            .cgroups_path()
            .as_ref()
            .and_then(|p| p.to_str())
            .unwrap_or_default()
            .to_owned(),
        resources: linux.resources().clone(),
        hooks: hooks(spec),
        annotations: spec.annotations().clone().unwrap_or_default(),
        seccomp: linux.seccomp().as_ref().map(seccomp::compile).transpose()?,
        init: InitPlan {
            hooks: ChildHooks::default(),
            hostname,
            // A mount namespace that is joined has its root and its mounts already.
            root: (namespaces.get(&Namespace::Mount) == Some(&NamespaceSource::New))
                .then_some(root),
        },
        process: process::plan(process)?,
        namespaces,
        given: Given::default(),
    })
}

fn hooks(spec: &oci::Spec) -> Hooks {
    let list = |hooks: &Option<Vec<oci::Hook>>| hooks.iter().flatten().map(hook).collect();
    let Some(hooks) = spec.hooks() else {
        return Hooks::default();
    };
    #[allow(deprecated, reason = "hosts may still send prestart hooks")]
    let prestart = list(hooks.prestart());
    Hooks {
        prestart,
        create_runtime: list(hooks.create_runtime()),
        create_container: list(hooks.create_container()),
        start_container: list(hooks.start_container()),
        poststart: list(hooks.poststart()),
        poststop: list(hooks.poststop()),
    }
}

/// How long a hook may take that has no limit of its own, in seconds.
const HOOK_TIMEOUT: i64 = 10;

fn hook(hook: &oci::Hook) -> Hook {
    Hook {
        path: hook.path().to_string_lossy().into_owned(),
        args: hook.args().clone().unwrap_or_default(),
        env: hook.env().clone().unwrap_or_default(),
        timeout: u32::try_from(hook.timeout().filter(|&t| t > 0).unwrap_or(HOOK_TIMEOUT))
            .unwrap_or(u32::MAX),
    }
}

fn name(spec: &oci::Spec) -> Option<String> {
    let annotations = spec.annotations().as_ref()?;
    NAME_ANNOTATIONS
        .iter()
        .find_map(|key| annotations.get(*key).cloned())
}

fn require(
    namespaces: &Namespaces,
    when: bool,
    kind: Namespace,
    reason: &'static str,
) -> Result<(), PlanError> {
    if when && !namespaces.contains_key(&kind) {
        return Err(PlanError::invalid("linux.namespaces", kind.file(), reason));
    }
    Ok(())
}

/// The namespaces of protocol 4.4: ipc and uts are always the sandbox's, a pid
/// namespace is always there, the network is the guest's unless listed.
fn namespaces(linux: &oci::Linux, shares_pid: bool) -> Result<Namespaces, PlanError> {
    let mut all: Namespaces = HashMap::new();
    let listed = || linux.namespaces().iter().flatten();
    let has_user = listed().any(|namespace| namespace.typ() == oci::LinuxNamespaceType::User);
    for namespace in listed() {
        let kind = kind(namespace.typ())?;
        let path = namespace
            .path()
            .as_ref()
            .and_then(|path| path.to_str())
            .unwrap_or_default();
        let source = match (kind, path) {
            // The sandbox's belong to the guest's user namespace: in another one
            // neither their name nor their queues can be used.
            (Namespace::Ipc | Namespace::Uts, _) if has_user => NamespaceSource::New,
            (Namespace::Ipc | Namespace::Uts, _) => NamespaceSource::Sandbox,
            (_, "") => NamespaceSource::New,
            (_, path) if path.starts_with('/') && !path.contains('\0') => {
                NamespaceSource::Path(path.to_owned())
            }
            (_, path) => {
                return Err(PlanError::invalid(
                    "linux.namespaces.path",
                    shorten(path),
                    "must be absolute",
                ));
            }
        };
        if all.insert(kind, source).is_some() {
            return Err(PlanError::invalid(
                "linux.namespaces.type",
                kind.file(),
                "is listed twice",
            ));
        }
    }
    let pid = if shares_pid {
        NamespaceSource::Sandbox
    } else {
        NamespaceSource::New
    };
    all.entry(Namespace::Pid).or_insert(pid);
    Ok(all)
}

fn kind(typ: oci::LinuxNamespaceType) -> Result<Namespace, PlanError> {
    use oci::LinuxNamespaceType as Type;
    Ok(match typ {
        Type::User => Namespace::User,
        Type::Ipc => Namespace::Ipc,
        Type::Uts => Namespace::Uts,
        Type::Network => Namespace::Net,
        Type::Pid => Namespace::Pid,
        Type::Cgroup => Namespace::Cgroup,
        Type::Mount => Namespace::Mount,
        Type::Time => Namespace::Time,
    })
}

fn id_maps(
    maps: &Option<Vec<oci::LinuxIdMapping>>,
    new_user: bool,
) -> Result<Vec<IdMap>, PlanError> {
    let maps: Vec<IdMap> = maps
        .iter()
        .flatten()
        .map(|map| IdMap {
            inside: map.container_id(),
            outside: map.host_id(),
            count: map.size(),
        })
        .collect();
    let usable = maps.iter().any(|map| map.count > 0);
    match (new_user, maps.is_empty(), usable) {
        (true, _, true) | (false, true, _) => Ok(maps),
        (true, ..) => Err(PlanError::invalid(
            "linux.uidMappings",
            "",
            "a user namespace needs id maps",
        )),
        (false, ..) => Err(PlanError::invalid(
            "linux.uidMappings",
            "",
            "id maps need a new user namespace",
        )),
    }
}

fn root_plan(
    spec: &oci::Spec,
    linux: &oci::Linux,
    root: &oci::Root,
) -> Result<RootPlan, PlanError> {
    let path = root.path().to_str().unwrap_or_default();
    if !path.starts_with('/') || path.contains('\0') {
        return Err(PlanError::invalid(
            "root.path",
            shorten(path),
            "must be an absolute path",
        ));
    }
    let label = linux.mount_label().as_ref();
    let label = match label.filter(|label| !label.is_empty()) {
        Some(_) => Modules::detect().selinux_label("linux.mountLabel", label)?,
        None => None,
    };
    Ok(RootPlan {
        path: path.to_owned(),
        readonly: root.readonly().unwrap_or(false),
        propagation: propagation(linux)?,
        mounts: spec
            .mounts()
            .iter()
            .flatten()
            .map(|mount| mount::plan(mount, label.as_deref()))
            .collect::<Result<_, _>>()?,
        devices: linux
            .devices()
            .iter()
            .flatten()
            .map(device)
            .collect::<Result<_, _>>()?,
        masked: paths("linux.maskedPaths", linux.masked_paths())?,
        readonly_paths: paths("linux.readonlyPaths", linux.readonly_paths())?,
        sysctls: linux
            .sysctl()
            .iter()
            .flatten()
            .map(|(key, value)| (sysctl::path(key), value.clone()))
            .collect(),
    })
}

fn propagation(linux: &oci::Linux) -> Result<u64, PlanError> {
    match linux.rootfs_propagation().as_deref() {
        None | Some("") => Ok(0),
        Some(word) => propagation_flag(word)
            .map(|flag| flag.bits())
            .ok_or_else(|| {
                PlanError::invalid(
                    "linux.rootfsPropagation",
                    shorten(word),
                    "is no propagation",
                )
            }),
    }
}

fn paths(field: &'static str, list: &Option<Vec<String>>) -> Result<Vec<String>, PlanError> {
    list.iter()
        .flatten()
        .map(|path| {
            plan_destination(path).map_err(|_| {
                PlanError::invalid(field, shorten(path), "must be absolute, without '..'")
            })
        })
        .collect()
}

/// Largest minor and major number of Linux' `dev_t`.
const MAX_MINOR: i64 = (1 << 20) - 1;
const MAX_MAJOR: i64 = (1 << 12) - 1;

fn device(device: &oci::LinuxDevice) -> Result<DevicePlan, PlanError> {
    let raw = device.path().to_str().unwrap_or_default();
    let path = plan_destination(raw)?;
    if !path.starts_with("/dev/") {
        return Err(PlanError::invalid(
            "linux.devices.path",
            shorten(raw),
            "must be below /dev",
        ));
    }
    let kind = match device.typ() {
        oci::LinuxDeviceType::B => SFlag::S_IFBLK,
        // "Unbuffered" is what mknod(1) calls a character device too.
        oci::LinuxDeviceType::C | oci::LinuxDeviceType::U => SFlag::S_IFCHR,
        oci::LinuxDeviceType::P => SFlag::S_IFIFO,
        other => {
            return Err(PlanError::invalid(
                "linux.devices.type",
                other.as_str(),
                "must be b, c, u or p",
            ));
        }
    };
    let (major, minor) = (device.major(), device.minor());
    if !(0..=MAX_MAJOR).contains(&major) || !(0..=MAX_MINOR).contains(&minor) {
        return Err(PlanError::invalid(
            "linux.devices.major",
            format!("{major}:{minor}"),
            "out of range",
        ));
    }
    Ok(DevicePlan {
        path,
        kind: kind.bits(),
        major: major as u32,
        minor: minor as u32,
        mode: device.file_mode().unwrap_or(0) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(change: impl FnOnce(&mut oci::Linux)) -> oci::Spec {
        let mut linux = oci::Linux::default();
        linux.set_namespaces(Some(
            [oci::LinuxNamespaceType::Mount, oci::LinuxNamespaceType::Ipc]
                .map(|typ| {
                    let mut namespace = oci::LinuxNamespace::default();
                    namespace.set_typ(typ);
                    namespace
                })
                .to_vec(),
        ));
        linux.set_devices(None);
        linux.set_seccomp(None);
        change(&mut linux);
        let mut spec = oci::Spec::default();
        spec.set_hostname(None);
        let mut root = oci::Root::default();
        root.set_path("/run/root".into());
        spec.set_root(Some(root));
        spec.set_linux(Some(linux));
        spec
    }

    fn planned(change: impl FnOnce(&mut oci::Linux)) -> Result<ContainerPlan, PlanError> {
        plan(ContainerId::parse("c1").unwrap(), &spec(change), false)
    }

    #[test]
    fn a_pid_namespace_is_always_there_and_ipc_is_the_sandbox_s() {
        let plan = planned(|_| {}).unwrap();
        assert_eq!(
            plan.namespaces.get(&Namespace::Pid),
            Some(&NamespaceSource::New)
        );
        assert_eq!(
            plan.namespaces.get(&Namespace::Ipc),
            Some(&NamespaceSource::Sandbox)
        );
        assert_eq!(plan.namespaces.get(&Namespace::Net), None);
    }

    #[test]
    fn a_user_namespace_owns_what_the_container_uses() {
        let plan = planned(|linux| {
            let mut user = oci::LinuxNamespace::default();
            user.set_typ(oci::LinuxNamespaceType::User);
            let mut all = linux.namespaces().clone().unwrap_or_default();
            all.push(user);
            linux.set_namespaces(Some(all));
            let map = oci::LinuxIdMappingBuilder::default()
                .host_id(1u32)
                .container_id(0u32);
            let maps = vec![map.size(10u32).build().unwrap()];
            linux
                .set_uid_mappings(Some(maps.clone()))
                .set_gid_mappings(Some(maps));
        })
        .unwrap();
        for kind in [Namespace::Ipc, Namespace::User, Namespace::Pid] {
            assert_eq!(
                plan.namespaces.get(&kind),
                Some(&NamespaceSource::New),
                "{kind:?}"
            );
        }
        let root = plan.root_in_guest().unwrap();
        assert_eq!((root.0.as_raw(), root.1.as_raw()), (1, 1));
        assert!(planned(|_| {}).unwrap().root_in_guest().is_none());
    }

    #[test]
    fn a_joined_mount_namespace_keeps_its_root() {
        let plan = planned(|linux| {
            let mut all = linux.namespaces().clone().unwrap_or_default();
            all[0].set_path(Some("/proc/7/ns/mnt".into()));
            linux.set_namespaces(Some(all));
        })
        .unwrap();
        assert!(plan.init.root.is_none());
        assert!(planned(|_| {}).unwrap().init.root.is_some());
    }

    #[test]
    fn a_device_outside_dev_or_out_of_range_is_refused() {
        let with = |path: &str, major| {
            let mut device = oci::LinuxDevice::default();
            device.set_path(path.into());
            device.set_typ(oci::LinuxDeviceType::C);
            device.set_major(major);
            device.set_minor(3);
            planned(|linux| {
                linux.set_devices(Some(vec![device]));
            })
        };
        assert!(with("/dev/null", 1).is_ok());
        assert!(with("/etc/null", 1).is_err());
        assert!(with("/dev/../etc/null", 1).is_err());
        assert!(with("/dev/x", 1 << 12).is_err());
        assert!(with("/dev/x", -1).is_err());
    }

    #[test]
    fn a_namespace_listed_twice_is_refused() {
        let result = planned(|linux| {
            let twice = linux.namespaces().clone().unwrap_or_default();
            linux.set_namespaces(Some([twice.clone(), twice].concat()));
        });
        assert!(matches!(
            result,
            Err(PlanError::Invalid {
                field: "linux.namespaces.type",
                ..
            })
        ));
    }
}
