// SPDX-License-Identifier: Apache-2.0
//! The directory of a container in the guest, `/run/kata-containers/ID`, with
//! the container's root bound to `rootfs` in it (protocol sections 4.1, 4.3).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, StatxFlags, mkdirat, openat, openat2,
    statx, unlinkat,
};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::plan::ContainerId;

/// Where all bundles are.
pub const BASE: &str = "/run/kata-containers";

/// A bundle that cannot be made or removed.
#[derive(Debug, thiserror::Error)]
#[error("{what} '{path}' failed")]
pub struct BundleError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
    bad_request: bool,
}

impl BundleError {
    /// The request named a root that is not there or leads through a symlink.
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        self.bad_request
    }
}

/// The path of a container's bundle.
#[must_use]
pub fn path_of(id: &ContainerId) -> PathBuf {
    Path::new(BASE).join(id.as_str())
}

/// Makes the bundle and binds `root` to its `rootfs`, unless a storage is
/// mounted right there. Returns the path of the bound root. Blocking.
///
/// # Errors
/// [`BundleError`]; what was made by then is for [`remove`].
pub fn create(bundle: &Path, root: &str) -> Result<PathBuf, BundleError> {
    let rootfs = bundle.join("rootfs");
    let fail = |what, path: &Path| {
        let path = path.to_owned();
        move |source: rustix::io::Errno| BundleError {
            what,
            path,
            source: source.into(),
            bad_request: false,
        }
    };
    std::fs::create_dir_all(&rootfs).map_err(|source| BundleError {
        what: "Creation of bundle",
        path: rootfs.clone(),
        source,
        bad_request: false,
    })?;
    if Path::new(root) == rootfs {
        return Ok(rootfs);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // No symlink anywhere: what lies on a shared file system may not redirect us.
    let source =
        openat2(CWD, root, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).map_err(|errno| {
            BundleError {
                what: "Opening of root",
                path: root.into(),
                source: errno.into(),
                bad_request: true,
            }
        })?;
    let target = openat(CWD, &rootfs, flags | OFlags::NOFOLLOW, Mode::empty())
        .map_err(fail("Opening of", &rootfs))?;
    bind(&source, &target).map_err(fail("Binding of root to", &rootfs))?;
    Ok(rootfs)
}

fn bind(source: &OwnedFd, target: &OwnedFd) -> rustix::io::Result<()> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(source, "", clone)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, "", target, "", flags)
}

/// Writes `config.json` into the bundle, which is made if need be: hooks expect
/// to find it there. Blocking.
///
/// # Errors
/// [`BundleError`].
pub fn write_config(bundle: &Path, config: &str) -> Result<(), BundleError> {
    let path = bundle.join("config.json");
    std::fs::create_dir_all(bundle)
        .and_then(|()| std::fs::write(&path, config))
        .map_err(|source| BundleError {
            what: "Writing of",
            path,
            source,
            bad_request: false,
        })
}

/// Unmounts the root and removes the bundle, but nothing that is mounted in
/// it: a storage's files are not the bundle's, and `false` says that there is
/// one, so that this is to be called again when it has gone. Blocking.
///
/// # Errors
/// [`BundleError`]; a bundle that is gone is none.
pub fn remove(bundle: &Path) -> Result<bool, BundleError> {
    let fail = |what| {
        let path = bundle.to_owned();
        move |source: io::Error| BundleError {
            what,
            path,
            source,
            bad_request: false,
        }
    };
    let rootfs = bundle.join("rootfs");
    // Detached: an exec that is just ending may still be in there.
    while umount2(&rootfs, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
    let Some((parent, name)) = bundle.parent().zip(bundle.file_name()) else {
        return Ok(true);
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = openat(CWD, parent, flags, Mode::empty())
        .map_err(|e| fail("Opening of the parent of")(e.into()))?;
    let mount = mount_id(parent.as_fd(), Path::new("."))
        .map_err(|e| fail("Removal of bundle")(e.into()))?;
    match remove_tree(parent.as_fd(), Path::new(name), mount) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(true),
        Err(rustix::io::Errno::BUSY) => Ok(false),
        Err(errno) => Err(fail("Removal of bundle")(errno.into())),
    }
}

fn mount_id(at: BorrowedFd<'_>, name: &Path) -> rustix::io::Result<u64> {
    Ok(statx(at, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID)?.stx_mnt_id)
}

/// Removes a directory with its content, staying on one mount.
fn remove_tree(at: BorrowedFd<'_>, name: &Path, mount: u64) -> rustix::io::Result<()> {
    if mount_id(at, name)? != mount {
        return Err(rustix::io::Errno::BUSY);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(at, name, flags, Mode::empty())?;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = Path::new(
            std::str::from_utf8(entry.file_name().to_bytes())
                .map_err(|_| rustix::io::Errno::ILSEQ)?,
        );
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        if entry.file_type() == FileType::Directory {
            remove_tree(directory.as_fd(), name, mount)?;
        } else {
            unlinkat(&directory, name, AtFlags::empty())?;
        }
    }
    unlinkat(at, name, AtFlags::REMOVEDIR)
}

/// Makes the base directory of all bundles.
///
/// # Errors
/// The errno of `mkdir(2)`; an existing one is fine.
pub fn create_base() -> io::Result<()> {
    match mkdirat(CWD, BASE, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(rustix::io::Errno::NOENT) => std::fs::create_dir_all(BASE),
        Err(errno) => Err(Errno::from_raw(errno.raw_os_error()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_removed_whole() {
        let base = tempfile::tempdir().unwrap();
        let bundle = base.path().join("c1");
        std::fs::create_dir_all(bundle.join("upper/a/b")).unwrap();
        std::fs::write(bundle.join("upper/a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", bundle.join("upper/link")).unwrap();
        assert!(remove(&bundle).unwrap());
        assert!(!bundle.exists());
        assert!(Path::new("/etc/passwd").exists());
        assert!(remove(&bundle).unwrap());
    }

    #[test]
    fn a_root_behind_a_symlink_is_refused() {
        let base = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", base.path().join("link")).unwrap();
        let root = base.path().join("link/etc");
        let error = create(&base.path().join("c1"), root.to_str().unwrap()).unwrap_err();
        assert!(error.is_bad_input());
    }
}
