// SPDX-License-Identifier: Apache-2.0
//! What lies below a container's root where that cannot replace the guest's.
//!
//! On an initramfs the container's root is mounted over the guest's. A
//! container with `CAP_SYS_ADMIN` could take it off again and would see the
//! guest's files. So an empty directory is put in between that cannot be taken
//! off: the kernel locks mounts together which are copied into a mount
//! namespace of another user namespace, and they stay locked when the copy is
//! brought back. The lower of the two is covered by the upper one and cannot be
//! named, the upper one cannot be unmounted.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::mount::{MntFlags, umount2};
use nix::unistd::{chdir, fchdir, getppid};
use rustix::fs::fstatfs;

use super::mounts::new_file_system;
use super::program::leave;
use super::root::{attach_tree, clone_tree};
use super::within;
use crate::container::plan::Namespace;
use crate::container::plan::mount::attr;
use crate::launch::clone::{MountAttr, Side, clone3, mount_setattr};
use crate::launch::message::{receive_with_fds, send_with_fds};

/// Where the guest keeps it. The directory in use is the launcher's working
/// directory and, by that, a new child's.
const PLACE: &str = "/run/keelson-floor";

/// `TMPFS_MAGIC` and `RAMFS_MAGIC`, statfs(2): what an initramfs is unpacked to.
const INITRAMFS: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// Set in the launcher; a child has it from there.
static LAID: AtomicBool = AtomicBool::new(false);

/// Lays the floor, in the launcher of a guest that runs from its initramfs.
/// Elsewhere a container's root replaces the guest's, and nothing is below it
/// but the initramfs emptied at boot.
///
/// # Errors
/// What the kernel answered, such as that it has no user namespaces; the guest
/// goes on without a floor then.
pub fn lay() -> io::Result<()> {
    if getppid().as_raw() != 1 || !on_initramfs()? {
        return Ok(());
    }
    let laid = make();
    if laid.is_err() {
        chdir("/")?;
    }
    LAID.store(laid.is_ok(), Ordering::Relaxed);
    laid
}

fn on_initramfs() -> io::Result<bool> {
    let root = within::in_guest("/")?;
    #[allow(
        clippy::useless_conversion,
        reason = "the type differs between targets"
    )]
    Ok(INITRAMFS.contains(&i64::from(fstatfs(&root)?.f_type)))
}

/// A copy of the floor, detached, if there is one. Must be called before the
/// child changes its working directory, in its own mount namespace.
pub fn copy() -> io::Result<Option<OwnedFd>> {
    if !LAID.load(Ordering::Relaxed) {
        return Ok(None);
    }
    Ok(Some(clone_tree(&within::in_guest(".")?, true)?))
}

fn make() -> io::Result<()> {
    match std::fs::create_dir(PLACE) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let (lower, upper) = (empty()?, empty()?);
    attach_tree(&lower, &within::in_guest(PLACE)?)?;
    fchdir(&lower)?;
    attach_tree(&upper, &lower)?;
    let locked = locked_copy();
    for _ in 0..2 {
        umount2(PLACE, MntFlags::MNT_DETACH)?;
    }
    let locked = locked?;
    attach_tree(&locked, &within::in_guest(PLACE)?)?;
    Ok(fchdir(&locked)?)
}

fn empty() -> io::Result<OwnedFd> {
    let parameters = [("nr_inodes", "1"), ("mode", "755")]
        .map(|(key, value)| (key.to_owned(), Some(value.to_owned())));
    let tmpfs = new_file_system("tmpfs", "tmpfs", &parameters).map_err(io::Error::other)?;
    let closed = MountAttr {
        set: attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC,
        ..MountAttr::default()
    };
    mount_setattr(tmpfs.as_fd(), &closed, false)?;
    Ok(tmpfs)
}

/// Has the tree at the working directory copied by a process in namespaces of
/// its own, where the kernel locks it.
#[allow(unsafe_code)]
fn locked_copy() -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    let namespaces = Namespace::User.flag() | Namespace::Mount.flag();
    // SAFETY: the launcher has one thread.
    match unsafe { clone3(namespaces, None) }? {
        Side::Parent(_) => {}
        Side::Child => {
            let sent = within::in_guest(".").and_then(|place| {
                let tree = clone_tree(&place, true)?;
                send_with_fds(theirs.as_raw_fd(), &[0], &[tree.as_fd()])
            });
            leave(i32::from(sent.is_err()))
        }
    }
    drop(theirs);
    let (_, fds) = receive_with_fds(ours.as_raw_fd(), &mut [0])?;
    fds.into_iter()
        .next()
        .ok_or_else(|| io::ErrorKind::BrokenPipe.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says to this very test that it is in namespaces of its own by now.
    const INSIDE: &str = "KEELSON_TEST_FLOOR";

    fn try_to_take_it_off() {
        let run = new_file_system("tmpfs", "tmpfs", &[]).unwrap();
        attach_tree(&run, &within::in_guest("/run").unwrap()).unwrap();
        make().unwrap();
        LAID.store(true, Ordering::Relaxed);
        let copy = copy().unwrap().unwrap();
        let dir = "/run/below";
        std::fs::create_dir(dir).unwrap();
        attach_tree(&copy, &within::in_guest(dir).unwrap()).unwrap();

        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
        assert!(std::fs::write("/run/below/x", "").is_err());
        let refused = umount2(dir, MntFlags::MNT_DETACH).unwrap_err();
        assert_eq!(refused, nix::errno::Errno::EINVAL);
        let writable = MountAttr {
            clear: attr::RDONLY,
            ..MountAttr::default()
        };
        let upper = within::in_guest(dir).unwrap();
        assert!(mount_setattr(upper.as_fd(), &writable, false).is_err());
        // What is on top of it can come off.
        let root = new_file_system("tmpfs", "tmpfs", &[]).unwrap();
        attach_tree(&root, &upper).unwrap();
        umount2(dir, MntFlags::MNT_DETACH).unwrap();
        assert!(umount2(dir, MntFlags::MNT_DETACH).is_err());
    }

    /// Told in a process with namespaces of its own.
    #[test]
    fn the_floor_cannot_be_taken_off() {
        if std::env::var_os(INSIDE).is_some() {
            return try_to_take_it_off();
        }
        let output = std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "--test-threads=1"])
            .arg("container::child::floor::tests::the_floor_cannot_be_taken_off")
            .env(INSIDE, "1")
            .output()
            .expect("unshare(1), of util-linux");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("1 passed"), "{text}");
    }
}
