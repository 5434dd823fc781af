// SPDX-License-Identifier: Apache-2.0
//! Decides where each inode and each directory goes, and writes them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::tree::{Entry, Kind, Tree};

use super::directory::{self, Name};
use super::inode::{self, Inode};
use super::superblock::{self, Superblock};
use super::xattr::{self, Refused};
use super::{BLOCK, ErofsError};

/// What stands for the first block of a content that has none.
const NO_BLOCK: u32 = u32::MAX;
/// The kernel takes no longer name.
const NAME_MAX: usize = 255;
/// Nor a longer target, with the NUL byte behind it.
const TARGET_MAX: usize = 4095;

/// One inode to be written.
pub(super) struct Node<'a> {
    /// The path in the tree, empty for the root.
    pub path: &'a Path,
    /// What the tree says of it.
    pub entry: &'a Entry,
    /// The size of the content.
    pub size: u64,
    /// Where its inode begins, in bytes.
    pub offset: u64,
    /// The first block of its content, where it has blocks.
    pub address: Option<u32>,
    names: Vec<Name<'a>>,
    attributes: Vec<u8>,
    links: u32,
    /// How many of the content's last bytes follow the inode.
    inline: u64,
}

/// All inodes, the root first, then in the tree's order.
pub(super) struct Layout<'a> {
    /// The inodes.
    pub nodes: Vec<Node<'a>>,
    /// Where the inodes end and blocks begin, in blocks.
    inodes_end: u64,
    /// Where directories end and files may begin, in blocks.
    pub files_start: u64,
}

impl<'a> Layout<'a> {
    /// Places everything of a tree but the files' contents.
    pub(super) fn new(root: &'a Entry, tree: &'a Tree) -> Result<Layout<'a>, ErofsError> {
        let entries = std::iter::once((Path::new(""), root)).chain(tree.entries());
        let nodes: Result<Vec<_>, _> = entries
            .map(|(path, entry)| Node::new(path, entry))
            .collect();
        let mut layout = Layout {
            nodes: nodes?,
            inodes_end: 0,
            files_start: 0,
        };
        layout.name_all();
        layout.place_inodes();
        layout.place_blocks()?;
        Ok(layout)
    }

    /// Gives every directory its names, and every inode its number of links.
    fn name_all(&mut self) {
        let mut directories = HashMap::new();
        for index in 0..self.nodes.len() {
            let (path, kind) = (self.nodes[index].path, &self.nodes[index].entry.kind);
            let file_type = inode::file_type(kind);
            // The tree has the parents of all its entries, and has them first. The root is its own parent.
            let parent = path.parent().map_or(0, |parent| directories[parent]);
            let name = |name, node, file_type| Name {
                name,
                node,
                file_type,
            };
            if *kind == Kind::Directory {
                directories.insert(path, index);
                let own = [name(b".", index, file_type), name(b"..", parent, file_type)];
                self.nodes[index].names.extend(own);
                self.nodes[index].links += 1;
                if index > 0 {
                    self.nodes[parent].links += 1;
                }
            }
            if let Some(last) = path.file_name() {
                let names = &mut self.nodes[parent].names;
                names.push(name(last.as_bytes(), index, file_type));
            }
        }
        for node in &mut self.nodes {
            // Some names, such as "-", come before ".".
            node.names.sort_by_key(|name| name.name);
            if node.entry.kind == Kind::Directory {
                node.size = directory::size(&node.names);
            }
        }
    }

    /// An inode does not cross the end of a block with what belongs to it, unless it is larger than a block: the kernel refuses
    /// inline content that does.
    fn place_inodes(&mut self) {
        let mut end = superblock::START + superblock::SIZE;
        for node in &mut self.nodes {
            let head = inode::SIZE + node.attributes.len() as u64;
            let tail = node.size % BLOCK;
            // Of files nothing is inline: the kernel maps only whole blocks.
            if !matches!(node.entry.kind, Kind::File(_)) && head + tail <= BLOCK {
                node.inline = tail;
            }
            let size = head + node.inline;
            node.offset = end.next_multiple_of(inode::SLOT);
            if node.offset % BLOCK + size > BLOCK {
                node.offset = node.offset.next_multiple_of(BLOCK);
            }
            end = node.offset + size;
        }
        self.inodes_end = end.div_ceil(BLOCK);
    }

    /// Gives blocks to the directories and links that need some.
    fn place_blocks(&mut self) -> Result<(), ErofsError> {
        let mut next = self.inodes_end;
        for node in &mut self.nodes {
            let blocks = (node.size - node.inline).div_ceil(BLOCK);
            if blocks > 0 && !matches!(node.entry.kind, Kind::File(_)) {
                node.address = Some(block_number(next)?);
                next += blocks;
            }
        }
        self.files_start = next;
        Ok(())
    }

    /// Writes all that is before the files.
    pub(super) fn write_metadata(
        &self,
        superblock: &Superblock,
        mtime: u32,
        file: &mut File,
    ) -> io::Result<()> {
        file.rewind()?;
        let mut out = Padded {
            out: BufWriter::with_capacity(1 << 16, file),
            at: 0,
        };
        out.put(superblock::START, &superblock.encode())?;
        for (index, node) in self.nodes.iter().enumerate() {
            out.put(node.offset, &self.inode(index, mtime).encode())?;
            out.put(out.at, &node.attributes)?;
            let content = self.content(node);
            out.put(out.at, &content[content.len() - node.inline as usize..])?;
        }
        for node in &self.nodes {
            let content = self.content(node);
            if let (Some(address), false) = (node.address, content.is_empty()) {
                let end = content.len() - node.inline as usize;
                out.put(u64::from(address) * BLOCK, &content[..end])?;
            }
        }
        out.put(self.files_start * BLOCK, &[])?;
        out.out.flush()
    }

    fn inode(&self, index: usize, mtime: u32) -> Inode {
        let node = &self.nodes[index];
        let union = match node.entry.kind {
            // Numbers that do not fit were refused when the node was made.
            Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
                inode::device(major, minor).unwrap_or_default()
            }
            Kind::Fifo => 0,
            _ => node.address.unwrap_or(NO_BLOCK),
        };
        Inode {
            inline: node.inline > 0,
            attributes: xattr::count(&node.attributes).unwrap_or_default(),
            mode: node.entry.kind.type_bits() | node.entry.mode,
            size: node.size,
            union,
            serial: index as u32 + 1,
            uid: node.entry.uid,
            gid: node.entry.gid,
            mtime,
            links: node.links,
        }
    }

    /// The content of a directory or a symbolic link.
    fn content(&self, node: &Node) -> Vec<u8> {
        match &node.entry.kind {
            Kind::Directory => {
                directory::encode(&node.names, |node| inode::number(self.nodes[node].offset))
            }
            Kind::Symlink(target) => target.as_os_str().as_bytes().to_vec(),
            _ => Vec::new(),
        }
    }
}

impl<'a> Node<'a> {
    fn new(path: &'a Path, entry: &'a Entry) -> Result<Node<'a>, ErofsError> {
        let owned = || path.to_owned();
        if path.file_name().is_some_and(|name| name.len() > NAME_MAX) {
            return Err(ErofsError::NameTooLong { path: owned() });
        }
        let size = match &entry.kind {
            Kind::File(content) => content.len()?,
            Kind::Symlink(target) => match target.as_os_str().len() {
                1..=TARGET_MAX => target.as_os_str().len() as u64,
                _ => return Err(ErofsError::BadTarget { path: owned() }),
            },
            Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
                inode::device(*major, *minor)
                    .ok_or_else(|| ErofsError::BadDevice { path: owned() })?;
                0
            }
            Kind::Directory | Kind::Fifo => 0,
        };
        let attributes = xattr::encode(&entry.xattrs).map_err(|refused| match refused {
            Refused::Unknown(name) => ErofsError::UnknownAttribute {
                path: owned(),
                name: String::from_utf8_lossy(&name).into_owned(),
            },
            Refused::TooLarge => ErofsError::AttributesTooLarge { path: owned() },
        })?;
        Ok(Node {
            path,
            entry,
            size,
            offset: 0,
            address: None,
            names: Vec::new(),
            attributes,
            links: 1,
            inline: 0,
        })
    }
}

/// A block's number as the format holds it.
pub(super) fn block_number(block: u64) -> Result<u32, ErofsError> {
    // The last number stands for no block.
    u32::try_from(block)
        .ok()
        .filter(|block| *block != NO_BLOCK)
        .ok_or(ErofsError::TooLarge)
}

/// A writer that fills up to where the next thing begins with zeros.
struct Padded<W> {
    out: W,
    at: u64,
}

impl<W: Write> Padded<W> {
    fn put(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        io::copy(&mut io::repeat(0).take(offset - self.at), &mut self.out)?;
        self.out.write_all(bytes)?;
        self.at = offset + bytes.len() as u64;
        Ok(())
    }
}
