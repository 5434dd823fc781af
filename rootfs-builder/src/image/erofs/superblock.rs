// SPDX-License-Identifier: Apache-2.0
//! The superblock and its checksum.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{BLOCK, ErofsError, Options, inode};
use crate::image::read::crc32c;

/// Where the superblock begins; what is before it is left to boot loaders.
pub(super) const START: u64 = 1024;
/// Its size.
pub(super) const SIZE: u64 = 128;
/// Where in it the checksum stands.
const CHECKSUM: usize = 4;

const MAGIC: u32 = 0xe0f5_e1e2;
/// The first block has a checksum.
const SB_CHKSUM: u32 = 1;
/// Times in inodes are times of modification.
const MTIME: u32 = 2;
/// One byte of the field for the label stays NUL, which kernels insist on.
const LABEL_MAX: usize = 15;

/// What the superblock says. Everything else in it is zero: no feature that a kernel would have to know is used.
pub(super) struct Superblock {
    uuid: [u8; 16],
    label: [u8; 16],
    time: u64,
    /// The number of inodes.
    pub(super) inodes: u64,
    /// The number of blocks.
    pub(super) blocks: u32,
    /// Where the root directory's inode is, in bytes.
    pub(super) root: u64,
}

impl Superblock {
    pub(super) fn new(options: &Options) -> Result<Superblock, ErofsError> {
        let bytes = options.label.as_bytes();
        if bytes.len() > LABEL_MAX {
            return Err(ErofsError::LabelTooLong {
                label: options.label.clone(),
            });
        }
        let mut label = [0; 16];
        label[..bytes.len()].copy_from_slice(bytes);
        Ok(Superblock {
            uuid: options.uuid,
            label,
            time: options.mtime.into(),
            inodes: 0,
            blocks: 0,
            root: 0,
        })
    }

    /// Its bytes, with a checksum of zero.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SIZE as usize);
        out.extend(MAGIC.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend((SB_CHKSUM | MTIME).to_le_bytes());
        out.push(BLOCK.trailing_zeros() as u8);
        out.push(0); // slots after the superblock
        // The root directory is the first inode, so its number is small.
        out.extend((inode::number(self.root) as u16).to_le_bytes());
        out.extend(self.inodes.to_le_bytes());
        out.extend(self.time.to_le_bytes());
        out.extend(0u32.to_le_bytes()); // nanoseconds
        out.extend(self.blocks.to_le_bytes());
        out.extend(0u32.to_le_bytes()); // the block that inode numbers count from
        out.extend(0u32.to_le_bytes()); // the block of shared attributes
        out.extend(self.uuid);
        out.extend(self.label);
        out.resize(SIZE as usize, 0);
        out
    }
}

/// Puts the checksum of a complete image into it: CRC-32C from the superblock to the end of the first block.
pub(super) fn seal(file: &mut File) -> io::Result<()> {
    let mut block = vec![0; (BLOCK - START) as usize];
    file.read_exact_at(&mut block, START)?;
    file.write_all_at(&crc32c(!0, &block).to_le_bytes(), START + CHECKSUM as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_that_does_not_fit_is_refused() {
        let options = |label: &str| Options {
            label: label.to_owned(),
            ..Options::default()
        };
        assert!(Superblock::new(&options("fifteen bytes !")).is_ok());
        let Err(error) = Superblock::new(&options("sixteen bytes !!")) else {
            panic!("taken");
        };
        assert!(error.to_string().contains("sixteen"));
    }
}
