// SPDX-License-Identifier: Apache-2.0
//! How large an image has to be: what the tree takes, and what ext4 adds.

use std::collections::HashMap;
use std::path::Path;

use crate::tree::{Entry, Kind, Tree};

use super::{BLOCK, Ext4Error, JOURNAL_MIB, Options};

/// Blocks that share one bitmap of one block.
const GROUP: u64 = 8 * BLOCK;
/// The size of an inode.
const INODE: u64 = 256;
/// How many inodes are taken before the first of ours; the last of them is `lost+found`.
const OWN_INODES: u64 = 11;
/// The blocks of the root directory and of `lost+found` are counted with the tree's; these are the latter's.
const LOST_FOUND: u64 = 4;
/// mke2fs drops a last group, be it the only one, that has not this many blocks beside its own tables.
const LAST_GROUP: u64 = 50;
/// Targets shorter than this are in the inode.
const SHORT_TARGET: usize = 60;
/// Extents in the inode, and in a block of them.
const EXTENTS: (u64, u64) = (4, 340);
/// How much of what is free there is one inode for.
const FREE_PER_INODE: u64 = 16384;

/// The numbers an image is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// All blocks.
    pub blocks: u64,
    /// All inodes; mke2fs rounds them up.
    pub inodes: u64,
}

impl Geometry {
    /// What this tree needs with these options; checks on the way that ext4 can hold its entries.
    pub(super) fn of(tree: &Tree, options: &Options) -> Result<Geometry, Ext4Error> {
        let content = content(tree)? + options.free.div_ceil(BLOCK);
        let journal = if options.journal {
            JOURNAL_MIB << 20
        } else {
            0
        } / BLOCK;
        // mke2fs gives at most half of what is free to a journal.
        let content = (content + journal).max(2 * journal + 16 * journal.min(1));
        let used = OWN_INODES + tree.entries().len() as u64;
        let inodes = used + options.free / FREE_PER_INODE;
        let needed = blocks(content, inodes);
        let Some(size) = options.size else {
            return Ok(Geometry {
                blocks: needed,
                inodes,
            });
        };
        let blocks = size / BLOCK;
        if blocks < needed {
            let needed = needed * BLOCK;
            return Err(Ext4Error::TooSmall { size, needed });
        }
        // Inodes for what is free beyond the need are taken from it, so the tree's part stays enough.
        let spare = (blocks - needed) * BLOCK / FREE_PER_INODE;
        Ok(Geometry {
            blocks,
            inodes: inodes + spare,
        })
    }
}

/// The blocks for this many blocks of content, with the groups' own.
fn blocks(content: u64, inodes: u64) -> u64 {
    // A group's bitmap of inodes is one block as well.
    let mut all = inodes.div_ceil(GROUP).saturating_sub(1) * GROUP + 1;
    loop {
        let groups = all.div_ceil(GROUP);
        let table = inodes.div_ceil(groups).div_ceil(BLOCK / INODE);
        let descriptors = (groups * 32).div_ceil(BLOCK);
        let copies = (0..groups).filter(|group| has_superblock(*group)).count() as u64;
        let needed = content + groups * (table + 2) + copies * (1 + descriptors);
        let last = 3 + descriptors + table + LAST_GROUP;
        let needed = match needed % GROUP {
            rest if rest > 0 && rest < last => needed - rest + last,
            _ => needed,
        };
        if needed <= all {
            return all;
        }
        all = needed;
    }
}

/// Groups that have a copy of the superblock with `sparse_super`.
fn has_superblock(group: u64) -> bool {
    let power = |base: u64| std::iter::successors(Some(base), move |n| Some(n * base));
    group <= 1
        || [3, 5, 7]
            .iter()
            .any(|base| power(*base).find(|n| *n >= group) == Some(group))
}

/// The blocks of all contents: files, directories, long targets and attributes.
fn content(tree: &Tree) -> Result<u64, Ext4Error> {
    let mut directories = HashMap::from([(Path::new(""), Directory::default())]);
    let mut blocks = LOST_FOUND;
    for (path, entry) in tree.entries() {
        blocks += entry_blocks(path, entry)?;
        if entry.kind == Kind::Directory {
            directories.insert(path, Directory::default());
        }
        let above = path.parent().and_then(|above| directories.get_mut(above));
        if let (Some(above), Some(name)) = (above, path.file_name()) {
            above.add(name.len());
        }
    }
    blocks += directories.values().map(Directory::blocks).sum::<u64>();
    // Files that go around a group's tables need more extents than a short list has room for.
    Ok(blocks + blocks / 1024 + 8)
}

/// The blocks of one entry, but for what a directory holds.
fn entry_blocks(path: &Path, entry: &Entry) -> Result<u64, Ext4Error> {
    let owned = || path.to_owned();
    if path.file_name().is_some_and(|name| name.len() > 255) {
        return Err(Ext4Error::NameTooLong { path: owned() });
    }
    let content = match &entry.kind {
        Kind::File(content) => {
            let blocks = content.len()?.div_ceil(BLOCK);
            // An extent ends with its group at the latest.
            blocks + extent_blocks(blocks.div_ceil(GROUP))
        }
        Kind::Symlink(target) => match target.as_os_str().len() {
            1..SHORT_TARGET => 0,
            SHORT_TARGET..=4095 => 1,
            _ => return Err(Ext4Error::BadTarget { path: owned() }),
        },
        Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
            if *major >= 1 << 12 || *minor >= 1 << 16 {
                return Err(Ext4Error::BadDevice { path: owned() });
            }
            0
        }
        Kind::Directory | Kind::Fifo => 0,
    };
    Ok(content + attribute_blocks(path, entry)?)
}

/// Blocks for a list of extents that does not fit into the inode.
fn extent_blocks(extents: u64) -> u64 {
    match extents <= EXTENTS.0 {
        true => 0,
        false => extents.div_ceil(EXTENTS.1),
    }
}

/// Small attributes are in the inode; the rest in one block.
fn attribute_blocks(path: &Path, entry: &Entry) -> Result<u64, Ext4Error> {
    const IN_INODE: usize = 96 - 8;
    const IN_BLOCK: usize = BLOCK as usize - 32 - 4;
    const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
    let mut size = 0;
    for (name, value) in &entry.xattrs {
        let known = ACLS.contains(&name.as_slice())
            || ["user.", "trusted.", "security."]
                .iter()
                .any(|prefix| name.len() > prefix.len() && name.starts_with(prefix.as_bytes()));
        if !known {
            return Err(Ext4Error::UnknownAttribute {
                path: path.to_owned(),
                name: String::from_utf8_lossy(name).into_owned(),
            });
        }
        let short = name
            .iter()
            .position(|byte| *byte == b'.')
            .unwrap_or_default();
        size += 16 + (name.len() - short).next_multiple_of(4) + value.len().next_multiple_of(4);
    }
    match size {
        0..=IN_INODE => Ok(0),
        _ if size <= IN_BLOCK => Ok(1),
        _ => Err(Ext4Error::AttributesTooLarge {
            path: path.to_owned(),
        }),
    }
}

/// A directory's blocks as libext2fs fills them: each name goes into the first with room for it.
struct Directory {
    room: Vec<usize>,
}

impl Directory {
    /// A block without the record for its checksum.
    const ROOM: usize = BLOCK as usize - 12;

    fn add(&mut self, name: usize) {
        let size = 8 + name.next_multiple_of(4);
        match self.room.iter_mut().find(|room| **room >= size) {
            Some(room) => *room -= size,
            None => self.room.push(Self::ROOM - size),
        }
    }

    fn blocks(&self) -> u64 {
        let blocks = self.room.len() as u64;
        // What is between its blocks are the files of which it got the names.
        blocks + extent_blocks(blocks)
    }
}

impl Default for Directory {
    fn default() -> Directory {
        // "." and ".." are there.
        Directory {
            room: vec![Self::ROOM - 24],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_the_superblock_are_where_the_format_says() {
        let groups: Vec<u64> = (0..130).filter(|group| has_superblock(*group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn directories_fill_the_first_block_with_room() {
        let mut directory = Directory::default();
        for _ in 0..15 {
            directory.add(255);
        }
        // 15 * 264 + 24 + 12 = 3996: one name more does not fit, a short one does.
        assert_eq!(directory.blocks(), 1);
        directory.add(255);
        directory.add(90);
        assert_eq!(directory.room, [0, Directory::ROOM - 264]);
    }

    #[test]
    fn a_last_group_is_never_too_small() {
        for content in (0..3 * GROUP).step_by(97) {
            let all = blocks(content, 5000);
            assert!(all > content + 315, "{content}");
            let rest = all % GROUP;
            assert!(rest == 0 || rest > 50 + 5000 / 16 / all.div_ceil(GROUP));
        }
    }
}
