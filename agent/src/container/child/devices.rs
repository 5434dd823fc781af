// SPDX-License-Identifier: Apache-2.0
//! `/dev` of a container: the default nodes, those asked for, and the links
//! that programs expect (OCI runtime specification, "Default Devices").

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, makedev, mknodat, umask};
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
        // A specification may list a default device again.
        Err(Errno::EEXIST) if is_same(parent, name, kind, device) => own(parent, name, node),
        Err(Errno::EEXIST) => replace(parent, name, node, kind, mode, device),
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

fn is_same(parent: &OwnedFd, name: &str, kind: SFlag, device: u64) -> bool {
    fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(|stat: FileStat| {
        stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
            && (kind == SFlag::S_IFIFO || stat.st_rdev == device)
    })
}

/// An image that was unpacked without privileges has ordinary files where
/// nodes belong.
fn replace(
    parent: &OwnedFd,
    name: &str,
    node: &DevicePlan,
    kind: SFlag,
    mode: Mode,
    device: u64,
) -> Result<(), StepError> {
    unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)
        .naming(|| format!("file in place of {}", node.path))?;
    mknodat(parent, name, kind, mode, device).naming(|| node.path.clone())?;
    own(parent, name, node)
}

fn mode_in_guest(path: &str) -> u32 {
    nix::sys::stat::stat(path).map_or(0, |stat| stat.st_mode & 0o7777)
}

fn bind_from_guest(root: BorrowedFd<'_>, node: &DevicePlan) -> Result<(), StepError> {
    let bind = || -> io::Result<()> {
        let source = within::in_guest(&node.path)?;
        let tree = clone_tree(&source, false)?;
        let target = within::file(root, &node.path)?;
        Ok(attach_tree(&tree, &target)?)
    };
    bind().naming(|| format!("{} of the guest", node.path))
}
