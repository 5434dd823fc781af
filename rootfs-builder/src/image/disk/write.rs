// SPDX-License-Identifier: Apache-2.0
//! Writes a disk: the partitions first, digested on the way, then what identifies them.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::layout::{BLOCK, Layout, Places};
use super::{DiskError, io_error};
use crate::image::dax::{self, InfoBlock};
use crate::image::partition::{LINUX, Partition, Table};

/// How much is read at a time.
const CHUNK: usize = 1 << 20;

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// Its first byte.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Written {
    /// The disk's size.
    pub size: u64,
    /// The partition with the file system.
    pub root: Extent,
    /// The partition with the hash tree.
    pub hash: Option<Extent>,
}

/// Writes the new file `out`: a disk with the file system `root`, and with the hash tree `hash` if there is one.
pub fn write(
    root: &Path,
    hash: Option<&Path>,
    layout: &Layout,
    out: &Path,
) -> Result<Written, DiskError> {
    let failed = |source| DiskError::Layout {
        path: out.to_owned(),
        source,
    };
    let root = Source::open(root, out)?;
    let hash = hash.map(|path| Source::open(path, out)).transpose()?;
    let hash_len = hash.as_ref().map(|hash| hash.len);
    let places = layout.places(root.len, hash_len).map_err(failed)?;
    let file = File::create(out).map_err(io_error("create", out))?;
    file.set_len(places.size).map_err(io_error("write", out))?;
    let mut content = Sha256::new();
    root.copy(&file, out, places.root.0, &mut content)?;
    if let (Some(hash), Some(place)) = (&hash, places.hash) {
        hash.copy(&file, out, place.0, &mut content)?;
    }
    heads(&file, out, layout, &places, content.finalize().into())?;
    let extent = |(offset, len)| Extent { offset, len };
    Ok(Written {
        size: places.size,
        root: extent(places.root),
        hash: places.hash.map(extent),
    })
}

/// Writes the table, and with DAX the information block and the other table.
fn heads(
    file: &File,
    path: &Path,
    layout: &Layout,
    places: &Places,
    content: [u8; 32],
) -> Result<(), DiskError> {
    let put = |bytes: &[u8], at| {
        file.write_all_at(bytes, at)
            .map_err(io_error("write", path))
    };
    let table = |offset: u64| {
        let partition = |(start, len): (u64, u64)| Partition {
            start: start - offset,
            len,
            kind: LINUX,
        };
        let table = Table {
            signature: signature(&content),
            partitions: [Some(places.root), places.hash]
                .into_iter()
                .flatten()
                .map(partition)
                .collect(),
        };
        let sector = table.to_sector(places.size - offset);
        let sector = sector.map_err(|source| DiskError::Table {
            path: path.to_owned(),
            offset,
            source,
        })?;
        put(&sector, offset)
    };
    table(0)?;
    if layout.dax {
        put(&InfoBlock::new(&content).to_block(), dax::OFFSET)?;
        table(dax::DATA_OFFSET)?;
    }
    Ok(())
}

/// The disk's signature: never zero, which would mean none.
fn signature(content: &[u8; 32]) -> u32 {
    u32::from_le_bytes([content[0], content[1], content[2], content[3]]).max(1)
}

/// What goes into a partition.
struct Source<'a> {
    path: &'a Path,
    file: File,
    len: u64,
}

impl<'a> Source<'a> {
    fn open(path: &'a Path, out: &Path) -> Result<Source<'a>, DiskError> {
        let file = File::open(path).map_err(io_error("open", path))?;
        let metadata = file.metadata().map_err(io_error("look at", path))?;
        // What is not there yet is certainly another file.
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let len = metadata.len();
        if out
            .metadata()
            .is_ok_and(|other| identity(other) == identity(metadata))
        {
            let path = path.to_owned();
            return Err(DiskError::Itself { path });
        }
        if len == 0 {
            let path = path.to_owned();
            return Err(DiskError::Empty { path });
        }
        Ok(Source { path, file, len })
    }

    /// Copies it to a place of the disk, but for blocks of zeros, which are there already. All of it is digested.
    fn copy(
        &self,
        out: &File,
        out_path: &Path,
        at: u64,
        content: &mut Sha256,
    ) -> Result<(), DiskError> {
        content.update(self.len.to_le_bytes());
        let mut buffer = vec![0; CHUNK];
        let mut done = 0;
        while done < self.len {
            let count = (self.len - done).min(CHUNK as u64) as usize;
            let chunk = &mut buffer[..count];
            let read = (&self.file).read_exact(chunk);
            read.map_err(io_error("read", self.path))?;
            content.update(&*chunk);
            for run in runs(chunk) {
                let place = at + done + run.start as u64;
                let written = out.write_all_at(&chunk[run], place);
                written.map_err(io_error("write", out_path))?;
            }
            done += count as u64;
        }
        Ok(())
    }
}

/// The parts of a chunk that are not blocks of zeros, each as long as it can be.
fn runs(chunk: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    let mut at = 0;
    for block in chunk.chunks(BLOCK as usize) {
        let end = at + block.len();
        if block.iter().any(|byte| *byte != 0) {
            match runs.last_mut() {
                Some(run) if run.end == at => run.end = end,
                _ => runs.push(at..end),
            }
        }
        at = end;
    }
    runs
}
