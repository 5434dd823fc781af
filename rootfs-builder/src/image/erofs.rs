// SPDX-License-Identifier: Apache-2.0
//! The EROFS format: a read-only root that the kernel maps straight from the device (DAX), see the kernel's
//! `Documentation/filesystems/erofs.rst`.
//!
//! Written here and not by `mkfs.erofs`, because owners, modes, devices and attributes come from the tree and not from a directory of
//! the host. Files are never compressed and never share a block with metadata, which DAX asks for; files with equal contents share
//! their blocks. The image is: superblock, inodes, directories that do not fit beside their inode, files.

mod data;
mod directory;
mod inode;
mod layout;
mod superblock;
#[cfg(test)]
mod tests;
mod xattr;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::tree::{Entry, Tree, TreeError};

use layout::Layout;
use superblock::Superblock;

/// The size of a block. Another one than the page size is refused by kernels before 6.4.
const BLOCK: u64 = 4096;

/// What a tree does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The file system's identity.
    pub uuid: [u8; 16],
    /// The time of everything in it, in seconds since the epoch.
    pub mtime: u32,
    /// The file system's name, at most 15 bytes.
    pub label: String,
}

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The label does not fit into the superblock.
    #[error("The label {label:?} is longer than 15 bytes")]
    LabelTooLong {
        /// The label.
        label: String,
    },
    /// A name is longer than 255 bytes.
    #[error("The name of {path} is longer than 255 bytes", path = path.display())]
    NameTooLong {
        /// Its path in the tree.
        path: PathBuf,
    },
    /// A symbolic link's target is empty or longer than 4095 bytes.
    #[error("The symbolic link {path} has a target that is empty or longer than 4095 bytes", path = path.display())]
    BadTarget {
        /// Its path in the tree.
        path: PathBuf,
    },
    /// A device's numbers are beyond what Linux has: 12 bits for the major, 20 for the minor one.
    #[error("The device numbers of {path} are too large", path = path.display())]
    BadDevice {
        /// Its path in the tree.
        path: PathBuf,
    },
    /// An extended attribute is in a namespace that EROFS has not.
    #[error("{path} has the extended attribute {name}, which EROFS cannot hold: it knows user, trusted, security and POSIX ACLs", path = path.display())]
    UnknownAttribute {
        /// Its path in the tree.
        path: PathBuf,
        /// The attribute's name.
        name: String,
    },
    /// An extended attribute, or all those of a file together, are too large.
    #[error("The extended attributes of {path} are too large", path = path.display())]
    AttributesTooLarge {
        /// Its path in the tree.
        path: PathBuf,
    },
    /// There are more blocks than the format can count (16 TiB).
    #[error("The tree is too large for an EROFS image")]
    TooLarge,
    /// A file changed its size while it was read.
    #[error("{path} changed while it was read", path = path.display())]
    Changed {
        /// Its path in the tree.
        path: PathBuf,
    },
    /// A file's content cannot be reached.
    #[error(transparent)]
    Content(#[from] TreeError),
    /// A file's content cannot be read.
    #[error("Cannot read the content of {path}", path = path.display())]
    Read {
        /// Its path in the tree.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The image cannot be written.
    #[error("Cannot write {path}", path = path.display())]
    Write {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Writes the tree as an image to `path`, in place of what is there. The size of the image is returned, a multiple of 4096.
pub fn write(tree: &Tree, options: &Options, path: &Path) -> Result<u64, ErofsError> {
    let mut superblock = Superblock::new(options)?;
    let root = Entry::directory(0o755);
    let mut layout = Layout::new(&root, tree)?;
    let write_error = |source| ErofsError::Write {
        path: path.to_owned(),
        source,
    };
    let mut file = create(path).map_err(write_error)?;
    // Files first: only then are the addresses known that stand in the inodes before them.
    let end = data::write(&mut layout, &mut file, path)?;
    superblock.blocks = u32::try_from(end).map_err(|_| ErofsError::TooLarge)?;
    superblock.inodes = layout.nodes.len() as u64;
    superblock.root = layout.nodes[0].offset;
    layout
        .write_metadata(&superblock, options.mtime, &mut file)
        .map_err(write_error)?;
    superblock::seal(&mut file).map_err(write_error)?;
    Ok(end * BLOCK)
}

fn create(path: &Path) -> io::Result<File> {
    // Read as well: the superblock's checksum covers what follows it.
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
}
