// SPDX-License-Identifier: Apache-2.0
//! Compares what is inside two images, whatever their formats.

mod text;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use serde::Serialize;

use crate::image::read::{self, Format, Image, Item, ItemKind, ReadError, show};

/// Why images cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// One of them cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Their bytes cannot be compared.
    #[error("Cannot compare the bytes of {a} and {b}")]
    Compare {
        /// One image.
        a: String,
        /// The other.
        b: String,
        /// Why not.
        source: io::Error,
    },
}

/// How two images differ.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// One image.
    pub a: Side,
    /// The other.
    pub b: Side,
    /// Whether they are the same, byte for byte.
    pub identical: bool,
    /// Whether they hold the same entries.
    pub same_entries: bool,
    /// The first byte that differs, of two images in the same form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte: Option<Byte>,
    /// Entries that differ, by path.
    pub differences: Vec<Difference>,
}

/// One of the images.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Side {
    /// The file or directory.
    pub path: String,
    /// The format's word.
    pub format: &'static str,
    /// The compression's word.
    pub compression: &'static str,
    /// Bytes.
    pub size: u64,
}

/// A place in both images.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Byte {
    /// The offset.
    pub offset: u64,
    /// What lies there, where that is known.
    pub holds: Vec<String>,
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It is in the second image alone.
    Added,
    /// It is in the first image alone.
    Removed,
    /// It is in both, and not the same.
    Changed,
}

/// One entry that differs.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Its path; bytes that are no text are escaped.
    pub path: String,
    /// What became of it.
    pub change: Change,
    /// What it is, in the second image if it is there.
    pub kind: ItemKind,
    /// What is not the same.
    pub details: Vec<Detail>,
}

/// One thing about an entry that is not the same.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Detail {
    /// `kind`, `mode`, `owner`, `size`, `content`, `target`, `device`, or an attribute's name after `xattr:`.
    pub what: String,
    /// In the first image.
    pub a: String,
    /// In the second.
    pub b: String,
}

/// What is not compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Owners: a directory of an ordinary user's has none but that user.
    pub ignore_owners: bool,
}

impl Comparison {
    /// Whether there is anything to tell: other entries, or other bytes of two images in the same form.
    pub fn differs(&self) -> bool {
        !self.same_entries || self.first_byte.is_some()
    }
}

/// Compares two images.
pub fn diff(a: &Path, b: &Path, options: Options) -> Result<Comparison, DiffError> {
    let (one, two) = (read::open(a)?, read::open(b)?);
    let differences = entries(&one, &two, options);
    let is_file = |image: &Image| !matches!(image.format, Format::Oci | Format::Directory);
    let first = if is_file(&one) && is_file(&two) {
        first_difference(a, b).map_err(|source| DiffError::Compare {
            a: a.display().to_string(),
            b: b.display().to_string(),
            source,
        })?
    } else {
        None
    };
    let same_form = (one.format, one.compression) == (two.format, two.compression);
    Ok(Comparison {
        identical: is_file(&one) && is_file(&two) && first.is_none(),
        same_entries: differences.is_empty(),
        first_byte: first.filter(|_| same_form).map(|offset| Byte {
            offset,
            holds: holds(&one, offset),
        }),
        a: side(&one),
        b: side(&two),
        differences,
    })
}

fn side(image: &Image) -> Side {
    Side {
        path: image.path.display().to_string(),
        format: image.format.name(),
        compression: image.compression.name(),
        size: image.size,
    }
}

/// What lies at a byte of an image.
fn holds(image: &Image, offset: u64) -> Vec<String> {
    let places = image.places(offset, 1).into_iter();
    places.map(|place| place.to_string()).collect()
}

fn entries(one: &Image, two: &Image, options: Options) -> Vec<Difference> {
    let (a, b) = (&one.listing, &two.listing);
    let mut differences = Vec::new();
    // Not every format says something about the root directory.
    if let (Some(root), Some(other)) = (&a.root, &b.root) {
        differences.extend(changed(b"", root, other, options));
    }
    let paths: BTreeSet<&Vec<u8>> = a.entries.keys().chain(b.entries.keys()).collect();
    for path in paths {
        let alone = |change, item: &Item| Difference {
            path: show(path),
            change,
            kind: item.kind,
            details: Vec::new(),
        };
        differences.extend(match (a.entries.get(path), b.entries.get(path)) {
            (Some(item), None) => Some(alone(Change::Removed, item)),
            (None, Some(item)) => Some(alone(Change::Added, item)),
            (Some(item), Some(other)) => changed(path, item, other, options),
            (None, None) => None,
        });
    }
    differences
}

fn changed(path: &[u8], a: &Item, b: &Item, options: Options) -> Option<Difference> {
    let mut details = Vec::new();
    let mut add = |what: &str, a: String, b: String| {
        if a != b {
            details.push(Detail {
                what: what.to_owned(),
                a,
                b,
            });
        }
    };
    let owner = |item: &Item| format!("{}:{}", item.uid, item.gid);
    let target = |item: &Item| show_bytes(item.target.as_deref().unwrap_or_default());
    let device = |item: &Item| {
        let numbers = item.device.map(|(major, minor)| format!("{major}:{minor}"));
        numbers.unwrap_or_default()
    };
    let digest = |item: &Item| item.sha256.map(|d| d.to_string()).unwrap_or_default();
    add("kind", a.kind.to_string(), b.kind.to_string());
    // The mode of a link means nothing, and not every tool writes the same one.
    if (a.kind, b.kind) != (ItemKind::Symlink, ItemKind::Symlink) {
        add("mode", format!("{:04o}", a.mode), format!("{:04o}", b.mode));
    }
    if !options.ignore_owners {
        add("owner", owner(a), owner(b));
    }
    if a.kind == b.kind {
        add("size", a.size.to_string(), b.size.to_string());
        add("content", digest(a), digest(b));
        add("target", target(a), target(b));
        add("device", device(a), device(b));
    }
    let names: BTreeSet<&Vec<u8>> = a.xattrs.keys().chain(b.xattrs.keys()).collect();
    for name in names {
        let value = |item: &Item| {
            let value = item.xattrs.get(name);
            value.map(|value| show_bytes(value)).unwrap_or_default()
        };
        add(&format!("xattr:{}", show_bytes(name)), value(a), value(b));
    }
    (!details.is_empty()).then(|| Difference {
        path: show(path),
        change: Change::Changed,
        kind: b.kind,
        details,
    })
}

/// Bytes as text, with escapes.
fn show_bytes(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// The first byte that differs between two files; their common length if one goes on.
fn first_difference(a: &Path, b: &Path) -> io::Result<Option<u64>> {
    const PIECE: usize = 1 << 16;
    let mut readers = [a, b].map(|path| File::open(path).map(BufReader::new));
    let [Ok(a), Ok(b)] = &mut readers else {
        let [a, b] = readers;
        return a.and(b).map(|_| None);
    };
    let mut offset = 0;
    loop {
        let (mut one, mut two) = (Vec::new(), Vec::new());
        a.by_ref().take(PIECE as u64).read_to_end(&mut one)?;
        b.by_ref().take(PIECE as u64).read_to_end(&mut two)?;
        if one != two {
            let same = one.iter().zip(&two).take_while(|(a, b)| a == b).count();
            return Ok(Some(offset + same as u64));
        }
        if one.is_empty() {
            return Ok(None);
        }
        offset += one.len() as u64;
    }
}

#[cfg(test)]
mod tests;
