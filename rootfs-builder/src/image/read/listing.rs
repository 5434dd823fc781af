// SPDX-License-Identifier: Apache-2.0
//! What is inside an image: every entry with its metadata and the digest of its content, whatever the format.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

use guest_kernel::cache::hex;
use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::tree::{Kind, Tree, TreeError};

/// The most links followed on the way to an entry, as in the kernel.
const MAX_LINKS: usize = 40;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ItemKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl ItemKind {
    /// The kind that the file type in the high bits of `st_mode` says, see inode(7).
    pub fn of_mode(mode: u32) -> Option<ItemKind> {
        Some(match mode & 0o170_000 {
            0o010_000 => ItemKind::Fifo,
            0o020_000 => ItemKind::CharDevice,
            0o040_000 => ItemKind::Directory,
            0o060_000 => ItemKind::BlockDevice,
            0o100_000 => ItemKind::File,
            0o120_000 => ItemKind::Symlink,
            0o140_000 => ItemKind::Socket,
            _ => return None,
        })
    }

    /// The file type as the high bits of `st_mode`.
    pub fn type_bits(self) -> u32 {
        match self {
            ItemKind::Fifo => 0o010_000,
            ItemKind::CharDevice => 0o020_000,
            ItemKind::Directory => 0o040_000,
            ItemKind::BlockDevice => 0o060_000,
            ItemKind::File => 0o100_000,
            ItemKind::Symlink => 0o120_000,
            ItemKind::Socket => 0o140_000,
        }
    }

    /// The letter of `ls -l`.
    pub fn letter(self) -> char {
        match self {
            ItemKind::Directory => 'd',
            ItemKind::File => '-',
            ItemKind::Symlink => 'l',
            ItemKind::CharDevice => 'c',
            ItemKind::BlockDevice => 'b',
            ItemKind::Fifo => 'p',
            ItemKind::Socket => 's',
        }
    }

    /// Whether it is a device node.
    pub fn is_device(self) -> bool {
        matches!(self, ItemKind::CharDevice | ItemKind::BlockDevice)
    }
}

impl fmt::Display for ItemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ItemKind::Directory => "directory",
            ItemKind::File => "file",
            ItemKind::Symlink => "link",
            ItemKind::CharDevice => "character device",
            ItemKind::BlockDevice => "block device",
            ItemKind::Fifo => "pipe",
            ItemKind::Socket => "socket",
        })
    }
}

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One entry of a [`Listing`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Permission bits, with set-id and sticky bits: at most 0o7777.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The owning group.
    pub gid: u32,
    /// What it is.
    pub kind: ItemKind,
    /// The number of bytes of a file; 0 for anything else.
    pub size: u64,
    /// The digest of a file's content.
    pub sha256: Option<Digest>,
    /// A link's target.
    pub target: Option<Vec<u8>>,
    /// A device's major and minor number.
    pub device: Option<(u32, u32)>,
    /// Extended attributes by their full names.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Item {
    /// An entry with nothing in it yet.
    pub fn new(kind: ItemKind, mode: u32, uid: u32, gid: u32) -> Item {
        Item {
            mode: mode & 0o7777,
            uid,
            gid,
            kind,
            size: 0,
            sha256: None,
            target: None,
            device: None,
            xattrs: BTreeMap::new(),
        }
    }
}

/// Every entry of an image by its path, without a leading `/`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The root directory itself, where the image says something about it.
    pub root: Option<Item>,
    /// The entries, sorted by the path's bytes.
    pub entries: BTreeMap<Vec<u8>, Item>,
}

impl Listing {
    /// What an image written from a tree holds.
    pub fn of(tree: &Tree) -> Result<Listing, TreeError> {
        use std::os::unix::ffi::OsStrExt;

        let mut listing = Listing::default();
        for (path, entry) in tree.entries() {
            let bits = ItemKind::of_mode(entry.kind.type_bits());
            let mut item = Item::new(
                bits.unwrap_or(ItemKind::File),
                entry.mode,
                entry.uid,
                entry.gid,
            );
            item.xattrs = entry.xattrs.clone();
            match &entry.kind {
                Kind::File(content) => {
                    let (size, digest) =
                        digest(&mut *content.open()?).map_err(|source| TreeError::Io {
                            action: "read",
                            path: path.to_owned(),
                            source,
                        })?;
                    (item.size, item.sha256) = (size, Some(digest));
                }
                Kind::Symlink(target) => {
                    item.target = Some(target.as_os_str().as_bytes().to_vec());
                }
                Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
                    item.device = Some((*major, *minor));
                }
                Kind::Directory | Kind::Fifo => {}
            }
            listing
                .entries
                .insert(path.as_os_str().as_bytes().to_vec(), item);
        }
        Ok(listing)
    }

    /// The entry at a path as the guest would find it: symbolic links are followed, inside the image alone.
    pub fn find(&self, path: &[u8]) -> Option<(Vec<u8>, &Item)> {
        let mut place: Vec<Vec<u8>> = Vec::new();
        let mut todo: Vec<Vec<u8>> = parts(path);
        todo.reverse();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == b".." {
                place.pop();
                continue;
            }
            place.push(part);
            let item = self.entries.get(&place.join(&b'/'))?;
            if let (ItemKind::Symlink, Some(target)) = (item.kind, &item.target) {
                links += 1;
                if links > MAX_LINKS {
                    return None;
                }
                place.pop();
                if target.starts_with(b"/") {
                    place.clear();
                }
                todo.extend(parts(target).into_iter().rev());
            }
        }
        let path = place.join(&b'/');
        self.entries.get(&path).map(|item| (path.clone(), item))
    }
}

/// The components of a path without empty ones and `.`.
fn parts(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(<[u8]>::to_vec)
        .collect()
}

/// The length and the digest of all that a reader gives.
pub fn digest(reader: &mut dyn Read) -> std::io::Result<(u64, Digest)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut size = 0;
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            return Ok((size, Digest(hasher.finalize().into())));
        }
        hasher.update(&buffer[..count]);
        size += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Entry;

    #[test]
    fn links_are_followed_inside_the_image() {
        let mut tree = Tree::default();
        let link = |target: &str| Entry::new(Kind::Symlink(target.into()), 0o777);
        for (path, entry) in [
            ("usr/sbin/real", Entry::bytes("x", 0o755)),
            ("sbin", link("usr/sbin")),
            ("usr/sbin/init", link("../../../../sbin/./real")),
            ("abs", link("/usr/sbin")),
            ("loop", link("loop")),
        ] {
            tree.insert(path, entry).unwrap();
        }
        let listing = Listing::of(&tree).unwrap();
        for path in ["/sbin/init", "abs/init", "usr//sbin/real"] {
            assert_eq!(
                listing.find(path.as_bytes()).unwrap().0,
                b"usr/sbin/real",
                "{path}"
            );
        }
        for path in ["loop", "sbin/nothing", "", "usr/sbin/real/x"] {
            assert!(listing.find(path.as_bytes()).is_none(), "{path}");
        }
    }

    #[test]
    fn a_tree_gives_digests_and_kinds() {
        let mut tree = Tree::default();
        tree.insert("d/f", Entry::bytes("abc", 0o4755)).unwrap();
        tree.insert("d/c", Entry::new(Kind::CharDevice(5, 1), 0o600))
            .unwrap();
        let listing = Listing::of(&tree).unwrap();
        let file = &listing.entries[&b"d/f"[..]];
        assert_eq!(
            (file.size, file.mode, file.kind),
            (3, 0o4755, ItemKind::File)
        );
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(file.sha256.unwrap().to_string(), expected);
        assert_eq!(listing.entries[&b"d/c"[..]].device, Some((5, 1)));
    }
}
