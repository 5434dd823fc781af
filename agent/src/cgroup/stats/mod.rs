// SPDX-License-Identifier: Apache-2.0
//! What a container's group has used, in one shape for both versions. Owns the
//! types and how control files are read; what they mean is in [`v1`], [`v2`].
//!
//! Hosts ask every few seconds for every container, so each file costs an open,
//! a read and a close below one descriptor of the group, and no more. A file
//! that is missing or odd leaves out what it would have told; nothing here fails.

mod parse;
mod v1;
mod v2;

pub(super) use parse::pairs;

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::hierarchy::Hierarchy;
use super::{Cgroup, Layout};

/// The most that is read of one control file: `memory.stat` has some 2 KiB,
/// `io.stat` a line for each device.
const MAX_FILE: usize = 256 << 10;

/// Where the kernel shows which sizes of huge pages it has.
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";

/// Everything a group tells; a part is absent when its controller is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Time used and withheld.
    pub cpu: Option<Cpu>,
    /// Memory, swap, kernel memory.
    pub memory: Option<Memory>,
    /// Tasks.
    pub pids: Option<Pids>,
    /// Block devices.
    pub io: Option<Io>,
    /// By page size, such as `2MB`.
    pub hugetlb: Vec<(String, Usage)>,
}

/// Processor time. All times in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Of both modes.
    pub total: u64,
    /// In user mode.
    pub user: u64,
    /// In kernel mode.
    pub kernel: u64,
    /// By processor; v1 only.
    pub per_cpu: Vec<u64>,
    /// Periods of the quota that elapsed.
    pub periods: u64,
    /// Periods in which the quota ran out.
    pub throttled_periods: u64,
    /// Time that tasks were kept waiting.
    pub throttled_time: u64,
}

/// Use of something, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Now.
    pub current: u64,
    /// The highest so far; 0 where the kernel does not keep it.
    pub peak: u64,
    /// How often the limit was hit.
    pub failures: u64,
    /// What is allowed.
    pub limit: u64,
}

/// Memory figures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// Page cache, in bytes.
    pub cache: u64,
    /// Memory.
    pub usage: Usage,
    /// Swap; on v1 memory and swap together. Absent without swap accounting.
    pub swap: Option<Usage>,
    /// Kernel memory, which only v1 counts by itself.
    pub kernel: Usage,
    /// The v1 flag of that name.
    pub use_hierarchy: bool,
    /// `memory.stat`, line by line.
    pub details: Vec<(String, u64)>,
}

/// Task figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pids {
    /// Tasks that exist.
    pub current: u64,
    /// Tasks allowed; 0 means any number.
    pub limit: u64,
}

/// One counter of one block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoEntry {
    /// Device major.
    pub major: u64,
    /// Device minor.
    pub minor: u64,
    /// What was counted, in lower case; empty where there is one count only.
    pub op: String,
    /// The count.
    pub value: u64,
}

/// Figures of block devices, by device and operation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Io {
    /// Bytes; on v2 all that `io.stat` counts.
    pub bytes: Vec<IoEntry>,
    /// Requests. This and what follows is v1 only.
    pub requests: Vec<IoEntry>,
    /// Requests that wait.
    pub queued: Vec<IoEntry>,
    /// Nanoseconds of being served.
    pub service_time: Vec<IoEntry>,
    /// Nanoseconds of waiting.
    pub wait_time: Vec<IoEntry>,
    /// Requests that were merged.
    pub merged: Vec<IoEntry>,
    /// Milliseconds of the device.
    pub time: Vec<IoEntry>,
    /// Sectors.
    pub sectors: Vec<IoEntry>,
}

impl Cgroup {
    /// What the group and those below it have used so far. Reads some twenty
    /// files: for the blocking pool.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let group = self.path();
        match &self.cgroups.0.layout {
            Layout::V1(split) => v1::read(
                |controller| Files::open(split.hierarchy_of(controller)?, group),
                huge_page_sizes(),
            ),
            Layout::V2(unified) => Files::open(&unified.hierarchy, group)
                .map(|mut files| v2::read(&mut files, huge_page_sizes()))
                .unwrap_or_default(),
            Layout::None => Stats::default(),
        }
    }
}

/// The control files of one group in one hierarchy.
struct Files {
    group: OwnedFd,
    buffer: Vec<u8>,
}

impl Files {
    /// `None` when the group is gone.
    fn open(hierarchy: &Hierarchy, group: &str) -> Option<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        Some(Self {
            group: hierarchy.open_at(group, "", flags).ok()?,
            buffer: vec![0; 4096],
        })
    }

    /// The whole of a file, or what [`MAX_FILE`] allows.
    fn text(&mut self, file: &str) -> Option<&str> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let fd = openat(&self.group, file, flags, Mode::empty()).ok()?;
        let mut length = 0;
        loop {
            match nix::unistd::read(&fd, &mut self.buffer[length..]) {
                Ok(read) => length += read,
                Err(Errno::EINTR) => continue,
                Err(_) => return None,
            }
            // A control file is one record: only a full buffer leaves a rest.
            if length < self.buffer.len() || length >= MAX_FILE {
                break;
            }
            self.buffer.resize(length * 2, 0);
        }
        std::str::from_utf8(&self.buffer[..length]).ok()
    }

    /// The number that a file consists of.
    fn number(&mut self, file: &str) -> Option<u64> {
        self.text(file)?.trim_end().parse().ok()
    }

    /// The number of a file, 0 if there is none.
    fn count(&mut self, file: &str) -> u64 {
        self.number(file).unwrap_or(0)
    }

    /// A file of lines `word number`.
    fn pairs(&mut self, file: &str) -> Option<Vec<(String, u64)>> {
        let pairs = parse::pairs(self.text(file)?);
        Some(pairs.map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// Counters of devices; none if the file is not there.
    fn devices(&mut self, file: &str) -> Vec<IoEntry> {
        self.text(file)
            .map(parse::device_counts)
            .unwrap_or_default()
    }
}

/// The sizes of huge pages, as control files are called after them. They do not
/// change while the kernel runs.
fn huge_page_sizes() -> &'static [String] {
    static SIZES: OnceLock<Vec<String>> = OnceLock::new();
    SIZES.get_or_init(|| {
        let entries = std::fs::read_dir(HUGE_PAGES)
            .into_iter()
            .flatten()
            .flatten();
        let names = entries.map(|entry| entry.file_name());
        let mut sizes: Vec<_> = names
            .filter_map(|name| parse::huge_page_size(name.to_str()?))
            .collect();
        sizes.sort_unstable();
        sizes
    })
}

#[cfg(test)]
mod tests;
