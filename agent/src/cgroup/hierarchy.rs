// SPDX-License-Identifier: Apache-2.0
//! One mounted cgroup file system, reached through a descriptor of its root.
//! Owns the file operations both versions share; never decides what to write.
//!
//! Nothing here follows a link: cgroup file systems have none, and with
//! O_NOFOLLOW it stays so should something else be mounted in their place.
//! Below its own group a container may nest groups as deep as it likes and give
//! them any name: paths are bytes, and long ones are walked in pieces.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Pid, UnlinkatFlags, unlinkat, write};

/// Longest path handed to the kernel at once, with room for a control file's
/// name within `PATH_MAX`.
const LONGEST: usize = 3800;

/// The root of one cgroup mount. All `group` arguments are relative to it.
#[derive(Debug)]
pub(super) struct Hierarchy {
    root: OwnedFd,
}

impl Hierarchy {
    pub(super) fn open(root: &Path) -> nix::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(root, flags, Mode::empty())?;
        Ok(Self { root })
    }

    /// Opens `group`, or a file in it when `file` is not empty.
    pub(super) fn open_at(
        &self,
        group: impl AsRef<OsStr>,
        file: &str,
        flags: OFlag,
    ) -> nix::Result<OwnedFd> {
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let path = match (group.as_ref(), file) {
            (group, "") if group.is_empty() => ".".into(),
            (group, "") => group.to_owned(),
            (group, file) => below(group, OsStr::new(file)),
        };
        self.near(&path, |from, rest| openat(from, rest, flags, Mode::empty()))
    }

    /// Does something with a path from the deepest group that it takes to keep
    /// what is left of the path short.
    fn near<T>(
        &self,
        path: &OsStr,
        act: impl FnOnce(BorrowedFd<'_>, &OsStr) -> nix::Result<T>,
    ) -> nix::Result<T> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let (mut from, mut rest): (Option<OwnedFd>, _) = (None, path.as_bytes());
        while rest.len() > LONGEST {
            let slash = rest[..LONGEST].iter().rposition(|&byte| byte == b'/');
            let at = slash.ok_or(Errno::ENAMETOOLONG)?;
            let start = from.as_ref().unwrap_or(&self.root);
            from = Some(openat(start, &rest[..at], flags, Mode::empty())?);
            rest = &rest[at + 1..];
        }
        let from = from.as_ref().unwrap_or(&self.root).as_fd();
        act(from, OsStr::from_bytes(rest))
    }

    /// One write(2) of the whole value, as control files want it.
    pub(super) fn write(
        &self,
        group: impl AsRef<OsStr>,
        file: &str,
        value: &str,
    ) -> nix::Result<()> {
        let fd = self.open_at(group, file, OFlag::O_WRONLY)?;
        write(&fd, value.as_bytes()).map(drop)
    }

    pub(super) fn read(&self, group: impl AsRef<OsStr>, file: &str) -> nix::Result<String> {
        let mut text = String::new();
        File::from(self.open_at(group, file, OFlag::O_RDONLY)?)
            .read_to_string(&mut text)
            .map_err(errno)?;
        Ok(text)
    }

    /// Makes a group; `false` when it was there already.
    pub(super) fn mkdir(&self, group: &str) -> nix::Result<bool> {
        match mkdirat(&self.root, group, Mode::from_bits_truncate(0o755)) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Removes one group; a group that is gone is removed.
    pub(super) fn rmdir(&self, group: &str) -> nix::Result<()> {
        self.rmdir_os(OsStr::new(group))
    }

    fn rmdir_os(&self, group: &OsStr) -> nix::Result<()> {
        let remove =
            |from: BorrowedFd<'_>, rest: &OsStr| unlinkat(from, rest, UnlinkatFlags::RemoveDir);
        match self.near(group, remove) {
            Err(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// The paths of the groups directly below `group`.
    fn children(&self, group: &OsStr) -> nix::Result<Vec<OsString>> {
        let fd = self.open_at(group, "", OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let mut dir = nix::dir::Dir::from_fd(fd)?;
        let mut children = Vec::new();
        for entry in dir.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let is_dir = entry.file_type() == Some(nix::dir::Type::Directory);
            if is_dir && name != b"." && name != b".." {
                children.push(below(group, OsStr::from_bytes(name)));
            }
        }
        Ok(children)
    }

    /// Removes `group` and everything below it, innermost first, without
    /// waiting; `false` when something in it still runs. Costs one system call
    /// when there is nothing below.
    pub(super) fn remove_tree(&self, group: &str) -> nix::Result<bool> {
        let mut stack = vec![(OsString::from(group), false)];
        while let Some((path, expanded)) = stack.pop() {
            match self.rmdir_os(&path) {
                Ok(()) => {}
                Err(Errno::EBUSY | Errno::ENOTEMPTY) if expanded => return Ok(false),
                Err(Errno::EBUSY | Errno::ENOTEMPTY) => {
                    let children = match self.children(&path) {
                        Err(Errno::ENOENT) => continue,
                        other => other?,
                    };
                    if children.is_empty() {
                        return Ok(false);
                    }
                    stack.push((path, true));
                    stack.extend(children.into_iter().map(|child| (child, false)));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Every group below `group`, itself first.
    pub(super) fn tree(&self, group: &str) -> nix::Result<Vec<OsString>> {
        let mut groups = vec![OsString::from(group)];
        let mut next = 0;
        while let Some(path) = groups.get(next) {
            match self.children(path) {
                Ok(children) => groups.extend(children),
                // Removed meanwhile by the container itself, or never there.
                Err(Errno::ENOENT | Errno::ENODEV) => {}
                Err(e) => return Err(e),
            }
            next += 1;
        }
        Ok(groups)
    }

    /// The processes in `group` and below.
    pub(super) fn pids(&self, group: &str) -> nix::Result<Vec<Pid>> {
        let mut pids = Vec::new();
        for path in self.tree(group)? {
            let text = match self.read(&path, "cgroup.procs") {
                // A threaded group of v2 lists threads only.
                Err(Errno::EOPNOTSUPP) => self.read(&path, "cgroup.threads"),
                other => other,
            };
            match text {
                Ok(text) => pids.extend(parse_pids(&text)),
                Err(Errno::ENOENT | Errno::ENODEV) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(pids)
    }
}

fn below(group: &OsStr, name: &OsStr) -> OsString {
    let mut path = OsString::with_capacity(group.len() + name.len() + 1);
    path.push(group);
    if !group.is_empty() {
        path.push("/");
    }
    path.push(name);
    path
}

pub(super) fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO))
}

fn parse_pids(text: &str) -> impl Iterator<Item = Pid> {
    text.lines()
        .filter_map(|line| line.parse().ok())
        // 0 is a process of an outer pid namespace; killing it would mean our own group.
        .filter(|&pid| pid > 0)
        .map(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_other_namespaces_are_left_out() {
        let pids: Vec<_> = parse_pids("12\n0\n7\n-1\nx\n").collect();
        assert_eq!(pids, [Pid::from_raw(12), Pid::from_raw(7)]);
    }

    #[test]
    fn files_are_written_as_one_value() {
        let dir = tempfile::tempdir().unwrap();
        let root = Hierarchy::open(dir.path()).unwrap();
        assert!(root.mkdir("a").unwrap());
        assert!(!root.mkdir("a").unwrap());
        std::fs::write(dir.path().join("a/memory.max"), "").unwrap();
        root.write("a", "memory.max", "77").unwrap();
        assert_eq!(root.read("a", "memory.max").unwrap(), "77");
        // A control file that the kernel does not have is never created.
        assert_eq!(root.write("a", "absent", "1"), Err(Errno::ENOENT));
        assert_eq!(root.children(OsStr::new("")).unwrap(), ["a"]);
    }

    #[test]
    fn bug_groups_of_any_depth_and_name_are_seen_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = Hierarchy::open(dir.path()).unwrap();
        let name = [b'x'; 250];
        let odd = [&b"not utf-8 \xff"[..], &name[..100]].concat();
        let mut at = open(dir.path(), OFlag::O_PATH, Mode::empty()).unwrap();
        let step = |at: &OwnedFd, name: &[u8]| {
            mkdirat(at, name, Mode::S_IRWXU).unwrap();
            openat(at, name, OFlag::O_PATH, Mode::empty()).unwrap()
        };
        at = step(&at, b"c");
        at = step(&at, &odd);
        for _ in 0..40 {
            at = step(&at, &name);
        }
        assert_eq!(root.tree("c").unwrap().len(), 42);
        assert!(root.remove_tree("c").unwrap());
        assert!(root.tree("c").unwrap().len() == 1 && !dir.path().join("c").exists());
    }
}
