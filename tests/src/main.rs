// SPDX-License-Identifier: Apache-2.0
//! Runs everything that is tested, with one command: `cargo run --release -p tests -- --setup`.
//!
//! Set-up if asked for, the lints, the static binaries of both architectures, then every test of the workspace, and the totals. It
//! adds nothing to what `cargo test --workspace` finds; it prepares for it, counts it, and fails when something was skipped that
//! should not have been.

mod run;

use std::process::ExitCode;

use clap::Parser;

use run::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    match run::all(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
