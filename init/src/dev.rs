// SPDX-License-Identifier: Apache-2.0
//! `/dev`: the links that programs expect, and the few nodes without which
//! nothing runs when the kernel has no devtmpfs.
//!
//! Never creates a node for a real device: those are the kernel's to announce.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use thiserror::Error;

use crate::mounts;

/// A link, a node or `/dev` itself could not be made.
#[derive(Debug, Error)]
pub enum DevError {
    /// A link could not be made.
    #[error("Cannot link {} to {target}", path.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// What it should point to.
        target: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The tmpfs that stands in for devtmpfs could not be mounted.
    #[error("Cannot mount a tmpfs on {}", path.display())]
    Mount {
        /// The directory.
        path: PathBuf,
        /// What the kernel answered.
        source: Errno,
    },
    /// A node could not be made.
    #[error("Cannot create the device node {}", path.display())]
    Node {
        /// The node.
        path: PathBuf,
        /// What the kernel answered.
        source: Errno,
    },
}

/// Links below `/dev` (OCI runtime specification, "Default Filesystems").
/// `/dev/core` is left out: it is a way to the kernel's memory that no program
/// of a guest uses.
const LINKS: &[(&str, &str)] = &[
    ("dev/fd", "/proc/self/fd"),
    ("dev/stdin", "/proc/self/fd/0"),
    ("dev/stdout", "/proc/self/fd/1"),
    ("dev/stderr", "/proc/self/fd/2"),
];

/// The multiplexer of our own devpts instead of the kernel's node, which
/// would look for a devpts beside whatever path it was opened by.
const PTMX: (&str, &str) = ("dev/ptmx", "pts/ptmx");

/// Nodes for the stand-in: name, type, major, minor, mode
/// (Documentation/admin-guide/devices.txt).
#[rustfmt::skip]
const NODES: &[(&str, SFlag, u64, u64, u32)] = &[
    ("null",    SFlag::S_IFCHR, 1, 3, 0o666),
    ("zero",    SFlag::S_IFCHR, 1, 5, 0o666),
    ("full",    SFlag::S_IFCHR, 1, 7, 0o666),
    ("random",  SFlag::S_IFCHR, 1, 8, 0o666),
    ("urandom", SFlag::S_IFCHR, 1, 9, 0o666),
    ("kmsg",    SFlag::S_IFCHR, 1, 11, 0o600),
    ("tty",     SFlag::S_IFCHR, 5, 0, 0o666),
    ("console", SFlag::S_IFCHR, 5, 1, 0o600),
    ("ptmx",    SFlag::S_IFCHR, 5, 2, 0o666),
];

/// Makes the links. A link that is there stays as it is.
pub fn links() -> Result<(), DevError> {
    links_at(Path::new("/"))
}

/// The same below another root. All are tried; the first failure is returned.
pub fn links_at(root: &Path) -> Result<(), DevError> {
    let mut result = Ok(());
    for &(name, target) in LINKS {
        result = result.and(link(root.join(name), target));
    }
    let ptmx = root.join(PTMX.0);
    // If there is no node to remove the link can be made all the better.
    let _ = std::fs::remove_file(&ptmx);
    result.and(link(ptmx, PTMX.1))
}

fn link(path: PathBuf, target: &'static str) -> Result<(), DevError> {
    match symlink(target, &path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(DevError::Link {
            path,
            target,
            source,
        }),
        _ => Ok(()),
    }
}

/// A tmpfs with the most needed nodes, for a kernel without devtmpfs.
pub(crate) fn stand_in(root: &Path) -> Result<(), DevError> {
    let dev = root.join("dev");
    mounts::mount("dev", &dev, "tmpfs", MsFlags::MS_NOSUID, "mode=755").map_err(|source| {
        DevError::Mount {
            path: dev.clone(),
            source,
        }
    })?;
    nodes_at(&dev)
}

fn nodes_at(dev: &Path) -> Result<(), DevError> {
    for &(name, kind, major, minor, mode) in NODES {
        let path = dev.join(name);
        let mode = Mode::from_bits_truncate(mode);
        match mknod(&path, kind, mode, makedev(major, minor)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(source) => return Err(DevError::Node { path, source }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_made_and_making_them_again_is_fine() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("dev")).unwrap();
        std::fs::write(root.path().join("dev/ptmx"), "").unwrap();
        for _ in 0..2 {
            links_at(root.path()).unwrap();
        }
        for (name, target) in LINKS.iter().chain([&PTMX]) {
            let found = std::fs::read_link(root.path().join(name)).unwrap();
            assert_eq!(found, Path::new(target));
        }
    }

    #[test]
    fn bug_ptmx_that_cannot_be_linked_is_not_fatal() {
        // No /dev at all: an error that names the object, not a panic.
        let root = tempfile::tempdir().unwrap();
        let error = links_at(root.path()).unwrap_err();
        assert!(error.to_string().contains("dev/fd"), "{error}");
    }

    #[test]
    fn nodes_are_unique_and_have_modes() {
        let names: std::collections::HashSet<_> = NODES.iter().map(|n| n.0).collect();
        assert_eq!(names.len(), NODES.len());
        assert!(NODES.iter().all(|n| n.4 & 0o600 == 0o600));
    }
}
