// SPDX-License-Identifier: Apache-2.0
//! Checked plans: what a container and its processes are to become.
//!
//! The types here are what is left of a request once it has passed the door:
//! no protobuf, no unknown strings, no absent fields. [`ChildPlan`] and what it
//! holds travel to the child as they are; the child trusts them.

pub mod id;
pub mod label;
pub mod mount;
pub mod process;
pub mod spec;
mod sysctl;

use std::collections::HashMap;

use nix::unistd::{Gid, Uid};
use serde::{Deserialize, Serialize};

pub use id::{ContainerId, ExecId};
pub use mount::{MountPlan, MountSource};
pub use process::ProcessPlan;

use crate::device::{PciMap, Renumbering};
use crate::seccomp::Program;

/// Why a request cannot become a plan. Every variant is the caller's mistake
/// but [`PlanError::Unsupported`], which is our gap.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A required part of the request is not there.
    #[error("Request has no {0}")]
    Missing(&'static str),
    /// A value that cannot be used.
    #[error("Invalid {field} '{value}': {reason}")]
    Invalid {
        /// The OCI name of the field.
        field: &'static str,
        /// What was sent.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A seccomp profile that cannot be compiled.
    #[error(transparent)]
    Seccomp(#[from] crate::seccomp::SeccompError),
    /// The wire's OCI specification does not convert.
    #[error(transparent)]
    Spec(#[from] protocols::convert::ConvertError),
    /// Asked for something that this version cannot do, and that must not be
    /// left out silently.
    #[error("{0} not supported yet")]
    Unsupported(&'static str),
}

impl PlanError {
    pub(crate) fn invalid(
        field: &'static str,
        value: impl Into<String>,
        reason: &'static str,
    ) -> Self {
        Self::Invalid {
            field,
            value: value.into(),
            reason,
        }
    }
}

/// The kinds of namespaces a container can have, by `CLONE_NEW*` flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Namespace {
    /// `CLONE_NEWUSER`
    User,
    /// `CLONE_NEWIPC`
    Ipc,
    /// `CLONE_NEWUTS`
    Uts,
    /// `CLONE_NEWNET`
    Net,
    /// `CLONE_NEWPID`
    Pid,
    /// `CLONE_NEWCGROUP`
    Cgroup,
    /// `CLONE_NEWTIME`
    Time,
    /// `CLONE_NEWNS`
    Mount,
}

impl Namespace {
    /// All kinds in the order in which they are joined: the mount namespace
    /// after those that need nothing of the guest's, the user namespace last,
    /// since inside it those of the guest cannot be joined any more.
    pub const ALL: [Self; 8] = [
        Self::Ipc,
        Self::Uts,
        Self::Net,
        Self::Pid,
        Self::Cgroup,
        Self::Time,
        Self::Mount,
        Self::User,
    ];

    /// The `CLONE_NEW*` bit.
    #[must_use]
    pub fn flag(self) -> u64 {
        (match self {
            Self::User => libc::CLONE_NEWUSER,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Net => libc::CLONE_NEWNET,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Time => libc::CLONE_NEWTIME,
            Self::Mount => libc::CLONE_NEWNS,
        }) as u64
    }

    /// The name of its link below `/proc/PID/ns`.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Net => "net",
            Self::Pid => "pid",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
            Self::Mount => "mnt",
        }
    }
}

/// Where a container's namespace of one kind comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamespaceSource {
    /// A new one.
    New,
    /// The one that a path in the guest refers to.
    Path(String),
    /// The sandbox's: ipc and uts of CreateSandbox, pid of the first container.
    Sandbox,
}

/// The namespaces of a container; a kind that is not in it is the guest's own.
pub type Namespaces = HashMap<Namespace, NamespaceSource>;

/// One line of `/proc/PID/uid_map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// First id inside the container.
    pub inside: u32,
    /// First id in the guest.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// A device node of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePlan {
    /// Path below the container's root, starting with `/dev/`.
    pub path: String,
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`.
    pub kind: u32,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The file system view of a container, in its new mount namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootPlan {
    /// The root directory, a path in the guest.
    pub path: String,
    /// Make it read-only once everything is in place.
    pub readonly: bool,
    /// `MS_SHARED` and so on for the finished root, with `MS_REC` where asked;
    /// 0 = leave it private.
    pub propagation: u64,
    /// In order.
    pub mounts: Vec<MountPlan>,
    /// Besides the default ones.
    pub devices: Vec<DevicePlan>,
    /// Paths to hide.
    pub masked: Vec<String>,
    /// Paths to make read-only.
    pub readonly_paths: Vec<String>,
    /// `/proc/sys` file names, relative, and what to write.
    pub sysctls: Vec<(String, String)>,
}

/// One program to run at a point in the container's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute.
    pub path: String,
    /// The arguments, the first one being what the program is called.
    pub args: Vec<String>,
    /// `NAME=value`; all of its environment.
    pub env: Vec<String>,
    /// Seconds until it is killed.
    pub timeout: u32,
}

/// The hooks of a container by kind (OCI runtime specification, "POSIX-platform Hooks").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// In the guest, once the container's namespaces are there (deprecated by OCI).
    pub prestart: Vec<Hook>,
    /// In the guest, right after those.
    pub create_runtime: Vec<Hook>,
    /// In the container's namespaces, before the root is changed.
    pub create_container: Vec<Hook>,
    /// In the container, right before its program.
    pub start_container: Vec<Hook>,
    /// In the guest, after the program was started.
    pub poststart: Vec<Hook>,
    /// In the guest, after the container was removed.
    pub poststop: Vec<Hook>,
}

/// The hooks that the child runs by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildHooks {
    /// The container's OCI state without status and pid, which the child adds.
    pub state: String,
    /// See [`Hooks::create_container`].
    pub create_container: Vec<Hook>,
    /// See [`Hooks::start_container`].
    pub start_container: Vec<Hook>,
    /// Stop before these for the hooks that the agent runs in the guest.
    pub wait_for_agent: bool,
}

/// What only a container's first process does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitPlan {
    /// For a UTS namespace that is not shared.
    pub hostname: Option<String>,
    /// For a new mount namespace; without one the guest's root is used.
    pub root: Option<RootPlan>,
    /// Run by the child.
    pub hooks: ChildHooks,
}

/// Everything a child needs to become a container's process. Its descriptors
/// come with it: the three of its stdio unless it has a terminal, then one for
/// each namespace of `joins`, then `cgroup_files`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildPlan {
    /// Present for a container's first process, which then waits for
    /// StartContainer; absent for an exec.
    pub init: Option<InitPlan>,
    /// Namespaces to enter, in the order of [`Namespace::ALL`].
    pub joins: Vec<Namespace>,
    /// `CLONE_NEW*` bits to unshare after the joins: what could not be made at
    /// the clone.
    pub unshare: u64,
    /// Wait until the agent has written the id maps, then become root inside.
    pub new_user_namespace: bool,
    /// Open `cgroup.procs` files to join by (cgroup v1).
    pub cgroup_files: u32,
    /// The container's filter, for its execs too.
    pub seccomp: Option<Program>,
    /// The program.
    pub process: ProcessPlan,
}

/// Everything CreateContainer asks for but its storages.
#[derive(Clone, Debug)]
pub struct ContainerPlan {
    /// The container's id, checked.
    pub id: ContainerId,
    /// Its name in the pod, from the annotations of CRI.
    pub name: Option<String>,
    /// Namespaces.
    pub namespaces: Namespaces,
    /// User id maps, for a new user namespace.
    pub uid_maps: Vec<IdMap>,
    /// Group id maps.
    pub gid_maps: Vec<IdMap>,
    /// `linux.cgroupsPath`, unparsed.
    pub cgroups_path: String,
    /// Limits.
    pub resources: Option<oci_spec::runtime::LinuxResources>,
    /// Hooks of all kinds.
    pub hooks: Hooks,
    /// `annotations`, for the OCI state of hooks and for termination logs.
    pub annotations: HashMap<String, String>,
    /// `linux.seccomp`, compiled.
    pub seccomp: Option<Program>,
    /// Hostname and root.
    pub init: InitPlan,
    /// The container's program.
    pub process: ProcessPlan,
    /// How the host knows the devices that the container was given.
    pub given: Given,
}

/// Devices by the host's names and the guest's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// PCI addresses, in the environment of processes.
    pub pci: PciMap,
    /// Device numbers, in later updates.
    pub numbers: Renumbering,
}

impl ContainerPlan {
    /// Who the container's root is in the guest, if it has a new user namespace.
    #[must_use]
    pub fn root_in_guest(&self) -> Option<(Uid, Gid)> {
        let outside = |maps: &[IdMap]| {
            let map = maps.iter().find(|map| map.inside == 0 && map.count > 0);
            map.map(|map| map.outside)
        };
        let (uid, gid) = (outside(&self.uid_maps)?, outside(&self.gid_maps)?);
        Some((Uid::from_raw(uid), Gid::from_raw(gid)))
    }
}
