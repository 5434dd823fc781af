// SPDX-License-Identifier: Apache-2.0
//! A tree as a directory of the host, for roots that are shared by virtio-fs.
//!
//! As root, owners, devices and attributes are as in the tree. For anybody else some cannot be: those are left out and listed, and
//! what was written stays readable to the user. Nothing is followed: every parent is opened beneath the new directory without links,
//! and every entry must be new.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
    chmodat, chownat, fchmod, fchown, fsetxattr, futimens, lsetxattr, makedev, mkdirat, mknodat,
    openat, openat2, symlinkat, utimensat,
};
use rustix::io::Errno;
use serde::{Serialize, Serializer};

use crate::tree::{Content, Entry, Kind, Tree, TreeError};

/// What everybody may do with the directory itself: the root of a tree is root's.
const ROOT_MODE: u32 = 0o755;
/// What is taken from a file whose owner is not the one that it should act for.
const SET_ID: u32 = 0o6000;

/// Why a directory could not be written.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// There is something in it already.
    #[error("{path} is not empty", path = path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// A content cannot be had.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A file of the host cannot be copied.
    #[error("Cannot copy {source_path} to {path}", source_path = source_path.display(), path = path.display())]
    Copy {
        /// The file.
        source_path: PathBuf,
        /// Where to.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file operation failed.
    #[error("Cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn at<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> DirectoryError {
    let path = path.to_owned();
    move |source| DirectoryError::Io {
        action,
        path,
        source: source.into(),
    }
}

/// Something of an entry that this user cannot make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unset {
    /// The entry, relative to the directory; `.` for the directory itself.
    pub path: PathBuf,
    /// What it lacks.
    #[serde(flatten)]
    pub what: What,
}

/// What an entry lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "lacks", rename_all = "kebab-case")]
pub enum What {
    /// It belongs to whoever wrote it, not to this user and group.
    Owner {
        /// The owner in the tree.
        uid: u32,
        /// The group in the tree.
        gid: u32,
    },
    /// It is not there: it would be a device.
    Device,
    /// It has another mode than this.
    Mode {
        /// The mode in the tree.
        mode: u32,
    },
    /// It lacks an extended attribute.
    Attribute {
        /// The attribute's name.
        #[serde(serialize_with = "lossy")]
        name: Vec<u8>,
    },
}

fn lossy<S: Serializer>(name: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(name))
}

impl fmt::Display for Unset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.what {
            What::Owner { uid, gid } => write!(f, "{path} does not belong to {uid}:{gid}"),
            What::Device => write!(f, "{path} is missing: it is a device"),
            What::Mode { mode } => write!(f, "{path} does not have the mode {mode:04o}"),
            What::Attribute { name } => {
                let name = String::from_utf8_lossy(name);
                write!(f, "{path} lacks the attribute {name}")
            }
        }
    }
}

/// Writes the tree into a directory that is empty or not there yet, everything changed at `mtime`, in seconds since the epoch. Returns
/// what could not be made as it is in the tree.
pub fn write(tree: &Tree, mtime: u32, dir: &Path) -> Result<Vec<Unset>, DirectoryError> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => result.map_err(at("create", dir))?,
    }
    let mut items = fs::read_dir(dir).map_err(at("read", dir))?;
    if items.next().is_some() {
        return Err(DirectoryError::NotEmpty {
            path: dir.to_owned(),
        });
    }
    let root = File::open(dir).map_err(at("open", dir))?;
    let time = Timespec {
        tv_sec: mtime.into(),
        tv_nsec: 0,
    };
    let mut writer = Writer {
        dir,
        root: root.into(),
        times: Timestamps {
            last_access: time,
            last_modification: time,
        },
        unset: Vec::new(),
    };
    for (path, entry) in tree.entries() {
        writer.make(path, entry)?;
    }
    // Directories get their modes and times when nothing is put into them any more, the deepest first.
    let entries: Vec<_> = tree.entries().collect();
    for (path, entry) in entries.into_iter().rev() {
        if entry.kind == Kind::Directory {
            writer.finish(path, entry)?;
        }
    }
    writer.finish(Path::new(""), &Entry::directory(ROOT_MODE))?;
    writer.unset.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(writer.unset)
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (
        Some(Uid::from_raw(entry.uid)),
        Some(Gid::from_raw(entry.gid)),
    )
}

struct Writer<'a> {
    dir: &'a Path,
    root: OwnedFd,
    times: Timestamps,
    unset: Vec<Unset>,
}

impl Writer<'_> {
    /// Opens a directory that was made here.
    fn open(&self, path: &Path) -> Result<OwnedFd, DirectoryError> {
        let inside = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let confined = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        openat2(&self.root, inside, flags, Mode::empty(), confined)
            .map_err(at("open", &self.dir.join(path)))
    }

    fn lacks(&mut self, path: &Path, what: What) {
        let path = match path.as_os_str().is_empty() {
            true => PathBuf::from("."),
            false => path.to_owned(),
        };
        self.unset.push(Unset { path, what });
    }

    fn make(&mut self, path: &Path, entry: &Entry) -> Result<(), DirectoryError> {
        let parent = self.open(path.parent().unwrap_or(Path::new("")))?;
        let name = path.file_name().unwrap_or_default();
        let shown = self.dir.join(path);
        match &entry.kind {
            // Its own until everything is in it.
            Kind::Directory => {
                return mkdirat(&parent, name, Mode::RWXU).map_err(at("create", &shown));
            }
            Kind::File(content) => return self.file(&parent, name, path, entry, content),
            Kind::Symlink(target) => {
                symlinkat(target, &parent, name).map_err(at("create", &shown))?;
                let (uid, gid) = owner(entry);
                let set = chownat(&parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
                self.owned(set, path, entry)?;
            }
            Kind::CharDevice(..) | Kind::BlockDevice(..) | Kind::Fifo => {
                if !self.node(&parent, name, path, entry)? {
                    return Ok(());
                }
            }
        }
        self.node_attributes(&parent, name, path, entry)?;
        utimensat(&parent, name, &self.times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(at("set the time of", &shown))
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        entry: &Entry,
        content: &Content,
    ) -> Result<(), DirectoryError> {
        let shown = self.dir.join(path);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(parent, name, flags, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(fd.map_err(at("create", &shown))?);
        let mut reader = content.open()?;
        io::copy(&mut reader, &mut file).map_err(|source| match content {
            Content::Bytes(_) => at("write", &shown)(source),
            Content::File(source_path) => DirectoryError::Copy {
                source_path: source_path.clone(),
                path: shown.clone(),
                source,
            },
        })?;
        self.settle(&file.into(), path, entry, 0o400)
    }

    /// Makes a device or pipe; whether it could be made.
    fn node(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        entry: &Entry,
    ) -> Result<bool, DirectoryError> {
        let shown = self.dir.join(path);
        let (kind, device) = match entry.kind {
            Kind::CharDevice(major, minor) => (FileType::CharacterDevice, makedev(major, minor)),
            Kind::BlockDevice(major, minor) => (FileType::BlockDevice, makedev(major, minor)),
            _ => (FileType::Fifo, 0),
        };
        match mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, device) {
            Err(Errno::PERM) if kind != FileType::Fifo => {
                self.lacks(path, What::Device);
                return Ok(false);
            }
            made => made.map_err(at("create", &shown))?,
        }
        let (uid, gid) = owner(entry);
        let set = chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        self.owned(set, path, entry)?;
        // The file was made just now and is no link, so that this follows none.
        let mode = Mode::from_raw_mode(entry.mode);
        chmodat(parent, name, mode, AtFlags::empty()).map_err(at("set the mode of", &shown))?;
        Ok(true)
    }

    fn finish(&mut self, path: &Path, entry: &Entry) -> Result<(), DirectoryError> {
        let fd = self.open(path)?;
        self.settle(&fd, path, entry, 0o700)
    }

    /// Gives a file or directory its owner, mode, attributes and time. `least` is what the user keeps of it.
    fn settle(
        &mut self,
        fd: &OwnedFd,
        path: &Path,
        entry: &Entry,
        least: u32,
    ) -> Result<(), DirectoryError> {
        let shown = self.dir.join(path);
        let (uid, gid) = owner(entry);
        let owned = self.owned(fchown(fd, uid, gid), path, entry)?;
        for (name, value) in &entry.xattrs {
            let set = fsetxattr(fd, &name[..], value, XattrFlags::empty());
            self.attribute(set, name, path)?;
        }
        let mut mode = entry.mode;
        if !owned {
            // It would act for the user now instead of its owner, and the user would be locked out.
            mode = mode & !SET_ID | least;
        }
        // Last, since a change of owner clears the set-id bits, and attributes need the right to write.
        fchmod(fd, Mode::from_raw_mode(mode)).map_err(at("set the mode of", &shown))?;
        if mode != entry.mode {
            self.lacks(path, What::Mode { mode: entry.mode });
        }
        futimens(fd, &self.times).map_err(at("set the time of", &shown))
    }

    /// Whether an owner was set.
    fn owned(
        &mut self,
        set: Result<(), Errno>,
        path: &Path,
        entry: &Entry,
    ) -> Result<bool, DirectoryError> {
        match set {
            Ok(()) => Ok(true),
            // Not root, or root of a user namespace that has no such user.
            Err(Errno::PERM | Errno::INVAL) => {
                let (uid, gid) = (entry.uid, entry.gid);
                self.lacks(path, What::Owner { uid, gid });
                Ok(false)
            }
            Err(error) => Err(at("set the owner of", &self.dir.join(path))(error)),
        }
    }

    /// Attributes of what cannot be opened without doing something.
    fn node_attributes(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        entry: &Entry,
    ) -> Result<(), DirectoryError> {
        let host = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string());
        let host = host.join(name);
        for (attribute, value) in &entry.xattrs {
            let set = lsetxattr(&host, &attribute[..], value, XattrFlags::empty());
            self.attribute(set, attribute, path)?;
        }
        Ok(())
    }

    fn attribute(
        &mut self,
        set: Result<(), Errno>,
        name: &[u8],
        path: &Path,
    ) -> Result<(), DirectoryError> {
        match set {
            Ok(()) => Ok(()),
            // Not for this user, or not on this file system or kind of file.
            Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {
                let name = name.to_vec();
                self.lacks(path, What::Attribute { name });
                Ok(())
            }
            Err(error) => Err(at("set an attribute of", &self.dir.join(path))(error)),
        }
    }
}

#[cfg(test)]
mod tests;
