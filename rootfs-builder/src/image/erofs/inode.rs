// SPDX-License-Identifier: Apache-2.0
//! One inode: 64 bytes, always in the long form, which alone has room for all owners, sizes and times.

use crate::tree::Kind;

/// An inode's size; attributes follow it, and after them what is inline of its content.
pub(super) const SIZE: u64 = 64;
/// Inodes begin at multiples of this and are numbered by it.
pub(super) const SLOT: u64 = 32;

/// Bit 0 of the format: the long form.
const LONG: u16 = 1;
/// Bits 1 to 3 of the format: the last bytes of the content follow the inode.
const INLINE: u16 = 2 << 1;

/// The number of the inode that begins at this byte.
pub(super) fn number(offset: u64) -> u64 {
    offset / SLOT
}

/// What stands in an inode.
pub(super) struct Inode {
    /// Whether the last bytes of the content follow the inode.
    pub inline: bool,
    /// The size of the attributes in units of the format, 0 for none.
    pub attributes: u16,
    /// Type and permissions.
    pub mode: u32,
    /// The size of the content.
    pub size: u64,
    /// The first block of the content, or a device's number.
    pub union: u32,
    /// A number from 1 on, which is only shown to programs that know no long inode numbers.
    pub serial: u32,
    /// The owner.
    pub uid: u32,
    /// The owning group.
    pub gid: u32,
    /// The time of modification.
    pub mtime: u32,
    /// How many names it has.
    pub links: u32,
}

impl Inode {
    /// Its bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let format = LONG | if self.inline { INLINE } else { 0 };
        let mut out = Vec::with_capacity(SIZE as usize);
        out.extend(format.to_le_bytes());
        out.extend(self.attributes.to_le_bytes());
        out.extend((self.mode as u16).to_le_bytes());
        out.extend(0u16.to_le_bytes());
        out.extend(self.size.to_le_bytes());
        out.extend(self.union.to_le_bytes());
        out.extend(self.serial.to_le_bytes());
        out.extend(self.uid.to_le_bytes());
        out.extend(self.gid.to_le_bytes());
        out.extend(u64::from(self.mtime).to_le_bytes());
        out.extend(0u32.to_le_bytes()); // nanoseconds
        out.extend(self.links.to_le_bytes());
        out.resize(SIZE as usize, 0);
        out
    }
}

/// The kernel's 32-bit form of a device's number; none if the numbers do not fit into it.
pub(super) fn device(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20)
        .then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// The type of an entry as directories say it.
pub(super) fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File(_) => 1,
        Kind::Directory => 2,
        Kind::CharDevice(..) => 3,
        Kind::BlockDevice(..) => 4,
        Kind::Fifo => 5,
        Kind::Symlink(_) => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_as_the_kernel_writes_them() {
        assert_eq!(device(5, 1), Some(0x501));
        assert_eq!(device(8, 0x123), Some(0x0010_0823));
        assert_eq!(device(0xfff, 0xf_ffff), Some(0xffff_ffff));
        assert_eq!(device(0x1000, 0), None);
        assert_eq!(device(0, 0x10_0000), None);
    }
}
