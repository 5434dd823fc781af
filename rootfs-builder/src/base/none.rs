// SPDX-License-Identifier: Apache-2.0
//! No base at all: the guest binary, and the few entries it needs before it has made the rest itself.

use std::path::Path;

use crate::tree::{Entry, Kind, Tree, TreeError};

/// Directories that are mounted over or written into, with their modes.
const DIRECTORIES: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
];

/// A tree with the guest binary as `/init`.
pub fn tree(binary: &Path) -> Result<Tree, TreeError> {
    let mut tree = Tree::default();
    for (path, mode) in DIRECTORIES {
        tree.insert(path, Entry::directory(*mode))?;
    }
    add_init(&mut tree, binary)?;
    Ok(tree)
}

/// Puts the guest binary into a tree as `/init`, with the console node that the kernel opens for it before anything is mounted.
pub fn add_init(tree: &mut Tree, binary: &Path) -> Result<(), TreeError> {
    tree.insert("init", Entry::file(binary, 0o755))?;
    tree.insert("dev/console", Entry::new(Kind::CharDevice(5, 1), 0o600))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_is_there_before_anything_is_mounted() {
        let tree = tree(Path::new("/bin/true")).unwrap();
        assert_eq!(
            tree.get("dev/console").unwrap().kind,
            Kind::CharDevice(5, 1)
        );
        assert_eq!(tree.get("init").unwrap().mode, 0o755);
        assert_eq!(tree.get("tmp").unwrap().mode, 0o1777);
    }
}
