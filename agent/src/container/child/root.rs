// SPDX-License-Identifier: Apache-2.0
//! The container's root: attached as a mount of its own, filled by the other
//! steps, made the root of the new mount namespace at the end.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, fchdir, pivot_root};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::{Child, Naming, StepError, floor, initramfs, within};
use crate::container::plan::mount::attr;
use crate::launch::clone::{MountAttr, mount_setattr};

/// Takes a private copy of the root's mount tree and attaches it over its own
/// place, in this mount namespace only.
pub fn attach(child: &mut Child) -> Result<(), StepError> {
    let Some(plan) = child.root_plan() else {
        return Ok(());
    };
    let path = plan.path.clone();
    let floor = floor::copy().naming(|| "floor".into())?;
    // Hooks start from here.
    chdir("/").naming(|| "guest's root".into())?;
    let outer = outer_propagation(plan.propagation);
    propagate("/", outer | MsFlags::MS_REC)?;
    let place = within::in_guest(&path)
        .map_err(|error| StepError::request(format!("root '{path}'"), error))?;
    let private = MountAttr {
        propagation: MsFlags::MS_PRIVATE.bits(),
        ..MountAttr::default()
    };
    if outer == MsFlags::MS_SHARED {
        // The root itself must not show up in the guest, nor be refused by
        // pivot_root(2): neither where it lies nor what it replaces is shared.
        propagate("/", MsFlags::MS_PRIVATE)?;
        mount_setattr(place.as_fd(), &private, false).naming(|| format!("root '{path}'"))?;
    }
    let tree = clone_tree(&place, true).naming(|| format!("root '{path}'"))?;
    mount_setattr(tree.as_fd(), &private, true)
        .naming(|| format!("propagation of root '{path}'"))?;
    attach_tree(&tree, &place).naming(|| format!("root '{path}'"))?;
    child.root = Some(tree);
    child.floor = floor;
    Ok(())
}

/// How this mount namespace hangs together with the guest's. Unless the
/// container asks for more, nothing mounted here shows up there, while what the
/// guest unmounts goes away here too. `unbindable` would keep the root itself
/// from being copied; it is for later.
fn outer_propagation(root: u64) -> MsFlags {
    let root = MsFlags::from_bits_truncate(root);
    [MsFlags::MS_SHARED, MsFlags::MS_PRIVATE]
        .into_iter()
        .find(|flag| root.contains(*flag))
        .unwrap_or(MsFlags::MS_SLAVE)
}

fn propagate(path: &str, flags: MsFlags) -> Result<(), StepError> {
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
        .naming(|| format!("propagation of '{path}'"))
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
    // The last chance to make it; entering it says whether that worked, and
    // whether it is where it seems to be.
    let _ = within::directory(root.as_fd(), &child.plan.process.cwd);
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
    let guest = within::in_guest("/").naming(|| "guest's root".into())?;
    let slave = MountAttr {
        propagation: MsFlags::MS_SLAVE.bits(),
        ..MountAttr::default()
    };
    // The old root is stacked below the new one and taken off from there: no
    // directory for it is needed in the container.
    match pivot_root(".", ".") {
        Ok(()) => {
            // What is shared with the guest would be unmounted there as well.
            mount_setattr(guest.as_fd(), &slave, true).naming(|| "guest's root".into())?;
            umount2(".", MntFlags::MNT_DETACH).naming(|| "guest's root".into())?;
        }
        Err(Errno::EINVAL) => initramfs::leave(&root, child.floor.take())?,
        Err(errno) => return Err(StepError::new("pivot_root", errno)),
    }
    chdir("/").naming(|| "new root".into())?;
    match child.root_plan().map_or(0, |plan| plan.propagation) {
        0 => Ok(()),
        flags => propagate("/", MsFlags::from_bits_truncate(flags)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_not_told_of_mounts_unless_asked() {
        let outer = |flags: MsFlags| outer_propagation(flags.bits());
        let rec = MsFlags::MS_REC;
        assert_eq!(outer(MsFlags::empty()), MsFlags::MS_SLAVE);
        assert_eq!(outer(MsFlags::MS_SLAVE | rec), MsFlags::MS_SLAVE);
        assert_eq!(outer(MsFlags::MS_UNBINDABLE), MsFlags::MS_SLAVE);
        assert_eq!(outer(MsFlags::MS_PRIVATE | rec), MsFlags::MS_PRIVATE);
        assert_eq!(outer(MsFlags::MS_SHARED | rec), MsFlags::MS_SHARED);
    }
}
