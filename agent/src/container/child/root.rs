// SPDX-License-Identifier: Apache-2.0
//! The container's root: attached as a mount of its own, filled by the other
//! steps, made the root of the new mount namespace at the end.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, fchdir, pivot_root};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::{Child, Naming, StepError, initramfs, within};
use crate::container::plan::mount::attr;
use crate::launch::clone::{MountAttr, mount_setattr};

/// Takes a private copy of the root's mount tree and attaches it over its own
/// place, in this mount namespace only.
pub fn attach(child: &mut Child) -> Result<(), StepError> {
    let Some(plan) = child.root_plan() else {
        return Ok(());
    };
    let path = plan.path.clone();
    // Nothing mounted here from now on may show up in the guest; what the guest
    // unmounts shall go away here too.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_SLAVE | MsFlags::MS_REC,
        None::<&str>,
    )
    .naming(|| "propagation of '/'".into())?;
    let place = within::in_guest(&path)
        .map_err(|error| StepError::request(format!("root '{path}'"), error))?;
    let tree = clone_tree(&place, true).naming(|| format!("root '{path}'"))?;
    let private = MountAttr {
        propagation: MsFlags::MS_PRIVATE.bits(),
        ..MountAttr::default()
    };
    mount_setattr(tree.as_fd(), &private, true)
        .naming(|| format!("propagation of root '{path}'"))?;
    attach_tree(&tree, &place).naming(|| format!("root '{path}'"))?;
    child.root = Some(tree);
    Ok(())
}

/// A detached copy of the mount (tree) at a descriptor.
pub(super) fn clone_tree(place: &OwnedFd, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(place, "", flags)
}

/// Attaches a detached mount on the file or directory at a descriptor.
pub(super) fn attach_tree(tree: &OwnedFd, place: &OwnedFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", place, "", flags)
}

/// After everything has been made that needs to be written.
pub fn make_readonly(child: &mut Child) -> Result<(), StepError> {
    let Some(plan) = child.root_plan() else {
        return Ok(());
    };
    let Some(root) = &child.root else {
        return Ok(());
    };
    let readonly = MountAttr {
        set: attr::RDONLY,
        ..MountAttr::default()
    };
    for mount in plan
        .mounts
        .iter()
        .filter(|mount| mount.destination == "/dev" && mount.read_only())
    {
        let dev =
            within::find(root.as_fd(), &mount.destination).naming(|| mount.destination.clone())?;
        mount_setattr(dev.as_fd(), &readonly, false).naming(|| "read-only /dev".into())?;
    }
    if plan.readonly {
        mount_setattr(root.as_fd(), &readonly, false)
            .naming(|| format!("read-only root '{}'", plan.path))?;
    }
    Ok(())
}

/// Makes the container's root the only thing that this mount namespace shows.
pub fn pivot(child: &mut Child) -> Result<(), StepError> {
    let Some(root) = child.root.take() else {
        return Ok(());
    };
    fchdir(&root).naming(|| "new root".into())?;
    // The old root is stacked below the new one and taken off from there: no
    // directory for it is needed in the container.
    match pivot_root(".", ".") {
        Ok(()) => umount2(".", MntFlags::MNT_DETACH).naming(|| "guest's root".into())?,
        Err(Errno::EINVAL) => initramfs::leave(&root)?,
        Err(errno) => return Err(StepError::new("pivot_root", errno)),
    }
    chdir("/").naming(|| "new root".into())?;
    match child.root_plan().map_or(0, |plan| plan.propagation) {
        0 => Ok(()),
        flags => mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::from_bits_truncate(flags),
            None::<&str>,
        )
        .naming(|| "propagation of the container's root".into()),
    }
}
