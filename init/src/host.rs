// SPDX-License-Identifier: Apache-2.0
//! The VM's host name, until the sandbox brings its own.
//!
//! Owns the reading of `/etc/hostname`. Never invents a name: a VM that may be
//! cloned must not be unique before its sandbox is made.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use thiserror::Error;

/// The name when there is no other.
const FALLBACK: &str = "localhost";

/// What the kernel takes (`__NEW_UTS_LEN`).
const MAX_LENGTH: usize = 64;

/// The host name could not be set.
#[derive(Debug, Error)]
#[error("Cannot set the host name to {name}")]
pub struct HostnameError {
    /// The name.
    pub name: String,
    /// What the kernel answered.
    pub source: Errno,
}

/// Sets the host name from `/etc/hostname`.
pub fn set_hostname() -> Result<(), HostnameError> {
    let name = hostname_at(Path::new("/"));
    nix::unistd::sethostname(&name).map_err(|source| HostnameError { name, source })
}

/// The name in `etc/hostname` below `root`; `localhost` if there is none.
pub fn hostname_at(root: &Path) -> String {
    match fs::read(root.join("etc/hostname")) {
        Ok(bytes) => parse(&String::from_utf8_lossy(&bytes)).to_owned(),
        Err(_) => FALLBACK.to_owned(),
    }
}

/// The first word that is not in a comment (hostname(5)), if the kernel can
/// take it.
fn parse(text: &str) -> &str {
    let mut lines = text.lines().map(str::trim);
    let line = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
    let name = line.and_then(|line| line.split_whitespace().next());
    match name {
        Some(name) if name.len() <= MAX_LENGTH => name,
        Some(_) => {
            log::warn!("The name in /etc/hostname is longer than {MAX_LENGTH} bytes; ignored");
            FALLBACK
        }
        None => FALLBACK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_word_of_the_first_line() {
        assert_eq!(parse("kata\n"), "kata");
        assert_eq!(parse("  kata guest\nother"), "kata");
        assert_eq!(parse("# comment\n\nkata"), "kata");
    }

    #[test]
    fn localhost_otherwise() {
        assert_eq!(parse(""), FALLBACK);
        assert_eq!(parse(" \n#x"), FALLBACK);
        assert_eq!(parse(&"x".repeat(65)), FALLBACK);
        assert_eq!(parse(&"x".repeat(64)).len(), 64);
    }

    #[test]
    fn bug_missing_hostname_file_is_not_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(hostname_at(dir.path()), FALLBACK);
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/hostname"), "box\n").unwrap();
        assert_eq!(hostname_at(dir.path()), "box");
    }
}
