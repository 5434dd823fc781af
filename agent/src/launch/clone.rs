// SPDX-License-Identifier: Apache-2.0
//! The system calls that no library wraps: `clone3(2)` with a cgroup,
//! `mount_setattr(2)` and `close_range(2)` with its flag.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::unistd::Pid;

/// `CLONE_INTO_CGROUP`: start the child in the cgroup v2 directory given by
/// descriptor. Linux 5.7, `clone3(2)`; libc's value does not fit its own type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MountAttr {
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` bits to clear.
    pub clear: u64,
    /// One of `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, or 0.
    pub propagation: u64,
    /// For id-mapped mounts; not used.
    pub userns_fd: u64,
}

/// Changes the attributes of the mount that `mount` refers to, with
/// `AT_RECURSIVE` of the whole tree below it.
///
/// # Errors
/// The errno of `mount_setattr(2)`; `ENOSYS` before Linux 5.12.
pub fn mount_setattr(mount: BorrowedFd<'_>, attr: &MountAttr, recursive: bool) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a static NUL-terminated string, `attr` is a live
    // repr(C) struct of exactly the size handed over, and the descriptor is
    // borrowed for the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Marks every descriptor from `first` on to be closed by `execve(2)`.
///
/// # Errors
/// The errno of `close_range(2)`; `ENOSYS` before Linux 5.11.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: only flags of this process's own descriptors change; none is closed here.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Which side of [`clone3`] the caller is on.
pub enum Side {
    /// The calling process; the child's pid as the caller's pid namespace sees it.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Creates a sibling of the calling process (`CLONE_PARENT`: its parent is the
/// caller's parent), in the new namespaces named by `namespaces` (`CLONE_NEW*`)
/// and, if given, in the cgroup v2 directory `cgroup`.
///
/// # Safety
/// The caller must be single-threaded: the child goes on with a copy of the
/// caller's memory, and a lock that another thread held would stay locked.
///
/// # Errors
/// The errno of `clone3(2)`.
pub unsafe fn clone3(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Side> {
    let mut args = libc::clone_args {
        flags: namespaces | libc::CLONE_PARENT as u64,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        // CLONE_PARENT takes the caller's own exit signal and refuses another.
        exit_signal: 0,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: no stack is given and CLONE_VM is not set, so the child runs on
    // its own copy of this stack like after fork(2); the caller vouches for
    // being single-threaded. `args` outlives the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_mut(&mut args),
            size_of::<libc::clone_args>(),
        )
    };
    match rc {
        0 => Ok(Side::Child),
        pid if pid > 0 => Ok(Side::Parent(Pid::from_raw(pid as i32))),
        _ => Err(io::Error::last_os_error()),
    }
}
