// SPDX-License-Identifier: Apache-2.0
//! The kernel's file systems: what is mounted where, when, and what follows
//! if it cannot be.
//!
//! Owns one constant table, the words of mount options, and the reading of
//! `/proc/mounts`. It never mounts cgroups (`cgroup.rs`) nor the root
//! (`root.rs`), and never tears down what somebody else mounted.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MsFlags;
use thiserror::Error;

use crate::failure::{self, OnFailure};
use crate::{dev, failure::Chain};

/// When an entry of the table is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// First of all, on whatever root the kernel gave us. Moved along when
    /// the root is switched.
    Early,
    /// On the root that stays.
    Final,
}

/// What takes the place of a mount that failed.
#[derive(Debug, Clone, Copy)]
pub enum Otherwise {
    /// Nothing; the boot goes on or ends.
    Then(OnFailure),
    /// This is done below the root instead, and the boot goes on.
    Instead(fn(&Path) -> Result<(), dev::DevError>),
}

/// A line of the mount table; the first five fields are those of mount(2).
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The name shown in `/proc/mounts`; these file systems need no source.
    pub source: &'static str,
    /// Where, absolute.
    pub target: &'static str,
    /// What.
    pub fstype: &'static str,
    /// Flags.
    pub flags: MsFlags,
    /// Options of the file system.
    pub data: &'static str,
    /// When.
    pub stage: Stage,
    /// What if it fails.
    pub otherwise: Otherwise,
}

const NOSUID: MsFlags = MsFlags::MS_NOSUID;
const NOSUID_NODEV: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
const NOSUID_NOEXEC: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);
const STRICT: MsFlags = NOSUID_NODEV.union(MsFlags::MS_NOEXEC);
const GO_ON: Otherwise = Otherwise::Then(OnFailure::GoOn);
const POWER_OFF: Otherwise = Otherwise::Then(OnFailure::PowerOff);
const STATIC_NODES: Otherwise = Otherwise::Instead(dev::stand_in);

/// The mounts of the VM, in order (protocol section 7.2, and `/tmp` and
/// `/dev/mqueue`, which the containers' programs expect of a machine).
///
/// `/dev` comes first because without it nothing can be logged. Without
/// `/proc` neither the command line nor our own descriptors can be read, so
/// nothing could be served. Everything else is missed only by what needs it.
/// The tmpfs sizes are the kernel's default, half of the memory there is now.
#[rustfmt::skip]
pub const TABLE: &[Entry] = &[
    entry("dev",    "/dev",        "devtmpfs", NOSUID,        "mode=755",                         Stage::Early, STATIC_NODES),
    entry("proc",   "/proc",       "proc",     STRICT,        "",                                 Stage::Early, POWER_OFF),
    entry("sysfs",  "/sys",        "sysfs",    STRICT,        "",                                 Stage::Early, GO_ON),
    entry("devpts", "/dev/pts",    "devpts",   NOSUID_NOEXEC, "gid=5,mode=620,ptmxmode=666",      Stage::Final, GO_ON),
    entry("shm",    "/dev/shm",    "tmpfs",    NOSUID_NODEV,  "mode=1777",                        Stage::Final, GO_ON),
    entry("mqueue", "/dev/mqueue", "mqueue",   STRICT,        "",                                 Stage::Final, GO_ON),
    entry("run",    "/run",        "tmpfs",    NOSUID_NODEV,  "mode=755",                         Stage::Final, GO_ON),
    entry("tmp",    "/tmp",        "tmpfs",    NOSUID_NODEV,  "mode=1777",                        Stage::Final, GO_ON),
];

const fn entry(
    source: &'static str,
    target: &'static str,
    fstype: &'static str,
    flags: MsFlags,
    data: &'static str,
    stage: Stage,
    otherwise: Otherwise,
) -> Entry {
    Entry {
        source,
        target,
        fstype,
        flags,
        data,
        stage,
        otherwise,
    }
}

/// A file system could not be mounted.
#[derive(Debug, Error)]
pub enum MountError {
    /// The directory to mount on is missing and cannot be made, as on a
    /// read-only root that lacks it.
    #[error("Cannot create the mount point {}", path.display())]
    Target {
        /// The directory.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// mount(2) failed.
    #[error("Cannot mount {fstype} on {}", target.display())]
    Mount {
        /// The type of the file system.
        fstype: Cow<'static, str>,
        /// The directory.
        target: PathBuf,
        /// What the kernel answered.
        source: Errno,
    },
}

/// Mounts the entries of a stage; each failure is handled as its entry says.
pub fn mount_stage(stage: Stage) {
    mount_stage_at(Path::new("/"), stage);
}

/// The same below another root.
pub fn mount_stage_at(root: &Path, stage: Stage) {
    for entry in TABLE.iter().filter(|entry| entry.stage == stage) {
        if let Err(error) = entry.mount_at(root) {
            entry.failed(root, &error);
        }
    }
}

impl Entry {
    /// Mounts this entry below `root`. The mount point is made if needed. What
    /// the kernel has mounted there already gets our flags and counts as done.
    pub fn mount_at(&self, root: &Path) -> Result<(), MountError> {
        let target = self.target_at(root);
        let mut result = mount(self.source, &target, self.fstype, self.flags, self.data);
        // Made only when missing: mostly it is there, and asking costs a call.
        if result == Err(Errno::ENOENT) {
            make_target(&target)?;
            result = mount(self.source, &target, self.fstype, self.flags, self.data);
        }
        if result == Err(Errno::EBUSY) {
            let again = self.flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
            result = mount("", &target, "", again, "");
        }
        result.map_err(|source| MountError::Mount {
            fstype: Cow::Borrowed(self.fstype),
            target,
            source,
        })
    }

    /// The mount point below `root`.
    pub fn target_at(&self, root: &Path) -> PathBuf {
        root.join(self.target.trim_start_matches('/'))
    }

    /// Handles the failure of this entry's mount.
    pub(crate) fn failed(&self, root: &Path, error: &MountError) {
        match self.otherwise {
            Otherwise::Then(then) => failure::handle(error, then),
            Otherwise::Instead(stand_in) => match stand_in(root) {
                Ok(()) => log::warn!("{}; made do without", Chain(error)),
                Err(second) => {
                    failure::handle(error, OnFailure::GoOn);
                    failure::handle(&second, OnFailure::GoOn);
                }
            },
        }
    }
}

/// Makes a missing mount point.
pub(crate) fn make_target(path: &Path) -> Result<(), MountError> {
    std::fs::create_dir_all(path).map_err(|source| MountError::Target {
        path: path.to_owned(),
        source,
    })
}

/// mount(2). One function rather than five generic copies of nix's.
pub(crate) fn mount(
    source: &str,
    target: &Path,
    fstype: &str,
    flags: MsFlags,
    data: &str,
) -> nix::Result<()> {
    nix::mount::mount(Some(source), target, Some(fstype), flags, Some(data))
}

/// Mount options parted into what mount(2) takes as flags and what the file
/// system takes as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The flags.
    pub flags: MsFlags,
    /// The rest, joined by commas, in order.
    pub data: String,
}

impl Options {
    /// Parts a comma-separated list (mount(8), "filesystem-independent mount
    /// options"), on top of `flags`. The later of two contrary words wins.
    pub fn parse(options: &str, mut flags: MsFlags) -> Self {
        let mut data = String::with_capacity(options.len());
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match flag(option) {
                Some((bits, true)) => flags |= bits,
                Some((bits, false)) => flags -= bits,
                None => push_option(&mut data, option),
            }
        }
        Self { flags, data }
    }
}

/// Appends an option to a comma-separated list.
pub(crate) fn push_option(list: &mut String, option: &str) {
    if !list.is_empty() {
        list.push(',');
    }
    list.push_str(option);
}

/// The flag that an option word sets (true) or clears (false).
fn flag(option: &str) -> Option<(MsFlags, bool)> {
    Some(match option {
        "defaults" => (MsFlags::empty(), true),
        "ro" => (MsFlags::MS_RDONLY, true),
        "rw" => (MsFlags::MS_RDONLY, false),
        "nosuid" => (MsFlags::MS_NOSUID, true),
        "suid" => (MsFlags::MS_NOSUID, false),
        "nodev" => (MsFlags::MS_NODEV, true),
        "dev" => (MsFlags::MS_NODEV, false),
        "noexec" => (MsFlags::MS_NOEXEC, true),
        "exec" => (MsFlags::MS_NOEXEC, false),
        "sync" => (MsFlags::MS_SYNCHRONOUS, true),
        "async" => (MsFlags::MS_SYNCHRONOUS, false),
        "dirsync" => (MsFlags::MS_DIRSYNC, true),
        "noatime" => (MsFlags::MS_NOATIME, true),
        "atime" => (MsFlags::MS_NOATIME, false),
        "nodiratime" => (MsFlags::MS_NODIRATIME, true),
        "diratime" => (MsFlags::MS_NODIRATIME, false),
        "relatime" => (MsFlags::MS_RELATIME, true),
        "norelatime" => (MsFlags::MS_RELATIME, false),
        "strictatime" => (MsFlags::MS_STRICTATIME, true),
        "nostrictatime" => (MsFlags::MS_STRICTATIME, false),
        "lazytime" => (MsFlags::MS_LAZYTIME, true),
        "nolazytime" => (MsFlags::MS_LAZYTIME, false),
        "silent" => (MsFlags::MS_SILENT, true),
        "loud" => (MsFlags::MS_SILENT, false),
        _ => return None,
    })
}

/// A line of `/proc/mounts` (proc(5), fstab(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted<'a> {
    /// The device or name.
    pub source: Cow<'a, str>,
    /// Where.
    pub target: Cow<'a, str>,
    /// The type.
    pub fstype: &'a str,
}

impl<'a> Mounted<'a> {
    /// Reads one line; `None` if it has fewer than three fields.
    pub fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(' ');
        Some(Self {
            source: unescape(fields.next()?),
            target: unescape(fields.next()?),
            fstype: fields.next()?,
        })
    }
}

/// Undoes the kernel's octal escapes of blank, tab, newline, `#` and `\`.
fn unescape(field: &str) -> Cow<'_, str> {
    if !field.contains('\\') {
        return Cow::Borrowed(field);
    }
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'\\'
            && let Some(byte) = octal(tail)
        {
            bytes.push(byte);
            rest = &tail[3..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

/// The byte that three octal digits stand for.
fn octal(digits: &[u8]) -> Option<u8> {
    let digits = digits.get(..3)?;
    let digit = |at: usize| {
        (b'0'..=b'7')
            .contains(&digits[at])
            .then(|| digits[at] - b'0')
    };
    let (high, mid, low) = (digit(0)?, digit(1)?, digit(2)?);
    (high <= 3).then_some(high << 6 | mid << 3 | low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn targets_are_absolute_unique_and_after_their_parents() {
        let mut seen = HashSet::new();
        for entry in TABLE {
            assert!(entry.target.starts_with('/') && !entry.target.ends_with('/'));
            assert!(seen.insert(entry.target), "{} twice", entry.target);
            let parent = TABLE.iter().position(|other| {
                other.target != entry.target
                    && entry.target.starts_with(&format!("{}/", other.target))
            });
            let own = TABLE.iter().position(|other| other.target == entry.target);
            assert!(
                parent.is_none_or(|parent| Some(parent) < own),
                "{}",
                entry.target
            );
        }
    }

    #[test]
    fn early_entries_come_first_and_dev_is_the_very_first() {
        assert_eq!(TABLE[0].target, "/dev");
        let first_final = TABLE.iter().position(|e| e.stage == Stage::Final).unwrap();
        assert!(TABLE[first_final..].iter().all(|e| e.stage == Stage::Final));
    }

    #[test]
    fn nothing_honours_set_user_id() {
        assert!(TABLE.iter().all(|e| e.flags.contains(MsFlags::MS_NOSUID)));
        let devices = |e: &&Entry| !e.flags.contains(MsFlags::MS_NODEV);
        let with_devices: Vec<_> = TABLE.iter().filter(devices).map(|e| e.target).collect();
        assert_eq!(with_devices, ["/dev", "/dev/pts"]);
    }

    #[test]
    fn options_part_into_flags_and_data() {
        let options = Options::parse(
            "dax,data=ordered,errors=remount-ro,ro,,nosuid",
            MsFlags::empty(),
        );
        assert_eq!(options.data, "dax,data=ordered,errors=remount-ro");
        assert_eq!(options.flags, MsFlags::MS_RDONLY | MsFlags::MS_NOSUID);
        let later = Options::parse("rw,noatime,atime", MsFlags::MS_RDONLY);
        assert_eq!((later.flags, later.data.as_str()), (MsFlags::empty(), ""));
    }

    #[test]
    fn bug_mounts_with_blanks_are_read() {
        let line = r"/dev/vda1 /mnt/a\040b\134c ext4 rw,relatime 0 0";
        let mounted = Mounted::parse(line).unwrap();
        assert_eq!(mounted.target, r"/mnt/a b\c");
        assert_eq!(
            (mounted.source.as_ref(), mounted.fstype),
            ("/dev/vda1", "ext4")
        );
        assert_eq!(Mounted::parse("short line"), None);
        assert_eq!(unescape(r"\9\04\777"), r"\9\04\777");
    }

    #[test]
    fn bug_missing_mount_point_on_a_file_is_an_error_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("proc"), "").unwrap();
        let error = make_target(&dir.path().join("proc/x")).unwrap_err();
        assert!(error.to_string().contains("proc/x"), "{error}");
    }

    proptest! {
        #[test]
        fn any_line(line in ".{0,80}") {
            let _ = Mounted::parse(&line);
            let _ = Options::parse(&line, MsFlags::empty());
        }

        #[test]
        fn escapes_round_trip(name in "[a-z \t\n#\\\\é]{0,20}") {
            let escaped: String = name.chars().map(|c| match c {
                ' ' | '\t' | '\n' | '#' | '\\' => format!("\\{:03o}", u32::from(c)),
                c => c.to_string(),
            }).collect();
            prop_assert_eq!(unescape(&escaped), name);
        }
    }
}
