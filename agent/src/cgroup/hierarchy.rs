// SPDX-License-Identifier: Apache-2.0
//! One mounted cgroup file system, reached through a descriptor of its root.
//! Owns the file operations both versions share; never decides what to write.
//!
//! Nothing here follows a link: cgroup file systems have none, and with
//! O_NOFOLLOW it stays so should something else be mounted in their place.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Pid, UnlinkatFlags, unlinkat, write};

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
    pub(super) fn open_at(&self, group: &str, file: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let mode = Mode::empty();
        match (group, file) {
            ("", "") => openat(&self.root, ".", flags, mode),
            (one, "") | ("", one) => openat(&self.root, one, flags, mode),
            (group, file) => openat(&self.root, below(group, file).as_str(), flags, mode),
        }
    }

    /// One write(2) of the whole value, as control files want it.
    pub(super) fn write(&self, group: &str, file: &str, value: &str) -> nix::Result<()> {
        let fd = self.open_at(group, file, OFlag::O_WRONLY)?;
        write(&fd, value.as_bytes()).map(drop)
    }

    pub(super) fn read(&self, group: &str, file: &str) -> nix::Result<String> {
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
        match unlinkat(&self.root, group, UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// The paths of the groups directly below `group`.
    pub(super) fn children(&self, group: &str) -> nix::Result<Vec<String>> {
        let fd = self.open_at(group, "", OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let mut dir = nix::dir::Dir::from_fd(fd)?;
        let mut children = Vec::new();
        for entry in dir.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let is_dir = entry.file_type() == Some(nix::dir::Type::Directory);
            if is_dir
                && name != b"."
                && name != b".."
                && let Ok(name) = std::str::from_utf8(name)
            {
                children.push(below(group, name));
            }
        }
        Ok(children)
    }

    /// Removes `group` and everything below it, innermost first, without
    /// waiting; `false` when something in it still runs. Costs one system call
    /// when there is nothing below.
    pub(super) fn remove_tree(&self, group: &str) -> nix::Result<bool> {
        let mut stack = vec![(group.to_owned(), false)];
        while let Some((path, expanded)) = stack.pop() {
            match self.rmdir(&path) {
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
    pub(super) fn tree(&self, group: &str) -> nix::Result<Vec<String>> {
        let mut groups = vec![group.to_owned()];
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

    /// Waits until `cgroup.events` of a v2 group says `wanted` (such as
    /// `populated 0`), or until the deadline: then `false`. A group that is
    /// gone counts as said.
    pub(super) fn wait_event(
        &self,
        group: &str,
        wanted: &str,
        deadline: Instant,
    ) -> nix::Result<bool> {
        let events = match self.open_at(group, "cgroup.events", OFlag::O_RDONLY) {
            Err(Errno::ENOENT) => return Ok(true),
            other => File::from(other?),
        };
        let mut buffer = [0u8; 256];
        loop {
            let read = match events.read_at(&mut buffer, 0).map_err(errno) {
                Err(Errno::ENODEV) => return Ok(true),
                other => other?,
            };
            if buffer[..read]
                .split(|&b| b == b'\n')
                .any(|line| line == wanted.as_bytes())
            {
                return Ok(true);
            }
            let Some(timeout) = time_left(deadline) else {
                return Ok(false);
            };
            // The kernel reports a change of the file as an exceptional condition.
            let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

fn below(group: &str, name: &str) -> String {
    if group.is_empty() {
        return name.to_owned();
    }
    let mut path = String::with_capacity(group.len() + name.len() + 1);
    path.push_str(group);
    path.push('/');
    path.push_str(name);
    path
}

/// What is left until the deadline, for poll(2): rounded up so that a wait
/// never turns into a busy loop; none when the deadline has passed.
pub(super) fn time_left(deadline: Instant) -> Option<PollTimeout> {
    let left = deadline.checked_duration_since(Instant::now())?;
    let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX - 1) + 1;
    PollTimeout::try_from(millis).ok()
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
    fn a_passed_deadline_has_no_time_left() {
        let now = Instant::now();
        assert!(time_left(now - std::time::Duration::from_millis(1)).is_none());
        assert!(time_left(now + std::time::Duration::from_secs(1)).is_some());
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
        assert_eq!(root.children("").unwrap(), ["a"]);
    }
}
