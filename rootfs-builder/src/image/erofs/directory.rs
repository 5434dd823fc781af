// SPDX-License-Identifier: Apache-2.0
//! A directory's content: blocks that each hold records of fixed size, sorted by name, and behind them the names.

use std::ops::Range;

use super::BLOCK;

/// The size of a record.
const RECORD: usize = 12;

/// One name in a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name<'a> {
    /// The name, at most 255 bytes.
    pub name: &'a [u8],
    /// Which of the nodes it names.
    pub node: usize,
    /// That node's type.
    pub file_type: u8,
}

impl Name<'_> {
    fn size(&self) -> usize {
        RECORD + self.name.len()
    }
}

/// The size of the content. Only the last block may be shorter than a block.
pub(super) fn size(names: &[Name]) -> u64 {
    let blocks = blocks(names);
    let full = blocks.len().saturating_sub(1) as u64 * BLOCK;
    let last = blocks.last().cloned().unwrap_or_default();
    full + names[last].iter().map(Name::size).sum::<usize>() as u64
}

/// The content; `number` gives the inode number of a node.
pub(super) fn encode(names: &[Name], number: impl Fn(usize) -> u64) -> Vec<u8> {
    let mut out = Vec::new();
    for range in blocks(names) {
        out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
        let names = &names[range];
        let mut at = names.len() * RECORD;
        for name in names {
            out.extend(number(name.node).to_le_bytes());
            out.extend((at as u16).to_le_bytes());
            out.push(name.file_type);
            out.push(0);
            at += name.name.len();
        }
        for name in names {
            out.extend(name.name);
        }
    }
    out
}

/// Which names are in which block.
fn blocks(names: &[Name]) -> Vec<Range<usize>> {
    let mut blocks = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (index, name) in names.iter().enumerate() {
        if used + name.size() > BLOCK as usize {
            blocks.push(start..index);
            (start, used) = (index, 0);
        }
        used += name.size();
    }
    blocks.push(start..names.len());
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_directory_is_as_the_format_says() {
        let names = [(b".", 0), (b"a", 1)].map(|(name, node)| Name {
            name: &name[..],
            node,
            file_type: 2 - node as u8,
        });
        let expected = *b"\x24\0\0\0\0\0\0\0\x18\0\x02\0\x26\0\0\0\0\0\0\0\x19\0\x01\0.a";
        let bytes = encode(&names, |node| 36 + 2 * node as u64);
        assert_eq!(bytes, expected);
        assert_eq!(size(&names), bytes.len() as u64);
    }

    #[test]
    fn a_full_block_ends_exactly() {
        // 16 * (12 + 244) = 4096.
        let long = [b'n'; 244];
        let name = Name {
            name: &long,
            node: 0,
            file_type: 1,
        };
        assert_eq!(blocks(&[name; 16]).len(), 1);
        assert_eq!(size(&[name; 16]), 4096);
        assert_eq!(blocks(&[name; 17]), [0..16, 16..17]);
        assert_eq!(size(&[name; 17]), 4096 + 256);
        assert_eq!(encode(&[name; 17], |_| 0).len(), 4096 + 256);
    }
}
