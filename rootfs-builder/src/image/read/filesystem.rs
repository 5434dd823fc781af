// SPDX-License-Identifier: Apache-2.0
//! What the readers of file systems have in common: what a file system says of itself, and the walk through its directories.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::builder::{Builder, Role, is_kept, join};
use super::error::ReadError;
use super::listing::{Digest, Item, ItemKind};
use super::source::{RangeReader, Source};

/// The longest target of a symbolic link, as in the kernel.
const MAX_TARGET: u64 = 4096;

/// A file system's own account of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Filesystem {
    /// `ext4` or `erofs`.
    pub kind: &'static str,
    /// Its first byte in the file.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
    /// The size of a block in bytes.
    pub block_size: u64,
    /// Its label.
    pub label: String,
    /// Its identifier.
    pub uuid: String,
    /// Features by the names that the file system's tools use.
    pub features: Vec<String>,
    /// Whether the superblock's checksum is right; none if it has none.
    pub checksum: Option<bool>,
    /// Whether file data lies at whole blocks of the device, as DAX needs; otherwise the first file of which it does not.
    pub unaligned: Option<String>,
}

/// The bytes of a file or a directory: ranges of the image, and holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it lies in the file system; none for a hole.
    pub start: Option<u64>,
    /// The number of bytes.
    pub len: u64,
}

/// An inode, however the file system keeps it.
#[derive(Clone, Debug)]
pub struct Inode {
    /// The number by which directories name it.
    pub number: u64,
    /// Where it lies in the file system, with its attributes.
    pub place: (u64, u64),
    /// The item without content, attributes and target. Its size is that of the content, of whatever kind it is.
    pub item: Item,
    /// A link's target, if it is in the inode itself.
    pub target: Option<Vec<u8>>,
    /// How many names it has.
    pub links: u32,
}

/// What a file system's reader has to know of the format.
pub trait Format {
    /// The file system's bytes.
    fn source(&self) -> &Source;
    /// The number of the root directory.
    fn root(&self) -> u64;
    /// Reads an inode.
    fn inode(&self, number: u64) -> Result<Inode, ReadError>;
    /// Where an inode's content lies. All of it: the lengths add up to the size.
    fn extents(&self, inode: &Inode) -> Result<Vec<Extent>, ReadError>;
    /// The extended attributes of an inode.
    fn attributes(&self, inode: &Inode) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, ReadError>;
    /// The names in a directory and the inodes they name, without `.` and `..`.
    fn directory(
        &self,
        inode: &Inode,
        builder: &mut Builder,
    ) -> Result<Vec<(Vec<u8>, u64)>, ReadError>;
}

/// Reads every entry. A directory that is found twice is a loop or a second name, and neither is allowed.
pub fn walk(format: &impl Format, builder: &mut Builder) -> Result<(), ReadError> {
    let mut walk = Walk {
        format,
        directories: BTreeSet::new(),
        digests: BTreeMap::new(),
    };
    let mut todo = vec![(Vec::new(), format.root())];
    while let Some((path, number)) = todo.pop() {
        let inode = walk.entry(&path, number, builder)?;
        let offset = inode.place.0;
        if inode.item.kind != ItemKind::Directory {
            if path.is_empty() {
                let what = "the root directory is none";
                return Err(format.source().broken(offset, what));
            }
            continue;
        }
        for extent in format.extents(&inode)? {
            if let Some(start) = extent.start {
                let start = format.source().start() + start;
                builder.place(start, extent.len, Role::Metadata, &path);
            }
        }
        let mut names = BTreeSet::new();
        for (name, number) in format.directory(&inode, builder)? {
            let broken = |what| format.source().broken(offset, what);
            let Some(path) = join(&path, &name) else {
                return Err(broken("a name in a directory is none"));
            };
            if !names.insert(name) {
                return Err(broken("a name is twice in a directory"));
            }
            builder.claim(path.len() as u64)?;
            todo.push((path, number));
        }
    }
    Ok(())
}

struct Walk<'a, F> {
    format: &'a F,
    directories: BTreeSet<u64>,
    /// Of files with several names.
    digests: BTreeMap<u64, Digest>,
}

impl<F: Format> Walk<'_, F> {
    fn entry(
        &mut self,
        path: &[u8],
        number: u64,
        builder: &mut Builder,
    ) -> Result<Inode, ReadError> {
        let source = self.format.source();
        let inode = self.format.inode(number)?;
        let (offset, len) = inode.place;
        builder.place(source.start() + offset, len, Role::Metadata, path);
        let mut item = inode.item.clone();
        item.xattrs = self.format.attributes(&inode)?;
        match item.kind {
            ItemKind::Directory if !self.directories.insert(number) => {
                return Err(source.broken(offset, "a directory is in two places"));
            }
            ItemKind::File => item.sha256 = Some(self.content(path, &inode, builder)?),
            ItemKind::Symlink => item.target = Some(self.target(&inode)?),
            _ => {}
        }
        if item.kind != ItemKind::File {
            item.size = 0;
        }
        builder.put(path, item)?;
        Ok(inode)
    }

    fn content(
        &mut self,
        path: &[u8],
        inode: &Inode,
        builder: &mut Builder,
    ) -> Result<Digest, ReadError> {
        let extents = self.format.extents(inode)?;
        let source = self.format.source();
        for extent in &extents {
            if let Some(start) = extent.start {
                source.check(start, extent.len)?;
                builder.place(source.start() + start, extent.len, Role::Content, path);
            }
        }
        // Under a name whose content is kept it is read again.
        if !is_kept(path)
            && let Some(digest) = self.digests.get(&inode.number)
        {
            return Ok(*digest);
        }
        let mut reader = ExtentReader::new(source, &extents);
        let failed = |error: std::io::Error| source.broken(inode.place.0, error.to_string());
        let digest = builder.content(path, inode.item.size, &mut reader, failed)?;
        if inode.links > 1 {
            self.digests.insert(inode.number, digest);
        }
        Ok(digest)
    }

    fn target(&self, inode: &Inode) -> Result<Vec<u8>, ReadError> {
        if let Some(target) = &inode.target {
            return Ok(target.clone());
        }
        let source = self.format.source();
        if inode.item.size == 0 || inode.item.size > MAX_TARGET {
            return Err(source.broken(inode.place.0, "a link's target is empty or too long"));
        }
        bytes(source, &self.format.extents(inode)?)
    }
}

/// The bytes of a few extents, which must not be large.
pub fn bytes(source: &Source, extents: &[Extent]) -> Result<Vec<u8>, ReadError> {
    let mut all = Vec::new();
    for extent in extents {
        match extent.start {
            Some(start) => all.extend(source.bytes(start, extent.len)?),
            None => return Err(source.broken(0, "a hole where there can be none")),
        }
    }
    Ok(all)
}

/// Reads extents one after the other.
struct ExtentReader<'a> {
    source: &'a Source,
    rest: std::slice::Iter<'a, Extent>,
    current: Part,
}

enum Part {
    Data(RangeReader),
    Zeros(u64),
}

impl<'a> ExtentReader<'a> {
    fn new(source: &'a Source, extents: &'a [Extent]) -> ExtentReader<'a> {
        ExtentReader {
            source,
            rest: extents.iter(),
            current: Part::Zeros(0),
        }
    }
}

impl std::io::Read for ExtentReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let count = match &mut self.current {
                Part::Data(reader) => reader.read(buffer)?,
                Part::Zeros(left) => {
                    let count =
                        usize::try_from(*left).map_or(buffer.len(), |n| n.min(buffer.len()));
                    buffer[..count].fill(0);
                    *left -= count as u64;
                    count
                }
            };
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let Some(next) = self.rest.next() else {
                return Ok(0);
            };
            self.current = match next.start {
                None => Part::Zeros(next.len),
                Some(start) => {
                    let reader = self.source.reader(start, next.len);
                    Part::Data(reader.map_err(std::io::Error::other)?)
                }
            };
        }
    }
}

/// A device's numbers as inodes keep them, see the kernel's `new_encode_dev`.
pub fn device(encoded: u32) -> (u32, u32) {
    (
        (encoded >> 8) & 0xfff,
        (encoded & 0xff) | ((encoded >> 12) & 0xf_ff00),
    )
}

/// An identifier as people write it.
pub fn uuid(bytes: &[u8]) -> String {
    let digits = guest_kernel::cache::hex(bytes);
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or_default();
    [
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32),
    ]
    .join("-")
}

/// A label: text up to the first zero.
pub fn label(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// The names of the bits that are set; those without a name by their number.
pub fn features(bits: u32, names: &[(u32, &str)]) -> Vec<String> {
    (0..32)
        .map(|bit| 1 << bit)
        .filter(|bit| bits & bit != 0)
        .map(|bit| match names.iter().find(|(known, _)| *known == bit) {
            Some((_, name)) => (*name).to_owned(),
            None => format!("{bit:#x}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_taken_apart() {
        assert_eq!(device(0x0501), (5, 1));
        assert_eq!(device(0x1230_4567), (0x45, 0x1_2367));
        assert_eq!(uuid(&[0xab; 16]), "abababab-abab-abab-abab-abababababab");
        assert_eq!(label(b"root\0x"), "root");
        assert_eq!(features(0b101, &[(1, "a")]), ["a", "0x4"]);
    }
}
