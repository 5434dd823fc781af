// SPDX-License-Identifier: Apache-2.0
//! The test run, step by step.

mod checks;
mod lines;
mod tally;
mod workspace;

use std::path::Path;

use anyhow::{Context, Result};
use clap::Parser;
use guest_kernel::Arch;
use rootfs_builder::cache::Cache;
use tests::roots::Parts;

use lines::Lines;
use tally::Tally;

/// Runs the lints, builds and tests of the whole project and prints the totals.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Options {
    /// Install what the host lacks first, where that is possible.
    #[arg(long)]
    setup: bool,

    /// Leave out `cargo fmt --check` and `cargo clippy`.
    #[arg(long)]
    no_lint: bool,

    /// Arguments for `cargo test`, such as a part of the tests' names.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo_test: Vec<String>,
}

/// Does it all. True if nothing failed and nothing was skipped that should have run.
pub fn all(options: &Options) -> Result<bool> {
    let cache = Cache::open()?;
    let progress = Lines;
    checks::host(options.setup, &cache, &progress)?;
    let mut tally = Tally::default();
    if !options.no_lint {
        tally.check("cargo fmt --check", checks::format());
        tally.check("cargo clippy", checks::clippy());
    }
    let agents = checks::guest_binaries(&cache, &progress, &mut tally);
    let own = Arch::host().context("Guests cannot have this machine's architecture")?;
    // Without the binary the guest cannot be made, and every VM test would fail one by one with the same words.
    if let Some(agent) = agents.get(&own) {
        let parts = prepare(own, agent)?;
        workspace::test(&parts, &options.cargo_test, &mut tally)?;
    }
    // Who asks for certain tests has asked for no others.
    if options.cargo_test.is_empty() {
        for (&arch, agent) in agents.iter().filter(|(arch, _)| **arch != own) {
            let parts = prepare(arch, agent)?;
            workspace::test_foreign(&parts, &mut tally)?;
        }
    }
    println!("\n{}", tally.summary());
    Ok(tally.passes())
}

/// Makes all that VM stories on `arch` boot.
fn prepare(arch: Arch, agent: &Path) -> Result<Parts> {
    let prepare = || {
        let probe = tests::roots::probe(arch, &Lines)?;
        let agent = agent.to_owned();
        let parts = Parts { arch, agent, probe };
        tests::artifacts::prepare(&parts, &Lines)?;
        parts.prepare(&Lines)?;
        Ok::<_, anyhow::Error>(parts)
    };
    prepare().with_context(|| format!("Cannot prepare the guest for the tests on {arch}"))
}
