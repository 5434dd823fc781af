// SPDX-License-Identifier: Apache-2.0
//! The unified hierarchy. Owns which controllers are delegated downwards and
//! how limits, signals and freezing reach a group; the group's life is in
//! [`super`].

use std::os::fd::OwnedFd;
use std::path::Path;

use log::debug;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::unistd::{Gid, Uid, fchownat};
use oci_spec::runtime::LinuxResources;

use super::hierarchy::Hierarchy;
use super::limits::{self, Setting};
use super::{CgroupError, Done, signal_all, write_setting};

/// The controllers containers get. The others (rdma, misc, …) have no OCI limit
/// that is applied, and each one enabled makes every group dearer to make.
const DELEGATED: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

/// What a delegatee writes to in the group that it is given.
const DELEGATED_FILES: [&str; 3] = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"];

/// The cgroup2 mount.
#[derive(Debug)]
pub(super) struct Unified {
    pub hierarchy: Hierarchy,
    /// Those of [`DELEGATED`] the kernel has.
    controllers: Vec<&'static str>,
}

impl Unified {
    pub(super) fn open(root: &Path) -> nix::Result<Self> {
        let hierarchy = Hierarchy::open(root)?;
        let available = hierarchy.read("", "cgroup.controllers")?;
        let controllers = DELEGATED
            .into_iter()
            .filter(|wanted| available.split_ascii_whitespace().any(|has| has == *wanted))
            .collect();
        Ok(Self {
            hierarchy,
            controllers,
        })
    }

    /// Lets the groups below `group` have limits. Controllers that cannot be
    /// enabled are left out: a limit that then has no file says so.
    pub(super) fn delegate(&self, group: &str) {
        if self.controllers.is_empty() {
            return;
        }
        let file = "cgroup.subtree_control";
        let words: Vec<_> = self.controllers.iter().map(|c| format!("+{c}")).collect();
        if self.hierarchy.write(group, file, &words.join(" ")).is_ok() {
            return;
        }
        // The kernel takes all words of one write or none.
        for word in words {
            if let Err(error) = self.hierarchy.write(group, file, &word) {
                debug!("Controller {word} is not delegated by cgroup /{group}: {error}");
            }
        }
    }

    /// The group a new process of the container goes to. A group that gives
    /// its controllers on (a systemd or a container engine inside) may hold no
    /// processes itself; such containers keep theirs in a group below: `init`,
    /// which is made if need be, or the one of systemd.
    pub(super) fn join(&self, group: &str) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let open = |leaf| self.hierarchy.open_at(group, leaf, flags);
        match open("init") {
            Err(Errno::ENOENT) => {}
            leaf => return leaf,
        }
        let given_on = self.hierarchy.read(group, "cgroup.subtree_control");
        if !given_on.is_ok_and(|controllers| !controllers.trim_end().is_empty()) {
            return open("");
        }
        match open("init.scope") {
            Err(Errno::ENOENT) => {
                self.hierarchy.mkdir(&format!("{group}/init"))?;
                open("init")
            }
            leaf => leaf,
        }
    }

    /// Gives what a delegatee needs to somebody: the group, and the three files by
    /// which groups below it are made, filled and limited. The limits of the group
    /// itself stay ours.
    pub(super) fn delegate_to(&self, group: &str, uid: Uid, gid: Gid) -> nix::Result<()> {
        let dir = self
            .hierarchy
            .open_at(group, "", OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let own = |file: &str| {
            let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
            fchownat(&dir, file, Some(uid), Some(gid), flags)
        };
        own(".")?;
        DELEGATED_FILES.into_iter().try_for_each(own)
    }

    pub(super) fn apply(
        &self,
        group: &str,
        resources: &LinuxResources,
        done: &Done,
    ) -> Result<(), CgroupError> {
        let in_force = |_: &'static str, file: &str| self.hierarchy.read(group, file).ok();
        for mut setting in limits::v2(resources, &in_force)? {
            if let Some(period) = setting.value.strip_prefix(limits::KEEP_QUOTA) {
                let current = in_force(setting.controller, &setting.file).unwrap_or_default();
                let quota = current.split_ascii_whitespace().next().unwrap_or("max");
                setting.value = format!("{quota}{period}");
            }
            if setting.file == "memory.max" {
                self.make_room(group, &setting)?;
            }
            write_setting(Some(&self.hierarchy), group, setting, done)?;
        }
        Ok(())
    }

    /// Before memory shrinks below what is in use. The kernel would take such a
    /// limit and kill the container's processes until it is met; on v1 it
    /// refuses instead, and that is what an update should do: reclaim what can be
    /// had, and let the container live.
    fn make_room(&self, group: &str, max: &Setting) -> Result<(), CgroupError> {
        let used = || -> Option<u64> {
            let used = self.hierarchy.read(group, "memory.current").ok()?;
            used.trim_end().parse().ok()
        };
        let excess = || -> Option<u64> {
            let limit: u64 = max.value.parse().ok()?;
            used()?.checked_sub(limit).filter(|&excess| excess > 0)
        };
        let Some(wanted) = excess() else {
            return Ok(());
        };
        // As old as Linux 5.19. It says EAGAIN when it got less than it was
        // asked for, which the second look tells as well.
        let reclaimed = self
            .hierarchy
            .write(group, "memory.reclaim", &wanted.to_string());
        if reclaimed.is_ok() || excess().is_none() {
            return Ok(());
        }
        Err(CgroupError::Limit {
            path: group.to_owned(),
            file: max.file.clone(),
            value: max.value.clone(),
            source: Errno::EBUSY,
        })
    }

    /// Kills everything in the group and below it.
    pub(super) fn kill(&self, group: &str) -> nix::Result<()> {
        match self.hierarchy.write(group, "cgroup.kill", "1") {
            Ok(()) => Ok(()),
            // The file is as old as Linux 5.14, and not in threaded groups.
            Err(Errno::ENOENT | Errno::EOPNOTSUPP) => self.kill_one_by_one(group),
            Err(e) => Err(e),
        }
    }

    fn kill_one_by_one(&self, group: &str) -> nix::Result<()> {
        // Frozen tasks cannot fork faster than they are killed, and here they
        // do not need to be thawed to die.
        match self.freeze(group) {
            Err(Errno::ENOENT) => return Ok(()),
            other => other?,
        }
        signal_all(&self.hierarchy, group)?;
        self.thaw(group)
    }

    pub(super) fn freeze(&self, group: &str) -> nix::Result<()> {
        self.hierarchy.write(group, "cgroup.freeze", "1")
    }

    pub(super) fn thaw(&self, group: &str) -> nix::Result<()> {
        self.hierarchy.write(group, "cgroup.freeze", "0")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder};

    /// A directory that looks like a group with the given control files.
    fn fake(files: &[(&str, &str)]) -> (tempfile::TempDir, Unified) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.controllers"), "cpu memory rdma\n").unwrap();
        std::fs::create_dir(dir.path().join("c")).unwrap();
        for (file, content) in files {
            std::fs::write(dir.path().join("c").join(file), content).unwrap();
        }
        let unified = Unified::open(dir.path()).unwrap();
        (dir, unified)
    }

    fn limits_of_memory() -> LinuxResources {
        let memory = LinuxMemoryBuilder::default().limit(64i64).swap(64i64);
        let mut resources = LinuxResources::default();
        resources.set_memory(Some(memory.build().unwrap()));
        resources
    }

    #[test]
    fn only_known_controllers_are_delegated() {
        let (dir, unified) = fake(&[("cgroup.subtree_control", "")]);
        unified.delegate("c");
        let written = std::fs::read_to_string(dir.path().join("c/cgroup.subtree_control")).unwrap();
        assert_eq!(written, "+cpu +memory");
    }

    #[test]
    fn a_new_period_keeps_the_quota_in_force() {
        let (dir, unified) = fake(&[("cpu.max", "5000 100000\n")]);
        let mut resources = LinuxResources::default();
        let cpu = LinuxCpuBuilder::default()
            .period(2000000u64)
            .build()
            .unwrap();
        resources.set_cpu(Some(cpu));
        unified.apply("c", &resources, &Done::default()).unwrap();
        let written = std::fs::read_to_string(dir.path().join("c/cpu.max")).unwrap();
        assert_eq!(written.trim_end(), "5000 2000000");
    }

    #[test]
    fn swap_may_be_absent_memory_may_not() {
        let (dir, unified) = fake(&[("memory.max", "")]);
        unified
            .apply("c", &limits_of_memory(), &Done::default())
            .unwrap();
        let written = std::fs::read_to_string(dir.path().join("c/memory.max")).unwrap();
        assert_eq!(written, "64");
        let (_dir, unified) = fake(&[]);
        let error = unified
            .apply("c", &limits_of_memory(), &Done::default())
            .unwrap_err();
        assert!(matches!(
            error,
            CgroupError::Controller {
                controller: "memory",
                ..
            }
        ));
        assert!(!error.is_bad_input());
    }

    #[test]
    fn processes_go_to_the_init_leaf_of_a_delegating_group() {
        let (dir, unified) = fake(&[]);
        let leaf = |fd: &OwnedFd| nix::sys::stat::fstat(fd).unwrap().st_ino;
        let ino = |path: &str| {
            use std::os::unix::fs::MetadataExt;
            dir.path().join(path).metadata().unwrap().ino()
        };
        assert_eq!(leaf(&unified.join("c").unwrap()), ino("c"));
        std::fs::create_dir(dir.path().join("c/init")).unwrap();
        assert_eq!(leaf(&unified.join("c").unwrap()), ino("c/init"));
    }
}
