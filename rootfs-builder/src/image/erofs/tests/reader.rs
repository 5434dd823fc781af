// SPDX-License-Identifier: Apache-2.0
//! Reads images for the tests. It knows only what the writer may write, and panics at anything the kernel would not take.

use std::collections::BTreeMap;

const BLOCK: usize = 4096;

/// An image in memory.
pub struct Image {
    bytes: Vec<u8>,
}

/// One inode with the path it was found at.
#[derive(Debug, Default)]
pub struct Item {
    pub path: Vec<u8>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u64,
    pub links: u32,
    pub device: (u32, u32),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub content: Vec<u8>,
    pub address: u32,
    pub inline: bool,
}

impl Image {
    /// Checks the superblock.
    pub fn new(bytes: Vec<u8>) -> Image {
        let image = Image { bytes };
        assert_eq!(image.u32(1024), 0xe0f5_e1e2);
        assert_eq!(image.bytes[1024 + 12], 12);
        assert_eq!(image.u32(1024 + 0x24) as usize * BLOCK, image.bytes.len());
        assert_eq!(image.u32(1024 + 0x28), 0);
        assert_eq!(image.u32(1024 + 0x50), 0);
        image
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes[at..at + 2].try_into().unwrap())
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    /// Every inode, sorted by path.
    pub fn walk(&self) -> Vec<Item> {
        let root = u64::from(self.u16(1024 + 14));
        let mut items = Vec::new();
        self.visit(Vec::new(), root, root, &mut items);
        items.sort_by(|a, b| a.path.cmp(&b.path));
        assert_eq!(items.len() as u64, self.u64(1024 + 16));
        items
    }

    fn visit(&self, path: Vec<u8>, number: u64, parent: u64, items: &mut Vec<Item>) {
        let item = self.item(path, number);
        if item.mode & 0o170_000 == 0o040_000 {
            let mut names = self.names(&item.content);
            assert!(names.is_sorted_by(|a, b| a.0 < b.0), "{names:?}");
            for (own, expected) in [(&b"."[..], number), (b"..", parent)] {
                let at = names.iter().position(|name| name.0 == own).unwrap();
                assert_eq!(names.remove(at), (own.to_vec(), expected, 2));
            }
            for (name, child, file_type) in names {
                let slash: &[u8] = if item.path.is_empty() { b"" } else { b"/" };
                self.visit([&item.path, slash, &name].concat(), child, number, items);
                let mode = self.u16(child as usize * 32 + 4) >> 12;
                let types = [(8, 1), (4, 2), (2, 3), (6, 4), (1, 5), (10, 7)];
                assert!(types.contains(&(mode, file_type)), "{mode} {file_type}");
            }
        }
        items.push(item);
    }

    fn names(&self, content: &[u8]) -> Vec<(Vec<u8>, u64, u8)> {
        let mut names = Vec::new();
        for block in content.chunks(BLOCK) {
            let start = |index: usize| {
                usize::from(u16::from_le_bytes(
                    block[index * 12 + 8..][..2].try_into().unwrap(),
                ))
            };
            let count = start(0) / 12;
            assert_eq!(start(0) % 12, 0);
            for index in 0..count {
                let end = if index + 1 == count {
                    block.len()
                } else {
                    start(index + 1)
                };
                let name = &block[start(index)..end];
                let name = &name[..name
                    .iter()
                    .position(|byte| *byte == 0)
                    .unwrap_or(name.len())];
                assert!(!name.is_empty() && name.len() <= 255);
                let number = u64::from_le_bytes(block[index * 12..][..8].try_into().unwrap());
                names.push((name.to_vec(), number, block[index * 12 + 10]));
            }
        }
        names
    }

    fn item(&self, path: Vec<u8>, number: u64) -> Item {
        let at = number as usize * 32;
        let format = self.u16(at);
        assert!(format == 1 || format == 5, "{format}");
        let union = self.u32(at + 16);
        let mut item = Item {
            path,
            mode: self.u16(at + 4).into(),
            uid: self.u32(at + 24),
            gid: self.u32(at + 28),
            mtime: self.u64(at + 32),
            links: self.u32(at + 44),
            device: (union >> 8 & 0xfff, union & 0xff | union >> 12 & 0xf_ff00),
            address: union,
            inline: format == 5,
            ..Item::default()
        };
        assert!(at % BLOCK + 64 <= BLOCK);
        let mut end = at + 64;
        if let count @ 1.. = usize::from(self.u16(at + 2)) {
            assert!(count > 1 && end % BLOCK + 12 <= BLOCK);
            item.xattrs = self.xattrs(end + 12, count - 1);
            end += 12 + (count - 1) * 4;
        }
        if matches!(item.mode >> 12, 4 | 8 | 10) {
            item.content = self.content(&item, self.u64(at + 8) as usize, end);
        }
        item
    }

    fn xattrs(&self, start: usize, units: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut xattrs = BTreeMap::new();
        let mut at = start;
        while at < start + units * 4 {
            let name = at + 4..at + 4 + usize::from(self.bytes[at]);
            let value = name.end..name.end + usize::from(self.u16(at + 2));
            let prefix: &[u8] = match self.bytes[at + 1] {
                1 => b"user.",
                2 => b"system.posix_acl_access",
                3 => b"system.posix_acl_default",
                4 => b"trusted.",
                6 => b"security.",
                other => panic!("{other}"),
            };
            at = value.end.next_multiple_of(4);
            let name = [prefix, &self.bytes[name]].concat();
            assert_eq!(xattrs.insert(name, self.bytes[value].to_vec()), None);
        }
        assert_eq!(at, start + units * 4);
        xattrs
    }

    fn content(&self, item: &Item, size: usize, inode_end: usize) -> Vec<u8> {
        let tail = if item.inline { size % BLOCK } else { 0 };
        let start = item.address as usize * BLOCK;
        let mut content = match size - tail {
            0 => Vec::new(),
            full => self.bytes[start..start + full].to_vec(),
        };
        if item.inline {
            assert!(tail > 0 && inode_end % BLOCK + tail <= BLOCK);
            assert_ne!(inode_end % BLOCK, 0);
        } else {
            // What is mapped beyond the end is seen by programs.
            let padding = &self.bytes[start.min(self.bytes.len())..];
            let padding = padding
                .get(size..size.next_multiple_of(BLOCK))
                .unwrap_or(&[]);
            assert!(padding.iter().all(|byte| *byte == 0));
        }
        content.extend(&self.bytes[inode_end..inode_end + tail]);
        content
    }
}
