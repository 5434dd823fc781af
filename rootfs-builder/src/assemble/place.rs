// SPDX-License-Identifier: Apache-2.0
//! Where a path leads inside a tree: through the symbolic links on the way, as it would in the guest, and never out of it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use crate::tree::{Entry, Kind, Tree, TreeError};

/// As many links as Linux follows on the way to a file.
const MAX_LINKS: u32 = 40;

/// The path leads round in circles.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{path} leads through too many symbolic links", path = path.display())]
pub struct Circle {
    /// The path.
    pub path: PathBuf,
}

/// Where the entry called `path` is to be put: the links above it are followed, it itself is not.
pub fn parent_of(tree: &Tree, path: &Path) -> Result<PathBuf, Circle> {
    walk(tree, path, false)
}

/// What `path` leads to in the end.
pub fn target_of(tree: &Tree, path: &Path) -> Result<PathBuf, Circle> {
    walk(tree, path, true)
}

fn walk(tree: &Tree, path: &Path, follow_last: bool) -> Result<PathBuf, Circle> {
    let mut ahead: VecDeque<OsString> = parts(path).collect();
    let mut place = PathBuf::new();
    let mut links = 0;
    while let Some(part) = ahead.pop_front() {
        if part == ".." {
            // Above the root is the root.
            place.pop();
            continue;
        }
        place.push(&part);
        let follow = follow_last || !ahead.is_empty();
        let Some(Kind::Symlink(target)) = tree.get(&place).map(|entry| &entry.kind) else {
            continue;
        };
        if !follow {
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(Circle {
                path: path.to_owned(),
            });
        }
        place.pop();
        if target.is_absolute() {
            place = PathBuf::new();
        }
        for part in parts(target).rev() {
            ahead.push_front(part);
        }
    }
    Ok(place)
}

fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

/// Why something cannot be put into a tree.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// Its path leads nowhere.
    #[error(transparent)]
    Circle(#[from] Circle),
    /// The tree does not take it.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Puts an entry where `path` leads, in place of what is there.
pub fn put(tree: &mut Tree, path: impl AsRef<Path>, entry: Entry) -> Result<(), PutError> {
    let place = parent_of(tree, path.as_ref())?;
    Ok(tree.insert(place, entry)?)
}

/// Makes sure that `path` leads to a directory; what is one already keeps its owner and mode.
pub fn put_directory(
    tree: &mut Tree,
    path: impl AsRef<Path>,
    directory: Entry,
) -> Result<(), PutError> {
    let place = target_of(tree, path.as_ref())?;
    let there = tree.get(&place).map(|entry| &entry.kind);
    if place.as_os_str().is_empty() || there == Some(&Kind::Directory) {
        return Ok(());
    }
    Ok(tree.insert(place, directory)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link(tree: &mut Tree, path: &str, target: &str) {
        let entry = Entry::new(Kind::Symlink(target.into()), 0o777);
        tree.insert(path, entry).unwrap();
    }

    fn merged() -> Tree {
        let mut tree = Tree::default();
        tree.insert("usr/sbin/init", Entry::bytes("x", 0o755))
            .unwrap();
        link(&mut tree, "sbin", "usr/sbin");
        link(&mut tree, "usr/lib64", "/usr/lib");
        link(&mut tree, "up", "usr/../../../sbin");
        link(&mut tree, "usr/sbin/telinit", "init");
        link(&mut tree, "loop", "loop2/x");
        link(&mut tree, "loop2", "loop");
        tree
    }

    #[test]
    fn links_on_the_way_are_followed_and_the_last_only_if_asked_for() {
        let tree = merged();
        for (path, parent, target) in [
            ("/sbin/init", "usr/sbin/init", "usr/sbin/init"),
            ("sbin", "sbin", "usr/sbin"),
            ("/usr/lib64/a/b", "usr/lib/a/b", "usr/lib/a/b"),
            ("/up/x", "usr/sbin/x", "usr/sbin/x"),
            ("/sbin/telinit", "usr/sbin/telinit", "usr/sbin/init"),
            ("/../../etc", "etc", "etc"),
            ("/", "", ""),
        ] {
            let path = Path::new(path);
            assert_eq!(parent_of(&tree, path).unwrap(), Path::new(parent));
            assert_eq!(target_of(&tree, path).unwrap(), Path::new(target));
        }
        assert!(parent_of(&tree, Path::new("/loop/x")).is_err());
    }

    #[test]
    fn a_directory_that_is_there_stays_as_it_is() {
        let mut tree = merged();
        tree.insert("usr/sbin", Entry::directory(0o700)).unwrap();
        put_directory(&mut tree, "/sbin", Entry::directory(0o755)).unwrap();
        assert_eq!(tree.get("usr/sbin").unwrap().mode, 0o700);
        assert!(matches!(tree.get("sbin").unwrap().kind, Kind::Symlink(_)));
        put_directory(&mut tree, "/usr/lib64/x", Entry::directory(0o750)).unwrap();
        assert_eq!(tree.get("usr/lib/x").unwrap().mode, 0o750);
        put(&mut tree, "/sbin/init", Entry::bytes("new", 0o755)).unwrap();
        assert_eq!(
            tree.get("usr/sbin/init").unwrap(),
            &Entry::bytes("new", 0o755)
        );
    }

    proptest! {
        #[test]
        fn no_path_leads_out(path in "(/?(\\.\\.|sbin|up|usr|lib64|a)){0,8}") {
            let place = target_of(&merged(), Path::new(&path)).unwrap();
            let normal = place.components().all(|part| matches!(part, Component::Normal(_)));
            prop_assert!(normal, "{}", place.display());
        }
    }
}
