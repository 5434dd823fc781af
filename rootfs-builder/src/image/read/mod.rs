// SPDX-License-Identifier: Apache-2.0
//! Reads images back: those that this tool writes, and those of others. It tells what is inside and where it lies, and changes nothing.
//!
//! Everything in an image is hostile: every offset is checked against the file, nothing is allocated on an image's word, directories
//! that contain themselves are found, and there are limits to entries and content. Errors name the file and the byte.

mod builder;
mod cpio;
mod decode;
mod directory;
mod elf;
mod erofs;
mod error;
mod ext4;
mod filesystem;
mod listing;
mod oci;
pub mod requirements;
mod source;
mod tar;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::image::compress::Compression;
use crate::image::disk::{self, Parts};
use builder::Builder;
pub use builder::{Place, Role};
pub use elf::Elf;
pub use error::ReadError;
pub use filesystem::Filesystem;
pub use listing::{Digest, Item, ItemKind, Listing, digest};
pub use oci::file_digest;
pub use source::{Source, crc32c, u32_at};

/// Blocks of a device, at which data must lie for DAX.
const PAGE: u64 = 4096;

/// What a file is as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// An initramfs.
    Cpio,
    /// A tar archive.
    Tar,
    /// An OCI image layout.
    Oci,
    /// A plain directory.
    Directory,
    /// A file system of its own.
    Ext4,
    /// A file system of its own.
    Erofs,
    /// A disk with partitions.
    Disk,
}

impl Format {
    /// Its word: `cpio`, `tar`, `oci`, `directory`, `ext4`, `erofs`, `disk`.
    pub fn name(self) -> &'static str {
        match self {
            Format::Cpio => "cpio",
            Format::Tar => "tar",
            Format::Oci => "oci",
            Format::Directory => "directory",
            Format::Ext4 => "ext4",
            Format::Erofs => "erofs",
            Format::Disk => "disk",
        }
    }

    /// Whether it is a file that a VM takes for a disk.
    pub fn is_device(self) -> bool {
        matches!(self, Format::Ext4 | Format::Erofs | Format::Disk)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An image that has been read.
#[derive(Debug)]
pub struct Image {
    /// The file or directory.
    pub path: PathBuf,
    /// What it is as a whole.
    pub format: Format,
    /// How it is compressed.
    pub compression: Compression,
    /// Its size in bytes; of a directory the size of all contents.
    pub size: u64,
    /// What is inside.
    pub listing: Listing,
    /// The file system, if there is one.
    pub filesystem: Option<Filesystem>,
    /// The partitions, if there are any.
    pub disk: Option<Parts>,
    /// What is wrong with it although it can be read.
    pub findings: Vec<String>,
    places: Vec<Place>,
    kept: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Reads an image of any format.
pub fn open(path: &Path) -> Result<Image, ReadError> {
    if path.is_dir() {
        // What is in a directory was not claimed by it.
        let mut builder = Builder::new(path, u64::MAX);
        let format = if oci::is_layout(path) {
            oci::read(path, &mut builder)?;
            Format::Oci
        } else {
            directory::read(path, &mut builder)?;
            Format::Directory
        };
        let size = builder.listing.entries.values().map(|item| item.size).sum();
        return Ok(finish(
            path,
            format,
            Compression::None,
            size,
            None,
            None,
            builder,
        ));
    }
    let source = Source::open(path)?;
    let mut builder = Builder::new(path, source.len());
    let (format, compression, filesystem, disk) = file(&source, &mut builder)?;
    let size = source.len();
    Ok(finish(
        path,
        format,
        compression,
        size,
        filesystem,
        disk,
        builder,
    ))
}

type Found = (Format, Compression, Option<Filesystem>, Option<Parts>);

fn file(source: &Source, builder: &mut Builder) -> Result<Found, ReadError> {
    if let Some((format, compression)) = archive(source, builder)? {
        return Ok((format, compression, None, None));
    }
    if let Some((format, found)) = file_system(source, builder)? {
        return Ok((format, Compression::None, Some(found), None));
    }
    let disk = disk::read(&source.path())?;
    let Some(first) = disk.partitions.first() else {
        return Err(ReadError::UnknownFormat {
            path: source.path(),
        });
    };
    let found = file_system(&source.part(first.start, first.len)?, builder)?;
    let Some((_, found)) = found else {
        return Err(source.unsupported("a first partition without ext4 or erofs"));
    };
    Ok((Format::Disk, Compression::None, Some(found), Some(disk)))
}

/// Reads a cpio or tar archive, compressed or not.
fn archive(
    source: &Source,
    builder: &mut Builder,
) -> Result<Option<(Format, Compression)>, ReadError> {
    let head = source.prefix(0, 512)?;
    let packing = decode::packing(&head).map_err(|name| source.unsupported(name))?;
    let inner = match packing {
        None => head.clone(),
        Some(packing) => decode::head(packing, source)?,
    };
    // Zeros may precede an archive in an initramfs, as they may precede a superblock.
    if cpio::is_archive(&inner) {
        return Ok(Some((Format::Cpio, cpio::read(source, builder)?)));
    }
    if tar::is_archive(&inner) {
        let packing = packing.unwrap_or_default();
        tar::read(source, packing, &Listing::default(), builder)?;
        return Ok(Some((Format::Tar, packing)));
    }
    match packing {
        None => Ok(None),
        Some(packing) => Err(source.unsupported(format!("{packing} around no archive"))),
    }
}

/// Reads a file system.
fn file_system(
    source: &Source,
    builder: &mut Builder,
) -> Result<Option<(Format, Filesystem)>, ReadError> {
    let superblock = source.prefix(erofs::SUPERBLOCK, 1024)?;
    if erofs::is_superblock(&superblock) {
        return Ok(Some((Format::Erofs, erofs::read(source, builder)?)));
    }
    if ext4::is_superblock(&superblock) {
        return Ok(Some((Format::Ext4, ext4::read(source, builder)?)));
    }
    let known: [(u64, &[u8], &str); 4] = [
        (0, b"XFSB", "xfs"),
        (0, b"hsqs", "squashfs"),
        (0x1_0040, b"_BHRfS_M", "btrfs"),
        (1024, b"\x10\x20\xf5\xf2", "f2fs"),
    ];
    for (at, magic, name) in known {
        if source.prefix(at, magic.len() as u64)? == magic {
            return Err(source.unsupported(name));
        }
    }
    Ok(None)
}

fn finish(
    path: &Path,
    format: Format,
    compression: Compression,
    size: u64,
    filesystem: Option<Filesystem>,
    disk: Option<Parts>,
    mut builder: Builder,
) -> Image {
    builder.places.sort_by_key(|place| place.start);
    let filesystem = filesystem.map(|mut filesystem| {
        let first = builder.places.iter().find(|place| {
            place.role == Role::Content && !(place.start - filesystem.offset).is_multiple_of(PAGE)
        });
        filesystem.unaligned = first.map(|place| show(&place.path));
        filesystem
    });
    let is_file = |path: &Vec<u8>| {
        let item = builder.listing.entries.get(path);
        item.is_some_and(|item| item.kind == ItemKind::File)
    };
    builder.kept.retain(|path, _| is_file(path));
    Image {
        path: path.to_owned(),
        format,
        compression,
        size,
        filesystem,
        disk,
        listing: builder.listing,
        findings: builder.findings,
        places: builder.places,
        kept: builder.kept,
    }
}

impl Image {
    /// What lies in a range of the file, as far as that is known: of compressed images it is not.
    pub fn places(&self, start: u64, len: u64) -> Vec<&Place> {
        let end = start.saturating_add(len);
        self.places
            .iter()
            .take_while(|place| place.start < end)
            .filter(|place| place.start + place.len > start)
            .collect()
    }

    /// The program that the kernel starts in this image: its path, what that leads to, and what it is if it is a program.
    pub fn init(&self) -> Option<(&'static str, Vec<u8>, Option<Elf>)> {
        // Kernels look for /init in an initramfs alone; everything else can be either.
        let names: &[&'static str] = match self.format {
            Format::Cpio => &["/init"],
            _ if self.format.is_device() => &["/sbin/init"],
            _ => &["/init", "/sbin/init"],
        };
        names.iter().find_map(|name| {
            let (path, item) = self.listing.find(name.as_bytes())?;
            let elf = self.kept.get(&path).and_then(|bytes| elf::read(bytes));
            (item.kind == ItemKind::File).then_some((*name, path, elf))
        })
    }

    /// The text of a file that is small and was kept: see the list in `builder.rs`.
    pub fn kept(&self, path: &str) -> Option<&[u8]> {
        let (path, _) = self.listing.find(path.as_bytes())?;
        self.kept.get(&path).map(Vec::as_slice)
    }

    /// The kernel modules that init loads, one line each.
    pub fn modules(&self) -> Vec<String> {
        let list = self.kept("/lib/keelson/modules.load").unwrap_or_default();
        String::from_utf8_lossy(list)
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::to_owned)
            .collect()
    }
}

/// A path of an image as people read it.
pub fn show(path: &[u8]) -> String {
    format!("/{}", escape(path))
}

/// Bytes of an image as people read them: nothing that a terminal would act on.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for part in bytes.utf8_chunks() {
        text.extend(part.valid().chars().flat_map(|c| {
            let plain = !c.is_control() && c != '\\';
            let escaped: String = if plain {
                c.into()
            } else {
                c.escape_default().collect()
            };
            escaped.chars().collect::<Vec<_>>()
        }));
        for byte in part.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}
