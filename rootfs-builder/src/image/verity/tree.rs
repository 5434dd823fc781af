// SPDX-License-Identifier: Apache-2.0
//! The tree itself. Each level holds the digests of the blocks below it; the top level, one block, comes first in the file, and the
//! digest of that block is the root hash. Only one block of each level is in memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{Verity, VerityError, io_error};

/// The length of a digest, SHA-256's.
pub const DIGEST: usize = 32;

/// One block's digest.
pub type Digest = [u8; DIGEST];

/// Digests blocks after the salt, as version 1 of the format does.
pub struct Digester {
    salted: Sha256,
}

impl Digester {
    /// Takes in the salt, once for all blocks.
    pub fn new(salt: &[u8]) -> Digester {
        Digester {
            salted: Sha256::new().chain_update(salt),
        }
    }

    /// A block's digest.
    pub fn digest(&self, block: &[u8]) -> Digest {
        self.salted.clone().chain_update(block).finalize().into()
    }
}

/// Where a level lies in the tree's file, counted in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Its first block.
    pub first: u64,
    /// How many there are.
    pub blocks: u64,
}

/// The levels above this many blocks of data, the lowest first; none above a single one.
pub fn levels(data_blocks: u64, hash_block_size: u32) -> Vec<Level> {
    let per_block = u64::from(hash_block_size) / DIGEST as u64;
    let mut levels = Vec::new();
    let mut blocks = data_blocks;
    while blocks > 1 {
        blocks = blocks.div_ceil(per_block);
        levels.push(Level { first: 0, blocks });
    }
    let mut first = 0;
    for level in levels.iter_mut().rev() {
        level.first = first;
        first += level.blocks;
    }
    levels
}

/// Writes a tree while the digests of the data come in.
pub struct Writer<'a> {
    file: &'a File,
    digester: Digester,
    block_size: usize,
    levels: Vec<Level>,
    /// Of each level, how many blocks are written, and the one that is being filled.
    blocks: Vec<(u64, Vec<u8>)>,
    root: Digest,
}

impl Writer<'_> {
    /// A writer of the tree of these parameters, whose root hash is not known yet.
    pub fn new<'a>(file: &'a File, verity: &Verity) -> Writer<'a> {
        let levels = verity.levels();
        Writer {
            file,
            digester: Digester::new(&verity.salt),
            block_size: verity.hash_block_size as usize,
            blocks: vec![(0, Vec::with_capacity(verity.hash_block_size as usize)); levels.len()],
            levels,
            root: [0; DIGEST],
        }
    }

    /// Adds the digest of the next block of data.
    pub fn add(&mut self, digest: &Digest) -> io::Result<()> {
        self.put(0, digest)
    }

    fn put(&mut self, level: usize, digest: &Digest) -> io::Result<()> {
        let Some((_, block)) = self.blocks.get_mut(level) else {
            self.root = *digest;
            return Ok(());
        };
        block.extend_from_slice(digest);
        if block.len() < self.block_size {
            return Ok(());
        }
        self.flush(level)
    }

    /// Writes a level's block, filled up with zeros, and puts its digest into the level above.
    fn flush(&mut self, level: usize) -> io::Result<()> {
        let (written, block) = &mut self.blocks[level];
        block.resize(self.block_size, 0);
        let place = (self.levels[level].first + *written) * self.block_size as u64;
        self.file.write_all_at(block, place)?;
        let digest = self.digester.digest(block);
        block.clear();
        *written += 1;
        self.put(level + 1, &digest)
    }

    /// Writes what is left and returns the root hash.
    pub fn finish(mut self) -> io::Result<Digest> {
        for level in 0..self.levels.len() {
            if !self.blocks[level].1.is_empty() {
                self.flush(level)?;
            }
        }
        Ok(self.root)
    }
}

/// Reads a tree, each block checked before anything in it is believed.
pub struct Reader<'a> {
    file: &'a File,
    /// The file's name, and where the tree begins in it.
    place: (&'a Path, u64),
    digester: &'a Digester,
    block_size: usize,
    root: Digest,
    levels: Vec<Level>,
    /// Of each level, the number of the block read last, and the block.
    blocks: Vec<Option<(u64, Vec<u8>)>>,
}

impl<'a> Reader<'a> {
    /// A reader of the tree at a place of a file.
    pub fn new(
        file: &'a File,
        place: (&'a Path, u64),
        digester: &'a Digester,
        verity: &Verity,
    ) -> Reader<'a> {
        let levels = verity.levels();
        Reader {
            file,
            place,
            digester,
            block_size: verity.hash_block_size as usize,
            root: verity.root_hash,
            blocks: vec![None; levels.len()],
            levels,
        }
    }

    /// What the tree says a block of the data has for its digest.
    pub fn digest_of(&mut self, data_block: u64) -> Result<Digest, VerityError> {
        self.entry(0, data_block)
    }

    fn entry(&mut self, level: usize, number: u64) -> Result<Digest, VerityError> {
        if level == self.levels.len() {
            return Ok(self.root);
        }
        let per_block = (self.block_size / DIGEST) as u64;
        let wanted = number / per_block;
        let block = match self.blocks[level].take() {
            Some((at, block)) if at == wanted => block,
            _ => self.read(level, wanted)?,
        };
        let at = (number % per_block) as usize * DIGEST;
        let mut digest = [0; DIGEST];
        digest.copy_from_slice(&block[at..at + DIGEST]);
        self.blocks[level] = Some((wanted, block));
        Ok(digest)
    }

    fn read(&mut self, level: usize, number: u64) -> Result<Vec<u8>, VerityError> {
        let (path, start) = self.place;
        let offset = start + (self.levels[level].first + number) * self.block_size as u64;
        let mut block = vec![0; self.block_size];
        let read = self.file.read_exact_at(&mut block, offset);
        read.map_err(io_error("read", path))?;
        if self.entry(level + 1, number)? == self.digester.digest(&block) {
            return Ok(block);
        }
        Err(VerityError::Hash {
            path: path.to_owned(),
            level,
            block: number,
            offset,
        })
    }
}
