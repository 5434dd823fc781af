// SPDX-License-Identifier: Apache-2.0
//! The normalised, sorted list of entries that every image is written from. Ownership and modes are data here, so no image needs root,
//! fakeroot or loop devices to be made.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use guest_kernel::cache::{CacheError, KeyBuilder, hex};
use sha2::{Digest, Sha256};

/// Why a tree could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A path is empty, or has `..` or a NUL byte in it.
    #[error("{path:?} is no path inside an image")]
    BadPath {
        /// The path.
        path: PathBuf,
    },
    /// Something is to be put below what is no directory.
    #[error("{path} cannot hold anything: it is no directory", path = path.display())]
    NotADirectory {
        /// What is no directory.
        path: PathBuf,
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
    /// A file could not be digested.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TreeError {
    let path = path.to_owned();
    move |source| TreeError::Io {
        action,
        path,
        source,
    }
}

/// Where a file's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// They are here.
    Bytes(Vec<u8>),
    /// They are in a file of the host.
    File(PathBuf),
}

impl Content {
    /// The number of bytes.
    pub fn len(&self) -> Result<u64, TreeError> {
        match self {
            Content::Bytes(bytes) => Ok(bytes.len() as u64),
            Content::File(path) => {
                let metadata = fs::metadata(path).map_err(io_error("look at", path))?;
                Ok(metadata.len())
            }
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> Result<bool, TreeError> {
        Ok(self.len()? == 0)
    }

    /// A reader of the bytes.
    pub fn open(&self) -> Result<Box<dyn Read + '_>, TreeError> {
        Ok(match self {
            Content::Bytes(bytes) => Box::new(&bytes[..]),
            Content::File(path) => Box::new(File::open(path).map_err(io_error("open", path))?),
        })
    }
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File(Content),
    /// A symbolic link to this target, which is never looked at.
    Symlink(PathBuf),
    /// A character device with its major and minor number.
    CharDevice(u32, u32),
    /// A block device with its major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

impl Kind {
    /// The file type as the high bits of `st_mode`, see inode(7).
    pub fn type_bits(&self) -> u32 {
        match self {
            Kind::Fifo => 0o010_000,
            Kind::CharDevice(..) => 0o020_000,
            Kind::Directory => 0o040_000,
            Kind::BlockDevice(..) => 0o060_000,
            Kind::File(_) => 0o100_000,
            Kind::Symlink(_) => 0o120_000,
        }
    }
}

/// One entry of a [`Tree`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Permission bits, with set-id and sticky bits: at most 0o7777.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The owning group.
    pub gid: u32,
    /// What it is.
    pub kind: Kind,
    /// Extended attributes by their full names, such as `security.capability`. An initramfs cannot hold them.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Entry {
    /// An entry of root's.
    pub fn new(kind: Kind, mode: u32) -> Entry {
        Entry {
            mode,
            uid: 0,
            gid: 0,
            kind,
            xattrs: BTreeMap::new(),
        }
    }

    /// A directory of root's.
    pub fn directory(mode: u32) -> Entry {
        Entry::new(Kind::Directory, mode)
    }

    /// A file of root's with the content of a file on the host.
    pub fn file(source: impl Into<PathBuf>, mode: u32) -> Entry {
        Entry::new(Kind::File(Content::File(source.into())), mode)
    }

    /// A file of root's with this content.
    pub fn bytes(content: impl Into<Vec<u8>>, mode: u32) -> Entry {
        Entry::new(Kind::File(Content::Bytes(content.into())), mode)
    }
}

/// Entries by path. Paths are relative, without `.` and `..`; every entry's parent is there and is a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    entries: BTreeMap<Vec<u8>, Entry>,
}

impl Tree {
    /// Puts an entry at `path` (with or without a leading `/`), in place of what is there. Directories above it that are missing are
    /// made with mode 0755. A directory put over a directory keeps what is in it; anything else put over one empties it.
    pub fn insert(&mut self, path: impl AsRef<Path>, entry: Entry) -> Result<(), TreeError> {
        let name = normalise(path.as_ref())?;
        let parents = name
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/')
            .map(|(at, _)| &name[..at]);
        for parent in parents {
            let above = self
                .entries
                .entry(parent.to_vec())
                .or_insert_with(|| Entry::directory(0o755));
            if above.kind != Kind::Directory {
                return Err(TreeError::NotADirectory {
                    path: to_path(parent),
                });
            }
        }
        if entry.kind != Kind::Directory {
            self.remove_below(&name);
        }
        self.entries.insert(name, entry);
        Ok(())
    }

    /// Removes the entry at `path` and all that is below it.
    pub fn remove(&mut self, path: impl AsRef<Path>) -> Result<(), TreeError> {
        let name = normalise(path.as_ref())?;
        self.remove_below(&name);
        self.entries.remove(&name);
        Ok(())
    }

    fn remove_below(&mut self, name: &[u8]) {
        // All paths below begin with the name and a slash; '0' is the byte after that.
        let range = [name, b"/"].concat()..[name, b"0"].concat();
        let below: Vec<Vec<u8>> = self.entries.range(range).map(|(p, _)| p.clone()).collect();
        for path in below {
            self.entries.remove(&path);
        }
    }

    /// The entry at `path`, if there is one.
    pub fn get(&self, path: impl AsRef<Path>) -> Option<&Entry> {
        self.entries.get(&normalise(path.as_ref()).ok()?)
    }

    /// Every entry with its path, sorted by the path's bytes; a directory comes before what is in it.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&Path, &Entry)> {
        self.entries
            .iter()
            .map(|(path, entry)| (Path::new(OsStr::from_bytes(path)), entry))
    }

    /// Reads a directory of the host. Symbolic links are taken as they are; sockets are left out. Owners are those on the disk if
    /// `keep_owners`, else root.
    pub fn from_dir(dir: &Path, keep_owners: bool) -> Result<Tree, TreeError> {
        let mut tree = Tree::default();
        tree.read_dir(dir, Path::new(""), keep_owners)?;
        Ok(tree)
    }

    fn read_dir(&mut self, dir: &Path, inside: &Path, keep_owners: bool) -> Result<(), TreeError> {
        for item in fs::read_dir(dir).map_err(io_error("read", dir))? {
            let item = item.map_err(io_error("read", dir))?;
            let (host, path) = (item.path(), inside.join(item.file_name()));
            let metadata = fs::symlink_metadata(&host).map_err(io_error("look at", &host))?;
            let Some(kind) = kind_of(&host, &metadata)? else {
                continue;
            };
            let is_directory = kind == Kind::Directory;
            let (uid, gid) = if keep_owners {
                (metadata.uid(), metadata.gid())
            } else {
                (0, 0)
            };
            let mode = metadata.mode() & 0o7777;
            self.insert(
                &path,
                Entry {
                    uid,
                    gid,
                    ..Entry::new(kind, mode)
                },
            )?;
            if is_directory {
                self.read_dir(&host, &path, keep_owners)?;
            }
        }
        Ok(())
    }

    /// Adds the whole tree, contents included, to a cache key.
    pub fn digest_into(&self, mut key: KeyBuilder) -> Result<KeyBuilder, TreeError> {
        for (path, entry) in &self.entries {
            let (low, high) = match entry.kind {
                Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => (major, minor),
                _ => (0, 0),
            };
            let numbers = [
                entry.kind.type_bits() | entry.mode,
                entry.uid,
                entry.gid,
                low,
                high,
            ];
            key = key
                .field("path", path)
                .field("numbers", numbers.map(u32::to_le_bytes).concat());
            for (name, value) in &entry.xattrs {
                key = key.field("attribute", name).field("value", value);
            }
            key = match &entry.kind {
                Kind::File(Content::Bytes(bytes)) => {
                    // As of a file with the same content, so that it does not matter where the content lies.
                    key.field("file", hex(&Sha256::digest(bytes)))
                }
                Kind::File(Content::File(source)) => key.file("file", source)?,
                Kind::Symlink(target) => key.field("target", target.as_os_str().as_bytes()),
                _ => key,
            };
        }
        Ok(key)
    }
}

/// What a file of the host becomes; none for what has no place in an image.
fn kind_of(path: &Path, metadata: &fs::Metadata) -> Result<Option<Kind>, TreeError> {
    let kind = metadata.file_type();
    let device = (
        rustix::fs::major(metadata.rdev()),
        rustix::fs::minor(metadata.rdev()),
    );
    Ok(Some(if kind.is_dir() {
        Kind::Directory
    } else if kind.is_file() {
        Kind::File(Content::File(path.to_owned()))
    } else if kind.is_symlink() {
        Kind::Symlink(fs::read_link(path).map_err(io_error("read", path))?)
    } else if kind.is_char_device() {
        Kind::CharDevice(device.0, device.1)
    } else if kind.is_block_device() {
        Kind::BlockDevice(device.0, device.1)
    } else if kind.is_fifo() {
        Kind::Fifo
    } else {
        return Ok(None);
    }))
}

/// A path's bytes without leading, doubled and trailing slashes and without `.`.
fn normalise(path: &Path) -> Result<Vec<u8>, TreeError> {
    let bytes = path.as_os_str().as_bytes();
    let parts: Vec<&[u8]> = bytes
        .split(|b| *b == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .collect();
    if parts.is_empty() || parts.contains(&&b".."[..]) || bytes.contains(&0) {
        return Err(TreeError::BadPath {
            path: path.to_owned(),
        });
    }
    Ok(parts.join(&b'/'))
}

fn to_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(bytes.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_kernel::cache::Key;
    use proptest::prelude::*;

    fn paths(tree: &Tree) -> Vec<&str> {
        tree.entries()
            .map(|(path, _)| path.to_str().unwrap())
            .collect()
    }

    #[test]
    fn parents_are_made_and_come_first() {
        let mut tree = Tree::default();
        tree.insert("/a/b/c", Entry::bytes("x", 0o644)).unwrap();
        tree.insert("a-b", Entry::directory(0o700)).unwrap();
        assert_eq!(paths(&tree), ["a", "a-b", "a/b", "a/b/c"]);
        assert_eq!(tree.get("/a").unwrap(), &Entry::directory(0o755));
    }

    #[test]
    fn replacing_a_directory_empties_it_unless_by_a_directory() {
        let mut tree = Tree::default();
        tree.insert("d/f", Entry::bytes("x", 0o644)).unwrap();
        tree.insert("d2", Entry::bytes("y", 0o644)).unwrap();
        tree.insert("d", Entry::directory(0o700)).unwrap();
        assert_eq!(paths(&tree), ["d", "d/f", "d2"]);
        tree.insert("d", Entry::new(Kind::Symlink("d2".into()), 0o777))
            .unwrap();
        assert_eq!(paths(&tree), ["d", "d2"]);
        let error = tree.insert("d/g", Entry::bytes("", 0o644)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "d cannot hold anything: it is no directory"
        );
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let mut tree = Tree::default();
        for bad in ["", "/", ".", "../x", "a/../b", "a\0b"] {
            assert!(
                matches!(
                    tree.insert(bad, Entry::directory(0o755)),
                    Err(TreeError::BadPath { .. })
                ),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_directory_is_read_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/f"), "text").unwrap();
        std::os::unix::fs::symlink("/elsewhere", dir.path().join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let tree = Tree::from_dir(dir.path(), false).unwrap();
        assert_eq!(paths(&tree), ["link", "sub", "sub/f"]);
        assert_eq!(
            tree.get("link").unwrap().kind,
            Kind::Symlink("/elsewhere".into())
        );
        assert_eq!(tree.get("sub/f").unwrap().uid, 0);
    }

    #[test]
    fn what_is_removed_goes_with_what_is_below() {
        let mut tree = Tree::default();
        for path in ["a/b/c", "a/bc", "d"] {
            tree.insert(path, Entry::bytes("x", 0o644)).unwrap();
        }
        tree.remove("/a/b").unwrap();
        assert_eq!(paths(&tree), ["a", "a/bc", "d"]);
        assert!(tree.remove("..").is_err());
    }

    #[test]
    fn content_is_read_from_either_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "text").unwrap();
        for content in [Content::File(path.clone()), Content::Bytes(b"text".into())] {
            let mut text = String::new();
            content.open().unwrap().read_to_string(&mut text).unwrap();
            assert_eq!((content.len().unwrap(), &text[..]), (4, "text"));
            assert!(!content.is_empty().unwrap());
        }
        let gone = Content::File(dir.path().join("gone"));
        assert!(gone.open().is_err() && gone.len().is_err());
    }

    #[test]
    fn the_digest_follows_content_and_metadata() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "one").unwrap();
        let digest = |mode| {
            let mut tree = Tree::default();
            tree.insert("f", Entry::file(&path, mode)).unwrap();
            tree.digest_into(Key::of("t")).unwrap().finish()
        };
        let first = digest(0o644);
        assert_eq!(digest(0o644), first);
        let mut same = Tree::default();
        same.insert("f", Entry::bytes("one", 0o644)).unwrap();
        assert_eq!(same.digest_into(Key::of("t")).unwrap().finish(), first);
        assert_ne!(digest(0o755), first);
        fs::write(&path, "two").unwrap();
        assert_ne!(digest(0o644), first);
        fs::write(&path, "one").unwrap();
        let mut entry = Entry::file(&path, 0o644);
        entry.xattrs.insert(b"user.a".into(), b"b".into());
        let mut tree = Tree::default();
        tree.insert("f", entry).unwrap();
        assert_ne!(tree.digest_into(Key::of("t")).unwrap().finish(), first);
    }

    proptest! {
        #[test]
        fn any_path_is_normal_or_refused(text in "[a./\0]{0,12}") {
            if let Ok(name) = normalise(Path::new(&text)) {
                prop_assert_eq!(normalise(&to_path(&name)).unwrap(), name.clone());
                prop_assert!(!name.starts_with(b"/") && !name.ends_with(b"/"));
            }
        }
    }
}
