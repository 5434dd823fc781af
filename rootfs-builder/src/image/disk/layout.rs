// SPDX-License-Identifier: Apache-2.0
//! Where the parts of a disk lie, and why.

use crate::image::{dax, partition};

/// 2^20 bytes.
pub const MIB: u64 = 1 << 20;
/// What everything is aligned to at least: the size of pages and of the file systems' blocks.
pub const BLOCK: u64 = 4096;
/// The size of the sections in which Kata plugs memory, on both architectures with pages of 4 KiB.
pub const MEMORY_SECTION: u64 = 128 * MIB;

/// Why a layout is none to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The alignment is not a multiple of what it must be.
    #[error("Its size cannot be aligned to {align} bytes, only to a multiple of {least}: {reason}")]
    Align {
        /// The alignment asked for.
        align: u64,
        /// What it must be a multiple of.
        least: u64,
        /// Why.
        reason: &'static str,
    },
    /// The disk would be larger than files, or tables, can be.
    #[error("It would be larger than a partition table can say, 2 TiB")]
    TooLarge,
}

/// How a disk is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Whether it can be an nvdimm that is mapped: with an information block and a second table.
    pub dax: bool,
    /// What its size is a multiple of.
    pub align: u64,
}

impl Layout {
    /// A disk that works as an nvdimm, mapped, and as any other disk.
    pub fn dax() -> Layout {
        Layout {
            dax: true,
            align: dax::DATA_OFFSET,
        }
    }

    /// A disk with nothing before its partition but a table.
    pub fn plain() -> Layout {
        Layout {
            dax: false,
            align: BLOCK,
        }
    }

    /// A guest extension of Kata 4.1: a read-only disk on virtio-blk, an erofs in its first partition, the hash tree in its second.
    pub fn extension() -> Layout {
        Layout::plain()
    }

    /// The same with another alignment of its size.
    pub fn aligned(self, align: u64) -> Layout {
        Layout { align, ..self }
    }

    /// What the alignment must be a multiple of, and why.
    fn least(&self) -> (u64, &'static str) {
        if self.dax {
            let why = "the kernel maps an nvdimm 2 MiB at a time and drops one whose size is anything else";
            (dax::DATA_OFFSET, why)
        } else {
            let why = "file systems and hash trees are read in pages of 4 KiB";
            (BLOCK, why)
        }
    }

    /// Why the size is a multiple of what it is a multiple of, for people.
    pub fn reason(&self) -> String {
        let (least, why) = self.least();
        let size = bytes(self.align);
        if self.align == least {
            format!("Its size is a multiple of {size}: {why}.")
        } else if self.dax && self.align.is_multiple_of(MEMORY_SECTION) {
            format!(
                "Its size is a multiple of {size}: Kata plugs memory in sections of 128 MiB, which begin behind the nvdimm. For the \
                 kernel, {} are enough.",
                bytes(least)
            )
        } else {
            format!(
                "Its size is a multiple of {size}, as asked for; {} are enough: {why}.",
                bytes(least)
            )
        }
    }

    /// Whether a kernel would take it.
    pub fn check(&self) -> Result<(), LayoutError> {
        let (least, reason) = self.least();
        if self.align != 0 && self.align.is_multiple_of(least) {
            return Ok(());
        }
        Err(LayoutError::Align {
            align: self.align,
            least,
            reason,
        })
    }

    /// Where the file system begins: 1 MiB after the table, 3 MiB with an information block before it.
    pub fn root_offset(&self) -> u64 {
        if self.dax {
            dax::DATA_OFFSET + MIB
        } else {
            MIB
        }
    }

    /// The places of the root and the tree, for their lengths, and the disk's size.
    pub(super) fn places(&self, root: u64, hash: Option<u64>) -> Result<Places, LayoutError> {
        self.check()?;
        let up = |at: u64, to| at.checked_next_multiple_of(to).ok_or(LayoutError::TooLarge);
        let after = |at: u64, len: u64| at.checked_add(len).ok_or(LayoutError::TooLarge);
        let root = (self.root_offset(), up(root, BLOCK)?);
        let mut end = after(root.0, root.1)?;
        let mut tree = None;
        if let Some(len) = hash {
            let place = (up(end, MIB)?, up(len, BLOCK)?);
            end = after(place.0, place.1)?;
            tree = Some(place);
        }
        let size = up(end, self.align)?;
        if size / partition::SECTOR > u64::from(u32::MAX) {
            return Err(LayoutError::TooLarge);
        }
        Ok(Places {
            root,
            hash: tree,
            size,
        })
    }
}

/// Where everything lies: first byte and length.
pub(super) struct Places {
    pub root: (u64, u64),
    pub hash: Option<(u64, u64)>,
    pub size: u64,
}

/// A number of bytes in the largest unit that it is a multiple of.
fn bytes(count: u64) -> String {
    match count {
        whole if whole >= MIB && whole.is_multiple_of(MIB) => format!("{} MiB", whole / MIB),
        whole if whole.is_multiple_of(1024) => format!("{} KiB", whole / 1024),
        other => format!("{other} bytes"),
    }
}
