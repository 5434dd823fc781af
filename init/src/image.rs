// SPDX-License-Identifier: Apache-2.0
//! What an image should contain and sometimes does not.
//!
//! Owns the few entries that the agent relies on (protocol section 7.2): a
//! place that is missing is made where the root is writable. An entry that is
//! there is never changed.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// An entry is missing and could not be made.
#[derive(Debug, Error)]
#[error("The image has no {} and it cannot be made", path.display())]
pub struct ImageError {
    /// The entry.
    pub path: PathBuf,
    /// What the kernel answered.
    pub source: io::Error,
}

/// Makes `/var/run`, a link to `/run`, where programs look by its old name.
pub fn run_link() -> Result<(), ImageError> {
    run_link_at(Path::new("/"))
}

/// The same below another root.
pub fn run_link_at(root: &Path) -> Result<(), ImageError> {
    make(root.join("var/run"), |path| symlink("../run", path))
}

/// Makes `/etc/resolv.conf`, an empty file, onto which the sandbox's is
/// mounted.
pub fn resolv_conf() -> Result<(), ImageError> {
    resolv_conf_at(Path::new("/"))
}

/// The same below another root.
pub fn resolv_conf_at(root: &Path) -> Result<(), ImageError> {
    make(root.join("etc/resolv.conf"), |path| {
        let mut options = OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o644);
        options.open(path).map(drop)
    })
}

fn make(path: PathBuf, create: fn(&Path) -> io::Result<()>) -> Result<(), ImageError> {
    let mut made = create(&path);
    if kind(&made) == Some(io::ErrorKind::NotFound)
        && let Some(parent) = path.parent()
    {
        made = fs::create_dir_all(parent).and_then(|()| create(&path));
    }
    match made {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            // A read-only root says EROFS even for what is there.
            if path.symlink_metadata().is_ok() {
                return Ok(());
            }
            Err(ImageError { path, source })
        }
        _ => Ok(()),
    }
}

fn kind(result: &io::Result<()>) -> Option<io::ErrorKind> {
    result.as_ref().err().map(io::Error::kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_image_is_completed() {
        let root = tempfile::tempdir().unwrap();
        run_link_at(root.path()).unwrap();
        resolv_conf_at(root.path()).unwrap();
        let link = fs::read_link(root.path().join("var/run")).unwrap();
        assert_eq!(link, Path::new("../run"));
        assert_eq!(fs::read(root.path().join("etc/resolv.conf")).unwrap(), b"");
    }

    #[test]
    fn what_is_there_stays() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("var/run")).unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/resolv.conf"), "nameserver ::1\n").unwrap();
        run_link_at(root.path()).unwrap();
        resolv_conf_at(root.path()).unwrap();
        assert!(root.path().join("var/run").is_dir());
        let text = fs::read_to_string(root.path().join("etc/resolv.conf")).unwrap();
        assert_eq!(text, "nameserver ::1\n");
    }

    #[test]
    fn bug_a_root_that_cannot_be_completed_is_an_error_with_the_path() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("var"), "").unwrap();
        let error = run_link_at(root.path()).unwrap_err();
        assert!(error.to_string().contains("var/run"), "{error}");
    }
}
