// SPDX-License-Identifier: Apache-2.0
//! Processors and memory that the host plugs in while the guest runs: bringing
//! them into use through sysfs (Linux `Documentation/admin-guide/mm/memory-hotplug.rst`
//! and `core-api/cpu_hotplug.rst`).
//!
//! Owns what is read and written below `/sys/devices/system`. Never waits for
//! something to arrive, and never takes anything out of use: unplugging is
//! between the host and the kernel. Every write may take as long as the kernel
//! needs to hand a device over.

pub mod cpu;
pub mod memory;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A part of the machine that could not be brought into use.
#[derive(Debug, Error)]
pub enum HotplugError {
    /// A file of the kernel's could not be read, or a value is not taken.
    #[error("Cannot {step} {path}")]
    File {
        /// `read`, or `write` and the value.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The kernel says something else than what its documentation says.
    #[error("{path} says {text:?}")]
    Text {
        /// The file.
        path: PathBuf,
        /// Its beginning.
        text: String,
    },
    /// An address at which no block of memory can begin.
    #[error("Memory address {address:#x} is not a multiple of the block size {block_size:#x}")]
    Unaligned {
        /// As the host gave it.
        address: u64,
        /// Of the kernel.
        block_size: u64,
    },
    /// The kernel takes no addresses: it notices new memory itself, or has no memory hot-plug.
    #[error("The kernel takes no addresses of memory: there is no {path}")]
    NoProbe {
        /// The file that would take them.
        path: PathBuf,
    },
    /// The kernel did not find memory there.
    #[error("The kernel does not take memory at {address:#x}")]
    Probe {
        /// As the host gave it.
        address: u64,
        /// Its reason.
        source: io::Error,
    },
}

impl HotplugError {
    /// Whether the request is to blame rather than the guest.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Unaligned { .. })
    }

    fn file(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { step, path, source }
    }

    fn text(path: &Path, text: &str) -> Self {
        Self::Text {
            path: path.to_owned(),
            text: text.chars().take(80).collect(),
        }
    }
}

fn read(path: &Path) -> Result<String, HotplugError> {
    let text = fs::read_to_string(path).map_err(HotplugError::file("read", path))?;
    Ok(text.trim_end().to_owned())
}

/// The directories `NAME<number>` below `dir`, lowest number first; none where
/// the kernel has no such directory.
fn numbered(dir: &Path, name: &str) -> Result<Vec<PathBuf>, HotplugError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(HotplugError::file("read", dir))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(HotplugError::file("read", dir))?;
        let file = entry.file_name();
        let digits = file.to_str().and_then(|file| file.strip_prefix(name));
        // A sign, which the parser would take, is no part of a number.
        let digits = digits.filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        if let Some(number) = digits.and_then(|digits| digits.parse::<u32>().ok()) {
            found.push((number, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// What was unplugged since it was looked at is nothing to complain of.
fn is_gone(error: &io::Error) -> bool {
    // ENODEV: its directory is held open by somebody, or by us.
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_count_and_lower_ones_come_first() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "cpu10",
            "cpu9",
            "cpu",
            "cpu+1",
            "cpufreq",
            "cpu1x",
            "xcpu1",
            "cpu99999999999",
        ] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let found = numbered(dir.path(), "cpu").unwrap();
        assert_eq!(found, ["cpu9", "cpu10"].map(|name| dir.path().join(name)));
        assert!(
            numbered(&dir.path().join("absent"), "cpu")
                .unwrap()
                .is_empty()
        );
    }
}
