// SPDX-License-Identifier: Apache-2.0
//! Unpacks layers, which are tar archives from anywhere, onto a directory.
//!
//! Nothing an archive says can reach outside the directory: every parent is opened with `openat2` and `RESOLVE_IN_ROOT`, so that links
//! and `..` on the way end at the directory's own root, and everything is done through that descriptor with the last component alone.
//! As root, owners, devices and attributes are restored; otherwise files belong to the user and stay readable to it.
//!
//! Whiteouts follow the OCI image specification, section "Whiteouts": they remove what lower layers put there, whatever their place
//! in the archive. So they are applied in a first pass over the layer, and files are written in a second.

mod confined;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
    chmodat, chownat, fchmod, fchown, fsetxattr, linkat, makedev, mkdirat, mknodat, openat, statat,
    symlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, EntryType, Header};

use confined::{Place, Root, empty, remove};

/// The prefix of a whiteout's name.
const WHITEOUT: &[u8] = b".wh.";
/// The name of the whiteout that empties its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// How a PAX header names an extended attribute.
const PAX_ATTRIBUTE: &str = "SCHILY.xattr.";

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

/// First pass: removes from `root` what the layer's whiteouts name.
pub fn whiteouts(layer: impl Read, root: &Path) -> Result<(), UnpackError> {
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
        let hidden = &name[WHITEOUT.len()..];
        if name == OPAQUE {
            empty(&parent, &path)?;
        } else if !matches!(hidden, b"" | b"." | b"..") {
            remove(&parent, OsStr::from_bytes(hidden), &path)?;
        }
    }
    Ok(())
}

/// Second pass: writes the layer's entries into `root`, over what is there. Whiteouts are passed over.
pub fn layer(layer: impl Read, root: &Path) -> Result<(), UnpackError> {
    let mut unpacker = Unpacker {
        root: Root::open(root)?,
        privileged: guest_kernel::host::is_root(),
        directories: Vec::new(),
    };
    let mut archive = Archive::new(layer);
    for entry in archive.entries().map_err(UnpackError::Archive)? {
        let mut entry = entry.map_err(UnpackError::Archive)?;
        let path = path_of(&entry.path_bytes());
        unpacker.entry(&mut entry, &path)?;
    }
    unpacker.finish()
}

fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

/// A directory whose mode and time are set when nothing more is written into it.
struct Directory {
    path: PathBuf,
    mode: u32,
    mtime: u64,
}

struct Unpacker {
    root: Root,
    privileged: bool,
    directories: Vec<Directory>,
}

impl Unpacker {
    fn entry<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        path: &Path,
    ) -> Result<(), UnpackError> {
        let header = entry.header().clone();
        let kind = header.entry_type();
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
        let Some(place) = Place::of(path)? else {
            return self.directory_later(path, &header);
        };
        if place.name.as_bytes().starts_with(WHITEOUT) {
            return Ok(());
        }
        let parent = self.root.parent(&place, true)?;
        if kind == EntryType::Directory {
            return self.directory(&parent, &place, path, &header, entry);
        }
        let link = entry.link_name_bytes().map(|bytes| path_of(&bytes));
        let link = || {
            link.clone().ok_or_else(|| UnpackError::Escape {
                path: path.to_owned(),
            })
        };
        remove(&parent, &place.name, path)?;
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                return self.file(&parent, &place, path, &header, entry);
            }
            EntryType::Link => return self.link(&parent, &place, path, &link()?),
            EntryType::Symlink => {
                symlinkat(link()?, &parent, &place.name).map_err(at("create", path))?
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                if !self.node(&parent, &place, path, &header)? {
                    return Ok(());
                }
            }
            _ => {
                return Err(UnpackError::UnknownKind {
                    path: path.to_owned(),
                });
            }
        }
        self.owner(&parent, &place, path, &header)?;
        let times = times(mtime(&header));
        utimensat(&parent, &place.name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(at("set the time of", path))
    }

    /// The mode an entry gets. Without root's rights, what the user could not read, list or remove any more would be lost to it.
    fn mode(&self, header: &Header, owner: u32) -> u32 {
        let mode = header.mode().unwrap_or(0o644) & 0o7777;
        if self.privileged { mode } else { mode | owner }
    }

    fn directory<R: Read>(
        &mut self,
        parent: &OwnedFd,
        place: &Place,
        path: &Path,
        header: &Header,
        entry: &mut tar::Entry<'_, R>,
    ) -> Result<(), UnpackError> {
        let is_directory = statat(parent, &place.name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if !is_directory {
            remove(parent, &place.name, path)?;
            mkdirat(parent, &place.name, Mode::from_raw_mode(0o755)).map_err(at("create", path))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(parent, &place.name, flags, Mode::empty()).map_err(at("open", path))?;
        self.owner(parent, place, path, header)?;
        self.attributes(&dir, entry, path)?;
        self.directory_later(path, header)
    }

    fn directory_later(&mut self, path: &Path, header: &Header) -> Result<(), UnpackError> {
        self.directories.push(Directory {
            path: path
                .components()
                .filter(|part| matches!(part, Component::Normal(_)))
                .collect(),
            mode: self.mode(header, 0o700),
            mtime: mtime(header),
        });
        Ok(())
    }

    fn file<R: Read>(
        &self,
        parent: &OwnedFd,
        place: &Place,
        path: &Path,
        header: &Header,
        entry: &mut tar::Entry<'_, R>,
    ) -> Result<(), UnpackError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(parent, &place.name, flags, Mode::from_raw_mode(0o600))
            .map_err(at("create", path))?;
        let mut file = File::from(fd);
        io::copy(entry, &mut file).map_err(at("write", path))?;
        if self.privileged {
            let (uid, gid) = owners(header);
            fchown(&file, Some(uid), Some(gid)).map_err(at("set the owner of", path))?;
        }
        // After the owner, since a change of owner clears the set-id bits and capabilities.
        let mode = Mode::from_raw_mode(self.mode(header, 0o600));
        fchmod(&file, mode).map_err(at("set the mode of", path))?;
        self.attributes(&file, entry, path)?;
        utimensat(
            parent,
            &place.name,
            &times(mtime(header)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(at("set the time of", path))
    }

    fn link(
        &self,
        parent: &OwnedFd,
        place: &Place,
        path: &Path,
        target: &Path,
    ) -> Result<(), UnpackError> {
        let from = Place::of(target)?.ok_or_else(|| UnpackError::Escape {
            path: target.to_owned(),
        })?;
        let dir = self.root.parent(&from, false)?;
        linkat(&dir, &from.name, parent, &place.name, AtFlags::empty()).map_err(at("link", path))
    }

    /// Makes a device or a pipe; tells whether it did. Devices need root's rights, and a container gets its own from the runtime.
    fn node(
        &self,
        parent: &OwnedFd,
        place: &Place,
        path: &Path,
        header: &Header,
    ) -> Result<bool, UnpackError> {
        let kind = match header.entry_type() {
            EntryType::Char => FileType::CharacterDevice,
            EntryType::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        if kind != FileType::Fifo && !self.privileged {
            return Ok(false);
        }
        let number = |field: io::Result<Option<u32>>| field.ok().flatten().unwrap_or(0);
        let device = makedev(number(header.device_major()), number(header.device_minor()));
        let mode = Mode::from_raw_mode(self.mode(header, 0o600));
        mknodat(parent, &place.name, kind, mode, device).map_err(at("create", path))?;
        // The process's umask took part in the mode.
        chmodat(parent, &place.name, mode, AtFlags::empty())
            .map_err(at("set the mode of", path))?;
        Ok(true)
    }

    fn owner(
        &self,
        parent: &OwnedFd,
        place: &Place,
        path: &Path,
        header: &Header,
    ) -> Result<(), UnpackError> {
        if !self.privileged {
            return Ok(());
        }
        let (uid, gid) = owners(header);
        chownat(
            parent,
            &place.name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(at("set the owner of", path))
    }

    /// Restores extended attributes (file capabilities above all).
    fn attributes<R: Read>(
        &self,
        file: impl AsFd,
        entry: &mut tar::Entry<'_, R>,
        path: &Path,
    ) -> Result<(), UnpackError> {
        if !self.privileged {
            return Ok(());
        }
        let Some(extensions) = entry.pax_extensions().map_err(UnpackError::Archive)? else {
            return Ok(());
        };
        for extension in extensions {
            let extension = extension.map_err(UnpackError::Archive)?;
            let Some(name) = extension
                .key()
                .ok()
                .and_then(|key| key.strip_prefix(PAX_ATTRIBUTE))
            else {
                continue;
            };
            match fsetxattr(&file, name, extension.value_bytes(), XattrFlags::empty()) {
                // A file system without them, or one that knows no such kind, loses nothing that a container would miss at once.
                Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
                Err(error) => return Err(at("set an attribute of", path)(error)),
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

fn owners(header: &Header) -> (Uid, Gid) {
    // Numbers beyond 32 bits are those of no Linux system; such files are root's.
    let number = |field: io::Result<u64>| {
        field
            .ok()
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| *n != u32::MAX)
            .unwrap_or(0)
    };
    (
        Uid::from_raw(number(header.uid())),
        Gid::from_raw(number(header.gid())),
    )
}

fn mtime(header: &Header) -> u64 {
    header.mtime().unwrap_or(0)
}

fn times(mtime: u64) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    Timestamps {
        last_access: time(0, UTIME_OMIT),
        last_modification: time(i64::try_from(mtime).unwrap_or(0), 0),
    }
}

#[cfg(test)]
mod tests;
