// SPDX-License-Identifier: Apache-2.0
//! Reaches places below a directory, and none outside of it, whatever the paths say and whatever links lie on the way.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat2, statat};
use rustix::io::Errno;

use super::{UnpackError, at};

/// Where an entry goes: the directories above it, and its name in the last of them.
pub struct Place {
    /// The directories above it, without `..`.
    pub parent: PathBuf,
    /// Its name there.
    pub name: OsString,
}

impl Place {
    /// Splits an entry's path; none for the root itself. Leading slashes mean nothing; `..` is refused.
    pub fn of(path: &Path) -> Result<Option<Place>, UnpackError> {
        let mut parts = Vec::new();
        for component in path.components() {
            match component {
                Component::Normal(part) if !part.as_bytes().contains(&0) => parts.push(part),
                Component::RootDir | Component::CurDir => {}
                _ => {
                    return Err(UnpackError::Escape {
                        path: path.to_owned(),
                    });
                }
            }
        }
        Ok(parts.pop().map(|name| Place {
            parent: parts.iter().collect(),
            name: name.to_owned(),
        }))
    }
}

/// The directory that is unpacked into.
pub struct Root {
    dir: OwnedFd,
    /// Where it is on the host, without links.
    host: PathBuf,
}

impl Root {
    /// Opens it by its path on the host.
    pub fn open(path: &Path) -> Result<Root, UnpackError> {
        let dir = OwnedFd::from(File::open(path).map_err(at("open", path))?);
        let host = fs::read_link(by_descriptor(&dir)).map_err(at("resolve", path))?;
        Ok(Root { dir, host })
    }

    /// The path inside, without links, of `name` in a directory, or of the directory itself.
    pub fn inside(&self, dir: &OwnedFd, name: Option<&OsStr>) -> Result<Vec<u8>, UnpackError> {
        let host = fs::read_link(by_descriptor(dir)).map_err(at("resolve", &self.host))?;
        let path = host
            .strip_prefix(&self.host)
            .map_err(|_| UnpackError::Escape { path: host.clone() })?;
        let path = name.map_or_else(|| path.to_owned(), |name| path.join(name));
        Ok(path.into_os_string().into_encoded_bytes())
    }

    /// Opens a directory by its path inside, links resolved inside too.
    pub fn directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(
            &self.dir,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    }

    /// Opens the directory above an entry; with `create`, makes the directories that no entry of the archive has made.
    pub fn parent(&self, place: &Place, create: bool) -> Result<OwnedFd, UnpackError> {
        match self.directory(&place.parent) {
            Err(Errno::NOENT) if create => {}
            result => return result.map_err(at("open", &place.parent)),
        }
        let mut above = PathBuf::new();
        for part in &place.parent {
            let dir = self.directory(&above).map_err(at("open", &above))?;
            above.push(part);
            match mkdirat(&dir, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(at("create", &above)(error)),
            }
        }
        self.directory(&place.parent)
            .map_err(at("open", &place.parent))
    }
}

/// Removes `name` from a directory, with all that is in it. Links are removed, never followed.
pub fn remove(dir: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), UnpackError> {
    let kind = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(at("look at", path)(error)),
    };
    // The standard library removes trees without following links; it needs a path, which the descriptor gives.
    let host = by_descriptor(dir).join(name);
    let removed = if kind == FileType::Directory {
        fs::remove_dir_all(&host)
    } else {
        fs::remove_file(&host)
    };
    removed.map_err(at("remove", path))
}

/// Removes everything in a directory.
pub fn empty(dir: &OwnedFd, path: &Path) -> Result<(), UnpackError> {
    for item in fs::read_dir(by_descriptor(dir)).map_err(at("read", path))? {
        let item = item.map_err(at("read", path))?;
        remove(dir, &item.file_name(), path)?;
    }
    Ok(())
}

/// A path that leads to an open directory.
fn by_descriptor(dir: &OwnedFd) -> PathBuf {
    Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string())
}
