// SPDX-License-Identifier: Apache-2.0
//! CopyFile (protocol 3.5): files, directories and links that a host without a
//! shared file system sends into the guest. Owns the confinement to the shared
//! directory and the making of complete files; never looks at containers.
//!
//! Containers may write to parts of the shared directory while copies arrive.
//! So every path is resolved by the kernel inside the root (openat2(2)), every
//! change is made through the descriptor of the directory it is in, nothing
//! that exists is ever opened for writing, and a file appears complete or not
//! at all.

mod confined;
mod plan;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::sys::uio::pwrite;
use nix::unistd::{UnlinkatFlags, fchown, symlinkat, unlinkat};

pub(crate) use confined::remove_all;
use confined::{Confined, open_plain_dir};
pub use plan::CopyPlan;
use plan::{Item, Owner, Piece};

/// Where hosts may copy to.
pub const SHARED_ROOT: &str = "/run/kata-containers/shared/containers";

/// Copies that may be under way at once; hosts send one after the other.
const MOST_PENDING: usize = 64;

/// What can go wrong with a copy.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A path that copies may not go to.
    #[error("Path {path:?} is refused: {reason}")]
    Path {
        /// As it was sent.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A field that cannot be used.
    #[error("Copy of {path}: {field} {value} is refused: {reason}")]
    Field {
        /// As it was sent.
        path: String,
        /// Its name on the wire.
        field: &'static str,
        /// As it was sent.
        value: i64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A piece that does not go on where the last one ended.
    #[error("Copy of {path}: a piece at {offset} does not follow {expected} bytes")]
    OutOfOrder {
        /// Below the shared directory.
        path: PathBuf,
        /// Of the piece.
        offset: u64,
        /// What has arrived so far; none when no copy is under way.
        expected: u64,
    },
    /// A step failed.
    #[error("Copy of {path}: failed to {step}")]
    Step {
        /// Below the shared directory.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// The kernel's reason.
        source: Errno,
    },
}

impl FileError {
    /// Whether the request is to blame rather than the guest.
    pub fn is_bad_input(&self) -> bool {
        !matches!(self, Self::Step { .. })
    }
}

/// The directory that copies are confined to, with the files under way.
#[derive(Debug)]
pub struct CopyRoot {
    root: PathBuf,
    /// Never held across a system call. A file that is being written to is
    /// taken out meanwhile.
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    files: HashMap<PathBuf, Partial>,
    /// Numbers the copies, so that temporary names never repeat.
    started: u64,
}

/// A file of which pieces are still to come.
#[derive(Debug)]
struct Partial {
    /// The directory it is in and will stay in.
    dir: OwnedFd,
    /// Its name until it is complete.
    hidden: OsString,
    file: OwnedFd,
    written: u64,
    number: u64,
}

impl Partial {
    fn discard(self) {
        // Nothing to be done when it is gone already.
        let _ = unlinkat(
            &self.dir,
            self.hidden.as_os_str(),
            UnlinkatFlags::NoRemoveDir,
        );
    }
}

impl CopyRoot {
    /// Copies below `root`, which is made when first needed.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            pending: Mutex::default(),
        }
    }

    /// The directory that copies are confined to.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Does one step of a copy. Blocks.
    ///
    /// # Errors
    /// [`FileError::OutOfOrder`], [`FileError::Step`]. A copy whose step failed
    /// has to start anew.
    pub fn copy(&self, plan: CopyPlan) -> Result<(), FileError> {
        let CopyPlan {
            path,
            item,
            owner,
            dir_mode,
        } = plan;
        let partial = self.take_partial(&path);
        let item = match item {
            Item::Piece(piece) if piece.offset > 0 => {
                return self.go_on(path, partial, &piece, owner);
            }
            item => item,
        };
        // A new copy to a place ends the one that was under way.
        if let Some(partial) = partial {
            partial.discard();
        }
        let failed = |step| failed(&path, step);
        let root = Confined::open(&self.root).map_err(failed("open its root"))?;
        let parent = path.parent().unwrap_or(Path::new(""));
        let dir = root.make_dirs(parent, dir_mode, owner);
        let dir = dir.map_err(failed("make its directory"))?;
        let name = path.file_name().unwrap_or_default();
        match item {
            Item::Directory { mode } => {
                make_directory(&dir, name, mode, owner).map_err(failed("make the directory"))
            }
            Item::Link { target } => self
                .make_link(&dir, name, &target, owner)
                .map_err(failed("make the link")),
            Item::Piece(piece) => {
                let partial = self.start(dir).map_err(failed("create a file for it"))?;
                self.go_on(path, Some(partial), &piece, owner)
            }
        }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        let pending = self.pending.lock();
        pending.unwrap_or_else(PoisonError::into_inner)
    }

    fn take_partial(&self, path: &Path) -> Option<Partial> {
        self.pending().files.remove(path)
    }

    fn next_number(&self) -> u64 {
        let mut pending = self.pending();
        pending.started += 1;
        pending.started
    }

    /// Creates the hidden file that becomes the copy.
    fn start(&self, dir: OwnedFd) -> nix::Result<Partial> {
        let flags =
            OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let (hidden, number, file) = self
            .with_hidden_name(|name| openat(&dir, name, flags, Mode::from_bits_truncate(0o600)))?;
        Ok(Partial {
            dir,
            hidden,
            file,
            written: 0,
            number,
        })
    }

    /// Calls `create` with names until one is free. Whoever shares the
    /// directory can only waste numbers.
    fn with_hidden_name<T>(
        &self,
        create: impl Fn(&OsStr) -> nix::Result<T>,
    ) -> nix::Result<(OsString, u64, T)> {
        loop {
            let number = self.next_number();
            let name = OsString::from(format!(".keelson-copy-{number:x}"));
            match create(&name) {
                Err(Errno::EEXIST) => {}
                Err(e) => return Err(e),
                Ok(made) => return Ok((name, number, made)),
            }
        }
    }

    fn go_on(
        &self,
        path: PathBuf,
        partial: Option<Partial>,
        piece: &Piece,
        owner: Owner,
    ) -> Result<(), FileError> {
        let Some(mut partial) = partial else {
            return Err(FileError::OutOfOrder {
                path,
                offset: piece.offset,
                expected: 0,
            });
        };
        // A piece that is sent again may overlap, but never leave a hole.
        if piece.offset > partial.written {
            let expected = partial.written;
            self.keep(path.clone(), partial);
            return Err(FileError::OutOfOrder {
                path,
                offset: piece.offset,
                expected,
            });
        }
        if let Err(source) = write_all(&partial.file, &piece.data, piece.offset) {
            partial.discard();
            return Err(failed(&path, "write")(source));
        }
        let end = piece.offset + piece.data.len() as u64;
        partial.written = partial.written.max(end);
        if partial.written < piece.size {
            self.keep(path, partial);
            return Ok(());
        }
        let name = path.file_name().unwrap_or_default();
        match finish(&partial, name, piece.mode, owner) {
            Ok(()) => Ok(()),
            Err(source) => {
                partial.discard();
                Err(failed(&path, "put it in place")(source))
            }
        }
    }

    /// Remembers a file for its next piece; the oldest goes when there are too many.
    fn keep(&self, path: PathBuf, partial: Partial) {
        let mut pending = self.pending();
        let replaced = pending.files.insert(path, partial);
        let oldest = (pending.files.len() > MOST_PENDING)
            .then(|| pending.files.iter().min_by_key(|(_, p)| p.number))
            .flatten()
            .map(|(path, _)| path.clone());
        let dropped = oldest.and_then(|path| pending.files.remove(&path));
        drop(pending);
        for partial in [replaced, dropped].into_iter().flatten() {
            partial.discard();
        }
    }

    /// Makes a link under a hidden name and moves it over whatever is there, so
    /// that the place is never empty in between (Kubernetes' `..data`).
    fn make_link(
        &self,
        dir: &OwnedFd,
        name: &OsStr,
        target: &[u8],
        owner: Owner,
    ) -> nix::Result<()> {
        let (hidden, ..) = self.with_hidden_name(|hidden| symlinkat(target, dir, hidden))?;
        let flags = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
        let result = nix::unistd::fchownat(dir, &*hidden, owner.uid, owner.gid, flags)
            .and_then(|()| move_over(dir, &hidden, name));
        if result.is_err() {
            let _ = unlinkat(dir, &*hidden, UnlinkatFlags::NoRemoveDir);
        }
        result
    }
}

/// Owner first: changing it may take mode bits away.
fn finish(partial: &Partial, name: &OsStr, mode: u32, owner: Owner) -> nix::Result<()> {
    fchown(&partial.file, owner.uid, owner.gid)?;
    fchmod(&partial.file, Mode::from_bits_truncate(mode))?;
    move_over(&partial.dir, &partial.hidden, name)
}

/// Renames within a directory over whatever has the new name; a directory
/// there, which rename(2) refuses to replace, goes with all that is in it.
fn move_over(dir: &OwnedFd, from: &OsStr, to: &OsStr) -> nix::Result<()> {
    match renameat(dir, from, dir, to) {
        Err(Errno::EISDIR | Errno::ENOTEMPTY | Errno::EEXIST) => {
            remove_all(dir, to)?;
            renameat(dir, from, dir, to)
        }
        other => other,
    }
}

/// An existing directory keeps its content; anything else gives way.
fn make_directory(dir: &OwnedFd, name: &OsStr, mode: u32, owner: Owner) -> nix::Result<()> {
    let mut made = open_plain_dir(dir, name);
    if matches!(made, Err(Errno::ENOTDIR | Errno::ELOOP)) {
        unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?;
        made = Err(Errno::ENOENT);
    }
    if matches!(made, Err(Errno::ENOENT)) {
        match mkdirat(dir, name, Mode::from_bits_truncate(0o700)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(e),
        }
        made = open_plain_dir(dir, name);
    }
    let made = made?;
    fchown(&made, owner.uid, owner.gid)?;
    fchmod(&made, Mode::from_bits_truncate(mode))
}

fn write_all(file: &OwnedFd, mut data: &[u8], offset: u64) -> nix::Result<()> {
    let mut at = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
    while !data.is_empty() {
        match pwrite(file, data, at) {
            Ok(0) => return Err(Errno::EIO),
            Ok(n) => {
                data = &data[n..];
                at += i64::try_from(n).map_err(|_| Errno::EFBIG)?;
            }
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn failed(path: &Path, step: &'static str) -> impl FnOnce(Errno) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Step { path, step, source }
}

#[cfg(test)]
mod tests;
