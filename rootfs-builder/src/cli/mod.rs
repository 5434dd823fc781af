// SPDX-License-Identifier: Apache-2.0
//! The command line: one file for each verb, with its options and what it does. What a result looks like is in [`output`], what a
//! failure does in [`hints`].

mod build;
mod clean;
mod diff;
mod documents;
mod hints;
mod inspect;
mod kata;
mod kernel;
pub mod output;
mod setup;
mod shell;
mod summary;
mod verify;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use guest_kernel::Arch;

use crate::cache::Cache;
use crate::progress::{self, Level, Progress};
use crate::run;
use output::Report;

/// Bakes the Keelson guest into images, gets it a kernel, and runs containers in it.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110, after_help = EXIT_CODES)]
pub struct Cli {
    /// Show nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Show every line of the programs that run
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Print the result as one JSON document
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 the command line is wrong. `run` and `shell` exit with the code of their command, or 128 + N if signal N ended \
it; 125 if the VM or the container failed, 126 if the command cannot be executed, 127 if it was not found.

Results are kept in $KEELSON_CACHE, else $XDG_CACHE_HOME/keelson, else ~/.cache/keelson. Times in images are SOURCE_DATE_EPOCH, \
else 0. NO_COLOR is honoured.";

#[derive(Debug, Subcommand)]
enum Verb {
    Run(Box<run::Args>),
    Build(Box<build::BuildArgs>),
    /// Get a kernel for the guest
    #[command(subcommand)]
    Kernel(kernel::KernelVerb),
    Inspect(inspect::InspectArgs),
    Verify(verify::VerifyArgs),
    Diff(diff::DiffArgs),
    Shell(Box<shell::ShellArgs>),
    KataConfig(kata::KataArgs),
    Summary(Box<summary::SummaryArgs>),
    Setup(setup::SetupArgs),
    Clean(clean::CleanArgs),
    Completions(documents::CompletionsArgs),
    Man(documents::ManArgs),
}

/// What every verb works with.
pub struct Context<'a> {
    /// Where results are kept.
    pub cache: &'a Cache,
    /// Where steps are told.
    pub progress: &'a dyn Progress,
    /// Whether the result is to be a JSON document.
    pub json: bool,
}

impl Context<'_> {
    /// Prints a verb's result.
    pub fn report<R: Report>(&self, report: &R) -> Result<()> {
        output::report(report, self.json)
    }
}

/// The architecture meant when none is given.
fn arch_or_host(arch: Option<Arch>) -> Result<Arch> {
    arch.or_else(Arch::host)
        .context("This machine's architecture is none the guest runs on; say which with --arch")
}

/// Runs the program: parses its arguments, does what they say, and tells its failure with a hint where there is one.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let is_run = matches!(cli.verb, Verb::Run(_) | Verb::Shell(_));
    match execute(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            hints::complain(&error);
            ExitCode::from(if is_run { run::exit_code(&error) } else { 1 })
        }
    }
}

fn execute(cli: Cli) -> Result<u8> {
    let level = match (cli.quiet, cli.verbose) {
        (true, _) => Level::Quiet,
        (_, true) => Level::Verbose,
        _ => Level::Normal,
    };
    let progress = progress::reporter(level);
    let cache = Cache::open()?;
    let context = Context {
        cache: &cache,
        progress: &*progress,
        json: cli.json,
    };
    match cli.verb {
        Verb::Run(args) => return run::execute(&args, &cache, &*progress),
        Verb::Shell(args) => return shell::shell(&args, &context),
        Verb::Build(args) => build::build(&args, &context)?,
        Verb::Kernel(verb) => kernel::kernel_verb(verb, &context)?,
        Verb::Inspect(args) => inspect::inspect(&args, &context)?,
        Verb::Verify(args) => verify::verify(&args, &context)?,
        Verb::Diff(args) => diff::diff(&args, &context)?,
        Verb::Summary(args) => summary::summary(&args, &context)?,
        Verb::KataConfig(args) => kata::kata(&args, &context)?,
        Verb::Setup(args) => setup::set_up(&args, &context)?,
        Verb::Clean(args) => clean::clean_up(&args, &context)?,
        Verb::Completions(args) => documents::completions(&args)?,
        Verb::Man(args) => documents::man(&args)?,
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(words: &[&str]) -> std::result::Result<Cli, clap::Error> {
        Cli::try_parse_from([&["rootfs-builder"], words].concat())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_documented_commands_parse() {
        for words in [
            &["run", "--setup"][..],
            &["run", "--", "sh", "-c", "exit 42"],
            &["run", "-i", "--", "sha256sum"],
            &["-q", "run", "-t"],
            &[
                "build",
                "-o",
                "x",
                "--compress",
                "gzip",
                "--base",
                "debian",
                "--packages",
                "curl,jq",
            ],
            &["kernel", "fetch", "--arch", "arm64", "--refresh"],
            &[
                "kernel",
                "build",
                "-j",
                "4",
                "--fragment",
                "a",
                "--fragment",
                "b",
                "-v",
            ],
            &[
                "kernel",
                "build",
                "--with",
                "confidential",
                "--with",
                "debug",
            ],
            &["kernel", "check", "config", "--arch", "x86_64"],
            &["kernel", "check", "fetched", "--image", "x", "--strict"],
            &["summary", "--profile", "coco"],
            &["kata-config", "x.img", "--kubernetes"],
            &["run", "--arch", "aarch64", "--", "uname", "-m"],
            &["shell", "--image", "x.img", "--root-device", "nvdimm"],
            &["verify", "x.img"],
            &["--json", "diff", "a", "b"],
            &["completions", "bash"],
            &["man"],
            &["setup", "--dry-run"],
            &["clean", "--all"],
            &["clean", "image", "root"],
        ] {
            parse(words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
        }
        for words in [
            &["-q", "-v", "setup"][..],
            &["build", "--arch", "riscv64"],
            &["clean", "--all", "image"],
            &[],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
