// SPDX-License-Identifier: Apache-2.0
//! Hiding and protecting kernel interfaces inside a container, and the sysctls
//! that must be written before.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, major, minor, openat2};

use super::mounts::new_file_system;
use super::root::{attach_tree, clone_tree};
use super::{Child, Naming, StepError, within};
use crate::container::plan::mount::attr;
use crate::launch::clone::{MountAttr, mount_setattr};

/// `PROC_SUPER_MAGIC`, statfs(2).
const PROC_MAGIC: i64 = 0x9fa0;

/// Whether a descriptor is of a file in procfs.
pub(super) fn is_procfs(fd: &OwnedFd) -> io::Result<bool> {
    #[allow(
        clippy::useless_conversion,
        reason = "the type differs between targets"
    )]
    Ok(i64::from(fstatfs(fd)?.f_type) == PROC_MAGIC)
}

/// Sysctls, through a procfs of our own that is mounted nowhere: the one in the
/// container could be covered, or lead elsewhere (CVE-2025-52881). What is
/// written is that of the namespaces of whoever opens the file.
pub fn write_sysctls(child: &mut Child) -> Result<(), StepError> {
    let Some(plan) = child.root_plan().filter(|plan| !plan.sysctls.is_empty()) else {
        return Ok(());
    };
    let proc = new_file_system("proc", "proc", &[])?;
    for (name, value) in &plan.sysctls {
        match open_sysctl(proc.as_fd(), name) {
            Ok(file) => File::from(file)
                .write_all(value.as_bytes())
                .map_err(|error| StepError::request(format!("sysctl {name}"), error))?,
            // Not in this kernel.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(StepError::new(format!("sysctl {name}"), error)),
        }
    }
    Ok(())
}

fn open_sysctl(proc: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat2(proc, format!("sys/{name}"), flags, Mode::empty(), resolve)?;
    if is_procfs(&file)? {
        Ok(file)
    } else {
        Err(rustix::io::Errno::XDEV.into())
    }
}

/// Hides paths: a file behind the guest's null device, a directory behind an
/// empty read-only tmpfs. What is not there needs no hiding.
pub fn mask(child: &mut Child) -> Result<(), StepError> {
    let (Some(plan), Some(root)) = (child.root_plan(), &child.root) else {
        return Ok(());
    };
    if plan.masked.is_empty() {
        return Ok(());
    }
    let null = null_device().naming(|| "/dev/null of the guest".into())?;
    let mut empty = None;
    for path in &plan.masked {
        let Some(place) = existing(root.as_fd(), path).naming(|| path.clone())? else {
            continue;
        };
        let kind = FileType::from_raw_mode(fstat(&place).naming(|| path.clone())?.st_mode);
        let cover = if kind == FileType::Directory {
            empty_directory(&mut empty)?
        } else {
            clone_tree(&null, false).naming(|| "/dev/null of the guest".into())?
        };
        attach_tree(&cover, &place).naming(|| path.clone())?;
        if kind == FileType::Directory && empty.is_none() {
            empty = Some(cover);
        }
    }
    Ok(())
}

/// The node itself, by descriptor: a container that could swap it for a
/// symlink has no hand in the guest's `/dev` (CVE-2025-31133).
fn null_device() -> io::Result<OwnedFd> {
    let null = within::in_guest("/dev/null")?;
    let stat = fstat(&null)?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3);
    if is_null {
        Ok(null)
    } else {
        Err(rustix::io::Errno::NODEV.into())
    }
}

/// The first is a new tmpfs, the others are copies of it once it is attached.
fn empty_directory(first: &mut Option<OwnedFd>) -> Result<OwnedFd, StepError> {
    if let Some(first) = first {
        return clone_tree(first, false).naming(|| "empty tmpfs".into());
    }
    let parameters = [
        ("mode".to_owned(), Some("755".to_owned())),
        ("nr_inodes".to_owned(), Some("1".to_owned())),
    ];
    let tmpfs = new_file_system("tmpfs", "tmpfs", &parameters)?;
    let set = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
    mount_setattr(
        tmpfs.as_fd(),
        &MountAttr {
            set,
            ..MountAttr::default()
        },
        false,
    )
    .naming(|| "empty tmpfs".into())?;
    Ok(tmpfs)
}

/// Makes paths read-only, with everything mounted below; other attributes stay.
pub fn protect(child: &mut Child) -> Result<(), StepError> {
    let (Some(plan), Some(root)) = (child.root_plan(), &child.root) else {
        return Ok(());
    };
    let readonly = MountAttr {
        set: attr::RDONLY,
        ..MountAttr::default()
    };
    for path in &plan.readonly_paths {
        let Some(place) = existing(root.as_fd(), path).naming(|| path.clone())? else {
            continue;
        };
        let tree = clone_tree(&place, true).naming(|| path.clone())?;
        mount_setattr(tree.as_fd(), &readonly, true).naming(|| path.clone())?;
        attach_tree(&tree, &place).naming(|| path.clone())?;
    }
    Ok(())
}

/// `None` for what is not there, also because a parent is no directory.
fn existing(root: BorrowedFd<'_>, path: &str) -> io::Result<Option<OwnedFd>> {
    match within::find(root, path) {
        Ok(fd) => Ok(Some(fd)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sysctl_is_a_file_of_procfs_below_sys() {
        let proc = within::in_guest("/proc").unwrap();
        assert!(open_sysctl(proc.as_fd(), "kernel/shm_rmid_forced").is_ok());
        for name in ["../self/comm", "kernel/../../self/comm"] {
            assert!(open_sysctl(proc.as_fd(), name).is_err(), "{name}");
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sys")).unwrap();
        std::fs::write(dir.path().join("sys/x"), "").unwrap();
        let fake = within::in_guest(dir.path().to_str().unwrap()).unwrap();
        let error = open_sysctl(fake.as_fd(), "x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EXDEV));
    }

    #[test]
    fn the_null_device_is_told_from_what_looks_like_it() {
        assert!(null_device().is_ok());
    }
}
