// SPDX-License-Identifier: Apache-2.0
//! Unpacks layers, which are tar archives from anywhere, onto a directory.
//!
//! Nothing an archive says can reach outside the directory: every parent is opened with `openat2` and `RESOLVE_IN_ROOT`, so that links
//! and `..` on the way end at the directory's own root, and everything is done through that descriptor with the last component alone.
//! As root, owners, devices and attributes are restored; otherwise files belong to the user and stay readable to it, and an empty file
//! without any rights holds a device's place. Either way the [`Ledger`] learns what the archive says.
//!
//! Whiteouts follow the OCI image specification, section "Whiteouts": they remove what lower layers put there, whatever their place
//! in the archive. So they are applied in a first pass over the layer, and files are written in a second.

mod confined;
mod header;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags, chmodat, chownat, fchmod, fsetxattr,
    linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, EntryType};

use super::ledger::{Device, Ledger, Record};
use confined::{Place, Root, empty, remove};
use header::{mtime, path_of, times};

/// The prefix of a whiteout's name.
const WHITEOUT: &[u8] = b".wh.";
/// The name of the whiteout that empties its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Why an archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive is broken.
    #[error("Cannot read the archive")]
    Archive(#[source] io::Error),
    /// An entry's path has `..` in it, or names nothing.
    #[error("The archive has an entry that leads elsewhere: {path:?}")]
    Escape {
        /// The path.
        path: PathBuf,
    },
    /// An entry is of a kind that no layer has.
    #[error("The archive has an entry of an unknown kind: {path:?}")]
    UnknownKind {
        /// The entry's path.
        path: PathBuf,
    },
    /// An entry could not be written.
    #[error("Cannot {action} {path:?}")]
    Entry {
        /// What was tried.
        action: &'static str,
        /// The entry's path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn at<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> UnpackError {
    let path = path.to_owned();
    move |source| UnpackError::Entry {
        action,
        path,
        source: source.into(),
    }
}

/// First pass: removes from `root`, and from its ledger, what the layer's whiteouts name.
pub fn whiteouts(layer: impl Read, root: &Path, ledger: &mut Ledger) -> Result<(), UnpackError> {
    let root = Root::open(root)?;
    let mut archive = Archive::new(layer);
    for entry in archive.entries().map_err(UnpackError::Archive)? {
        let entry = entry.map_err(UnpackError::Archive)?;
        let path = path_of(&entry.path_bytes());
        let Some(place) = Place::of(&path)? else {
            continue;
        };
        let name = place.name.as_bytes();
        if !name.starts_with(WHITEOUT) {
            continue;
        }
        // What is not there need not be removed.
        let Ok(parent) = root.parent(&place, false) else {
            continue;
        };
        let hidden = OsStr::from_bytes(&name[WHITEOUT.len()..]);
        if name == OPAQUE {
            empty(&parent, &path)?;
            ledger.empty(&root.inside(&parent, None)?);
        } else if !matches!(hidden.as_bytes(), b"" | b"." | b"..") {
            remove(&parent, hidden, &path)?;
            ledger.remove(&root.inside(&parent, Some(hidden))?);
        }
    }
    Ok(())
}

/// Second pass: writes the layer's entries into `root`, over what is there, and what the layer says of them into its ledger. Whiteouts
/// are passed over.
pub fn layer(layer: impl Read, root: &Path, ledger: &mut Ledger) -> Result<(), UnpackError> {
    layer_as(layer, root, ledger, guest_kernel::host::is_root())
}

/// As [`layer`], with root's rights or as if without them.
fn layer_as(
    layer: impl Read,
    root: &Path,
    ledger: &mut Ledger,
    privileged: bool,
) -> Result<(), UnpackError> {
    let mut unpacker = Unpacker {
        root: Root::open(root)?,
        ledger,
        privileged,
        directories: Vec::new(),
    };
    let mut archive = Archive::new(layer);
    for entry in archive.entries().map_err(UnpackError::Archive)? {
        unpacker.entry(&mut entry.map_err(UnpackError::Archive)?)?;
    }
    unpacker.finish()
}

/// A directory whose mode and time are set when nothing more is written into it.
struct Directory {
    path: PathBuf,
    mode: u32,
    mtime: u64,
}

struct Unpacker<'a> {
    root: Root,
    ledger: &'a mut Ledger,
    privileged: bool,
    directories: Vec<Directory>,
}

/// Where an entry goes, and what the archive says of it.
struct Item<'a> {
    /// Its path in the archive, for messages.
    path: &'a Path,
    /// The directory that it goes into.
    parent: OwnedFd,
    name: OsString,
    /// Its path in the ledger.
    inside: Vec<u8>,
    record: Record,
    mtime: u64,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), UnpackError> {
        let kind = entry.header().entry_type();
        // Headers that describe other entries; the tar crate has used those that matter.
        if matches!(
            kind,
            EntryType::XGlobalHeader
                | EntryType::XHeader
                | EntryType::GNULongName
                | EntryType::GNULongLink
        ) {
            return Ok(());
        }
        let path = &path_of(&entry.path_bytes());
        let record = header::record(entry, path)?;
        let mtime = mtime(entry.header());
        let Some(place) = Place::of(path)? else {
            self.directory_later(path, record.mode, mtime);
            return Ok(());
        };
        if place.name.as_bytes().starts_with(WHITEOUT) {
            return Ok(());
        }
        let parent = self.root.parent(&place, true)?;
        let item = Item {
            inside: self.root.inside(&parent, Some(&place.name))?,
            name: place.name,
            path,
            parent,
            record,
            mtime,
        };
        if kind == EntryType::Directory {
            return self.directory(item);
        }
        remove(&item.parent, &item.name, path)?;
        self.ledger.remove(&item.inside);
        match kind {
            EntryType::Link => return self.link(&item, &link_of(entry, path)?),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(&item, entry)?
            }
            EntryType::Symlink => {
                symlinkat(link_of(entry, path)?, &item.parent, &item.name)
                    .map_err(at("create", path))?;
                self.owner(&item)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => self.node(&item)?,
            _ => {
                return Err(UnpackError::UnknownKind {
                    path: path.to_owned(),
                });
            }
        }
        let times = times(mtime);
        utimensat(&item.parent, &item.name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(at("set the time of", path))?;
        self.ledger.set(&item.inside, item.record);
        Ok(())
    }

    /// The mode an entry gets. Without root's rights, what the user could not read, list or remove any more would be lost to it.
    fn mode(&self, mode: u32, owner: u32) -> u32 {
        if self.privileged { mode } else { mode | owner }
    }

    fn directory(&mut self, item: Item<'_>) -> Result<(), UnpackError> {
        let path = item.path;
        let is_directory = statat(&item.parent, &item.name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if !is_directory {
            remove(&item.parent, &item.name, path)?;
            mkdirat(&item.parent, &item.name, Mode::from_raw_mode(0o755))
                .map_err(at("create", path))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir =
            openat(&item.parent, &item.name, flags, Mode::empty()).map_err(at("open", path))?;
        self.owner(&item)?;
        self.attributes(&dir, &item)?;
        self.directory_later(path, item.record.mode, item.mtime);
        self.ledger.set(&item.inside, item.record);
        Ok(())
    }

    fn directory_later(&mut self, path: &Path, mode: u32, mtime: u64) {
        self.directories.push(Directory {
            path: path
                .components()
                .filter(|part| matches!(part, Component::Normal(_)))
                .collect(),
            mode: self.mode(mode, 0o700),
            mtime,
        });
    }

    fn file<R: Read>(
        &self,
        item: &Item<'_>,
        entry: &mut tar::Entry<'_, R>,
    ) -> Result<(), UnpackError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&item.parent, &item.name, flags, Mode::from_raw_mode(0o600))
            .map_err(at("create", item.path))?;
        let mut file = File::from(fd);
        io::copy(entry, &mut file).map_err(at("write", item.path))?;
        self.owner(item)?;
        // After the owner, since a change of owner clears the set-id bits and capabilities.
        let mode = Mode::from_raw_mode(self.mode(item.record.mode, 0o600));
        fchmod(&file, mode).map_err(at("set the mode of", item.path))?;
        self.attributes(&file, item)
    }

    /// Makes a second name for a file. What is said of the first holds for both, whatever the archive says of the second.
    fn link(&mut self, item: &Item<'_>, target: &Path) -> Result<(), UnpackError> {
        let from = Place::of(target)?.ok_or_else(|| UnpackError::Escape {
            path: target.to_owned(),
        })?;
        let dir = self.root.parent(&from, false)?;
        linkat(&dir, &from.name, &item.parent, &item.name, AtFlags::empty())
            .map_err(at("link", item.path))?;
        let first = self.root.inside(&dir, Some(&from.name))?;
        if let Some(record) = self.ledger.get(&first).cloned() {
            self.ledger.set(&item.inside, record);
        }
        Ok(())
    }

    /// Makes a device or a pipe. Devices need root's rights; without them a file without content and rights takes the place, so that
    /// later entries meet something there all the same.
    fn node(&self, item: &Item<'_>) -> Result<(), UnpackError> {
        let (kind, major, minor) = match item.record.device {
            Some(Device::Char(major, minor)) => (FileType::CharacterDevice, major, minor),
            Some(Device::Block(major, minor)) => (FileType::BlockDevice, major, minor),
            None => (FileType::Fifo, 0, 0),
        };
        let (kind, mode) = match kind {
            FileType::Fifo => (kind, self.mode(item.record.mode, 0o600)),
            _ if self.privileged => (kind, item.record.mode),
            _ => (FileType::RegularFile, 0),
        };
        let (mode, device) = (Mode::from_raw_mode(mode), makedev(major, minor));
        mknodat(&item.parent, &item.name, kind, mode, device).map_err(at("create", item.path))?;
        self.owner(item)?;
        // The process's umask took part in the mode, and a change of owner in the set-id bits.
        chmodat(&item.parent, &item.name, mode, AtFlags::empty())
            .map_err(at("set the mode of", item.path))
    }

    fn owner(&self, item: &Item<'_>) -> Result<(), UnpackError> {
        if !self.privileged {
            return Ok(());
        }
        chownat(
            &item.parent,
            &item.name,
            Some(Uid::from_raw(item.record.uid)),
            Some(Gid::from_raw(item.record.gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(at("set the owner of", item.path))
    }

    /// Restores extended attributes (file capabilities above all).
    fn attributes(&self, file: impl AsFd, item: &Item<'_>) -> Result<(), UnpackError> {
        if !self.privileged {
            return Ok(());
        }
        for (name, value) in &item.record.xattrs {
            match fsetxattr(&file, name, value, XattrFlags::empty()) {
                // A file system without them, or one that knows no such kind, loses nothing that a container would miss at once.
                Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
                Err(error) => return Err(at("set an attribute of", item.path)(error)),
            }
        }
        Ok(())
    }

    /// Sets the modes and times of directories, the deepest first: a parent may forbid to reach its children.
    fn finish(mut self) -> Result<(), UnpackError> {
        self.directories.sort_by(|a, b| b.path.cmp(&a.path));
        for directory in &self.directories {
            // A later entry may have replaced it by something else.
            let Ok(dir) = self.root.directory(&directory.path) else {
                continue;
            };
            fchmod(&dir, Mode::from_raw_mode(directory.mode))
                .map_err(at("set the mode of", &directory.path))?;
            rustix::fs::futimens(&dir, &times(directory.mtime))
                .map_err(at("set the time of", &directory.path))?;
        }
        Ok(())
    }
}

/// What a link leads to.
fn link_of<R: Read>(entry: &tar::Entry<'_, R>, path: &Path) -> Result<PathBuf, UnpackError> {
    let target = entry.link_name_bytes().map(|bytes| path_of(&bytes));
    target.ok_or_else(|| UnpackError::Escape {
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests;
