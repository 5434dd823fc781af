// SPDX-License-Identifier: Apache-2.0
//! dm-verity: the tree of digests that lets a kernel check each block of a file system as it is read, down from one root hash.
//!
//! The format is the kernel's (`Documentation/admin-guide/device-mapper/verity.rst`), version 1, without the superblock that only
//! cryptsetup knows: what `veritysetup format --no-superblock` writes. Needs neither root nor a device; never changes the data.

mod params;
mod tree;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use params::ParamsError;
use tree::{DIGEST, Digester, Level, Reader, Writer, levels};

/// The block size of what is written here, for data and for digests.
pub const BLOCK: u32 = 4096;
/// The longest salt that the kernel takes.
pub const MAX_SALT: usize = 256;
/// How much is read at a time; a multiple of every block size.
const CHUNK: usize = 1 << 20;

/// Why a tree could not be made, or does not hold.
#[derive(Debug, thiserror::Error)]
pub enum VerityError {
    /// The data is not a whole number of blocks.
    #[error("{path} cannot be measured: its size of {size} bytes is no multiple of {BLOCK}", path = path.display())]
    Size {
        /// The data.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// The salt is too long.
    #[error("The salt of {path} has {length} bytes; {MAX_SALT} is the most", path = path.display())]
    Salt {
        /// The data.
        path: PathBuf,
        /// The salt's length.
        length: usize,
    },
    /// The parameters are none that a kernel takes.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// A file ends before what the parameters say.
    #[error("{path} is too short: {needed} bytes are measured, and it has {size}", path = path.display())]
    Short {
        /// The file.
        path: PathBuf,
        /// Where the measured part ends in it.
        needed: u64,
        /// Where it ends.
        size: u64,
    },
    /// A block of the data is not what was measured.
    #[error("{path} is not what was measured: block {block}, at byte {offset}, differs", path = path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// The block's number in the data.
        block: u64,
        /// Where it begins in the file.
        offset: u64,
    },
    /// A block of the tree is not what the one above it, or the root hash, says.
    #[error(
        "The hash tree in {path} does not fit the root hash: block {block} of level {level}, at byte {offset}, differs",
        path = path.display()
    )]
    Hash {
        /// The file.
        path: PathBuf,
        /// The level; 0 holds the digests of the data.
        level: usize,
        /// The block's number in its level.
        block: u64,
        /// Where it begins in the file.
        offset: u64,
    },
    /// A file operation failed.
    #[error("Cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VerityError {
    let path = path.to_owned();
    move |source| VerityError::Io {
        action,
        path,
        source,
    }
}

/// What a kernel must be told to check data against its tree. The hash is SHA-256, the version 1. Digest and salt are hexadecimal
/// in documents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "params::Document", into = "params::Document")]
pub struct Verity {
    /// The digest that vouches for all others.
    pub root_hash: [u8; DIGEST],
    /// What is hashed before each block; may be empty.
    pub salt: Vec<u8>,
    /// How many blocks of data there are.
    pub data_blocks: u64,
    /// Their size.
    pub data_block_size: u32,
    /// The size of the tree's blocks.
    pub hash_block_size: u32,
}

impl Verity {
    /// The number of bytes that are measured.
    pub fn data_size(&self) -> u64 {
        self.data_blocks * u64::from(self.data_block_size)
    }

    /// The number of bytes of the tree; none for a single block of data, whose digest is the root hash.
    pub fn hash_size(&self) -> u64 {
        let blocks: u64 = self.levels().iter().map(|level| level.blocks).sum();
        blocks * u64::from(self.hash_block_size)
    }

    fn levels(&self) -> Vec<Level> {
        levels(self.data_blocks, self.hash_block_size)
    }
}

/// Writes the tree of `data` to the new file `hash_out`.
pub fn format(data: &Path, salt: &[u8], hash_out: &Path) -> Result<Verity, VerityError> {
    let input = File::open(data).map_err(io_error("open", data))?;
    let size = input.metadata().map_err(io_error("look at", data))?.len();
    if size == 0 || !size.is_multiple_of(BLOCK.into()) {
        return Err(VerityError::Size {
            path: data.to_owned(),
            size,
        });
    }
    if salt.len() > MAX_SALT {
        return Err(VerityError::Salt {
            path: data.to_owned(),
            length: salt.len(),
        });
    }
    let mut verity = Verity {
        root_hash: [0; DIGEST],
        salt: salt.to_owned(),
        data_blocks: size / u64::from(BLOCK),
        data_block_size: BLOCK,
        hash_block_size: BLOCK,
    };
    let output = File::create(hash_out).map_err(io_error("create", hash_out))?;
    let mut writer = Writer::new(&output, &verity);
    let digester = Digester::new(salt);
    each_block(&input, data, 0, &verity, |_, block| {
        let digest = digester.digest(block);
        writer.add(&digest).map_err(io_error("write", hash_out))
    })?;
    verity.root_hash = writer.finish().map_err(io_error("write", hash_out))?;
    Ok(verity)
}

/// Checks that data is what was measured. Both are a file and the place in it where they begin; what follows them is not looked at.
pub fn verify(data: (&Path, u64), hash: (&Path, u64), verity: &Verity) -> Result<(), VerityError> {
    verity.check()?;
    let input = open(data, verity.data_size())?;
    let hashes = open(hash, verity.hash_size())?;
    let digester = Digester::new(&verity.salt);
    let mut reader = Reader::new(&hashes, hash, &digester, verity);
    each_block(&input, data.0, data.1, verity, |number, block| {
        if reader.digest_of(number)? == digester.digest(block) {
            return Ok(());
        }
        Err(VerityError::Data {
            path: data.0.to_owned(),
            block: number,
            offset: data.1 + number * u64::from(verity.data_block_size),
        })
    })
}

/// Opens a file that has `size` bytes after a place in it.
fn open((path, offset): (&Path, u64), size: u64) -> Result<File, VerityError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    let actual = file.metadata().map_err(io_error("look at", path))?.len();
    let needed = offset.saturating_add(size);
    if needed > actual {
        return Err(VerityError::Short {
            path: path.to_owned(),
            needed,
            size: actual,
        });
    }
    Ok(file)
}

/// Hands each block of the data, with its number, to `with`.
fn each_block(
    input: &File,
    path: &Path,
    start: u64,
    verity: &Verity,
    mut with: impl FnMut(u64, &[u8]) -> Result<(), VerityError>,
) -> Result<(), VerityError> {
    let (mut number, mut at, end) = (0, start, start + verity.data_size());
    let mut buffer = vec![0; CHUNK];
    while at < end {
        let count = (end - at).min(CHUNK as u64);
        let chunk = &mut buffer[..count as usize];
        input
            .read_exact_at(chunk, at)
            .map_err(io_error("read", path))?;
        for block in chunk.chunks(verity.data_block_size as usize) {
            with(number, block)?;
            number += 1;
        }
        at += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
