// SPDX-License-Identifier: Apache-2.0
//! Counts what ran: libtest's result lines, the runner's own checks and the ledger of the stories.

use ::tests::ledger::Counts;
use anyhow::Result;

/// The totals of a test run.
#[derive(Debug, Default)]
pub struct Tally {
    tests_passed: usize,
    checks_passed: usize,
    failed: usize,
    ignored: usize,
    stories: Counts,
}

impl Tally {
    /// Counts one of the runner's own checks and says what became of it.
    pub fn check(&mut self, name: &str, outcome: Result<()>) {
        match outcome {
            Ok(()) => {
                self.checks_passed += 1;
                println!("check {name} ... ok");
            }
            Err(error) => {
                self.failed += 1;
                println!("check {name} ... FAILED\n    {error:#}");
            }
        }
    }

    /// Counts a line of libtest's output, if it is a result line.
    pub fn line(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else {
            return;
        };
        let count = |word: &str| {
            let parts = rest.split(['.', ';']).map(str::trim);
            parts
                .filter_map(|part| part.strip_suffix(word)?.trim().parse().ok())
                .next()
                .unwrap_or(0)
        };
        self.tests_passed += count("passed");
        self.failed += count("failed");
        self.ignored += count("ignored");
    }

    /// Counts a failure that no result line tells of, such as a test that does not compile.
    pub fn failure(&mut self) {
        self.failed += 1;
    }

    /// How many failed so far.
    pub fn failed(&self) -> usize {
        self.failed
    }

    /// Adds what a ledger of stories says. A skipped story passes as far as libtest knows.
    pub fn stories(&mut self, counts: Counts) {
        self.tests_passed = self.tests_passed.saturating_sub(counts.skipped);
        self.stories.vm += counts.vm;
        self.stories.service += counts.service;
        self.stories.skipped += counts.skipped;
    }

    /// The closing lines; the last is the totals.
    pub fn summary(&self) -> String {
        let Counts {
            vm,
            service,
            skipped,
        } = self.stories;
        let ran = self.tests_passed + self.failed;
        let passed = self.tests_passed + self.checks_passed;
        format!(
            "{ran} tests ran, {vm} of them in VMs and {service} against the agent as a service; {} checks passed\n\
             {passed} passed, {} failed, {} skipped",
            self.checks_passed,
            self.failed,
            skipped + self.ignored
        )
    }

    /// Whether the run is a success. A skip is one only where it was asked for, which `#[ignore]` is not.
    pub fn passes(&self) -> bool {
        self.failed == 0 && self.ignored == 0 && self.tests_passed + self.checks_passed > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_summed() {
        let mut tally = Tally::default();
        tally.line("running 3 tests");
        tally.line("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s");
        tally.line("test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 9.99s");
        assert_eq!(
            (tally.tests_passed, tally.failed, tally.ignored),
            (16, 2, 1)
        );
        assert!(!tally.passes());
    }

    #[test]
    fn the_last_line_is_the_totals() {
        let mut tally = Tally::default();
        tally.check("one", Ok(()));
        tally.line("test result: ok. 10 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        tally.stories(Counts {
            vm: 4,
            service: 3,
            skipped: 2,
        });
        assert_eq!(
            tally.summary().lines().last(),
            Some("9 passed, 0 failed, 2 skipped")
        );
        assert!(tally.passes());
    }

    #[test]
    fn nothing_at_all_is_no_success() {
        assert!(!Tally::default().passes());
    }
}
