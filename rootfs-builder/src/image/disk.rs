// SPDX-License-Identifier: Apache-2.0
//! A raw disk in Kata's layout: a partition table, the file system in the first partition, and its hash tree, if there is one, in the
//! second.
//!
//! With DAX the disk is two in one. Seen whole, its table is in the first sector and the file system's partition begins at 3 MiB. The
//! kernel's nvdimm driver finds the information block at 4 KiB and shows what follows the first 2 MiB as a disk of its own, whose table
//! lies there and whose partition begins after 1 MiB: at the same place. Zeros are not written, so the file takes the space of what is
//! in it.

mod layout;
mod write;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::dax::{self, DaxError, InfoBlock};
use super::partition::{self, Partition, PartitionError, Table};
pub use layout::{BLOCK, Layout, LayoutError, MEMORY_SECTION, MIB};
pub use write::{Extent, Written, write};

/// Why a disk could not be written, or is none to use.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The layout is one that no kernel takes.
    #[error("{path} cannot be written", path = path.display())]
    Layout {
        /// The disk.
        path: PathBuf,
        /// Why not.
        source: LayoutError,
    },
    /// There is nothing to put into a partition.
    #[error("{path} is empty", path = path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The disk would replace what it is made of.
    #[error("{path} cannot be made of itself", path = path.display())]
    Itself {
        /// The file.
        path: PathBuf,
    },
    /// The partitions cannot be, or a table is broken.
    #[error("{path} has a bad partition table at byte {offset}", path = path.display())]
    Table {
        /// The disk.
        path: PathBuf,
        /// Where the table lies.
        offset: u64,
        /// What is wrong.
        source: PartitionError,
    },
    /// The information block is broken.
    #[error("{path} cannot be mapped", path = path.display())]
    Dax {
        /// The disk.
        path: PathBuf,
        /// What is wrong.
        source: DaxError,
    },
    /// The two tables say different things.
    #[error(
        "{path} has two partition tables that disagree: at byte 0 {first}, at byte {offset} {second}",
        path = path.display()
    )]
    Disagree {
        /// The disk.
        path: PathBuf,
        /// What the first says, in bytes of the whole disk.
        first: String,
        /// Where the second lies.
        offset: u64,
        /// What it says, in bytes of the whole disk.
        second: String,
    },
    /// The disk's size is none that an nvdimm can have.
    #[error("{path} cannot be an nvdimm: its size of {size} bytes is no multiple of {}", dax::DATA_OFFSET, path = path.display())]
    Size {
        /// The disk.
        path: PathBuf,
        /// Its size.
        size: u64,
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

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError::Io {
        action,
        path,
        source,
    }
}

/// What is on a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Parts {
    /// The disk's size.
    pub size: u64,
    /// The disk's signature in its table; zero for none.
    pub signature: u32,
    /// The information block, if the disk can be an nvdimm that is mapped.
    pub dax: Option<InfoBlock>,
    /// The partitions, in bytes of the whole disk; none for a file system that is a disk by itself.
    pub partitions: Vec<Partition>,
}

/// Reads what is on a disk, or a file that is a file system, and checks that both tables and the information block agree.
pub fn read(path: &Path) -> Result<Parts, DiskError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    let size = file.metadata().map_err(io_error("look at", path))?.len();
    let mut parts = Parts {
        size,
        signature: 0,
        dax: None,
        partitions: Vec::new(),
    };
    let Some(table) = table_at(&file, path, 0, size)? else {
        return Ok(parts);
    };
    parts.signature = table.signature;
    parts.partitions = table.partitions;
    let block = block_at(&file, path, size)?;
    let is_block = block.as_deref().is_some_and(dax::is_block);
    let is_mapped = is_block || has_second(&file, path, size, &parts.partitions)?;
    if let Some(block) = block.filter(|_| is_mapped) {
        parts.dax = Some(mapped(&file, path, &parts, &block)?);
    }
    Ok(parts)
}

/// The information block of a disk, checked against the rest of it.
fn mapped(
    file: &File,
    path: &Path,
    parts: &Parts,
    block: &dax::Block,
) -> Result<InfoBlock, DiskError> {
    let info = InfoBlock::parse(block).map_err(|source| DiskError::Dax {
        path: path.to_owned(),
        source,
    })?;
    if !parts.size.is_multiple_of(dax::DATA_OFFSET) {
        return Err(DiskError::Size {
            path: path.to_owned(),
            size: parts.size,
        });
    }
    let second = table_at(file, path, info.data_offset, parts.size)?;
    agree(path, &parts.partitions, info.data_offset, second)?;
    Ok(info)
}

/// The table at a place, if there is one. The disk that it describes goes from there to the end.
fn table_at(file: &File, path: &Path, offset: u64, size: u64) -> Result<Option<Table>, DiskError> {
    let mut sector = [0; partition::SECTOR as usize];
    if offset.saturating_add(partition::SECTOR) > size {
        return Ok(None);
    }
    let read = file.read_exact_at(&mut sector, offset);
    read.map_err(io_error("read", path))?;
    if !partition::is_table(&sector) {
        return Ok(None);
    }
    let table = Table::parse(&sector, size - offset);
    table.map(Some).map_err(|source| DiskError::Table {
        path: path.to_owned(),
        offset,
        source,
    })
}

/// What lies where an information block would.
fn block_at(file: &File, path: &Path, size: u64) -> Result<Option<Box<dax::Block>>, DiskError> {
    if size < dax::OFFSET + dax::SIZE as u64 {
        return Ok(None);
    }
    let mut block = Box::new([0; dax::SIZE]);
    let read = file.read_exact_at(&mut block[..], dax::OFFSET);
    read.map_err(io_error("read", path))?;
    Ok(Some(block))
}

/// Whether there is a second table where only an information block leads. Without that block, it has been lost.
fn has_second(file: &File, path: &Path, size: u64, first: &[Partition]) -> Result<bool, DiskError> {
    let offset = dax::DATA_OFFSET;
    if first.is_empty() || first.iter().any(|partition| partition.start <= offset) {
        return Ok(false);
    }
    // What is no good table there is anything at all.
    match table_at(file, path, offset, size) {
        Ok(second) => Ok(agree(path, first, offset, second).is_ok()),
        Err(DiskError::Table { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Checks that the second table has the partitions of the first.
fn agree(
    path: &Path,
    first: &[Partition],
    offset: u64,
    second: Option<Table>,
) -> Result<(), DiskError> {
    let second = second.ok_or_else(|| DiskError::Table {
        path: path.to_owned(),
        offset,
        source: PartitionError::NoTable,
    })?;
    let moved = |partition: Partition| Partition {
        start: partition.start + offset,
        ..partition
    };
    let second: Vec<Partition> = second.partitions.into_iter().map(moved).collect();
    if first == second {
        return Ok(());
    }
    Err(DiskError::Disagree {
        path: path.to_owned(),
        first: listed(first),
        offset,
        second: listed(&second),
    })
}

fn listed(partitions: &[Partition]) -> String {
    let one = |p: &Partition| format!("{}+{} (type {:02x})", p.start, p.len, p.kind);
    match partitions {
        [] => "nothing".to_owned(),
        some => some.iter().map(one).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests;
