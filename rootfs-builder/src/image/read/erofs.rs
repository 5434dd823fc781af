// SPDX-License-Identifier: Apache-2.0
//! Reads uncompressed erofs, see the kernel's `Documentation/filesystems/erofs.rst`: inodes of both sizes, flat data with and without
//! its tail beside the inode, attributes of both kinds. Compressed and chunked files are refused by name.

use std::collections::BTreeMap;

use super::builder::Builder;
use super::error::ReadError;
use super::filesystem::{Extent, Filesystem, Format, Inode, device, features, label, uuid, walk};
use super::listing::{Item, ItemKind};
use super::source::{Source, crc32c, u16_at, u32_at, u64_at};

/// Where the superblock lies.
pub const SUPERBLOCK: u64 = 1024;
/// What it begins with.
pub const MAGIC: u32 = 0xe0f5_e1e2;
/// A block number that is none.
const NO_BLOCK: u32 = u32::MAX;
/// The most bytes of one inode's attributes: what fits the 16-bit count.
const MAX_ATTRIBUTES: u64 = 12 + 4 * 0xffff;
/// The superblock has a checksum.
const SB_CHKSUM: u32 = 0x1;

const COMPAT: &[(u32, &str)] = &[
    (SB_CHKSUM, "sb_csum"),
    (0x2, "mtime"),
    (0x4, "xattr_filter"),
];
const INCOMPAT: &[(u32, &str)] = &[
    (0x1, "0padding"),
    (0x2, "big_pcluster"),
    (0x4, "chunked_file"),
    (0x8, "device_table"),
    (0x10, "ztailpacking"),
    (0x20, "fragments"),
    (0x40, "xattr_prefixes"),
    (0x80, "48bit"),
    (0x100, "metabox"),
];
/// Features that change what is read here. The others are about compressed files, which are refused one by one.
const REFUSED: u32 = !0x77;

/// An attribute's full name and its value.
type Attribute = (Vec<u8>, Vec<u8>);

/// An erofs.
struct Erofs<'a> {
    source: &'a Source,
    block_size: u64,
    directory_block: u64,
    blocks: u64,
    metadata: u64,
    attributes: u64,
    root: u64,
}

/// Whether a file system begins with this superblock.
pub fn is_superblock(superblock: &[u8]) -> bool {
    u32_at(superblock, 0) == MAGIC
}

/// Reads a file system.
pub fn read(source: &Source, builder: &mut Builder) -> Result<Filesystem, ReadError> {
    let superblock = source.bytes(SUPERBLOCK, 128)?;
    let (bits, directory_bits) = (superblock[12], superblock[90]);
    if !(9..=16).contains(&bits) || bits + directory_bits.min(16) > 16 {
        return Err(source.broken(SUPERBLOCK + 12, "a block's size is none"));
    }
    let block_size = 1 << bits;
    let blocks = u64::from(u32_at(&superblock, 36));
    source.check(0, blocks * block_size)?;
    let (compat, incompat) = (u32_at(&superblock, 8), u32_at(&superblock, 80));
    if incompat & REFUSED != 0 {
        let names = features(incompat & REFUSED, INCOMPAT).join(", ");
        return Err(source.unsupported(format!("erofs with {names}")));
    }
    let erofs = Erofs {
        source,
        block_size,
        directory_block: block_size << directory_bits,
        blocks,
        metadata: u64::from(u32_at(&superblock, 40)) * block_size,
        attributes: u64::from(u32_at(&superblock, 44)) * block_size,
        root: u16_at(&superblock, 14).into(),
    };
    walk(&erofs, builder)?;
    let mut names = features(compat, COMPAT);
    names.extend(features(incompat, INCOMPAT));
    Ok(Filesystem {
        kind: "erofs",
        offset: source.start(),
        size: blocks * block_size,
        block_size,
        label: label(&superblock[64..80]),
        uuid: uuid(&superblock[48..64]),
        features: names,
        checksum: (compat & SB_CHKSUM != 0)
            .then(|| erofs.checksum())
            .transpose()?,
        unaligned: None,
    })
}

impl Erofs<'_> {
    /// Whether the superblock's checksum, which covers the rest of its block, is right.
    fn checksum(&self) -> Result<bool, ReadError> {
        let len = match self.block_size {
            large if large > SUPERBLOCK => large - SUPERBLOCK,
            small => small,
        };
        let mut block = self.source.bytes(SUPERBLOCK, len)?;
        let said = u32_at(&block, 4);
        block[4..8].fill(0);
        Ok(crc32c(!0, &block) == said)
    }

    fn place(&self, number: u64) -> Result<u64, ReadError> {
        number
            .checked_mul(32)
            .and_then(|offset| offset.checked_add(self.metadata))
            .ok_or_else(|| self.source.broken(SUPERBLOCK, "an inode's number is none"))
    }

    /// Where data begins behind an inode and its attributes.
    fn behind(inode: &Inode) -> u64 {
        inode.place.0 + inode.place.1
    }

    /// The format of an inode and the number that says where its data is.
    fn layout(&self, inode: &Inode) -> Result<(u16, u32), ReadError> {
        let head = self.source.bytes(inode.place.0, 20)?;
        Ok((u16_at(&head, 0), u32_at(&head, 16)))
    }

    /// Reads one attribute; returns it and its length with padding.
    fn attribute(&self, offset: u64, bytes: &[u8]) -> Result<(Attribute, usize), ReadError> {
        let broken = |what: &str| self.source.broken(offset, what);
        let [name_len, index, ..] = *bytes else {
            return Err(broken("an attribute ends early"));
        };
        let prefix: &[u8] = match index {
            1 => b"user.",
            2 => b"system.posix_acl_access",
            3 => b"system.posix_acl_default",
            4 => b"trusted.",
            6 => b"security.",
            0x80.. => {
                return Err(self
                    .source
                    .unsupported("erofs with long attribute prefixes"));
            }
            _ => return Err(broken("an attribute is of no known kind")),
        };
        let name_end = 4 + usize::from(name_len);
        let end = name_end + usize::from(u16_at(bytes, 2));
        let (Some(name), Some(value)) = (bytes.get(4..name_end), bytes.get(name_end..end)) else {
            return Err(broken("an attribute ends early"));
        };
        Ok((
            ([prefix, name].concat(), value.to_vec()),
            end.next_multiple_of(4),
        ))
    }

    /// An attribute that several inodes have.
    fn shared(&self, id: u32) -> Result<Attribute, ReadError> {
        let offset = self.attributes + u64::from(id) * 4;
        let head = self.source.bytes(offset, 4)?;
        let len = 4 + u64::from(head[0]) + u64::from(u16_at(&head, 2));
        let bytes = self.source.bytes(offset, len)?;
        self.attribute(offset, &bytes).map(|(found, _)| found)
    }

    /// The names in one block of a directory.
    fn names(&self, offset: u64, block: &[u8]) -> Result<Vec<(Vec<u8>, u64)>, ReadError> {
        let broken = || {
            self.source
                .broken(offset, "a block of a directory is malformed")
        };
        let first = usize::from(u16_at(block, 8));
        if first == 0 || !first.is_multiple_of(12) || first > block.len() {
            return Err(broken());
        }
        let starts: Vec<usize> = (0..first / 12)
            .map(|index| usize::from(u16_at(block, index * 12 + 8)))
            .chain([block.len()])
            .collect();
        let mut names = Vec::new();
        for (index, pair) in starts.windows(2).enumerate() {
            let name = block.get(pair[0]..pair[1]).ok_or_else(broken)?;
            // Only the last name may be followed by zeros.
            let name = if index + 2 == starts.len() {
                name.split(|byte| *byte == 0).next().unwrap_or_default()
            } else {
                name
            };
            if name != b"." && name != b".." {
                names.push((name.to_vec(), u64_at(block, index * 12)));
            }
        }
        Ok(names)
    }
}

impl Format for Erofs<'_> {
    fn source(&self) -> &Source {
        self.source
    }

    fn root(&self) -> u64 {
        self.root
    }

    fn inode(&self, number: u64) -> Result<Inode, ReadError> {
        let offset = self.place(number)?;
        let bytes = self.source.prefix(offset, 64)?;
        let broken = |what| self.source.broken(offset, what);
        let extended = u16_at(&bytes, 0) & 1 == 1;
        let len = if extended { 64 } else { 32 };
        if bytes.len() < len {
            return Err(broken("an inode lies beyond the end"));
        }
        let count = u64::from(u16_at(&bytes, 2));
        let attributes = if count == 0 { 0 } else { 12 + 4 * (count - 1) };
        let mode = u32::from(u16_at(&bytes, 4));
        let kind = ItemKind::of_mode(mode).ok_or_else(|| broken("an inode is of no known kind"))?;
        let (links, size, uid, gid) = if extended {
            (
                u32_at(&bytes, 44),
                u64_at(&bytes, 8),
                u32_at(&bytes, 24),
                u32_at(&bytes, 28),
            )
        } else {
            (
                u16_at(&bytes, 6).into(),
                u32_at(&bytes, 8).into(),
                u16_at(&bytes, 24).into(),
                u16_at(&bytes, 26).into(),
            )
        };
        let mut item = Item::new(kind, mode, uid, gid);
        item.size = size;
        if kind.is_device() {
            item.device = Some(device(u32_at(&bytes, 16)));
        }
        Ok(Inode {
            number,
            place: (offset, len as u64 + attributes),
            item,
            target: None,
            links,
        })
    }

    fn extents(&self, inode: &Inode) -> Result<Vec<Extent>, ReadError> {
        let (format, block) = self.layout(inode)?;
        let size = inode.item.size;
        let layout = (format >> 1) & 7;
        match layout {
            0 | 2 => {}
            1 | 3 => return Err(self.source.unsupported("a compressed erofs")),
            4 => return Err(self.source.unsupported("an erofs of chunks")),
            _ => {
                let what = "an inode's data is of no known layout";
                return Err(self.source.broken(inode.place.0, what));
            }
        }
        if size == 0 {
            return Ok(Vec::new());
        }
        let tail = if layout == 2 {
            size - (size - 1) / self.block_size * self.block_size
        } else {
            0
        };
        let flat = size - tail;
        let behind = Self::behind(inode);
        if tail > 0 && behind % self.block_size + tail > self.block_size {
            return Err(self.source.broken(behind, "a file's tail leaves its block"));
        }
        let mut extents = Vec::new();
        if flat > 0 {
            if block != NO_BLOCK && u64::from(block) + flat.div_ceil(self.block_size) > self.blocks
            {
                return Err(self
                    .source
                    .broken(inode.place.0, "data lies beyond the end"));
            }
            let start = (block != NO_BLOCK).then(|| u64::from(block) * self.block_size);
            extents.push(Extent { start, len: flat });
        }
        if tail > 0 {
            extents.push(Extent {
                start: Some(behind),
                len: tail,
            });
        }
        Ok(extents)
    }

    fn attributes(&self, inode: &Inode) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, ReadError> {
        let extended = self.layout(inode)?.0 & 1 == 1;
        let own = if extended { 64 } else { 32 };
        let (offset, len) = (inode.place.0 + own, inode.place.1 - own);
        let mut attributes = BTreeMap::new();
        if len == 0 {
            return Ok(attributes);
        }
        let bytes = self.source.bytes(offset, len.min(MAX_ATTRIBUTES))?;
        let shared = usize::from(bytes[4]);
        for index in 0..shared {
            let at = 12 + index * 4;
            if at + 4 > bytes.len() {
                return Err(self
                    .source
                    .broken(offset, "an inode's attributes end early"));
            }
            attributes.extend([self.shared(u32_at(&bytes, at))?]);
        }
        let mut at = 12 + shared * 4;
        while at + 4 <= bytes.len() && bytes[at..at + 4] != [0; 4] {
            let (found, len) = self.attribute(offset + at as u64, &bytes[at..])?;
            attributes.extend([found]);
            at += len;
        }
        Ok(attributes)
    }

    fn directory(
        &self,
        inode: &Inode,
        builder: &mut Builder,
    ) -> Result<Vec<(Vec<u8>, u64)>, ReadError> {
        builder.claim(inode.item.size)?;
        let mut names = Vec::new();
        for extent in self.extents(inode)? {
            let Some(start) = extent.start else {
                return Err(self.source.broken(inode.place.0, "a directory has a hole"));
            };
            self.source.check(start, extent.len)?;
            let mut at = 0;
            while at < extent.len {
                let len = self.directory_block.min(extent.len - at);
                let block = self.source.bytes(start + at, len)?;
                names.extend(self.names(start + at, &block)?);
                at += len;
            }
        }
        Ok(names)
    }
}
