// SPDX-License-Identifier: Apache-2.0
//! The ledger: one line per story that ran somewhere special or could not run, for the totals at the end of a test run.
//!
//! libtest cannot report a test as skipped at run time and hides what a passing test prints, so the runner names a file in
//! `KEELSON_TEST_LEDGER` and stories append to it. Without that variable only the loud line on stderr remains.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

/// The variable that names the ledger file.
pub const VARIABLE: &str = "KEELSON_TEST_LEDGER";

/// What became of a story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It ran in a VM.
    Vm,
    /// It drove the agent as a service, without a VM.
    Service,
    /// It was skipped on request.
    Skipped,
}

impl Entry {
    const ALL: [Entry; 3] = [Entry::Vm, Entry::Service, Entry::Skipped];

    fn word(self) -> &'static str {
        match self {
            Entry::Vm => "vm",
            Entry::Service => "service",
            Entry::Skipped => "skipped",
        }
    }
}

/// Notes what becomes of the story that runs on this thread.
pub fn note(entry: Entry) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    if entry == Entry::Skipped {
        // Straight to the descriptor: libtest would capture `eprintln!`, and a skip must be seen.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED {name}: {} is set",
            crate::story::SKIP_VM
        );
    }
    let Some(path) = std::env::var_os(VARIABLE) else {
        return;
    };
    // One write of one line in append mode: stories of several processes do not run into each other.
    let line = format!("{} {name}\n", entry.word());
    let file = OpenOptions::new().create(true).append(true).open(&path);
    if let Err(e) = file.and_then(|mut f| f.write_all(line.as_bytes())) {
        panic!(
            "Cannot write to the test ledger {}: {e}",
            Path::new(&path).display()
        );
    }
}

/// How many stories of each kind a ledger holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ran in a VM.
    pub vm: usize,
    /// Ran against the agent as a service.
    pub service: usize,
    /// Skipped on request.
    pub skipped: usize,
}

/// Counts the lines of a ledger's text.
pub fn count(text: &str) -> Counts {
    let mut counts = Counts::default();
    for line in text.lines() {
        let word = line.split(' ').next().unwrap_or_default();
        match Entry::ALL.into_iter().find(|e| e.word() == word) {
            Some(Entry::Vm) => counts.vm += 1,
            Some(Entry::Service) => counts.service += 1,
            Some(Entry::Skipped) => counts.skipped += 1,
            None => {}
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_by_their_first_word() {
        let counts = count("vm a::b\nservice c\nskipped d e\nvm f\n\nother g\n");
        assert_eq!(
            counts,
            Counts {
                vm: 2,
                service: 1,
                skipped: 1
            }
        );
    }
}
