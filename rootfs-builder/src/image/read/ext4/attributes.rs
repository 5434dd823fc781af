// SPDX-License-Identifier: Apache-2.0
//! Extended attributes of ext4: some in the inode, the rest in one block.

use std::collections::BTreeMap;

use super::super::error::ReadError;
use super::super::source::{u16_at, u32_at};
use super::Ext4;

/// What both places begin with.
const MAGIC: u32 = 0xea02_0000;
/// The version of access control lists on disk.
const ACL_ON_DISK: u32 = 1;
/// The version of access control lists as programs see them.
const ACL_IN_ATTRIBUTE: u32 = 2;

/// The attributes of the inode with these bytes, which lies at `offset`.
pub fn read(
    ext4: &Ext4<'_>,
    inode: &[u8],
    offset: u64,
) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, ReadError> {
    let mut attributes = BTreeMap::new();
    let behind = 128
        + usize::from(if inode.len() > 128 {
            u16_at(inode, 0x80)
        } else {
            0
        });
    if inode.len() >= behind + 8 && u32_at(inode, behind) == MAGIC {
        let entries = &inode[behind + 4..];
        let at = offset + behind as u64 + 4;
        add(ext4, entries, 0, at, &mut attributes)?;
    }
    let block = u64::from(u32_at(inode, 0x68)) | u64::from(u16_at(inode, 0x76)) << 32;
    if block != 0 {
        let start = ext4.place(block, 1, offset)?;
        let bytes = ext4.source.bytes(start, ext4.block_size)?;
        if u32_at(&bytes, 0) != MAGIC {
            return Err(ext4.source.broken(start, "no attributes begin here"));
        }
        add(ext4, &bytes, 32, start, &mut attributes)?;
    }
    Ok(attributes)
}

/// Adds the attributes whose entries begin at `at` in `bytes`; values are counted from the beginning of `bytes`.
fn add(
    ext4: &Ext4<'_>,
    bytes: &[u8],
    mut at: usize,
    offset: u64,
    attributes: &mut BTreeMap<Vec<u8>, Vec<u8>>,
) -> Result<(), ReadError> {
    while at + 4 <= bytes.len() && bytes[at..at + 4] != [0; 4] {
        let broken = |what: &str| ext4.source.broken(offset + at as u64, what);
        let Some(entry) = bytes.get(at..at + 16) else {
            return Err(broken("an attribute ends early"));
        };
        if u32_at(entry, 4) != 0 {
            return Err(ext4.source.unsupported("ext4 with ea_inode"));
        }
        let prefix: &[u8] = match entry[1] {
            0 => b"",
            1 => b"user.",
            2 => b"system.posix_acl_access",
            3 => b"system.posix_acl_default",
            4 => b"trusted.",
            6 => b"security.",
            7 => b"system.",
            _ => return Err(broken("an attribute is of no known kind")),
        };
        let name_end = at + 16 + usize::from(entry[0]);
        let value = usize::from(u16_at(entry, 2));
        let value_end = value.checked_add(u32_at(entry, 8) as usize);
        let name = bytes.get(at + 16..name_end);
        let value = value_end.and_then(|end| bytes.get(value..end));
        let (Some(name), Some(value)) = (name, value) else {
            return Err(broken("an attribute ends early"));
        };
        let value = match entry[1] {
            2 | 3 => {
                access_list(value).ok_or_else(|| broken("an access control list is malformed"))?
            }
            _ => value.to_vec(),
        };
        attributes.insert([prefix, name].concat(), value);
        at = name_end.next_multiple_of(4);
    }
    Ok(())
}

/// Access control lists are kept shorter on disk than programs see them: whom an entry is for stands only where it matters.
fn access_list(mut bytes: &[u8]) -> Option<Vec<u8>> {
    if bytes.len() < 4 || u32_at(bytes, 0) != ACL_ON_DISK {
        return None;
    }
    let mut list = ACL_IN_ATTRIBUTE.to_le_bytes().to_vec();
    bytes = &bytes[4..];
    while !bytes.is_empty() {
        let tag = u16_at(bytes, 0);
        // ACL_USER and ACL_GROUP.
        let named = tag == 2 || tag == 8;
        let len = if named { 8 } else { 4 };
        list.extend(bytes.get(..4)?);
        list.extend(if named {
            bytes.get(4..8)?
        } else {
            &[0xff; 4][..]
        });
        bytes = bytes.get(len..)?;
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::access_list;

    #[test]
    fn access_lists_look_as_programs_see_them() {
        let disk = [
            &[1, 0, 0, 0][..],
            &[1, 0, 6, 0],
            &[2, 0, 7, 0, 0xe8, 3, 0, 0],
        ]
        .concat();
        let expected = [
            &[2, 0, 0, 0][..],
            &[1, 0, 6, 0, 255, 255, 255, 255],
            &[2, 0, 7, 0, 0xe8, 3, 0, 0],
        ]
        .concat();
        assert_eq!(access_list(&disk).unwrap(), expected);
        assert!(access_list(&disk[..15]).is_none() && access_list(&[2, 0, 0, 0]).is_none());
    }
}
