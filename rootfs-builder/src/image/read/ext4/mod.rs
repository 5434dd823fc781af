// SPDX-License-Identifier: Apache-2.0
//! Reads ext4, see the kernel's `Documentation/filesystems/ext4/`.
//!
//! `ext4-view`, which reads it as well, tells neither device numbers nor attributes, nor where a file's blocks lie; it checks the
//! checksums of all metadata when an image is verified.

mod attributes;

use std::collections::BTreeMap;

use super::builder::Builder;
use super::error::ReadError;
use super::filesystem::{Extent, Filesystem, Format, Inode, device, features, label, uuid, walk};
use super::listing::{Item, ItemKind};
use super::source::{Source, crc32c, u16_at, u32_at};

/// Where the superblock lies.
pub const SUPERBLOCK: u64 = 1024;
/// The deepest tree of extents.
const MAX_DEPTH: u16 = 5;
/// The inode of the root directory.
const ROOT: u64 = 2;
/// An inode whose data is found by extents.
const EXTENTS_FL: u32 = 0x8_0000;
/// The largest length of an extent that has been written.
const MAX_EXTENT: u16 = 32768;
/// The feature of checksums in all metadata.
const METADATA_CSUM: u32 = 0x400;

const COMPAT: &[(u32, &str)] = &[
    (0x4, "has_journal"),
    (0x8, "ext_attr"),
    (0x10, "resize_inode"),
    (0x20, "dir_index"),
    (0x200, "sparse_super2"),
    (0x400, "fast_commit"),
    (0x1000, "orphan_file"),
];
const INCOMPAT: &[(u32, &str)] = &[
    (0x1, "compression"),
    (0x2, "filetype"),
    (0x4, "needs_recovery"),
    (0x8, "journal_dev"),
    (0x10, "meta_bg"),
    (0x40, "extent"),
    (0x80, "64bit"),
    (0x100, "mmp"),
    (0x200, "flex_bg"),
    (0x400, "ea_inode"),
    (0x1000, "dirdata"),
    (0x2000, "metadata_csum_seed"),
    (0x4000, "large_dir"),
    (0x8000, "inline_data"),
    (0x1_0000, "encrypt"),
    (0x2_0000, "casefold"),
];
const RO_COMPAT: &[(u32, &str)] = &[
    (0x1, "sparse_super"),
    (0x2, "large_file"),
    (0x8, "huge_file"),
    (0x10, "uninit_bg"),
    (0x20, "dir_nlink"),
    (0x40, "extra_isize"),
    (0x100, "quota"),
    (0x200, "bigalloc"),
    (METADATA_CSUM, "metadata_csum"),
    (0x1000, "read-only"),
    (0x2000, "project"),
    (0x8000, "verity"),
    (0x1_0000, "orphan_present"),
];
/// Features that make no difference here; an image with any other is refused.
const READ: u32 = 0x2 | 0x40 | 0x80 | 0x100 | 0x200 | 0x2000 | 0x4000;

/// An ext4.
struct Ext4<'a> {
    source: &'a Source,
    block_size: u64,
    blocks: u64,
    inodes: u32,
    inodes_per_group: u32,
    inode_size: u64,
    groups: u64,
    descriptors: u64,
    descriptor_size: u64,
}

/// Whether a file system begins with this superblock.
pub fn is_superblock(superblock: &[u8]) -> bool {
    u16_at(superblock, 0x38) == 0xef53
}

/// Reads a file system.
pub fn read(source: &Source, builder: &mut Builder) -> Result<Filesystem, ReadError> {
    let superblock = source.bytes(SUPERBLOCK, 1024)?;
    let ext4 = Ext4::open(source, &superblock)?;
    walk(&ext4, builder)?;
    forget_lost_and_found(builder);
    let word = |at| u32_at(&superblock, at);
    let mut names = features(word(0x5c), COMPAT);
    names.extend(features(word(0x60), INCOMPAT));
    names.extend(features(word(0x64), RO_COMPAT));
    let checked = word(0x64) & METADATA_CSUM != 0;
    Ok(Filesystem {
        kind: "ext4",
        offset: source.start(),
        size: ext4.blocks * ext4.block_size,
        block_size: ext4.block_size,
        label: label(&superblock[0x78..0x88]),
        uuid: uuid(&superblock[0x68..0x78]),
        features: names,
        checksum: checked.then(|| crc32c(!0, &superblock[..0x3fc]) == word(0x3fc)),
        unaligned: None,
    })
}

/// The directory that every ext4 is made with is part of the format, not of what was put into the image.
fn forget_lost_and_found(builder: &mut Builder) {
    let name = &b"lost+found"[..];
    let entries = &mut builder.listing.entries;
    let empty = !entries.keys().any(|path| path.starts_with(b"lost+found/"));
    let item = entries.get(name);
    if empty && item.is_some_and(|item| *item == Item::new(ItemKind::Directory, 0o700, 0, 0)) {
        entries.remove(name);
    }
}

impl<'a> Ext4<'a> {
    fn open(source: &'a Source, superblock: &[u8]) -> Result<Ext4<'a>, ReadError> {
        let word = |at| u32_at(superblock, at);
        let broken = |at: u64, what: &str| source.broken(SUPERBLOCK + at, what);
        let incompat = word(0x60);
        if incompat & !READ != 0 {
            let names = features(incompat & !READ, INCOMPAT).join(", ");
            return Err(source.unsupported(format!("ext4 with {names}")));
        }
        if word(0x18) > 6 {
            return Err(broken(0x18, "a block's size is none"));
        }
        let block_size = 1024 << word(0x18);
        let wide = incompat & 0x80 != 0;
        let high = if wide { u64::from(word(0x150)) } else { 0 };
        let blocks = u64::from(word(0x4)) | high << 32;
        if blocks
            .checked_mul(block_size)
            .is_none_or(|size| size > source.len())
        {
            return Err(broken(0x4, "the file system is larger than its place"));
        }
        let (first, per_group) = (u64::from(word(0x14)), u64::from(word(0x20)));
        if per_group == 0 || word(0x28) == 0 || first >= blocks {
            return Err(broken(0x14, "a group's size is none"));
        }
        let inode_size = if word(0x4c) == 0 {
            128
        } else {
            u64::from(u16_at(superblock, 0x58))
        };
        let descriptor_size = if wide {
            u16_at(superblock, 0xfe).into()
        } else {
            32
        };
        if !(128..=block_size).contains(&inode_size) || !(32..=1024).contains(&descriptor_size) {
            return Err(broken(0x58, "an inode's or a descriptor's size is none"));
        }
        Ok(Ext4 {
            source,
            block_size,
            blocks,
            inodes: word(0),
            inodes_per_group: word(0x28),
            inode_size,
            groups: (blocks - first).div_ceil(per_group),
            descriptors: (first + 1) * block_size,
            descriptor_size,
        })
    }

    /// Where a number of blocks lies; they must be there.
    fn place(&self, block: u64, count: u64, from: u64) -> Result<u64, ReadError> {
        match block.checked_add(count) {
            Some(end) if end <= self.blocks => Ok(block * self.block_size),
            _ => Err(self.source.broken(from, "a block lies beyond the end")),
        }
    }

    /// The bytes of an inode.
    fn raw(&self, inode: &Inode) -> Result<Vec<u8>, ReadError> {
        self.source.bytes(inode.place.0, inode.place.1)
    }

    /// Adds the extents of a node of a tree, and of all below it. `next` is the first block of the file that may come; that it only
    /// grows is what ends every loop.
    fn node(
        &self,
        node: &[u8],
        offset: u64,
        depth: u16,
        next: &mut u64,
        found: &mut Vec<(u64, Extent)>,
    ) -> Result<(), ReadError> {
        let broken = |what: &str| self.source.broken(offset, what);
        let count = usize::from(u16_at(node, 2));
        if u16_at(node, 0) != 0xf30a || u16_at(node, 6) != depth || (count + 1) * 12 > node.len() {
            return Err(broken("a node of a file's extents is malformed"));
        }
        for entry in node.chunks_exact(12).skip(1).take(count) {
            let logical = u64::from(u32_at(entry, 0));
            if logical < *next {
                return Err(broken("a file's extents are not in order"));
            }
            if depth == 0 {
                let said = u16_at(entry, 4);
                let unwritten = said > MAX_EXTENT;
                let len = u64::from(if unwritten { said - MAX_EXTENT } else { said });
                let block = u64::from(u32_at(entry, 8)) | u64::from(u16_at(entry, 6)) << 32;
                let start = self.place(block, len, offset)?;
                let extent = Extent {
                    start: (!unwritten).then_some(start),
                    len: len * self.block_size,
                };
                found.push((logical * self.block_size, extent));
                *next = logical + len.max(1);
            } else {
                let block = u64::from(u32_at(entry, 4)) | u64::from(u16_at(entry, 8)) << 32;
                let start = self.place(block, 1, offset)?;
                let child = self.source.bytes(start, self.block_size)?;
                // A node without entries could be visited again and again.
                if u16_at(&child, 2) == 0 {
                    return Err(broken("a node of a file's extents is empty"));
                }
                self.node(&child, start, depth - 1, next, found)?;
            }
        }
        Ok(())
    }

    /// The entries in one block of a directory.
    fn names(&self, offset: u64, block: &[u8]) -> Result<Vec<(Vec<u8>, u64)>, ReadError> {
        let mut names = Vec::new();
        let mut at = 0;
        while at < block.len() {
            let broken = || {
                let what = "an entry of a directory is malformed";
                self.source.broken(offset + at as u64, what)
            };
            let (inode, len) = (u32_at(block, at), usize::from(u16_at(block, at + 4)));
            if len < 8 || !len.is_multiple_of(4) || at + len > block.len() {
                return Err(broken());
            }
            let end = at + 8 + usize::from(block[at + 6]);
            if inode != 0 {
                let name = block.get(at + 8..end.min(at + len)).ok_or_else(broken)?;
                if end > at + len {
                    return Err(broken());
                }
                if name != b"." && name != b".." {
                    names.push((name.to_vec(), inode.into()));
                }
            }
            at += len;
        }
        Ok(names)
    }
}

impl Format for Ext4<'_> {
    fn source(&self) -> &Source {
        self.source
    }

    fn root(&self) -> u64 {
        ROOT
    }

    fn inode(&self, number: u64) -> Result<Inode, ReadError> {
        let broken = |offset, what: &str| self.source.broken(offset, what);
        if number == 0 || number > self.inodes.into() {
            return Err(broken(
                SUPERBLOCK,
                "a directory names an inode that is none",
            ));
        }
        let per_group = u64::from(self.inodes_per_group);
        let (group, index) = ((number - 1) / per_group, (number - 1) % per_group);
        if group >= self.groups {
            return Err(broken(
                SUPERBLOCK,
                "a directory names an inode that is none",
            ));
        }
        let at = self.descriptors + group * self.descriptor_size;
        let descriptor = self.source.bytes(at, self.descriptor_size)?;
        let table = u64::from(u32_at(&descriptor, 8)) | u64::from(u32_at(&descriptor, 0x28)) << 32;
        let offset = self.place(table, 0, at)? + index * self.inode_size;
        let bytes = self.source.bytes(offset, self.inode_size)?;
        let mode = u32::from(u16_at(&bytes, 0));
        let kind = ItemKind::of_mode(mode)
            .ok_or_else(|| broken(offset, "an inode is of no known kind"))?;
        let half =
            |low, high| u32::from(u16_at(&bytes, low)) | u32::from(u16_at(&bytes, high)) << 16;
        let mut item = Item::new(kind, mode, half(0x2, 0x78), half(0x18, 0x7a));
        item.size = u64::from(u32_at(&bytes, 4)) | u64::from(u32_at(&bytes, 0x6c)) << 32;
        let mut target = None;
        match kind {
            ItemKind::Symlink if item.size > 0 && item.size < 60 => {
                let len = item.size as usize;
                target = (u32_at(&bytes, 0x20) & EXTENTS_FL == 0)
                    .then(|| bytes[0x28..0x28 + len].to_vec());
            }
            _ if kind.is_device() => {
                let old = u32_at(&bytes, 0x28);
                item.device = Some(match old {
                    0 => device(u32_at(&bytes, 0x2c)),
                    _ => (old >> 8 & 0xff, old & 0xff),
                });
            }
            _ => {}
        }
        Ok(Inode {
            number,
            place: (offset, self.inode_size),
            item,
            target,
            links: u16_at(&bytes, 0x1a).into(),
        })
    }

    fn extents(&self, inode: &Inode) -> Result<Vec<Extent>, ReadError> {
        let (bytes, size) = (self.raw(inode)?, inode.item.size);
        if size == 0 {
            return Ok(Vec::new());
        }
        if u32_at(&bytes, 0x20) & EXTENTS_FL == 0 {
            return Err(self
                .source
                .unsupported("files without extents, as ext2 and ext3 have them"));
        }
        let depth = u16_at(&bytes, 0x28 + 6);
        if depth > MAX_DEPTH {
            let what = "a file's extents are nested too deeply";
            return Err(self.source.broken(inode.place.0, what));
        }
        let mut found = Vec::new();
        self.node(&bytes[0x28..0x64], inode.place.0, depth, &mut 0, &mut found)?;
        let (mut extents, mut at) = (Vec::new(), 0);
        for (logical, mut extent) in found {
            // Blocks beyond the end of a file may be there and hold nothing.
            let logical = logical.min(size);
            let hole = logical.saturating_sub(at);
            if hole > 0 {
                extents.push(Extent {
                    start: None,
                    len: hole,
                });
            }
            extent.len = extent.len.min(size - logical);
            at = logical + extent.len;
            if extent.len > 0 {
                extents.push(extent);
            }
        }
        if at < size {
            extents.push(Extent {
                start: None,
                len: size - at,
            });
        }
        Ok(extents)
    }

    fn attributes(&self, inode: &Inode) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, ReadError> {
        attributes::read(self, &self.raw(inode)?, inode.place.0)
    }

    fn directory(
        &self,
        inode: &Inode,
        builder: &mut Builder,
    ) -> Result<Vec<(Vec<u8>, u64)>, ReadError> {
        let mut names = Vec::new();
        for extent in self.extents(inode)? {
            let Some(start) = extent.start else {
                return Err(self.source.broken(inode.place.0, "a directory has a hole"));
            };
            builder.claim(extent.len)?;
            for block in (start..start + extent.len).step_by(self.block_size as usize) {
                let bytes = self.source.bytes(block, self.block_size)?;
                names.extend(self.names(block, &bytes)?);
            }
        }
        Ok(names)
    }
}
