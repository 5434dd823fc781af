// SPDX-License-Identifier: Apache-2.0
//! Runs `cargo test` for the workspace, streams what it prints and counts it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use ::tests::roots::{self, Parts};
use ::tests::{artifacts, ledger};
use anyhow::{Context, Result};

use super::tally::Tally;

/// Runs all tests of the workspace. An error means that cargo could not be run at all.
pub fn test(parts: &Parts, more: &[String], tally: &mut Tally) -> Result<()> {
    let mut command = super::checks::cargo();
    command
        .args(["test", "--release", "--workspace", "--no-fail-fast"])
        .args(more);
    counted(command, parts, tally)
}

/// Runs the VM stories on guests of another architecture.
pub fn test_foreign(parts: &Parts, tally: &mut Tally) -> Result<()> {
    let mut command = super::checks::cargo();
    command
        .args(["test", "--release", "--package", "tests", "--test", "vm"])
        .env(artifacts::ARCH_VARIABLE, parts.arch.name());
    counted(command, parts, tally)
}

/// Runs a `cargo test` and adds what it did to the totals.
fn counted(mut command: Command, parts: &Parts, tally: &mut Tally) -> Result<()> {
    let ledger_file = tempfile::NamedTempFile::new().context("Cannot create the test ledger")?;
    command
        .env(ledger::VARIABLE, ledger_file.path())
        .env(artifacts::AGENT_VARIABLE, &parts.agent)
        .env(roots::PROBE_VARIABLE, &parts.probe);
    let failed = tally.failed();
    let succeeded = stream(command, tally)?;
    if !succeeded && tally.failed() == failed {
        tally.failure();
    }
    let text =
        std::fs::read_to_string(ledger_file.path()).context("Cannot read the test ledger")?;
    tally.stories(ledger::count(&text));
    Ok(())
}

fn stream(mut command: Command, tally: &mut Tally) -> Result<bool> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("Cannot run cargo test")?;
    let stdout = child.stdout.take().context("Cargo has no output")?;
    let mut reader = BufReader::new(stdout);
    let mut line = Vec::new();
    // Bytes, not text: a failing test may print anything.
    while reader
        .read_until(b'\n', &mut line)
        .context("Cannot read cargo's output")?
        > 0
    {
        let text = String::from_utf8_lossy(&line);
        print!("{text}");
        tally.line(text.trim_end());
        line.clear();
    }
    Ok(child.wait().context("Cannot wait for cargo")?.success())
}
