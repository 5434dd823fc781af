// SPDX-License-Identifier: Apache-2.0
//! Verified layers: dm-verity with the hash tree behind the data, on the same
//! disk or partition. Owns the parameters, the superblock that veritysetup(8)
//! puts before the tree, and the life of the mapped device; the table line is
//! init's.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use init::dm::{self, Device};
use init::verity::{Verity, VerityError};

use crate::storage::StorageError;
use crate::storage::mount::errno;
use crate::storage::undo::{Step, Undo};

/// How the superblock begins: its signature and version 1.
const SIGNATURE: &[u8; 12] = b"verity\0\0\x01\0\0\0";
/// Where it has the number of data blocks.
const DATA_BLOCKS: std::ops::Range<usize> = 72..80;
const SUPERBLOCK: usize = 512;

const BLOCK_SIZE: u64 = 4096;

/// Numbers the mapped devices: two containers may verify one disk at the same time.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// How a layer is verified, as a host says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::storage) struct LayerVerity {
    root_hash: String,
    salt: String,
    block_size: u64,
    hash_size: u64,
    /// Where the superblock, or without one the tree, begins.
    hash_offset: u64,
    superblock: bool,
}

impl Default for LayerVerity {
    fn default() -> Self {
        Self {
            root_hash: String::new(),
            salt: "-".to_owned(),
            block_size: BLOCK_SIZE,
            hash_size: BLOCK_SIZE,
            hash_offset: 0,
            superblock: true,
        }
    }
}

impl LayerVerity {
    /// Takes one `dmverity.` parameter.
    pub(super) fn take(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        let number = || {
            let digits = value.bytes().all(|b| b.is_ascii_digit());
            let number = digits.then(|| value.parse::<u64>().ok()).flatten();
            number.ok_or("it is not a number")
        };
        match key {
            "roothash" => self.root_hash = value.to_owned(),
            "salt" if value.is_empty() => self.salt = "-".to_owned(),
            "salt" => self.salt = value.to_owned(),
            "blocksize" => self.block_size = number()?,
            "hashsize" => self.hash_size = number()?,
            "hashoffset" => self.hash_offset = number()?,
            "no-superblock" => self.superblock = value != "true",
            "algorithm" if value == "sha256" => {}
            "algorithm" => return Err("only sha256 is supported"),
            "hashtype" if value == "1" => {}
            "hashtype" => return Err("only hash type 1 is supported"),
            _ => return Err("it is unknown"),
        }
        Ok(())
    }

    /// Whether a verified device can be made of the parameters.
    pub(super) fn check(&self) -> Result<(), VerityError> {
        self.verity(self.most_data_blocks()).map(drop)
    }

    /// The data lies before the tree.
    fn most_data_blocks(&self) -> u64 {
        self.hash_offset.checked_div(self.block_size).unwrap_or(0)
    }

    /// In init's words, which are strict about each of them.
    fn verity(&self, data_blocks: u64) -> Result<Verity, VerityError> {
        let Self {
            root_hash,
            salt,
            block_size,
            hash_size,
            ..
        } = self;
        let before = if self.superblock { *hash_size } else { 0 };
        let offset = self.hash_offset.saturating_add(before);
        let text = format!(
            "root_hash={root_hash},salt={salt},data_blocks={data_blocks},data_block_size={block_size},\
             hash_block_size={hash_size},hash_offset={offset}"
        );
        Verity::parse(&text, true)
    }

    /// Makes the verified device of `node` and answers with its node. Blocks.
    pub(super) fn open(&self, node: &Path, undo: &mut Undo) -> Result<PathBuf, StorageError> {
        let blocks = match self.superblock {
            true => self.data_blocks(node)?,
            false => self.most_data_blocks(),
        };
        let target = self.verity(blocks).map_err(StorageError::Verity)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let device = Device {
            name: format!("keelson-layer-{number}"),
            uuid: String::new(),
            minor: None,
            read_only: true,
            targets: vec![target.target(node, node)],
        };
        let node = dm::create(&device).map_err(StorageError::Mapped)?;
        undo.push(Step::RemoveMapped(device.name));
        Ok(node)
    }

    /// What the superblock says, which is as little to be trusted as the data: a
    /// wrong number makes another root hash.
    fn data_blocks(&self, node: &Path) -> Result<u64, StorageError> {
        let mut superblock = [0; SUPERBLOCK];
        let read =
            File::open(node).and_then(|d| d.read_exact_at(&mut superblock, self.hash_offset));
        read.map_err(|e| StorageError::at("read the verity superblock of", node)(errno(&e)))?;
        let most = self.most_data_blocks();
        let blocks = superblock[DATA_BLOCKS].try_into().map(u64::from_le_bytes);
        match blocks {
            Ok(blocks) if superblock.starts_with(SIGNATURE) && blocks <= most => Ok(blocks),
            _ => Err(StorageError::VeritySuperblock {
                node: node.to_owned(),
                offset: self.hash_offset,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "ac87db56303c9c1da433d7209b5a6ef3e4779df141200cbd7c157dcb8dd89c42";

    fn layer(words: &[(&str, &str)]) -> Result<LayerVerity, &'static str> {
        let mut layer = LayerVerity::default();
        layer.take("roothash", HASH)?;
        layer.take("hashoffset", "8192")?;
        for (key, value) in words {
            layer.take(key, value)?;
        }
        layer.check().map_err(|_| "refused")?;
        Ok(layer)
    }

    #[test]
    fn the_tree_begins_behind_the_superblock() {
        let line = |words: &[(&str, &str)]| {
            let verity = layer(words).unwrap().verity(2).unwrap();
            let node = Path::new("/dev/vda1");
            verity.target(node, node).arguments
        };
        let with = line(&[]);
        assert!(
            with.ends_with(&format!("4096 4096 2 3 sha256 {HASH} -")),
            "{with}"
        );
        let without = line(&[("no-superblock", "true"), ("salt", "5ebf")]);
        assert!(
            without.ends_with(&format!("4096 4096 2 2 sha256 {HASH} 5ebf")),
            "{without}"
        );
    }

    #[test]
    fn parameters_are_checked() {
        assert!(layer(&[("algorithm", "sha256"), ("hashtype", "1"), ("salt", "")]).is_ok());
        for bad in [
            ("roothash", "12"),
            ("roothash", ""),
            ("algorithm", "md5"),
            ("hashtype", "0"),
            ("hashoffset", "0"),
            ("hashoffset", "x"),
            ("hashoffset", "5000"),
            ("hashoffset", "18446744073709551615"),
            ("blocksize", "0"),
            ("blocksize", "1000"),
            ("hashsize", "3"),
            ("salt", "xyz"),
            ("salt", "- /dev/vda"),
            ("colour", "1"),
        ] {
            assert!(layer(&[bad]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_superblock_says_how_much_data_there_is_but_not_too_much() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let layer = layer(&[]).unwrap();
        assert!(layer.data_blocks(file.path()).is_err());
        file.as_file().set_len(16384).unwrap();
        let refused = layer.data_blocks(file.path()).unwrap_err();
        assert!(matches!(refused, StorageError::VeritySuperblock { .. }));
        file.as_file().write_all_at(SIGNATURE, 8192).unwrap();
        let set = |blocks: u64| {
            file.as_file()
                .write_all_at(&blocks.to_le_bytes(), 8192 + 72)
                .unwrap();
            layer.data_blocks(file.path())
        };
        assert_eq!(set(2).unwrap(), 2);
        assert!(set(3).is_err() && set(u64::MAX).is_err());
    }
}
