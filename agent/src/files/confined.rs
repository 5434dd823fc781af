// SPDX-License-Identifier: Apache-2.0
//! Directories below a root that nothing leads out of. Owns the resolution of
//! paths and the removal of trees, both by descriptors.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{UnlinkatFlags, fchown, unlinkat};

use super::plan::Owner;

/// Each level of a tree that is removed holds one descriptor open.
const DEEPEST: usize = 256;

/// The kernel gives a resolution up when something is renamed meanwhile; a
/// container that never stops renaming must not keep the agent busy for ever.
const ATTEMPTS: usize = 100;

const O_DIR: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

/// A directory that acts as the root of every path below it.
pub(super) struct Confined(OwnedFd);

impl Confined {
    /// Opens the directory, making it (mode 0755) when it is missing.
    pub(super) fn open(path: &Path) -> nix::Result<Self> {
        let open = || nix::fcntl::open(path, O_DIR, Mode::empty());
        let root = match open() {
            Err(Errno::ENOENT) => {
                let made = std::fs::create_dir_all(path);
                made.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(nix::libc::EIO)))?;
                open()?
            }
            other => other?,
        };
        Ok(Self(root))
    }

    /// Opens a directory; links on the way are followed as if the root were
    /// that of the whole system.
    fn open_dir(&self, path: &Path) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(O_DIR)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        for _ in 0..ATTEMPTS {
            match openat2(&self.0, path, how) {
                Err(Errno::EAGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Opens a directory, making what is missing of it. Only directories made
    /// here get the mode and the owner.
    pub(super) fn make_dirs(&self, path: &Path, mode: u32, owner: Owner) -> nix::Result<OwnedFd> {
        if path.as_os_str().is_empty() {
            return self.0.try_clone().map_err(|_| Errno::EMFILE);
        }
        match self.open_dir(path) {
            Err(Errno::ENOENT) => {}
            other => return other,
        }
        let mut dir = self.0.try_clone().map_err(|_| Errno::EMFILE)?;
        let mut prefix = std::path::PathBuf::new();
        for component in path.components() {
            let Component::Normal(name) = component else {
                continue;
            };
            prefix.push(name);
            dir = match self.open_dir(&prefix) {
                Err(Errno::ENOENT) => {
                    // A dangling link is there and leads nowhere: EEXIST.
                    mkdirat(&dir, name, Mode::from_bits_truncate(0o700))?;
                    let made = open_plain_dir(&dir, name)?;
                    fchown(&made, owner.uid, owner.gid)?;
                    fchmod(&made, Mode::from_bits_truncate(mode))?;
                    made
                }
                other => other?,
            };
        }
        Ok(dir)
    }
}

/// Opens a directory right below another; a link is refused.
pub(super) fn open_plain_dir(dir: &impl AsFd, name: &OsStr) -> nix::Result<OwnedFd> {
    openat(dir, name, O_DIR | OFlag::O_NOFOLLOW, Mode::empty())
}

/// Removes a tree; nothing when it is not there. Links are removed, not
/// followed, and what is mounted inside is not entered but an error.
pub(crate) fn remove_all(dir: &OwnedFd, name: &OsStr) -> nix::Result<()> {
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?;
    match unlinkat(dir, &*name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(Errno::ENOENT) => return Ok(()),
        other => return other,
    }
    let mut levels = vec![enter(dir, &name)?];
    let mut names = vec![name];
    while let Some((level, below)) = levels.last_mut() {
        if let Some(child) = below.pop() {
            let entered = enter(level, &child)?;
            if levels.len() >= DEEPEST {
                return Err(Errno::ELOOP);
            }
            names.push(child);
            levels.push(entered);
            continue;
        }
        levels.pop();
        let parent = levels.last().map_or(dir, |(level, _)| level);
        let Some(name) = names.pop() else { break };
        match unlinkat(parent, &*name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Opens a directory, removes what is in it but its directories, and lists those.
fn enter(parent: &OwnedFd, name: &CString) -> nix::Result<(OwnedFd, Vec<CString>)> {
    let how = OpenHow::new()
        .flags(O_DIR | OFlag::O_NOFOLLOW)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV);
    let dir = openat2(parent, &**name, how)?;
    let mut below = Vec::new();
    let listing = openat(&dir, c".", O_DIR, Mode::empty())?;
    for entry in Dir::from_fd(listing)?.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if entry.file_type() == Some(Type::Directory) {
            below.push(name.to_owned());
            continue;
        }
        match unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            // File systems that do not tell the kind in the listing.
            Err(Errno::EISDIR | Errno::EPERM) => below.push(name.to_owned()),
            Err(e) => return Err(e),
        }
    }
    Ok((dir, below))
}
