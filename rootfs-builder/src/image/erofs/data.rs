// SPDX-License-Identifier: Apache-2.0
//! The files' contents: streamed one after the other, each content once.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::tree::{Content, Kind};

use super::layout::{self, Layout, Node};
use super::{BLOCK, ErofsError};

/// How much of a file is in memory.
const BUFFER: usize = 1 << 18;

/// Writes every file of the layout and notes where it is. The image's end is returned, in blocks.
pub(super) fn write(
    layout: &mut Layout,
    image: &mut File,
    image_path: &Path,
) -> Result<u64, ErofsError> {
    let mut sizes: HashMap<u64, usize> = HashMap::new();
    let mut seen: HashMap<(u64, [u8; 32]), u32> = HashMap::new();
    let is_file = |node: &&Node| matches!(node.entry.kind, Kind::File(_));
    for node in layout.nodes.iter().filter(is_file) {
        *sizes.entry(node.size).or_default() += 1;
    }
    let mut writer = Writer {
        image,
        image_path,
        buffer: vec![0; BUFFER],
    };
    let mut next = layout.files_start;
    for node in &mut layout.nodes {
        let Kind::File(content) = &node.entry.kind else {
            continue;
        };
        let address = layout::block_number(next)?;
        // Only what has the size of something else can be equal to it; for the rest, digesting would be wasted.
        let digest = (sizes[&node.size] > 1).then(Sha256::new);
        let digest = writer.file(node.path, content, node.size, next, digest)?;
        let first = match digest {
            Some(digest) => *seen.entry((node.size, digest)).or_insert(address),
            None => address,
        };
        node.address = (node.size > 0).then_some(first);
        // A content that was there already is written over by the next one.
        if first == address {
            next += node.size.div_ceil(BLOCK);
        }
    }
    writer
        .image
        .set_len(next * BLOCK)
        .map_err(|source| writer.write_error(source))?;
    Ok(next)
}

struct Writer<'a> {
    image: &'a mut File,
    image_path: &'a Path,
    buffer: Vec<u8>,
}

impl Writer<'_> {
    fn write_error(&self, source: io::Error) -> ErofsError {
        ErofsError::Write {
            path: self.image_path.to_owned(),
            source,
        }
    }

    /// Writes one file at a block, with zeros to the end of its last block, and digests it if there is a digest.
    fn file(
        &mut self,
        path: &Path,
        content: &Content,
        size: u64,
        block: u64,
        mut digest: Option<Sha256>,
    ) -> Result<Option<[u8; 32]>, ErofsError> {
        let mut reader = content.open()?;
        self.image
            .seek(SeekFrom::Start(block * BLOCK))
            .map_err(|source| self.write_error(source))?;
        let mut left = size;
        loop {
            let count = read(&mut reader, &mut self.buffer, path)?;
            // The size decided about the digest and stands in the inode.
            if count as u64 > left || (count == 0 && left > 0) {
                return Err(ErofsError::Changed {
                    path: path.to_owned(),
                });
            }
            if count == 0 {
                break;
            }
            if let Some(digest) = &mut digest {
                digest.update(&self.buffer[..count]);
            }
            self.image
                .write_all(&self.buffer[..count])
                .map_err(|source| self.write_error(source))?;
            left -= count as u64;
        }
        let padding = size.next_multiple_of(BLOCK) - size;
        self.image
            .write_all(&[0; BLOCK as usize][..padding as usize])
            .map_err(|source| self.write_error(source))?;
        Ok(digest.map(|digest| digest.finalize().into()))
    }
}

fn read(reader: &mut dyn Read, buffer: &mut [u8], path: &Path) -> Result<usize, ErofsError> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => {
                return result.map_err(|source| ErofsError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        }
    }
}
