// SPDX-License-Identifier: Apache-2.0
//! Making another file system the root of a running PID 1.
//!
//! The initramfs cannot be unmounted and pivot_root(2) refuses it, so the new
//! root is moved on top of it and its files are removed for their memory. We
//! go on running from a binary that has no name any more; nothing is executed.
//! A root that the kernel has mounted is an ordinary mount and is exchanged.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, chdir, chroot, pivot_root, unlinkat};

use super::RootError;
use crate::mounts::{self, Entry, MountError, Stage, TABLE};

/// Deeper directories of the initramfs stay where they are.
const MAX_DEPTH: u32 = 64;

/// Makes `new_root`, a mount point on the initramfs, the root.
pub(super) fn switch_to(new_root: &Path) -> Result<(), RootError> {
    let failed = |step| move |source| RootError::Switch { step, source };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let old = Dir::open("/", flags, Mode::empty()).map_err(failed("open the initramfs"))?;
    move_early_mounts(new_root);
    chdir(new_root).map_err(failed("enter it"))?;
    mounts::mount(".", Path::new("/"), "", MsFlags::MS_MOVE, "").map_err(failed("move it to /"))?;
    chroot(".").map_err(failed("change the root to it"))?;
    chdir("/").map_err(failed("enter it as /"))?;
    free(old);
    Ok(())
}

/// Makes `new_root`, a mount point on a root that is no initramfs, the root.
pub(super) fn pivot_to(new_root: &Path) -> Result<(), RootError> {
    let failed = |step| move |source| RootError::Switch { step, source };
    move_early_mounts(new_root);
    chdir(new_root).map_err(failed("enter it"))?;
    // The old root is stacked on the new one and taken off from there
    // (pivot_root(2)), with what is still mounted on it.
    pivot_root(".", ".").map_err(failed("exchange the roots"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("unmount the old root"))?;
    chdir("/").map_err(failed("enter it as /"))
}

/// Takes the mounts made so far along. One that finds no place on the new root
/// goes the way its entry of the mount table says, as if mounting had failed.
fn move_early_mounts(new_root: &Path) {
    for entry in TABLE.iter().filter(|entry| entry.stage == Stage::Early) {
        if let Err(error) = move_mount(entry, new_root) {
            // It must not stay on the initramfs, which is about to be emptied.
            let _ = umount2(entry.target, MntFlags::MNT_DETACH);
            entry.failed(new_root, &error);
        }
    }
}

fn move_mount(entry: &Entry, new_root: &Path) -> Result<(), MountError> {
    let target = entry.target_at(new_root);
    let mut moved = mounts::mount(entry.target, &target, "", MsFlags::MS_MOVE, "");
    if moved == Err(Errno::ENOENT) {
        mounts::make_target(&target)?;
        moved = mounts::mount(entry.target, &target, "", MsFlags::MS_MOVE, "");
    }
    moved.map_err(|source| MountError::Mount {
        fstype: entry.fstype.into(),
        target,
        source,
    })
}

/// Removes the files of the old root for their memory. Only of a file system
/// that lives in memory and is not the root any more, and only on that one
/// file system: nothing that is mounted below is touched.
fn free(mut old: Dir) {
    let (Ok(old_stat), Ok(new_stat)) = (fstat(old.as_fd()), nix::sys::stat::stat("/")) else {
        return;
    };
    // The caller has checked that we started on an initramfs; this makes sure
    // that the switch did happen before anything is removed.
    if old_stat.st_dev == new_stat.st_dev {
        log::error!("The initramfs is still the root; its files are kept");
        return;
    }
    remove_below(&mut old, old_stat.st_dev, MAX_DEPTH);
}

/// Removes what is in a directory, as far as it goes.
fn remove_below(directory: &mut Dir, device: libc::dev_t, depth: u32) {
    // Collected first: a directory must not change while it is read.
    let names: Vec<_> = directory
        .iter()
        .filter_map(|entry| entry.ok().map(|entry| entry.file_name().to_owned()))
        .collect();
    let fd = directory.as_fd();
    for name in &names {
        if !matches!(name.as_bytes(), b"." | b"..") {
            remove(fd, name, device, depth);
        }
    }
}

fn remove(parent: BorrowedFd<'_>, name: &CStr, device: libc::dev_t, depth: u32) {
    let Ok(stat) = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) else {
        return;
    };
    if stat.st_dev != device || depth == 0 {
        return;
    }
    let is_directory = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits();
    if is_directory {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        if let Ok(mut directory) = Dir::openat(parent, name, flags, Mode::empty()) {
            remove_below(&mut directory, device, depth - 1);
        }
    }
    let kind = if is_directory {
        UnlinkatFlags::RemoveDir
    } else {
        UnlinkatFlags::NoRemoveDir
    };
    // What cannot be removed costs memory, not correctness.
    let _ = unlinkat(parent, name, kind);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn open(path: &Path) -> Dir {
        Dir::open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn everything_on_the_same_device_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("keep"), "").unwrap();
        fs::create_dir_all(root.path().join("lib/modules/6.1")).unwrap();
        fs::write(root.path().join("lib/modules/6.1/x.ko"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
        let mut dir = open(root.path());
        let device = fstat(dir.as_fd()).unwrap().st_dev;
        remove_below(&mut dir, device, MAX_DEPTH);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        assert!(outside.path().join("keep").exists());
    }

    #[test]
    fn other_devices_are_not_touched() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let mut dir = open(root.path());
        let device = fstat(dir.as_fd()).unwrap().st_dev;
        remove_below(&mut dir, device + 1, MAX_DEPTH);
        assert!(root.path().join("file").exists());
    }

    #[test]
    fn bug_files_are_kept_while_their_file_system_is_the_root() {
        let root = tempfile::Builder::new().tempdir_in("/").unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        free(open(root.path()));
        assert!(file.exists());
    }
}
