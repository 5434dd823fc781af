// SPDX-License-Identifier: Apache-2.0
//! Checks of a disk around its file system: the tables, the DAX information block, and that nothing is where nothing belongs.

use std::io::{self, BufReader, Read};
use std::path::Path;

use super::{Check, chain};
use crate::image::dax;
use crate::image::disk::{self, Parts};
use crate::image::partition::{Partition, SECTOR, Table};
use crate::image::read::{Format, Image, Source, u32_at};
use crate::image::verity::Verity;

/// The checks of a disk; none for what is no disk.
pub fn checks(path: &Path, verity: Option<&Verity>, image: Option<&Image>) -> Vec<Check> {
    // What could not be read may be a disk whose tables are broken.
    if path.is_dir() || image.is_some_and(|image| image.format != Format::Disk) {
        return Vec::new();
    }
    let parts = match disk::read(path) {
        Ok(parts) if parts.partitions.is_empty() => return Vec::new(),
        Ok(parts) => parts,
        Err(error) => return vec![Check::failed("disk", chain(&error))],
    };
    if let Some(offset) = exact(path, &parts) {
        let what = format!("the partition table at byte {offset} is not as it was written");
        return vec![Check::failed("disk", what), unused(path, &parts, verity)];
    }
    let count = match parts.partitions.len() {
        1 => "1 partition".to_owned(),
        several => format!("{several} partitions"),
    };
    let detail = match &parts.dax {
        None => count,
        Some(info) => format!(
            "{count} in two tables that agree; the DAX block {} is right",
            info.uuid_text()
        ),
    };
    vec![Check::ok("disk", detail), unused(path, &parts, verity)]
}

/// Where a table lies of which something has changed that nobody reads. There are two of them with DAX; when one is to the last byte
/// what this tool writes, then the other one must be so too. Other tools' tables are not judged.
pub(super) fn exact(path: &Path, parts: &Parts) -> Option<u64> {
    let moved = parts.dax.as_ref()?.data_offset;
    let source = Source::open(path).ok()?;
    let sectors = [0, moved].map(|offset| source.bytes(offset, SECTOR).unwrap_or_default());
    let written = |signature: u32, offset: u64| {
        let partitions = parts.partitions.iter().map(|partition| Partition {
            start: partition.start - offset,
            ..*partition
        });
        let partitions = partitions.collect();
        let table = Table {
            signature,
            partitions,
        };
        table.to_sector(parts.size - offset).ok()
    };
    let is = |index: usize, signature: u32| {
        let offset = [0, moved][index];
        written(signature, offset).is_some_and(|sector| sector[..] == sectors[index])
    };
    let signatures = [0, 1].map(|index: usize| u32_at(&sectors[index], 440));
    match (is(0, signatures[0]), is(1, signatures[1])) {
        (true, _) if !is(1, signatures[0]) => Some(moved),
        (false, true) => Some(0),
        _ => None,
    }
}

/// Whether all bytes are zero that belong to nothing. What hides there is measured by nobody.
fn unused(path: &Path, parts: &Parts, verity: Option<&Verity>) -> Check {
    let mut used = vec![(0, SECTOR)];
    if let Some(info) = &parts.dax {
        used.push((dax::OFFSET, dax::OFFSET + dax::SIZE as u64));
        used.push((info.data_offset, info.data_offset + SECTOR));
    }
    // The root hash covers no more of the partitions than this.
    let measured = [verity.map(Verity::data_size), verity.map(Verity::hash_size)];
    for (index, partition) in parts.partitions.iter().enumerate() {
        let size = measured.get(index).copied().flatten();
        let len = size.unwrap_or(partition.len).min(partition.len);
        used.push((partition.start, partition.start + len));
    }
    used.sort_unstable();
    let mut at = 0;
    for (start, end) in used.into_iter().chain([(parts.size, parts.size)]) {
        match first_set(path, at, start) {
            Ok(None) => at = at.max(end),
            Ok(Some(place)) => {
                let what = format!("byte {place} is not zero, and belongs to nothing");
                return Check::failed("unused", what);
            }
            Err(error) => return Check::failed("unused", error.to_string()),
        }
    }
    Check::ok("unused", "everything outside the partitions is zero")
}

/// The first byte that is not zero in a range.
fn first_set(path: &Path, start: u64, end: u64) -> io::Result<Option<u64>> {
    if start >= end {
        return Ok(None);
    }
    let source = Source::open(path).map_err(io::Error::other)?;
    let reader = source
        .reader(start, end - start)
        .map_err(io::Error::other)?;
    let mut reader = BufReader::with_capacity(1 << 20, reader);
    let (mut at, mut buffer) = (start, vec![0; 1 << 16]);
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            return Ok(None);
        }
        if let Some(place) = buffer[..count].iter().position(|byte| *byte != 0) {
            return Ok(Some(at + place as u64));
        }
        at += count as u64;
    }
}
