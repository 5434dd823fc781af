// SPDX-License-Identifier: Apache-2.0
//! What is in `/dev`.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{major, minor};

use crate::facts::Facts;

/// Every entry below `/dev`: `c 1:3 666 0:0` (kind, numbers, mode, owner), `link TARGET`, or kind, mode and owner.
pub fn devices() -> Facts {
    let mut facts = Facts::default();
    walk(Path::new("/dev"), &mut facts);
    facts
}

fn walk(directory: &Path, facts: &mut Facts) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let Ok(meta) = path.symlink_metadata() else {
            continue;
        };
        facts.add(&format!("dev:{}", path.display()), shown(&path, &meta));
        if meta.is_dir() {
            walk(&path, facts);
        }
    }
}

fn shown(path: &Path, meta: &fs::Metadata) -> String {
    let kind = meta.file_type();
    if kind.is_symlink() {
        let target = fs::read_link(path).unwrap_or_default();
        return format!("link {}", target.display());
    }
    let rest = format!("{:o} {}:{}", meta.mode() & 0o7777, meta.uid(), meta.gid());
    let numbers = format!("{}:{}", major(meta.rdev()), minor(meta.rdev()));
    if kind.is_char_device() {
        format!("c {numbers} {rest}")
    } else if kind.is_block_device() {
        format!("b {numbers} {rest}")
    } else if kind.is_fifo() {
        format!("p {rest}")
    } else if kind.is_dir() {
        format!("directory {rest}")
    } else {
        format!("file {rest}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_and_links_are_told_apart() {
        let facts = devices();
        let null = facts.get("dev:/dev/null").unwrap();
        assert!(null.starts_with("c 1:3 666 "), "{null}");
        let fd = facts.get("dev:/dev/fd");
        assert!(fd.is_none_or(|fd| fd.starts_with("link /proc/")), "{fd:?}");
    }
}
