// SPDX-License-Identifier: Apache-2.0
//! The container's mounts: each is made detached, gets its attributes, and is
//! attached at a descriptor inside the root. No path is resolved twice.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::mount::MsFlags;
use rustix::fs::{FileType, fstat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use super::root::{attach_tree, clone_tree};
use super::{Child, Naming, StepError, within};
use crate::cgroup::{Cgroups, Version};
use crate::container::plan::mount::attr;
use crate::container::plan::{MountPlan, MountSource};
use crate::launch::clone::{MountAttr, mount_setattr};

/// All mounts of the plan, in order.
pub fn mount_all(child: &mut Child) -> Result<(), StepError> {
    let (Some(plan), Some(root)) = (child.root_plan(), &child.root) else {
        return Ok(());
    };
    for mount in &plan.mounts {
        mount_one(root.as_fd(), mount).map_err(|mut error| {
            error.object = format!("'{}' at '{}'", error.object, mount.destination);
            error
        })?;
    }
    Ok(())
}

fn mount_one(root: BorrowedFd<'_>, plan: &MountPlan) -> Result<(), StepError> {
    match &plan.source {
        MountSource::Bind { path, recursive } => bind(root, plan, path, *recursive),
        MountSource::FileSystem {
            fstype,
            source,
            parameters,
        } => {
            let tree = new_file_system(fstype, source, parameters)?;
            attach_at(root, plan, &tree, &plan.destination)
        }
        MountSource::Cgroup => match Cgroups::detect().version() {
            Version::V2 => {
                let tree = new_file_system("cgroup2", "cgroup2", &[])?;
                attach_at(root, plan, &tree, &plan.destination)
            }
            Version::V1 => cgroup_v1(root, plan),
            Version::None => Ok(()),
        },
    }
}

fn bind(
    root: BorrowedFd<'_>,
    plan: &MountPlan,
    source: &str,
    recursive: bool,
) -> Result<(), StepError> {
    let place = within::in_guest(source).map_err(|error| StepError::request(source, error))?;
    let is_directory = is_directory(&place).naming(|| source.into())?;
    let tree = clone_tree(&place, recursive).naming(|| source.into())?;
    let target = if is_directory {
        within::directory(root, &plan.destination)
    } else {
        within::file(root, &plan.destination)
    };
    let target = target.naming(|| source.into())?;
    set_attributes(plan, &tree).naming(|| source.into())?;
    attach_tree(&tree, &target).naming(|| source.into())
}

fn is_directory(fd: &OwnedFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Directory)
}

/// A detached mount of a new file system instance.
pub(super) fn new_file_system(
    fstype: &str,
    source: &str,
    parameters: &[(String, Option<String>)],
) -> Result<OwnedFd, StepError> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| StepError::request(fstype, errno))?;
    fsconfig_set_string(context.as_fd(), "source", source)
        .naming(|| format!("{fstype} source {source}"))?;
    for (key, value) in parameters {
        let set = match value {
            Some(value) => fsconfig_set_string(context.as_fd(), key.as_str(), value.as_str()),
            None => fsconfig_set_flag(context.as_fd(), key.as_str()),
        };
        set.map_err(|errno| StepError::request(format!("{fstype} option '{key}'"), errno))?;
    }
    fsconfig_create(context.as_fd()).map_err(|errno| StepError::request(fstype, errno))?;
    fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .naming(|| fstype.into())
}

fn attach_at(
    root: BorrowedFd<'_>,
    plan: &MountPlan,
    tree: &OwnedFd,
    destination: &str,
) -> Result<(), StepError> {
    let target = within::directory(root, destination).naming(|| "directory".into())?;
    set_attributes(plan, tree).naming(|| "attributes".into())?;
    attach_tree(tree, &target).naming(|| "attach".into())
}

fn set_attributes(plan: &MountPlan, tree: &OwnedFd) -> io::Result<()> {
    // /dev becomes read-only only after its nodes have been made.
    let postponed = if plan.destination == "/dev" {
        attr::RDONLY
    } else {
        0
    };
    let own = MountAttr {
        set: plan.set & !postponed,
        clear: plan.clear,
        ..MountAttr::default()
    };
    if own.set | own.clear != 0 {
        mount_setattr(tree.as_fd(), &own, false)?;
    }
    let all = MountAttr {
        set: plan.set_recursive,
        clear: plan.clear_recursive,
        ..MountAttr::default()
    };
    if all.set | all.clear != 0 {
        mount_setattr(tree.as_fd(), &all, true)?;
    }
    for flags in &plan.propagation {
        let recursive = MsFlags::MS_REC.bits();
        let change = MountAttr {
            propagation: flags & !recursive,
            ..MountAttr::default()
        };
        mount_setattr(tree.as_fd(), &change, flags & recursive != 0)?;
    }
    Ok(())
}

/// On v1 the container sees, per controller, its own directory only: a tmpfs
/// with one bind each.
fn cgroup_v1(root: BorrowedFd<'_>, plan: &MountPlan) -> Result<(), StepError> {
    let mode = [("mode".to_owned(), Some("755".to_owned()))];
    let tmpfs = new_file_system("tmpfs", "tmpfs", &mode)?;
    let target = within::directory(root, &plan.destination).naming(|| "directory".into())?;
    attach_tree(&tmpfs, &target).naming(|| "attach".into())?;
    for (controller, own) in own_cgroups().naming(|| "/proc/self/cgroup".into())? {
        let source = format!("/sys/fs/cgroup/{controller}{own}");
        let Ok(place) = within::in_guest(&source) else {
            continue;
        };
        let inner = within::directory(root, &format!("{}/{controller}", plan.destination))
            .naming(|| format!("directory {controller}"))?;
        let tree = clone_tree(&place, false).naming(|| source.clone())?;
        set_attributes(plan, &tree).naming(|| source.clone())?;
        attach_tree(&tree, &inner).naming(|| source.clone())?;
    }
    set_attributes(plan, &tmpfs).naming(|| "attributes".into())
}

/// Controller (as its mount is called) and path of this process, by `/proc/self/cgroup`.
fn own_cgroups() -> io::Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string("/proc/self/cgroup")?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let name = controllers.strip_prefix("name=").unwrap_or(controllers);
            (!name.is_empty()).then(|| (name.to_owned(), path.to_owned()))
        })
        .collect())
}
