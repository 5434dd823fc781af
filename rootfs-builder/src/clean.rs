// SPDX-License-Identifier: Apache-2.0
//! Removes what the tools keep in their cache. Nothing else on the host is touched.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use guest_kernel::Cache;
use guest_kernel::cache::{CacheError, remove_tree};

/// A part of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Images
    Image,
    /// Container root file systems
    Root,
    /// Working directories: kernel builds, compiler caches
    Work,
    /// Kernels, fetched and built
    Kernel,
    /// Kernel sources
    Source,
    /// Package lists of foreign architectures
    Apt,
    /// Host programs: zig, vhost-device-vsock, virtiofsd
    Tools,
}

/// What is removed when nothing is named: what can be had again in seconds or is seldom wanted again.
pub const DEFAULT: &[Part] = &[Part::Image, Part::Root, Part::Work, Part::Source, Part::Apt];

impl Part {
    /// The directory inside the cache.
    fn dir(self) -> &'static str {
        match self {
            Part::Image => "image",
            Part::Root => "root",
            Part::Work => "work",
            Part::Kernel => "kernel",
            Part::Source => "source",
            Part::Apt => "apt",
            Part::Tools => "tools",
        }
    }
}

/// Removes parts of the cache and returns what was there, with sizes on disk in bytes. With `dry_run`, only looks.
pub fn clean(
    cache: &Cache,
    parts: &[Part],
    dry_run: bool,
) -> Result<Vec<(PathBuf, u64)>, CacheError> {
    let mut removed = Vec::new();
    for part in parts {
        let path = cache.root().join(part.dir());
        if !path.exists() {
            continue;
        }
        let bytes = disk_usage(&path);
        if !dry_run {
            remove_tree(&path)?;
        }
        removed.push((path, bytes));
    }
    Ok(removed)
}

/// The bytes a tree takes on disk; what cannot be read counts nothing.
fn disk_usage(path: &Path) -> u64 {
    let own = fs::symlink_metadata(path).map_or(0, |m| m.blocks() * 512);
    let is_dir = fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
    let children = if is_dir {
        fs::read_dir(path)
    } else {
        Err(io::ErrorKind::NotADirectory.into())
    };
    own + children
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| disk_usage(&entry.path()))
        .sum::<u64>()
}

/// A number of bytes for people: `512 B`, `1.5 GB`.
pub fn size(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if value < 9.95 {
        format!("{value:.1} {}", units[unit])
    } else {
        format!("{value:.0} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        for part in Part::value_variants() {
            let path = cache.dir(part.dir()).unwrap();
            fs::write(path.join("f"), [1; 5000]).unwrap();
        }
        let looked = clean(&cache, DEFAULT, true).unwrap();
        let removed = clean(&cache, DEFAULT, false).unwrap();
        assert_eq!(looked, removed);
        assert_eq!(removed.len(), DEFAULT.len());
        assert!(
            removed
                .iter()
                .all(|(path, bytes)| !path.exists() && *bytes >= 5000)
        );
        for part in Part::value_variants() {
            assert_eq!(
                cache.root().join(part.dir()).exists(),
                !DEFAULT.contains(part)
            );
        }
        assert!(clean(&cache, DEFAULT, false).unwrap().is_empty());
    }

    #[test]
    fn sizes_are_for_people() {
        let sizes = [
            0,
            999,
            1000,
            9949,
            9950,
            999_499,
            999_500,
            1_500_000_000,
            u64::MAX,
        ];
        let texts = [
            "0 B",
            "999 B",
            "1.0 kB",
            "9.9 kB",
            "10 kB",
            "999 kB",
            "1.0 MB",
            "1.5 GB",
            "18446744 TB",
        ];
        assert_eq!(sizes.map(size), texts);
    }
}
