// SPDX-License-Identifier: Apache-2.0
//! Control groups of containers behind one interface for both versions. Owns
//! the life of a container's group: made, joined, limited, killed, removed.
//! Never starts or reaps a process, never mounts anything.
//!
//! Making and removing a group are on the way of every container, so the usual
//! case of version 2 costs one system call for each.

mod devices;
mod hierarchy;
mod limits;
mod oom;
mod path;
mod stats;
mod v1;
mod v2;
mod wait;

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::{debug, warn};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::{Gid, Pid, Uid};
use oci_spec::runtime::LinuxResources;

use hierarchy::Hierarchy;
use limits::{Absent, Setting};
pub use oom::OomWatch;
pub use path::CgroupPath;
pub use stats::{Cpu, Io, IoEntry, Memory, Pids, Stats, Usage};

/// Where the cgroup file systems are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// How often a group that forks while it is killed is gone through again when
/// it cannot be frozen.
const KILL_ROUNDS: usize = 64;

/// What can go wrong with a control group.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A `cgroupsPath` that cannot be a container's.
    #[error("Cgroup path {path:?} is refused: {reason}")]
    Path {
        /// As it was sent.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Processes that are not the new container's are in the group.
    #[error("Cgroup {path} is in use")]
    InUse {
        /// Below the root of the hierarchy.
        path: String,
    },
    /// A limit that contradicts another or itself.
    #[error("Limit {limit} is refused: {reason}")]
    Value {
        /// Its OCI name.
        limit: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The kernel refused the value.
    #[error("Cgroup {path} does not take {file} = {value}")]
    Limit {
        /// Below the root of the hierarchy.
        path: String,
        /// The control file.
        file: Cow<'static, str>,
        /// As it was written.
        value: String,
        /// The kernel's reason.
        source: Errno,
    },
    /// The kernel cannot keep the limit.
    #[error("Limit {file} needs the controller {controller}, which the guest does not have here")]
    Controller {
        /// Such as `memory`.
        controller: &'static str,
        /// The control file.
        file: Cow<'static, str>,
    },
    /// The kernel does not take the program that keeps device rules on v2.
    #[error(
        "Device rules of cgroup {path}: the kernel does not {step} the program, \
         which takes its options CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF"
    )]
    Program {
        /// Below the root of the hierarchy.
        path: String,
        /// `load`, `attach`, …
        step: &'static str,
        /// The kernel's reason.
        source: Errno,
    },
    /// Some limits are in force, the next one is not, nor what follows it.
    #[error("Only some limits are applied ({applied})")]
    Partly {
        /// The files written, in order.
        applied: String,
        /// Why no more.
        source: Box<CgroupError>,
    },
    /// A step in the life of the group failed.
    #[error("Cgroup {path}: {step} failed")]
    Step {
        /// Below the root of the hierarchy.
        path: String,
        /// `create`, `join`, `kill`, …
        step: &'static str,
        /// The kernel's reason.
        source: Errno,
    },
}

impl CgroupError {
    /// Whether the request is to blame rather than the guest.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Path { .. } | Self::InUse { .. } | Self::Value { .. } => true,
            Self::Limit { source, .. } => matches!(source, Errno::EINVAL | Errno::ERANGE),
            Self::Partly { source, .. } => source.is_bad_input(),
            Self::Controller { .. } | Self::Program { .. } | Self::Step { .. } => false,
        }
    }
}

/// Which cgroup version the guest runs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller.
    V1,
    /// The unified hierarchy.
    V2,
    /// No cgroup file system is mounted.
    None,
}

#[derive(Debug)]
enum Layout {
    V1(v1::Split),
    V2(v2::Unified),
    None,
}

/// The cgroup file systems of the guest. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cgroups(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    layout: Layout,
    devices: devices::Shared,
    /// The groups above containers. Held only over a few calls on cgroup
    /// files, which wait for nobody.
    parents: Mutex<HashMap<String, Parent>>,
}

/// A group above containers' groups.
#[derive(Debug, Clone, Copy, Default)]
struct Parent {
    /// How many containers are somewhere below.
    containers: usize,
    /// Made here, hence removed here with the last container.
    ours: bool,
    /// There, and passing its controllers on.
    ready: bool,
}

/// How a process gets into a group from its first instruction on.
#[derive(Debug)]
pub enum Join {
    /// An `O_PATH` descriptor of the group for `CLONE_INTO_CGROUP` (clone3(2)).
    V2(OwnedFd),
    /// One writable `cgroup.procs` per hierarchy: the child writes `0` to each
    /// before anything else. Close-on-exec.
    V1(Vec<OwnedFd>),
    /// There is nothing to join.
    None,
}

impl Cgroups {
    /// Looks at what is mounted on `/sys/fs/cgroup`.
    pub fn detect() -> Self {
        Self::detect_at(Path::new(ROOT))
    }

    /// Looks at what is mounted on `root`: cgroup2 itself, or directories with
    /// v1 hierarchies on them. A root that cannot be used counts as none.
    pub fn detect_at(root: &Path) -> Self {
        let layout = match Self::open_layout(root) {
            Ok(layout) => layout,
            Err(error) => {
                warn!("No cgroups at {}: {error}", root.display());
                Layout::None
            }
        };
        Self(Arc::new(Inner {
            layout,
            devices: devices::Shared::default(),
            parents: Mutex::default(),
        }))
    }

    fn open_layout(root: &Path) -> nix::Result<Layout> {
        if statfs(root)?.filesystem_type() == CGROUP2_SUPER_MAGIC {
            return v2::Unified::open(root).map(Layout::V2);
        }
        let split = v1::Split::open(root)?;
        Ok(match split.mounts.is_empty() {
            true => Layout::None,
            false => Layout::V1(split),
        })
    }

    /// The version in use.
    pub fn version(&self) -> Version {
        match self.0.layout {
            Layout::V1(_) => Version::V1,
            Layout::V2(_) => Version::V2,
            Layout::None => Version::None,
        }
    }

    /// Makes a container's group, and the groups above it that are missing.
    ///
    /// # Errors
    /// [`CgroupError::InUse`] when the group exists and has processes;
    /// [`CgroupError::Step`] when the kernel refuses. Nothing is left then.
    pub fn create(&self, path: &CgroupPath) -> Result<Cgroup, CgroupError> {
        self.hold_parents(path);
        let created = self.make(path, false);
        let created = match created {
            // Somebody else removed the parents: make them again, once.
            Err(CgroupError::Step {
                source: Errno::ENOENT,
                ..
            }) => self.make(path, true),
            other => other,
        };
        let group = Cgroup {
            cgroups: self.clone(),
            path: path.clone(),
            devices: Mutex::default(),
            removed: AtomicBool::new(false),
        };
        let error = match created {
            Ok(true) => return Ok(group),
            // Left behind by an earlier container, or shared with a live one.
            Ok(false) => match group.pids() {
                Ok(pids) if pids.is_empty() => return Ok(group),
                Ok(_) => CgroupError::InUse {
                    path: path.to_string(),
                },
                Err(error) => error,
            },
            Err(error) => error,
        };
        self.release_parents(path);
        Err(error)
    }

    fn parents(&self) -> MutexGuard<'_, HashMap<String, Parent>> {
        // Every change below is complete before anything can panic.
        let parents = self.0.parents.lock();
        parents.unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the group and those above it; `false` when it was there.
    fn make(&self, path: &CgroupPath, again: bool) -> Result<bool, CgroupError> {
        self.make_parents(path, again)?;
        let made = self.make_leaf(path);
        made.map_err(|source| step_failed(path.as_str(), "create", source))
    }

    /// Counts a container in at each group above it.
    fn hold_parents(&self, path: &CgroupPath) {
        let mut parents = self.parents();
        for group in path.ancestors() {
            match parents.get_mut(group) {
                Some(parent) => parent.containers += 1,
                None => {
                    let parent = Parent {
                        containers: 1,
                        ..Parent::default()
                    };
                    parents.insert(group.to_owned(), parent);
                }
            }
        }
    }

    /// Makes the groups above a held container that are not ready yet (or all
    /// of them), and has each pass its controllers on.
    fn make_parents(&self, path: &CgroupPath, again: bool) -> Result<(), CgroupError> {
        let failed = |source| step_failed(path.as_str(), "create", source);
        let mut parents = self.parents();
        let root = parents.entry(String::new()).or_default();
        if let Layout::V2(unified) = &self.0.layout
            && !root.ready
        {
            unified.delegate("");
        }
        root.ready = true;
        let mut guarded = false;
        for group in path.ancestors() {
            let Some(parent) = parents.get_mut(group) else {
                continue;
            };
            if !parent.ready || again {
                let made = self.make_parent(group).map_err(failed)?;
                parent.ours |= made;
                // Made now, or by an attempt that came no further.
                if parent.ours && !guarded && (made || !parent.ready) {
                    self.guard(group)?;
                }
                parent.ready = true;
            }
            guarded |= parent.ours;
        }
        Ok(())
    }

    fn make_parent(&self, group: &str) -> nix::Result<bool> {
        match &self.0.layout {
            Layout::V1(split) => split.mkdir(group),
            Layout::V2(unified) => {
                let made = unified.hierarchy.mkdir(group)?;
                unified.delegate(group);
                Ok(made)
            }
            Layout::None => Ok(false),
        }
    }

    fn make_leaf(&self, path: &CgroupPath) -> nix::Result<bool> {
        match &self.0.layout {
            Layout::V1(split) => split.mkdir(path.as_str()),
            Layout::V2(unified) => unified.hierarchy.mkdir(path.as_str()),
            Layout::None => Ok(true),
        }
    }

    /// Counts a container out, and removes the groups above it that were made
    /// here and have no container left.
    fn release_parents(&self, path: &CgroupPath) {
        let mut parents = self.parents();
        let groups: Vec<_> = path.ancestors().collect();
        for group in groups.into_iter().rev() {
            let Some(parent) = parents.get_mut(group) else {
                continue;
            };
            parent.containers = parent.containers.saturating_sub(1);
            if parent.containers > 0 {
                continue;
            }
            let ours = parent.ours;
            parents.remove(group);
            if ours && let Err(error) = self.rmdir(group) {
                debug!("Cgroup /{group} stays: {error}");
            }
        }
    }

    /// The one whose lists of processes count.
    fn main_hierarchy(&self) -> Option<&Hierarchy> {
        match &self.0.layout {
            Layout::V1(split) => split.main().map(|mount| &mount.hierarchy),
            Layout::V2(unified) => Some(&unified.hierarchy),
            Layout::None => None,
        }
    }

    fn rmdir(&self, group: &str) -> nix::Result<()> {
        match &self.0.layout {
            Layout::V1(split) => {
                let mut hierarchies = split.mounts.iter().map(|mount| &mount.hierarchy);
                hierarchies.try_for_each(|hierarchy| hierarchy.rmdir(group))
            }
            Layout::V2(unified) => unified.hierarchy.rmdir(group),
            Layout::None => Ok(()),
        }
    }
}

/// A container's group. Dropping it leaves the group in place.
#[derive(Debug)]
pub struct Cgroup {
    cgroups: Cgroups,
    path: CgroupPath,
    /// The device rules it was given.
    devices: Mutex<Option<devices::Applied>>,
    /// Counted out at the groups above, which must happen once.
    removed: AtomicBool,
}

impl Cgroup {
    /// Its path below the root of the hierarchy, without a leading slash.
    pub fn path(&self) -> &str {
        self.path.as_str()
    }

    /// What a new process needs to start inside the group. On v2 that is a child
    /// of it once the container gives its controllers on (nested delegation).
    ///
    /// # Errors
    /// [`CgroupError::Step`] when the group is gone.
    pub fn join(&self) -> Result<Join, CgroupError> {
        let group = self.path();
        match &self.cgroups.0.layout {
            Layout::V1(split) => split.join(group).map(Join::V1),
            Layout::V2(unified) => unified.join(group).map(Join::V2),
            Layout::None => Ok(Join::None),
        }
        .map_err(|e| self.failed("join", e))
    }

    /// Applies limits and device rules, at creation and at an update alike;
    /// absent ones stay as they are.
    ///
    /// # Errors
    /// [`CgroupError::Value`] for values that cannot be, before anything is
    /// applied; [`CgroupError::Limit`] and [`CgroupError::Controller`] when the
    /// kernel refuses one, within [`CgroupError::Partly`] if others are in force by then.
    pub fn apply(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let done = Done::default();
        let limited = self.apply_limits(resources, &done);
        let result = limited.and_then(|()| match resources.devices() {
            Some(rules) => self.restrict_devices(rules),
            None => Ok(()),
        });
        let applied = done.0.into_inner().join(", ");
        result.map_err(|error| match applied.is_empty() {
            true => error,
            false => CgroupError::Partly {
                applied,
                source: Box::new(error),
            },
        })
    }

    fn apply_limits(&self, resources: &LinuxResources, done: &Done) -> Result<(), CgroupError> {
        let group = self.path();
        match &self.cgroups.0.layout {
            Layout::V1(split) => split.apply(group, resources, done),
            Layout::V2(unified) => unified.apply(group, resources, done),
            Layout::None => match limits::v2(resources, &|_, _| None)?.first() {
                None => Ok(()),
                Some(limit) => {
                    let file = &limit.file;
                    warn!("Container {group} runs without {file} and other limits: no cgroups");
                    Ok(())
                }
            },
        }
    }

    /// Sends SIGKILL to everything in the group and below; does not wait.
    ///
    /// # Errors
    /// [`CgroupError::Step`]; a group that is gone is no error.
    pub fn kill(&self) -> Result<(), CgroupError> {
        let group = self.path();
        let result = match &self.cgroups.0.layout {
            Layout::V1(split) => split.kill(group),
            Layout::V2(unified) => unified.kill(group),
            Layout::None => Ok(()),
        };
        match result {
            Err(Errno::ENOENT | Errno::ENODEV) => Ok(()),
            other => other.map_err(|e| self.failed("kill", e)),
        }
    }

    /// The processes in the group and below it.
    ///
    /// # Errors
    /// [`CgroupError::Step`] when the lists cannot be read.
    pub fn pids(&self) -> Result<Vec<Pid>, CgroupError> {
        self.cgroups
            .main_hierarchy()
            .map_or(Ok(Vec::new()), |hierarchy| hierarchy.pids(self.path()))
            .map_err(|e| self.failed("list", e))
    }

    /// Lets the processes run again.
    ///
    /// # Errors
    /// [`CgroupError::Step`], with `EOPNOTSUPP` when there is no freezer.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        match &self.cgroups.0.layout {
            Layout::V1(split) => split.thaw(self.path()),
            Layout::V2(unified) => unified.thaw(self.path()),
            Layout::None => Err(Errno::EOPNOTSUPP),
        }
        .map_err(|e| self.failed("thaw", e))
    }

    /// Lets somebody make groups below this one and move its processes there:
    /// the root of a container with a user namespace, for a systemd or a container
    /// engine in it. On v1, which cannot be shared safely, nothing is given away.
    ///
    /// # Errors
    /// [`CgroupError::Step`].
    pub fn delegate_to(&self, uid: Uid, gid: Gid) -> Result<(), CgroupError> {
        match &self.cgroups.0.layout {
            Layout::V2(unified) => unified.delegate_to(self.path(), uid, gid),
            Layout::V1(_) | Layout::None => Ok(()),
        }
        .map_err(|e| self.failed("delegate", e))
    }

    /// Removes the group with what the container made below it, and the groups
    /// above it that were made for it and are empty now. Does not wait: `false`
    /// says that something still runs in it, and the call may be repeated.
    ///
    /// # Errors
    /// [`CgroupError::Step`]; a group that is gone is removed.
    pub fn try_remove(&self) -> Result<bool, CgroupError> {
        if self.removed.load(Ordering::Relaxed) {
            // Whatever has that path now is another container's.
            return Ok(true);
        }
        let group = self.path();
        let removed = match &self.cgroups.0.layout {
            Layout::V1(split) => split.mounts.iter().try_fold(true, |all, mount| {
                Ok(mount.hierarchy.remove_tree(group)? && all)
            }),
            Layout::V2(unified) => unified.hierarchy.remove_tree(group),
            Layout::None => Ok(true),
        };
        let removed = removed.map_err(|e| self.failed("remove", e))?;
        if removed && !self.removed.swap(true, Ordering::Relaxed) {
            self.cgroups.release_parents(&self.path);
        }
        Ok(removed)
    }

    fn failed(&self, step: &'static str, source: Errno) -> CgroupError {
        step_failed(self.path(), step, source)
    }
}

fn step_failed(path: &str, step: &'static str, source: Errno) -> CgroupError {
    CgroupError::Step {
        path: path.to_owned(),
        step,
        source,
    }
}

/// The control files that have taken their values, for the error about one that has not.
#[derive(Debug, Default)]
struct Done(RefCell<Vec<Cow<'static, str>>>);

impl Done {
    fn note(&self, file: Cow<'static, str>) {
        self.0.borrow_mut().push(file);
    }
}

/// Writes one value, and decides what it means if the kernel has no place for it.
fn write_setting(
    hierarchy: Option<&Hierarchy>,
    group: &str,
    setting: Setting,
    done: &Done,
) -> Result<(), CgroupError> {
    let Setting { file, value, .. } = setting;
    // A controller that is not mounted has no files.
    let result = hierarchy.map_or(Err(Errno::ENOENT), |h| h.write(group, &file, &value));
    let Err(source) = result else {
        done.note(file);
        return Ok(());
    };
    match (setting.absent, source) {
        (Absent::Ignored, Errno::ENOENT) => Ok(()),
        (Absent::Warns, _)
        | (Absent::Lacks, Errno::ENOENT)
        | (Absent::NoDevice, Errno::ENODEV | Errno::ENXIO) => {
            warn!("Cgroup /{group} goes without {file} = {value}: {source}");
            Ok(())
        }
        (_, Errno::ENOENT) => Err(CgroupError::Controller {
            controller: setting.controller,
            file,
        }),
        _ => Err(CgroupError::Limit {
            path: group.to_owned(),
            file,
            value,
            source,
        }),
    }
}

/// SIGKILL to all, again and again until no new process turns up. A pid read
/// from the list could in theory mean another process when it is signalled;
/// the group being frozen meanwhile, and pids being handed out in a circle,
/// leave no room for that, and kernels with `cgroup.kill` never come here.
fn signal_all(hierarchy: &Hierarchy, group: &str) -> nix::Result<()> {
    let mut killed = HashSet::new();
    for _ in 0..KILL_ROUNDS {
        let mut pids = hierarchy.pids(group)?;
        pids.retain(|pid| killed.insert(*pid));
        if pids.is_empty() {
            return Ok(());
        }
        for pid in pids {
            match kill(pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
