// SPDX-License-Identifier: Apache-2.0
//! Checks of what a format has of its own against errors: checksums of file systems, the end of archives.

use ext4_view::{Ext4, Ext4Error, Ext4Read, Path as InsidePath};

use super::{Check, chain};
use crate::image::read::{Image, ItemKind, Source, show};

/// The checks that the image's format offers.
pub fn checks(image: &Image) -> Vec<Check> {
    let mut checks = Vec::new();
    if !image.format.is_device() {
        checks.push(match image.findings.first() {
            None => Check::ok("archive", "complete, in an order that can be unpacked"),
            Some(_) => Check::failed("archive", image.findings.join("; ")),
        });
    }
    let Some(filesystem) = &image.filesystem else {
        return checks;
    };
    checks.push(match filesystem.checksum {
        None => Check::skipped("superblock", "has no checksum"),
        Some(true) => Check::ok("superblock", "its checksum is right"),
        Some(false) => Check::failed(
            "superblock",
            format!(
                "the checksum of the superblock at byte {} is wrong",
                filesystem.offset + 1024
            ),
        ),
    });
    if filesystem.kind == "ext4" && filesystem.checksum.is_some() {
        checks.push(match ext4(image, filesystem.offset, filesystem.size) {
            Ok(count) => Check::ok(
                "metadata",
                format!("the checksums of {count} entries are right"),
            ),
            Err(detail) => Check::failed("metadata", detail),
        });
    }
    checks
}

/// Part of a file, as the reader of ext4 wants it.
struct Reader(Source);

impl Ext4Read for Reader {
    fn read(
        &mut self,
        start: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(self.0.read_at(start, buffer)?)
    }
}

/// Goes through all inodes, directories and extents of an ext4 whose names have been read already; each has its checksum. Returns how
/// many entries there are.
fn ext4(image: &Image, offset: u64, size: u64) -> Result<usize, String> {
    let source = Source::open(&image.path)
        .and_then(|source| source.part(offset, size))
        .map_err(|error| chain(&error))?;
    let failed = |path: &[u8]| {
        let path = show(path);
        move |error: Ext4Error| format!("{path}: {}", chain(&error))
    };
    let ext4 = Ext4::load(Box::new(Reader(source))).map_err(failed(b""))?;
    for (path, item) in &image.listing.entries {
        let full = [b"/", &path[..]].concat();
        let inside = InsidePath::try_from(&full[..]).map_err(|_| show(path))?;
        match item.kind {
            ItemKind::Directory => {
                for entry in ext4.read_dir(inside).map_err(failed(path))? {
                    entry.map_err(failed(path))?;
                }
            }
            ItemKind::File => {
                let mut file = ext4.open(inside).map_err(failed(path))?;
                let mut buffer = vec![0; 1 << 16];
                while file.read_bytes(&mut buffer).map_err(failed(path))? > 0 {}
            }
            _ => {
                ext4.symlink_metadata(inside).map_err(failed(path))?;
            }
        }
    }
    Ok(image.listing.entries.len())
}
