// SPDX-License-Identifier: Apache-2.0
//! The container's mounts: each is made detached, gets its attributes, and is
//! attached at a descriptor inside the root. No path is resolved twice.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::mount::MsFlags;
use rustix::fs::{FileType, fstat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, fsconfig_create, fsconfig_reconfigure,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick,
};

use super::masks::is_procfs;
use super::root::{attach_tree, clone_tree};
use super::{Child, Naming, StepError, cgroup_v1, within};
use crate::cgroup::{Cgroups, Version};
use crate::container::plan::mount::attr;
use crate::container::plan::{MountPlan, MountSource, RootPlan};
use crate::launch::clone::{MountAttr, mount_setattr};

/// All mounts of the plan, in order.
pub fn mount_all(child: &mut Child) -> Result<(), StepError> {
    let mut proc = child.proc.take();
    let (Some(plan), Some(root)) = (child.root_plan(), &child.root) else {
        return Ok(());
    };
    for mount in &plan.mounts {
        mount_one(root.as_fd(), mount, &mut proc).map_err(|mut error| {
            error.object = format!("'{}' at '{}'", error.object, mount.destination);
            error
        })?;
    }
    Ok(())
}

/// A procfs for a process that will not be allowed to mount one: with the
/// options of the first that is wanted. Whoever needs none goes without.
pub(super) fn proc_ahead(plan: &RootPlan) -> Option<OwnedFd> {
    let parameters = plan.mounts.iter().find_map(|mount| match &mount.source {
        MountSource::FileSystem {
            fstype, parameters, ..
        } if fstype == "proc" => Some(parameters),
        _ => None,
    })?;
    // What is wrong with the options is said when they are used again.
    new_file_system("proc", "proc", parameters).ok()
}

fn mount_one(
    root: BorrowedFd<'_>,
    plan: &MountPlan,
    proc: &mut Option<OwnedFd>,
) -> Result<(), StepError> {
    match &plan.source {
        MountSource::Bind { path, recursive } => bind(root, plan, path, *recursive),
        MountSource::FileSystem {
            fstype,
            source,
            parameters,
        } => match new_file_system(fstype, source, parameters) {
            Ok(tree) => attach_at(root, plan, &tree, kernel_interface(fstype)),
            // A user namespace may mount sysfs for a network namespace of its
            // own only: with the guest's network it gets to see the guest's.
            Err(error) if fstype == "sysfs" && error.is(Errno::EPERM) => guest_sysfs(root, plan),
            // Nor procfs, if its pid namespace belongs to the guest's.
            Err(error) if fstype == "proc" && error.is(Errno::EPERM) => match proc.take() {
                Some(tree) => attach_at(root, plan, &tree, true),
                None => Err(error),
            },
            Err(error) => Err(error),
        },
        MountSource::Cgroup => match Cgroups::detect().version() {
            Version::V2 => {
                let tree = new_file_system("cgroup2", "cgroup2", &[])?;
                attach_at(root, plan, &tree, false)
            }
            Version::V1 => cgroup_v1::mount(root, plan),
            Version::None => Ok(()),
        },
        MountSource::Remount { parameters } => remount(root, plan, parameters),
    }
}

/// File systems whose place must be what it seems: a symlink in an image would
/// leave `/proc` without masks (CVE-2019-19921, CVE-2023-27561).
fn kernel_interface(fstype: &str) -> bool {
    matches!(fstype, "proc" | "sysfs")
}

fn guest_sysfs(root: BorrowedFd<'_>, plan: &MountPlan) -> Result<(), StepError> {
    let guest = within::in_guest("/sys").naming(|| "/sys".into())?;
    let tree = clone_tree(&guest, true).naming(|| "/sys".into())?;
    let readonly = MountAttr {
        set: attr::RDONLY,
        ..MountAttr::default()
    };
    mount_setattr(tree.as_fd(), &readonly, true).naming(|| "/sys".into())?;
    attach_at(root, plan, &tree, true)
}

/// Changes what is mounted at the destination, and only if something is.
fn remount(
    root: BorrowedFd<'_>,
    plan: &MountPlan,
    parameters: &[(String, Option<String>)],
) -> Result<(), StepError> {
    let place = within::find(root, &plan.destination)
        .map_err(|error| StepError::request("remount", error))?;
    // Fails with EINVAL unless a mount begins there.
    set_attributes(plan, &place).map_err(|error| StepError::request("remount", error))?;
    if parameters.is_empty() {
        return Ok(());
    }
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
    let context = fspick(place.as_fd(), "", flags).naming(|| "remount".into())?;
    configure(&context, "remount", parameters)?;
    fsconfig_reconfigure(context.as_fd()).map_err(|errno| StepError::request("remount", errno))
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
    spare_proc(root, plan, &target)?;
    set_attributes(plan, &tree).naming(|| source.into())?;
    attach_tree(&tree, &target).naming(|| source.into())
}

/// Refuses a place in the container's procfs that the plan could not see, for a
/// symlink of the image leads there: masks and read-only paths would not find
/// what they are for.
fn spare_proc(root: BorrowedFd<'_>, plan: &MountPlan, target: &OwnedFd) -> Result<(), StepError> {
    let planned = plan.destination == "/proc" || plan.destination.starts_with("/proc/");
    let naming = || plan.destination.clone();
    if planned || !is_procfs(target).naming(naming)? {
        return Ok(());
    }
    // Another one, such as the guest's for a monitor, is like any directory.
    let Ok(own) = within::find(root, "/proc") else {
        return Ok(());
    };
    let (own, place) = (fstat(&own).naming(naming)?, fstat(target).naming(naming)?);
    if own.st_dev == place.st_dev {
        return Err(StepError::request("symlink into /proc", Errno::EXDEV));
    }
    Ok(())
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
    configure(&context, fstype, parameters)?;
    fsconfig_create(context.as_fd()).map_err(|errno| StepError::request(fstype, errno))?;
    fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .naming(|| fstype.into())
}

fn configure(
    context: &OwnedFd,
    what: &str,
    parameters: &[(String, Option<String>)],
) -> Result<(), StepError> {
    for (key, value) in parameters {
        let context = context.as_fd();
        let set = match value.as_deref() {
            // The kernel takes 255 bytes at once; of layers it takes one at a time.
            Some(layers) if key == "lowerdir" && layers.len() > MAX_VALUE => split_layers(layers)
                .try_for_each(|layer| fsconfig_set_string(context, "lowerdir+", layer.as_str())),
            Some(value) => fsconfig_set_string(context, key.as_str(), value),
            None => fsconfig_set_flag(context, key.as_str()),
        };
        set.map_err(|errno| StepError::request(format!("{what} option '{key}'"), errno))?;
    }
    Ok(())
}

/// Longest string of `fsconfig(2)`.
const MAX_VALUE: usize = 255;

/// The layers of an overlay's `lowerdir`: a colon separates unless a backslash
/// is in front of it, which `lowerdir+` does not want.
fn split_layers(list: &str) -> impl Iterator<Item = String> {
    let (mut layers, mut escaped) = (vec![String::new()], false);
    for c in list.chars() {
        match (c, escaped) {
            ('\\', false) => escaped = true,
            (':', false) => layers.push(String::new()),
            _ => {
                if let Some(layer) = layers.last_mut() {
                    layer.push(c);
                }
                escaped = false;
            }
        }
    }
    layers.into_iter()
}

fn attach_at(
    root: BorrowedFd<'_>,
    plan: &MountPlan,
    tree: &OwnedFd,
    no_symlinks: bool,
) -> Result<(), StepError> {
    let target = if no_symlinks {
        within::plain_directory(root, &plan.destination)
    } else {
        within::directory(root, &plan.destination)
    };
    let target = target.map_err(|error| StepError::request("directory", error))?;
    if !no_symlinks {
        spare_proc(root, plan, &target)?;
    }
    set_attributes(plan, tree).naming(|| "attributes".into())?;
    attach_tree(tree, &target).naming(|| "attach".into())
}

pub(super) fn set_attributes(plan: &MountPlan, tree: &OwnedFd) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_split_at_colons_that_separate() {
        let split = |list| split_layers(list).collect::<Vec<_>>();
        assert_eq!(split("/a:/b"), ["/a", "/b"]);
        assert_eq!(split(r"/a\:b:/c\\d"), ["/a:b", r"/c\d"]);
        assert_eq!(split("/a"), ["/a"]);
    }

    /// An image with `/data -> /proc/sys`, and a volume at `/data`.
    #[test]
    fn nothing_is_mounted_on_procfs_through_a_symlink() {
        let root = within::in_guest("/").unwrap();
        let spare = |destination: &str, target: &str| {
            let plan = MountPlan {
                destination: destination.to_owned(),
                source: MountSource::Cgroup,
                set: 0,
                clear: 0,
                set_recursive: 0,
                clear_recursive: 0,
                propagation: Vec::new(),
            };
            spare_proc(root.as_fd(), &plan, &within::in_guest(target).unwrap())
        };
        for through in ["/data", "/procdata"] {
            let error = spare(through, "/proc/sys").unwrap_err();
            assert!(error.is(Errno::EXDEV) && error.bad_request);
        }
        spare("/data", "/").unwrap();
        // The plan has judged this one.
        spare("/proc/meminfo", "/proc/meminfo").unwrap();
    }
}
