// SPDX-License-Identifier: Apache-2.0
//! The plan of one mount of a container: OCI `mounts[]`, checked.

use std::path::{Component, Path};

use nix::mount::MsFlags;
use oci_spec::runtime as oci;
use serde::{Deserialize, Serialize};

use super::PlanError;
use super::id::shorten;
use crate::mount_options::{MountOptions, NOSYMFOLLOW};

/// `MOUNT_ATTR_*` of `mount_setattr(2)`; libc has them for glibc only.
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = 0x1;
    /// No set-user-ID.
    pub const NOSUID: u64 = 0x2;
    /// No devices.
    pub const NODEV: u64 = 0x4;
    /// No programs.
    pub const NOEXEC: u64 = 0x8;
    /// The field of access-time modes; 0 is relatime.
    pub const ATIME: u64 = 0x70;
    /// No access times.
    pub const NOATIME: u64 = 0x10;
    /// Always access times.
    pub const STRICTATIME: u64 = 0x20;
    /// No access times of directories.
    pub const NODIRATIME: u64 = 0x80;
    /// No symbolic links.
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A file or directory of the guest.
    Bind {
        /// Path in the guest.
        path: String,
        /// With the mounts below it.
        recursive: bool,
    },
    /// A new instance of a file system.
    FileSystem {
        /// Its type.
        fstype: String,
        /// `source` as `/proc/mounts` shows it.
        source: String,
        /// Superblock parameters: `key=value` or bare flags.
        parameters: Vec<(String, Option<String>)>,
    },
    /// The container's own part of the cgroup hierarchy.
    Cgroup,
    /// What an earlier mount has put there, with other attributes.
    Remount {
        /// New parameters of its file system; none for a bind mount.
        parameters: Vec<(String, Option<String>)>,
    },
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlan {
    /// Where, below the container's root; starts with `/`.
    pub destination: String,
    /// What.
    pub source: MountSource,
    /// `MOUNT_ATTR_*` to set on the mount itself.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear on the mount itself.
    pub clear: u64,
    /// `MOUNT_ATTR_*` to set on the whole tree (`rro` and the like).
    pub set_recursive: u64,
    /// `MOUNT_ATTR_*` to clear on the whole tree.
    pub clear_recursive: u64,
    /// Changes of propagation, `MS_*` with `MS_REC` where asked, in order.
    pub propagation: Vec<u64>,
}

impl MountPlan {
    /// True if the mount is to end up read-only.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.set & attr::RDONLY != 0
    }
}

/// Files that a container engine may bind below `/proc` (they virtualise what
/// the kernel shows there); everything else below it would let a container
/// see or fake kernel state.
const PROC_BINDS: [&str; 8] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/net/dev",
];

/// Words that ask for more than a flag, and that no part of this agent does:
/// left to the kernel, a bind would swallow them.
const REFUSED: [&str; 3] = ["idmap", "ridmap", "tmpcopyup"];

/// Checks one OCI mount. `label` is the SELinux context of `linux.mountLabel`.
///
/// # Errors
/// [`PlanError::Invalid`] naming destination, type or option.
pub fn plan(mount: &oci::Mount, label: Option<&str>) -> Result<MountPlan, PlanError> {
    let destination = plan_destination(mount.destination().to_str().unwrap_or_default())?;
    let words = mount.options().clone().unwrap_or_default();
    let options = MountOptions::parse(&words).map_err(|e| {
        PlanError::invalid("mounts.options", shorten(&e.to_string()), "not understood")
    })?;
    if let Some(word) = refused(&options) {
        return Err(PlanError::invalid(
            "mounts.options",
            shorten(word),
            "is not supported",
        ));
    }
    let source = plan_source(mount, &options, label)?;
    if let MountSource::Bind { path, .. } = &source {
        check_proc_bind(&destination, path)?;
    }
    let (set, mut clear) = attributes(&options);
    if matches!(source, MountSource::Bind { .. }) {
        // Engines say rw of every volume that is not ro; what the guest has
        // mounted read-only stays so (CVE-2020-28914).
        clear &= !attr::RDONLY;
    }
    Ok(MountPlan {
        destination,
        source,
        set,
        clear,
        set_recursive: options.recursive.set,
        clear_recursive: options.recursive.clear,
        propagation: options
            .propagation
            .iter()
            .map(|flags| flags.bits())
            .collect(),
    })
}

fn refused(options: &MountOptions) -> Option<&str> {
    let name = |word: &'_ str| REFUSED.contains(&word.split('=').next().unwrap_or_default());
    options.data.split(',').find(|word| name(word))
}

/// A destination is absolute and has no `..` component; `/a..b` is a legal
/// name. Symlinks are dealt with when it is opened.
pub(super) fn plan_destination(destination: &str) -> Result<String, PlanError> {
    let fail = |reason| {
        Err(PlanError::invalid(
            "mounts.destination",
            shorten(destination),
            reason,
        ))
    };
    if !destination.starts_with('/') {
        return fail("must be absolute");
    }
    if destination.contains('\0') {
        return fail("contains a NUL byte");
    }
    if Path::new(destination)
        .components()
        .any(|part| part == Component::ParentDir)
    {
        return fail("must not contain '..'");
    }
    let mut normal = String::new();
    for part in Path::new(destination).components() {
        if let Component::Normal(name) = part {
            normal.push('/');
            normal.push_str(name.to_str().unwrap_or_default());
        }
    }
    if normal.is_empty() {
        return fail("is the root itself");
    }
    Ok(normal)
}

fn plan_source(
    mount: &oci::Mount,
    options: &MountOptions,
    label: Option<&str>,
) -> Result<MountSource, PlanError> {
    let source = mount
        .source()
        .as_ref()
        .and_then(|path| path.to_str())
        .unwrap_or_default();
    let fstype = mount.typ().as_deref().unwrap_or_default();
    if options.flags.contains(MsFlags::MS_REMOUNT) {
        let bind = options.is_bind() || fstype == "bind";
        let parameters = if bind {
            Vec::new()
        } else {
            parameters(options)
        };
        return Ok(MountSource::Remount { parameters });
    }
    if options.is_bind() || fstype == "bind" {
        if !source.starts_with('/') || source.contains('\0') {
            return Err(PlanError::invalid(
                "mounts.source",
                shorten(source),
                "a bind needs an absolute path",
            ));
        }
        let recursive = options.flags.contains(MsFlags::MS_REC);
        return Ok(MountSource::Bind {
            path: source.to_owned(),
            recursive,
        });
    }
    match fstype {
        "" | "none" => Err(PlanError::invalid(
            "mounts.type",
            shorten(fstype),
            "needs a file system type",
        )),
        "cgroup" | "cgroup2" => Ok(MountSource::Cgroup),
        name if name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) =>
        {
            Ok(MountSource::FileSystem {
                fstype: name.to_owned(),
                source: if source.is_empty() {
                    name.to_owned()
                } else {
                    source.to_owned()
                },
                parameters: {
                    let mut all = parameters(options);
                    // A file system on a device is read-only as a whole, which a
                    // device that cannot be written needs.
                    if options.read_only() && source.starts_with('/') {
                        all.push(("ro".to_owned(), None));
                    }
                    // These have labels of their own.
                    if let Some(label) = label.filter(|_| !UNLABELLED.contains(&name)) {
                        all.push(("context".to_owned(), Some(label.to_owned())));
                    }
                    all
                },
            })
        }
        other => Err(PlanError::invalid(
            "mounts.type",
            shorten(other),
            "is no file system type",
        )),
    }
}

/// File systems that take no `context`.
const UNLABELLED: [&str; 3] = ["proc", "sysfs", "mqueue"];

/// Superblock parameters: the words that are no flags, and those flags which
/// belong to the superblock rather than to the mount.
fn parameters(options: &MountOptions) -> Vec<(String, Option<String>)> {
    let mut all: Vec<(String, Option<String>)> = options
        .data
        .split(',')
        .filter(|word| !word.is_empty())
        .map(|word| match word.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (word.to_owned(), None),
        })
        .collect();
    let of_superblock = [
        (MsFlags::MS_SYNCHRONOUS, "sync"),
        (MsFlags::MS_DIRSYNC, "dirsync"),
        (MsFlags::MS_MANDLOCK, "mand"),
        (MsFlags::MS_LAZYTIME, "lazytime"),
    ];
    for (flag, word) in of_superblock {
        if options.flags.contains(flag) {
            all.push((word.to_owned(), None));
        }
    }
    all
}

/// Mount flags as `mount_setattr(2)` takes them: bits to set, bits to clear.
fn attributes(options: &MountOptions) -> (u64, u64) {
    let plain = [
        (MsFlags::MS_RDONLY, attr::RDONLY),
        (MsFlags::MS_NOSUID, attr::NOSUID),
        (MsFlags::MS_NODEV, attr::NODEV),
        (MsFlags::MS_NOEXEC, attr::NOEXEC),
        (MsFlags::MS_NODIRATIME, attr::NODIRATIME),
        (NOSYMFOLLOW, attr::NOSYMFOLLOW),
    ];
    let (mut set, mut clear) = (0, 0);
    for (flag, bit) in plain {
        if options.flags.contains(flag) {
            set |= bit;
        } else if options.cleared.contains(flag) {
            clear |= bit;
        }
    }
    // Access-time modes are one field: changing it means clearing it first.
    let modes = [
        (MsFlags::MS_NOATIME, attr::NOATIME),
        (MsFlags::MS_STRICTATIME, attr::STRICTATIME),
        (MsFlags::MS_RELATIME, 0),
    ];
    for (flag, value) in modes {
        if options.flags.contains(flag) {
            clear |= attr::ATIME;
            set = set & !attr::ATIME | value;
        }
    }
    (set, clear)
}

fn check_proc_bind(destination: &str, source: &str) -> Result<(), PlanError> {
    let below = destination
        .strip_prefix("/proc")
        .is_some_and(|rest| rest.starts_with('/'));
    if below && !PROC_BINDS.contains(&destination) {
        return Err(PlanError::invalid(
            "mounts.destination",
            shorten(destination),
            "no bind is allowed there",
        ));
    }
    if destination == "/proc" && source != "/proc" {
        return Err(PlanError::invalid(
            "mounts.source",
            shorten(source),
            "only procfs may be bound on /proc",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(mount: &oci::Mount) -> Result<MountPlan, PlanError> {
        super::plan(mount, None)
    }

    fn mount(destination: &str, typ: &str, source: &str, options: &[&str]) -> oci::Mount {
        let mut mount = oci::Mount::default();
        mount.set_destination(destination.into());
        mount.set_typ(Some(typ.to_owned()));
        mount.set_source(Some(source.into()));
        mount.set_options(Some(options.iter().map(|&o| o.to_owned()).collect()));
        mount
    }

    #[test]
    fn a_tmpfs_keeps_its_parameters_and_attributes() {
        let planned = plan(&mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=64k"],
        ))
        .unwrap();
        assert_eq!(planned.set, attr::NOSUID | attr::STRICTATIME);
        assert_eq!(planned.clear, attr::ATIME);
        let MountSource::FileSystem { parameters, .. } = planned.source else {
            panic!("no file system")
        };
        assert_eq!(
            parameters,
            [
                ("mode".to_owned(), Some("755".to_owned())),
                ("size".to_owned(), Some("64k".to_owned()))
            ]
        );
    }

    #[test]
    fn the_last_word_wins_between_ro_and_rw() {
        let rw = plan(&mount("/x", "bind", "/y", &["rbind", "ro", "rw"])).unwrap();
        assert!(!rw.read_only());
        let ro = plan(&mount("/x", "bind", "/y", &["rbind", "rw", "ro"])).unwrap();
        assert!(ro.read_only());
        assert_eq!(
            ro.source,
            MountSource::Bind {
                path: "/y".into(),
                recursive: true
            }
        );
    }

    #[test]
    fn bug_two_dots_inside_a_name_are_legal() {
        assert_eq!(
            plan(&mount("/a..b/./c/", "tmpfs", "", &[]))
                .unwrap()
                .destination,
            "/a..b/c"
        );
        assert!(plan(&mount("/a/../b", "tmpfs", "", &[])).is_err());
    }

    #[test]
    fn only_known_files_are_bound_below_proc() {
        assert!(plan(&mount("/proc/meminfo", "bind", "/x", &[])).is_ok());
        assert!(plan(&mount("/proc/sys/kernel", "bind", "/x", &[])).is_err());
        assert!(plan(&mount("/proc", "bind", "/tmp", &["rbind"])).is_err());
        assert!(plan(&mount("/process", "bind", "/tmp", &[])).is_ok());
    }

    /// CVE-2020-28914: a volume that is read-only in the guest.
    #[test]
    fn rw_does_not_make_a_read_only_source_writable() {
        let rw = plan(&mount("/x", "bind", "/y", &["rbind", "rw", "exec"])).unwrap();
        assert_eq!(rw.clear, attr::NOEXEC);
        let all = plan(&mount("/x", "bind", "/y", &["rbind", "rrw"])).unwrap();
        assert_eq!(all.clear_recursive, attr::RDONLY, "asked for by name");
    }

    #[test]
    fn a_remount_is_no_new_mount() {
        let bind = plan(&mount("/x", "bind", "/y", &["bind", "remount", "ro"])).unwrap();
        assert_eq!(bind.source, MountSource::Remount { parameters: vec![] });
        assert!(bind.read_only());
        let words = ["remount", "size=1m", "rw"];
        let tmpfs = plan(&mount("/x", "tmpfs", "tmpfs", &words)).unwrap();
        let parameters = vec![("size".to_owned(), Some("1m".to_owned()))];
        assert_eq!(tmpfs.source, MountSource::Remount { parameters });
        assert_eq!(tmpfs.clear, attr::RDONLY);
    }

    #[test]
    fn what_nobody_does_is_refused() {
        for word in ["idmap", "ridmap", "idmap=uids=0-1-2", "tmpcopyup"] {
            let error = plan(&mount("/x", "bind", "/y", &["bind", word])).unwrap_err();
            assert!(error.to_string().contains("is not supported"), "{error}");
        }
    }

    #[test]
    fn a_mount_label_is_for_file_systems_that_take_one() {
        let with =
            |kind: &str| super::plan(&mount("/x", kind, kind, &[]), Some("a:b:c:s0")).unwrap();
        let context = ("context".to_owned(), Some("a:b:c:s0".to_owned()));
        for (kind, labelled) in [("tmpfs", true), ("proc", false), ("sysfs", false)] {
            let MountSource::FileSystem { parameters, .. } = with(kind).source else {
                panic!("{kind} is no file system")
            };
            assert_eq!(parameters.contains(&context), labelled, "{kind}");
        }
    }

    #[test]
    fn a_device_is_mounted_read_only_as_a_whole() {
        let ro = |source: &str| match plan(&mount("/x", "ext4", source, &["ro"])).unwrap().source {
            MountSource::FileSystem { parameters, .. } => parameters,
            other => panic!("{other:?}"),
        };
        assert_eq!(ro("/dev/vda"), [("ro".to_owned(), None)]);
        assert!(ro("none").is_empty());
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(plan(&mount("relative", "tmpfs", "", &[])).is_err());
        assert!(plan(&mount("/", "tmpfs", "", &[])).is_err());
        assert!(plan(&mount("/x", "", "", &[])).is_err());
        assert!(plan(&mount("/x", "bind", "relative", &[])).is_err());
        assert!(plan(&mount("/x", "tm pfs", "", &[])).is_err());
    }
}
