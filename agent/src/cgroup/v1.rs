// SPDX-License-Identifier: Apache-2.0
//! The hierarchies of cgroup v1, one per controller (or group of controllers).
//! Owns what differs from the unified hierarchy; limits are written through the
//! `cgroups-rs` controllers. The group's life is in [`super`].

use std::error::Error;
use std::fmt::Display;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use log::{debug, warn};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, statfs};
use oci_spec::runtime::LinuxResources;

use super::hierarchy::{Hierarchy, errno};
use super::limits::{self, Absent, Setting, V1};
use super::{CgroupError, Done, signal_all, write_setting};

/// One v1 mount with the controllers it carries.
#[derive(Debug)]
pub(super) struct Mount {
    /// Such as `memory` or `cpu,cpuacct`.
    name: String,
    path: PathBuf,
    pub hierarchy: Hierarchy,
}

impl Mount {
    fn carries(&self, controller: &str) -> bool {
        self.name.split(',').any(|name| name == controller)
    }
}

/// The v1 mounts below one directory, usually `/sys/fs/cgroup`.
#[derive(Debug)]
pub(super) struct Split {
    pub mounts: Vec<Mount>,
}

impl Split {
    /// Finds the v1 mounts directly below `root`; links to them (`cpu` to
    /// `cpu,cpuacct`) and a cgroup2 mount beside them are left out.
    pub(super) fn open(root: &Path) -> nix::Result<Self> {
        let mut mounts = Vec::new();
        for entry in std::fs::read_dir(root).map_err(errno)? {
            let entry = entry.map_err(errno)?;
            let path = entry.path();
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let is_v1 = || statfs(&path).is_ok_and(|s| s.filesystem_type() == CGROUP_SUPER_MAGIC);
            if is_dir && is_v1() {
                let hierarchy = Hierarchy::open(&path)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                mounts.push(Mount {
                    name,
                    path,
                    hierarchy,
                });
            }
        }
        Ok(Self { mounts })
    }

    /// The mount whose lists of processes count: one that is always joined.
    pub(super) fn main(&self) -> Option<&Mount> {
        let preferred = ["pids", "memory", "freezer", "devices"];
        let mut found = preferred.iter().filter_map(|name| self.carrier(name));
        found.next().or(self.mounts.first())
    }

    fn carrier(&self, controller: &str) -> Option<&Mount> {
        self.mounts.iter().find(|mount| mount.carries(controller))
    }

    /// The hierarchy of a controller.
    pub(super) fn hierarchy_of(&self, controller: &str) -> Option<&Hierarchy> {
        self.carrier(controller).map(|mount| &mount.hierarchy)
    }

    /// Makes `group` in every hierarchy; `false` when all had it already.
    pub(super) fn mkdir(&self, group: &str) -> nix::Result<bool> {
        let mut made = false;
        for mount in &self.mounts {
            if mount.hierarchy.mkdir(group)? {
                made = true;
                if mount.carries("cpuset") {
                    inherit_cpuset(&mount.hierarchy, group)?;
                }
            }
        }
        Ok(made)
    }

    /// One descriptor per hierarchy; a process joins by writing `0` to each.
    pub(super) fn join(&self, group: &str) -> nix::Result<Vec<OwnedFd>> {
        let open = |mount: &Mount| {
            mount
                .hierarchy
                .open_at(group, "cgroup.procs", OFlag::O_WRONLY)
        };
        self.mounts.iter().map(open).collect()
    }

    pub(super) fn apply(
        &self,
        group: &str,
        resources: &LinuxResources,
        done: &Done,
    ) -> Result<(), CgroupError> {
        let in_force = |controller: &'static str, file: &str| {
            let hierarchy = self.hierarchy_of(controller)?;
            hierarchy.read(group, file).ok()
        };
        let limits = limits::v1(resources, &in_force)?;
        self.apply_cpuset(group, &limits, done)?;
        self.apply_cpu(group, &limits, done)?;
        self.apply_memory(group, &limits, done)?;
        if let Some(limit) = limits.pids {
            let limit = match limit {
                limit if limit > 0 => MaxValue::Value(limit),
                _ => MaxValue::Max,
            };
            let controller = PidController::new(self.dir(group, "pids")?, PathBuf::new(), false);
            let result = controller.set_pid_max(limit);
            check(group, "pids.max", limit, Absent::Fails, result, done)?;
        }
        self.apply_rest(group, limits.rest, done)
    }

    /// What the kernel's files are written for without a library: `cgroups-rs`
    /// gives a device the weight of all, and hides most errors.
    fn apply_rest(&self, group: &str, rest: Vec<Setting>, done: &Done) -> Result<(), CgroupError> {
        let write = |setting: Setting| {
            write_setting(self.hierarchy_of(setting.controller), group, setting, done)
        };
        let mut late: Option<Setting> = None;
        for setting in rest {
            let again = setting.may_wait.then(|| setting.clone());
            match (write(setting), again) {
                (Err(error), Some(again)) if error.is_bad_input() => {
                    late = Some(again);
                    continue;
                }
                (result, _) => result?,
            }
            if let Some(late) = late.take() {
                write(late)?;
            }
        }
        late.map_or(Ok(()), write)
    }

    fn apply_cpuset(&self, group: &str, limits: &V1, done: &Done) -> Result<(), CgroupError> {
        if limits.cpus.is_none() && limits.mems.is_none() {
            return Ok(());
        }
        let dir = self.dir(group, "cpuset")?;
        let controller = CpuSetController::new(dir, PathBuf::new(), false);
        if let Some(cpus) = &limits.cpus {
            // Placement only: hosts send CPU numbers that a guest may not have.
            let result = controller.set_cpus(cpus);
            check(group, "cpuset.cpus", cpus, Absent::Warns, result, done)?;
        }
        if let Some(mems) = &limits.mems {
            let result = controller.set_mems(mems);
            check(group, "cpuset.mems", mems, Absent::Fails, result, done)?;
        }
        Ok(())
    }

    fn apply_cpu(&self, group: &str, limits: &V1, done: &Done) -> Result<(), CgroupError> {
        if limits.shares.is_none() && limits.period.is_none() && limits.quota.is_none() {
            return Ok(());
        }
        let controller = CpuController::new(self.dir(group, "cpu")?, PathBuf::new(), false);
        if let Some(shares) = limits.shares {
            let result = controller.set_shares(shares);
            check(group, "cpu.shares", shares, Absent::Warns, result, done)?;
        }
        let set_period = |period| {
            let result = controller.set_cfs_period(period);
            check(
                group,
                "cpu.cfs_period_us",
                period,
                Absent::Fails,
                result,
                done,
            )
        };
        // The ratio of the two must fit the parent's at every moment: where
        // the period may not go first, it goes last.
        let mut late = None;
        if let Some(period) = limits.period
            && let Err(error) = set_period(period)
        {
            if limits.quota.is_none() || !error.is_bad_input() {
                return Err(error);
            }
            late = Some(period);
        }
        if let Some(quota) = limits.quota {
            let result = controller.set_cfs_quota(quota);
            check(
                group,
                "cpu.cfs_quota_us",
                quota,
                Absent::Fails,
                result,
                done,
            )?;
        }
        late.map_or(Ok(()), set_period)
    }

    fn apply_memory(&self, group: &str, limits: &V1, done: &Done) -> Result<(), CgroupError> {
        if limits.memory.is_none() && limits.memory_and_swap.is_none() && limits.soft.is_none() {
            return Ok(());
        }
        let dir = self.dir(group, "memory")?;
        let counts_swap = dir.join("memory.memsw.limit_in_bytes").exists();
        let controller = MemController::new(dir, PathBuf::new(), false);
        let set_memory = |limit| {
            let result = controller.set_limit(limit);
            check(
                group,
                "memory.limit_in_bytes",
                limit,
                Absent::Fails,
                result,
                done,
            )
        };
        let set_both = |limit| {
            let file = "memory.memsw.limit_in_bytes";
            let result = controller.set_memswap_limit(limit);
            check(group, file, limit, Absent::Fails, result, done)
        };
        let both = limits.memory_and_swap.filter(|_| counts_swap);
        match (limits.memory, both) {
            // Memory may never exceed both together, so which of the two goes
            // first depends on whether they grow or shrink.
            (Some(memory), Some(both)) => match set_memory(memory) {
                Ok(()) => set_both(both)?,
                Err(_) => {
                    set_both(both)?;
                    set_memory(memory)?;
                }
            },
            (Some(memory), None) => set_memory(memory)?,
            (None, Some(both)) => set_both(both)?,
            (None, None) => {}
        }
        if let Some(soft) = limits.soft {
            let result = controller.set_soft_limit(soft);
            check(
                group,
                "memory.soft_limit_in_bytes",
                soft,
                Absent::Warns,
                result,
                done,
            )?;
        }
        Ok(())
    }

    fn dir(&self, group: &str, controller: &'static str) -> Result<PathBuf, CgroupError> {
        let mount = self.carrier(controller).ok_or(CgroupError::Controller {
            controller,
            file: controller.into(),
        })?;
        Ok(mount.path.join(group))
    }

    /// Kills everything in the group and below it.
    pub(super) fn kill(&self, group: &str) -> nix::Result<()> {
        let Some(main) = self.main() else {
            return Ok(());
        };
        // Frozen tasks cannot fork faster than they are killed; they die when thawed.
        if let Err(error) = self.freeze(group) {
            debug!("Cgroup /{group} is killed without being frozen: {error}");
        }
        let killed = signal_all(&main.hierarchy, group);
        match self.thaw_all(group) {
            Err(Errno::ENOENT | Errno::EOPNOTSUPP) => {}
            other => other?,
        }
        killed
    }

    pub(super) fn freeze(&self, group: &str) -> nix::Result<()> {
        let mount = self.carrier("freezer").ok_or(Errno::EOPNOTSUPP)?;
        mount.hierarchy.write(group, "freezer.state", "FROZEN")
    }

    pub(super) fn thaw(&self, group: &str) -> nix::Result<()> {
        let mount = self.carrier("freezer").ok_or(Errno::EOPNOTSUPP)?;
        mount.hierarchy.write(group, "freezer.state", "THAWED")
    }

    /// The group and those that the container made and froze below it.
    fn thaw_all(&self, group: &str) -> nix::Result<()> {
        let mount = self.carrier("freezer").ok_or(Errno::EOPNOTSUPP)?;
        for group in mount.hierarchy.tree(group)? {
            match mount.hierarchy.write(&group, "freezer.state", "THAWED") {
                Err(Errno::ENOENT | Errno::ENODEV) => {}
                other => other?,
            }
        }
        Ok(())
    }

    pub(super) fn is_frozen(&self, group: &str) -> nix::Result<bool> {
        let mount = self.carrier("freezer").ok_or(Errno::EOPNOTSUPP)?;
        let state = mount.hierarchy.read(group, "freezer.state")?;
        Ok(state.trim_end() == "FROZEN")
    }

    /// Moves a process out of whatever freezer group it is in.
    pub(super) fn leave_freezer(&self, pid: nix::unistd::Pid) -> nix::Result<()> {
        let mount = self.carrier("freezer").ok_or(Errno::EOPNOTSUPP)?;
        let pid = pid.to_string();
        mount.hierarchy.write("", "cgroup.procs", &pid)
    }
}

/// A new v1 cpuset has no CPUs and no memory nodes, and nothing can join it
/// until it has; it takes its parent's.
fn inherit_cpuset(hierarchy: &Hierarchy, group: &str) -> nix::Result<()> {
    let parent = group.rsplit_once('/').map_or("", |(parent, _)| parent);
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let value = hierarchy.read(parent, file)?;
        hierarchy.write(group, file, value.trim_end())?;
    }
    Ok(())
}

/// Turns what a `cgroups-rs` setter said into our errors.
fn check(
    group: &str,
    file: &'static str,
    value: impl Display,
    absent: Absent,
    result: cgroups_rs::fs::error::Result<()>,
    done: &Done,
) -> Result<(), CgroupError> {
    let Err(error) = result else {
        done.note(file.into());
        return Ok(());
    };
    let cause = error.source().and_then(|e| e.downcast_ref::<io::Error>());
    let source = cause
        .and_then(io::Error::raw_os_error)
        .map_or(Errno::EIO, Errno::from_raw);
    if absent == Absent::Warns {
        warn!("Cgroup /{group} goes without {file} = {value}: {source}");
        return Ok(());
    }
    Err(CgroupError::Limit {
        path: group.to_owned(),
        file: file.into(),
        value: value.to_string(),
        source,
    })
}
