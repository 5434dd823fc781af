// SPDX-License-Identifier: Apache-2.0
//! Control groups: which version, and getting the hierarchy mounted.
//!
//! Owns `/sys/fs/cgroup` itself and the controllers of the root group. It
//! never creates a group for anybody (that is the agent's), and nothing that a
//! kernel lacks here ends a boot.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, TMPFS_MAGIC, statfs};
use thiserror::Error;

use crate::cmdline::{CommandLine, boolean};
use crate::failure::Chain;
use crate::mounts;

/// Where the hierarchies are mounted.
pub const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// Which cgroup interface the VM has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupMode {
    /// One directory per controller below [`MOUNT_POINT`].
    V1,
    /// The unified hierarchy at [`MOUNT_POINT`].
    V2,
    /// The kernel has none, or it could not be mounted.
    None,
}

/// Cgroups are missing, in whole or in part.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// A hierarchy could not be mounted.
    #[error("Cannot mount {what} on {}", path.display())]
    Mount {
        /// The controller or file system.
        what: String,
        /// The directory.
        path: PathBuf,
        /// What the kernel answered.
        source: Errno,
    },
    /// A file of the hierarchy or of `/proc` could not be read or written.
    #[error("Cannot access {}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A controller could not be enabled for the groups below the root.
    #[error("Cannot enable the cgroup controller {controller}")]
    Enable {
        /// The controller.
        controller: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The kernel has no controller of version 1 that could be mounted.
    #[error("The kernel has no cgroup v1 controllers")]
    NoV1,
}

const FLAGS: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// Options of cgroup2, the best first. `memory_recursiveprot` came with Linux
/// 5.7, `nsdelegate` with 4.13; an unknown one makes the mount EINVAL.
const V2_OPTIONS: &[&str] = &["nsdelegate,memory_recursiveprot", "nsdelegate", ""];

/// Controllers of version 1 that are mounted where the kernel has them
/// (protocol section 7.3).
const V1_CONTROLLERS: &[&str] = &[
    "cpu",
    "cpuacct",
    "blkio",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "net_cls",
    "perf_event",
    "net_prio",
    "hugetlb",
    "pids",
    "rdma",
];

/// Has a cpuset of version 1 keep what was written to it when processors come and
/// go, and use what there is of it: containers get those that are plugged in
/// later, and none loses its cpuset with its last processor.
const CPUSET_OPTIONS: &str = "cpuset,cpuset_v2_mode";

/// The version that the command line asks for: 2, unless
/// `systemd.unified_cgroup_hierarchy` is there and false. `cgroup_no_v1=all`
/// settles it for 2, since the kernel then has no controller for 1.
pub fn wanted(cmdline: &CommandLine) -> CgroupMode {
    let unified = cmdline
        .value("systemd.unified_cgroup_hierarchy")
        .is_none_or(boolean);
    if unified || cmdline.value("cgroup_no_v1") == Some("all") {
        CgroupMode::V2
    } else {
        CgroupMode::V1
    }
}

/// The version that is mounted, by the magic of [`MOUNT_POINT`]. For a service:
/// there somebody else has mounted it.
pub fn detect() -> CgroupMode {
    match statfs(MOUNT_POINT).map(|fs| fs.filesystem_type()) {
        Ok(CGROUP2_SUPER_MAGIC) => CgroupMode::V2,
        Ok(TMPFS_MAGIC) => CgroupMode::V1,
        _ => CgroupMode::None,
    }
}

/// Mounts the wanted version, or else the other one: limits of the wrong
/// version are better than none. What fails is logged.
pub fn mount(cmdline: &CommandLine) -> CgroupMode {
    let first = wanted(cmdline);
    let second = match first {
        CgroupMode::V1 => CgroupMode::V2,
        _ => CgroupMode::V1,
    };
    for mode in [first, second] {
        let mounted = match mode {
            CgroupMode::V1 => mount_v1(Path::new(MOUNT_POINT)),
            _ => mount_v2(Path::new(MOUNT_POINT)),
        };
        match mounted {
            Ok(()) => return mode,
            Err(error) => log::error!("{}", Chain(&error)),
        }
    }
    CgroupMode::None
}

/// Mounts the unified hierarchy and enables all its controllers below the root.
fn mount_v2(path: &Path) -> Result<(), CgroupError> {
    let flags = FLAGS | MsFlags::MS_RELATIME;
    let mut result = Err(Errno::EINVAL);
    for options in V2_OPTIONS {
        result = mounts::mount("cgroup2", path, "cgroup2", flags, options);
        if result != Err(Errno::EINVAL) {
            break;
        }
    }
    result.map_err(|source| CgroupError::Mount {
        what: "cgroup2".to_owned(),
        path: path.to_owned(),
        source,
    })?;
    enable_controllers(path)
        .unwrap_or_else(|error| log::warn!("{}; limits will be missing", Chain(&error)));
    Ok(())
}

/// Writes every controller of `cgroup.controllers` to `cgroup.subtree_control`.
fn enable_controllers(group: &Path) -> Result<(), CgroupError> {
    let available = read(&group.join("cgroup.controllers"))?;
    let all = available
        .split_whitespace()
        .fold(String::new(), |mut all, controller| {
            all.push_str(" +");
            all.push_str(controller);
            all
        });
    let control = group.join("cgroup.subtree_control");
    if all.is_empty() || write(&control, &all).is_ok() {
        return Ok(());
    }
    // The kernel takes all or nothing. One by one, to get what can be had.
    let mut result = Ok(());
    for controller in available.split_whitespace() {
        let enabled = write(&control, &format!("+{controller}"));
        result = result.and(enabled.map_err(|source| CgroupError::Enable {
            controller: controller.to_owned(),
            source,
        }));
    }
    result
}

/// Mounts each enabled controller of version 1 in a directory of its own, on a
/// tmpfs that is read-only in the end.
fn mount_v1(path: &Path) -> Result<(), CgroupError> {
    let table = read(Path::new("/proc/cgroups"))?;
    let controllers = enabled_v1(&table);
    if controllers.is_empty() {
        return Err(CgroupError::NoV1);
    }
    let mount = |what: &str, path: &Path, fstype: &str, flags: MsFlags, data: &str| {
        mounts::mount(what, path, fstype, flags, data).map_err(|source| CgroupError::Mount {
            what: what.to_owned(),
            path: path.to_owned(),
            source,
        })
    };
    mount("tmpfs", path, "tmpfs", FLAGS, "mode=755")?;
    for controller in controllers {
        let directory = path.join(controller);
        let mounted = make_directory(&directory).and_then(|()| {
            let flags = FLAGS | MsFlags::MS_RELATIME;
            let mount = |data: &str| mount(controller, &directory, "cgroup", flags, data);
            match controller {
                // As old as Linux 4.14.
                "cpuset" => mount(CPUSET_OPTIONS).or_else(|_| mount(controller)),
                _ => mount(controller),
            }
        });
        if let Err(error) = mounted {
            // One controller less, the others are as good. Its directory must not look like a hierarchy:
            // /proc/cgroups lists controllers that the kernel has for v2 only.
            let _ = std::fs::remove_dir(&directory);
            log::warn!("{}", Chain(&error));
        }
    }
    use_hierarchy(path);
    let read_only = FLAGS | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if let Err(error) = mount("tmpfs", path, "tmpfs", read_only, "mode=755") {
        log::warn!("{}", Chain(&error));
    }
    Ok(())
}

/// The enabled controllers of `/proc/cgroups` that we mount, in file order.
/// A table without `devices` is as good as any other.
fn enabled_v1(table: &str) -> Vec<&str> {
    let enabled = |line: &'_ str| {
        let mut fields = line.split_whitespace();
        let name = fields.next()?;
        // name, hierarchy, num_cgroups, enabled
        let known = V1_CONTROLLERS.iter().find(|&&known| known == name)?;
        (fields.nth(2) == Some("1")).then_some(*known)
    };
    table.lines().filter_map(enabled).collect()
}

/// Makes limits of a memory group hold for the groups below it. Kernels since
/// 5.11 know nothing else and may lack the file.
fn use_hierarchy(path: &Path) {
    let file = path.join("memory/memory.use_hierarchy");
    if let Err(source) = write(&file, "1") {
        log::debug!("{} not written: {source}", file.display());
    }
}

fn make_directory(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(CgroupError::File {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::File {
        path: path.to_owned(),
        source,
    })
}

/// Writes in one call, as the kernel's files want it, to a file that exists.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted_by(line: &str) -> CgroupMode {
        wanted(&CommandLine::parse(line.as_bytes()))
    }

    #[test]
    fn version_2_is_the_default() {
        assert_eq!(wanted_by("quiet"), CgroupMode::V2);
        assert_eq!(
            wanted_by("systemd.unified_cgroup_hierarchy=1"),
            CgroupMode::V2
        );
        assert_eq!(
            wanted_by("systemd.unified_cgroup_hierarchy=true"),
            CgroupMode::V2
        );
        // A bare word is no value.
        assert_eq!(
            wanted_by("systemd.unified_cgroup_hierarchy"),
            CgroupMode::V2
        );
    }

    #[test]
    fn version_1_when_asked_for() {
        assert_eq!(
            wanted_by("systemd.unified_cgroup_hierarchy=0"),
            CgroupMode::V1
        );
        assert_eq!(
            wanted_by("systemd.unified_cgroup_hierarchy=false"),
            CgroupMode::V1
        );
        assert_eq!(
            wanted_by("systemd.unified_cgroup_hierarchy=0 cgroup_no_v1=all"),
            CgroupMode::V2
        );
        assert_eq!(
            wanted_by("systemd.unified_cgroup_hierarchy=0 cgroup_no_v1=memory"),
            CgroupMode::V1
        );
    }

    #[test]
    fn bug_v1_without_devices_controller_is_not_fatal() {
        let table = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n\
            cpuset\t0\t1\t1\nmemory\t0\t1\t1\nfreezer\t0\t1\t0\nmisc\t0\t1\t1\npids\t0\t1\t1\n";
        assert_eq!(enabled_v1(table), ["cpuset", "memory", "pids"]);
    }

    #[test]
    fn odd_tables_have_no_controllers() {
        assert!(enabled_v1("").is_empty());
        assert!(enabled_v1("cpu\nmemory 1\n\n\0").is_empty());
    }

    #[test]
    fn bug_use_hierarchy_missing_is_not_fatal() {
        let dir = tempfile::tempdir().unwrap();
        use_hierarchy(dir.path());
        // And no such file was made.
        assert!(!dir.path().join("memory").exists());
    }

    #[test]
    fn all_controllers_are_enabled_in_one_write() {
        let dir = tempfile::tempdir().unwrap();
        let control = dir.path().join("cgroup.subtree_control");
        fs::write(dir.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        fs::write(&control, "").unwrap();
        enable_controllers(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(&control).unwrap(), " +cpu +memory +pids");
    }

    #[test]
    fn a_controller_that_is_refused_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpu\n").unwrap();
        let error = enable_controllers(dir.path()).unwrap_err();
        assert_eq!(error.to_string(), "Cannot enable the cgroup controller cpu");
    }
}
