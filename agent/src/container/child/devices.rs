// SPDX-License-Identifier: Apache-2.0
//! `/dev` of a container: the default nodes, those asked for, and the links
//! that programs expect (OCI runtime specification, "Default Devices").

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, makedev, mknodat, umask};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};

use super::root::{attach_tree, clone_tree};
use super::{Child, Naming, StepError, within};
use crate::container::plan::{DevicePlan, MountSource};

/// Name, major and minor of the nodes that every container has, mode 0666.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Link and target.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes nodes and links, unless the container brings a `/dev` of its own.
pub fn make_all(child: &mut Child) -> Result<(), StepError> {
    let (Some(plan), Some(root)) = (child.root_plan(), &child.root) else {
        return Ok(());
    };
    let bound = |mount: &crate::container::plan::MountPlan| {
        mount.destination == "/dev" && matches!(mount.source, MountSource::Bind { .. })
    };
    if plan.mounts.iter().any(bound) {
        return Ok(());
    }
    umask(Mode::empty());
    let dev = within::directory(root.as_fd(), "/dev").naming(|| "/dev".into())?;
    for (name, target) in LINKS {
        link(dev.as_fd(), name, target).naming(|| format!("/dev/{name}"))?;
    }
    for (name, major, minor) in DEFAULT {
        let kind = SFlag::S_IFCHR.bits();
        let node = DevicePlan {
            path: format!("/dev/{name}"),
            kind,
            major,
            minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        };
        make(root.as_fd(), &dev, name, &node)?;
    }
    for node in &plan.devices {
        let (parent, name) = within::split(&node.path);
        let parent = within::directory(root.as_fd(), parent).naming(|| node.path.clone())?;
        make(root.as_fd(), &parent, name, node)?;
    }
    umask(Mode::from_bits_truncate(0o022));
    Ok(())
}

fn link(dev: BorrowedFd<'_>, name: &str, target: &str) -> nix::Result<()> {
    match symlinkat(target, dev, name) {
        // An image's own file or node of that name gives way, a directory stays.
        Err(Errno::EEXIST) => match unlinkat(dev, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => symlinkat(target, dev, name),
            Err(Errno::EISDIR | Errno::EPERM | Errno::EROFS) => Ok(()),
            Err(errno) => Err(errno),
        },
        other => other,
    }
}

fn make(
    root: BorrowedFd<'_>,
    parent: &OwnedFd,
    name: &str,
    node: &DevicePlan,
) -> Result<(), StepError> {
    let kind = SFlag::from_bits_truncate(node.kind);
    let device = makedev(u64::from(node.major), u64::from(node.minor));
    let mode = Mode::from_bits_truncate(if node.mode == 0 {
        mode_in_guest(&node.path)
    } else {
        node.mode
    });
    match mknodat(parent, name, kind, mode, device) {
        Ok(()) => own(parent, name, node),
        // A specification may list a default device again, with another mode.
        Err(Errno::EEXIST) if is_same(parent, name, kind, mode, device) => own(parent, name, node),
        Err(Errno::EEXIST) => replace(root, parent, name, node, kind, mode, device),
        // No CAP_MKNOD over the file system (user namespace, virtio-fs of an
        // ordinary user): the guest's own node is bound instead.
        Err(Errno::EPERM | Errno::EACCES) => bind_from_guest(root, node),
        Err(errno) => Err(StepError::new(node.path.clone(), errno)),
    }
}

fn own(parent: &OwnedFd, name: &str, node: &DevicePlan) -> Result<(), StepError> {
    if node.uid == 0 && node.gid == 0 {
        return Ok(());
    }
    let (uid, gid) = (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)));
    fchownat(parent, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
        .naming(|| format!("owner of {}", node.path))
}

fn is_same(parent: &OwnedFd, name: &str, kind: SFlag, mode: Mode, device: u64) -> bool {
    fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(|stat: FileStat| {
        stat.st_mode == kind.bits() | mode.bits()
            && (kind == SFlag::S_IFIFO || stat.st_rdev == device)
    })
}

/// An image that was unpacked without privileges has ordinary files where
/// nodes belong.
fn replace(
    root: BorrowedFd<'_>,
    parent: &OwnedFd,
    name: &str,
    node: &DevicePlan,
    kind: SFlag,
    mode: Mode,
    device: u64,
) -> Result<(), StepError> {
    unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)
        .naming(|| format!("file in place of {}", node.path))?;
    match mknodat(parent, name, kind, mode, device) {
        Ok(()) => own(parent, name, node),
        Err(Errno::EPERM | Errno::EACCES) => bind_from_guest(root, node),
        Err(errno) => Err(StepError::new(node.path.clone(), errno)),
    }
}

fn mode_in_guest(path: &str) -> u32 {
    nix::sys::stat::stat(path).map_or(0, |stat| stat.st_mode & 0o7777)
}

/// The node of the guest at the same path, if it is the device asked for.
fn bind_from_guest(root: BorrowedFd<'_>, node: &DevicePlan) -> Result<(), StepError> {
    let bind = || -> io::Result<()> {
        let source = within::in_guest(&node.path)?;
        if !is_node(&source, node)? {
            return Err(Errno::ENODEV.into());
        }
        let tree = clone_tree(&source, false)?;
        let target = within::file(root, &node.path)?;
        Ok(attach_tree(&tree, &target)?)
    };
    bind().naming(|| format!("{} of the guest", node.path))
}

fn is_node(fd: &OwnedFd, node: &DevicePlan) -> io::Result<bool> {
    let stat = fstat(fd)?;
    let device = makedev(u64::from(node.major), u64::from(node.minor));
    Ok(stat.st_mode & SFlag::S_IFMT.bits() == node.kind && stat.st_rdev == device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> DevicePlan {
        DevicePlan {
            path: "/dev/null".to_owned(),
            kind: SFlag::S_IFCHR.bits(),
            major: 1,
            minor: 3,
            mode: 0o666,
            uid: 0,
            gid: 0,
        }
    }

    #[test]
    fn a_node_of_the_guest_is_told_by_its_numbers() {
        let fd = within::in_guest("/dev/null").unwrap();
        assert!(is_node(&fd, &null()).unwrap());
        let zero = DevicePlan { minor: 5, ..null() };
        assert!(!is_node(&fd, &zero).unwrap());
        let disk = DevicePlan {
            kind: SFlag::S_IFBLK.bits(),
            ..null()
        };
        assert!(!is_node(&fd, &disk).unwrap());
    }

    #[test]
    fn links_replace_files_and_leave_directories() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("fd"), "").unwrap();
        std::fs::create_dir(dir.path().join("stdin")).unwrap();
        let fd = within::in_guest(dir.path().to_str().unwrap()).unwrap();
        for (name, target) in LINKS {
            link(fd.as_fd(), name, target).unwrap();
        }
        let read = |name| std::fs::read_link(dir.path().join(name));
        assert_eq!(read("fd").unwrap().to_str(), Some("/proc/self/fd"));
        assert!(dir.path().join("stdin").is_dir());
        assert_eq!(read("ptmx").unwrap().to_str(), Some("pts/ptmx"));
    }
}
