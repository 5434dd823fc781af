// SPDX-License-Identifier: Apache-2.0
//! Volumes that are mounted: how full they are, and growing them while they are
//! used (protocol 3.5); and swap on disks of the host (13.3). Owns the kernel's
//! requests for that. Mounts nothing, and makes no file system.

mod error;
mod kernel;
mod resize;
mod swap;

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::statfs::{Statfs, fstatfs};

pub use error::VolumeError;
pub use resize::resize;
pub use swap::{SwapDisk, add_swap};

/// Where a volume is in the guest: absolute, without `..`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePath(PathBuf);

/// How much of a volume there is, in one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// All of it.
    pub total: u64,
    /// What is not used.
    pub free: u64,
}

/// What a volume says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeStats {
    /// In bytes.
    pub bytes: Usage,
    /// In inodes; zero on file systems that do not count them.
    pub inodes: Usage,
}

impl VolumePath {
    /// Checks a path from outside.
    ///
    /// # Errors
    /// [`VolumeError::Path`].
    pub fn new(text: &str) -> Result<Self, VolumeError> {
        let refuse = |reason| VolumeError::Path {
            path: text.chars().take(200).collect(),
            reason,
        };
        let path = Path::new(text);
        if !path.is_absolute() {
            return Err(refuse("it is not absolute"));
        }
        if path.components().any(|c| c == Component::ParentDir) {
            return Err(refuse("it has a .. component"));
        }
        if text.contains('\0') || text.len() > 4095 {
            return Err(refuse("it is too long or has a NUL byte"));
        }
        Ok(Self(path.components().collect()))
    }

    /// Opens what is there, without following links, and without waiting for the
    /// other end of a pipe.
    fn open(&self) -> Result<OwnedFd, VolumeError> {
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        openat2(nix::fcntl::AT_FDCWD, &self.0, how).map_err(self.failed("open"))
    }

    fn failed(&self, step: &'static str) -> impl FnOnce(nix::Error) -> VolumeError {
        let path = self.0.clone();
        move |source| VolumeError::Step { step, path, source }
    }
}

/// How full a volume is. Blocks.
///
/// # Errors
/// [`VolumeError::Step`].
pub fn stats(path: &VolumePath) -> Result<VolumeStats, VolumeError> {
    let file = path.open()?;
    let stat = fstatfs(&file).map_err(path.failed("look at"))?;
    Ok(of_statfs(&stat))
}

#[allow(clippy::unnecessary_cast, reason = "the types differ between targets")]
fn of_statfs(stat: &Statfs) -> VolumeStats {
    let size = u64::try_from(stat.block_size()).unwrap_or(0);
    let bytes = |blocks: u64| blocks.saturating_mul(size);
    VolumeStats {
        bytes: Usage {
            total: bytes(stat.blocks() as u64),
            free: bytes(stat.blocks_free() as u64),
        },
        inodes: Usage {
            total: stat.files() as u64,
            free: stat.files_free() as u64,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_plain() {
        let path = VolumePath::new("/run//x/./y/").unwrap();
        assert_eq!(path.0, Path::new("/run/x/y"));
        let long = format!("/{}", "x".repeat(4095));
        for bad in ["", "run", "/run/../etc", "/a\0b", &long] {
            assert!(VolumePath::new(bad).unwrap_err().is_bad_input(), "{bad:?}");
        }
    }

    #[test]
    fn a_volume_is_used_less_than_it_is_large() {
        let dir = tempfile::tempdir().unwrap();
        let path = VolumePath::new(dir.path().canonicalize().unwrap().to_str().unwrap()).unwrap();
        let stats = stats(&path).unwrap();
        assert!(stats.bytes.total > 0 && stats.bytes.free <= stats.bytes.total);
        let absent = VolumePath::new("/keelson-absent").unwrap();
        let error = super::stats(&absent).unwrap_err();
        assert!(!error.is_bad_input() && error.to_string().contains("/keelson-absent"));
    }

    #[test]
    fn cve_neither_links_nor_pipes_are_volumes() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("/", root.join("link")).unwrap();
        let pipe = root.join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let path = |name: &str| VolumePath::new(root.join(name).to_str().unwrap()).unwrap();
        assert!(stats(&path("link")).is_err());
        assert!(stats(&path("link/etc")).is_err());
        // Answered at once, as the file system that it lies on.
        assert!(stats(&path("pipe")).is_ok());
    }
}
