// SPDX-License-Identifier: Apache-2.0
//! What PID 1 allows itself: open files, and survival when memory runs out.
//!
//! Both are inherited by every child. Whoever starts a container must set them
//! to the container's own values.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use thiserror::Error;

/// Open files for PID 1: the kernel's own ceiling on nearly every system
/// (`fs.nr_open`). A container costs the agent half a dozen, an exec three.
const OPEN_FILES: u64 = 1 << 20;

/// Next to "never" (-1000, choom(1)), which is the kernel's word for itself.
const OOM_SCORE: &str = "-997";

/// A limit could not be set.
#[derive(Debug, Error)]
pub enum LimitError {
    /// The number of open files could not be raised.
    #[error("Cannot raise the limit of open files to {limit}")]
    OpenFiles {
        /// What was tried last.
        limit: u64,
        /// What the kernel answered.
        source: Errno,
    },
    /// The OOM score could not be written.
    #[error("Cannot write {OOM_SCORE} to /proc/self/oom_score_adj")]
    OomScore(#[source] io::Error),
}

/// Raises the limit of open files, hard and soft, to a million or as far as
/// the kernel takes it.
pub fn raise_open_files() -> Result<(), LimitError> {
    if set_open_files(OPEN_FILES).is_ok() {
        return Ok(());
    }
    // Too much for fs.nr_open, or not privileged: then what may be had.
    let limit = nr_open()
        .filter(|&limit| set_open_files(limit).is_ok())
        .map_or_else(raise_soft_limit, |_| Ok(()));
    limit.map_err(|source| LimitError::OpenFiles {
        limit: OPEN_FILES,
        source,
    })
}

fn set_open_files(limit: u64) -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit)
}

fn raise_soft_limit() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    set_open_files(hard)
}

fn nr_open() -> Option<u64> {
    let text = fs::read_to_string("/proc/sys/fs/nr_open").ok()?;
    text.trim().parse().ok()
}

/// Makes this process one of the last that the kernel kills when memory runs
/// out: the container that used it up should go instead.
pub fn protect_from_oom() -> Result<(), LimitError> {
    fs::write("/proc/self/oom_score_adj", OOM_SCORE).map_err(LimitError::OomScore)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bug_too_few_open_files() {
        raise_open_files().unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft, hard);
    }
}
