// SPDX-License-Identifier: Apache-2.0
//! The command line: verbs and their options. What the verbs do is in [`act`], what a failure looks like in [`hints`].

mod act;
mod hints;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use guest_kernel::Arch;

use crate::cache::Cache;
use crate::progress::{self, Level};
use crate::{clean, run};

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
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 the command line is wrong. `run` exits with the code of its command, or 128 + N if signal N ended \
it; 125 if the VM or the container failed, 126 if the command cannot be executed, 127 if it was not found.

Results are kept in $KEELSON_CACHE, else $XDG_CACHE_HOME/keelson, else ~/.cache/keelson. Times in images are SOURCE_DATE_EPOCH, \
else 0. NO_COLOR is honoured.";

#[derive(Debug, Subcommand)]
enum Verb {
    Run(Box<run::Args>),
    Build(BuildArgs),
    /// Get a kernel for the guest
    #[command(subcommand)]
    Kernel(KernelVerb),
    Setup(SetupArgs),
    Clean(CleanArgs),
}

/// Build an initramfs: the guest binary alone, or with a base, and the modules of a modular kernel
#[derive(Debug, Args)]
struct BuildArgs {
    /// Write the image here instead of leaving it in the cache
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The guest's architecture: x86_64 or aarch64; this machine's if not given
    #[arg(long, value_name = "ARCH")]
    arch: Option<Arch>,
    /// What goes in besides the guest binary: `none`, `debian`, or the path of a directory, an OCI image layout or archive
    #[arg(long, value_name = "none|debian|PATH", default_value = "none")]
    base: String,
    /// Packages of a Debian base besides the essential ones
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    packages: Vec<String>,
    /// The kernel whose modules go in
    #[arg(long, value_enum, default_value_t = KernelSource::Fetched)]
    kernel: KernelSource,
    /// How the image is compressed
    #[arg(long, value_enum, default_value_t = Compressor::None)]
    compress: Compressor,
    /// Take this guest binary instead of building it
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Install what is missing on the host first
    #[arg(long)]
    setup: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Compressor {
    /// Larger, and the quickest to boot
    None,
    /// Every kernel can unpack it
    Gzip,
}

/// Which kernel's modules go into an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KernelSource {
    /// A distributor's
    Fetched,
    /// Our own
    Built,
    /// None: the kernel has everything built in
    None,
}

#[derive(Debug, Subcommand)]
enum KernelVerb {
    /// Unpack a distributor's prebuilt kernel into the cache, with the modules the guest needs
    Fetch {
        /// The guest's architecture: x86_64 or aarch64; this machine's if not given
        #[arg(long, value_name = "ARCH")]
        arch: Option<Arch>,
        /// Look for a newer one although one was fetched before
        #[arg(long)]
        refresh: bool,
        /// Install what is missing on the host first
        #[arg(long)]
        setup: bool,
    },
    /// Build our own kernel from a distributor's source package
    Build {
        /// The guest's architecture: x86_64 or aarch64; this machine's if not given
        #[arg(long, value_name = "ARCH")]
        arch: Option<Arch>,
        /// Parallel jobs; as many as there are processors if not given
        #[arg(short, long, value_name = "N")]
        jobs: Option<usize>,
        /// A fragment of kernel options merged after ours; can be given several times
        #[arg(long = "fragment", value_name = "FILE")]
        fragments: Vec<PathBuf>,
        /// Go on although options that were asked for did not survive
        #[arg(long)]
        allow_missing: bool,
        /// Look for a newer source package although one was taken before
        #[arg(long)]
        refresh: bool,
        /// Install what is missing on the host first
        #[arg(long)]
        setup: bool,
    },
    /// Say which of the options our guest asks for a kernel configuration lacks
    Check {
        /// The kernel's `.config`
        config: PathBuf,
        /// The guest's architecture: x86_64 or aarch64; this machine's if not given
        #[arg(long, value_name = "ARCH")]
        arch: Option<Arch>,
        /// Check against these fragments instead of ours; can be given several times
        #[arg(long = "fragment", value_name = "FILE")]
        fragments: Vec<PathBuf>,
    },
}

/// Install what the verbs need on this host, as far as this user can
#[derive(Debug, Args)]
struct SetupArgs {
    /// The guest's architecture: x86_64 or aarch64; this machine's if not given
    #[arg(long, value_name = "ARCH")]
    arch: Option<Arch>,
    /// Also what building our own kernel needs
    #[arg(long)]
    kernel: bool,
    /// Only say what is missing and how to get it
    #[arg(long)]
    dry_run: bool,
}

/// Remove what is in the cache
#[derive(Debug, Args)]
struct CleanArgs {
    /// What to remove; everything but tools and kernels if not given
    #[arg(value_enum)]
    parts: Vec<clean::Part>,
    /// Everything
    #[arg(long, conflicts_with = "parts")]
    all: bool,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
}

/// Runs the program: parses its arguments, does what they say, and tells its failure with a hint where there is one.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let is_run = matches!(cli.verb, Verb::Run(_));
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
    match cli.verb {
        Verb::Run(args) => return run::execute(&args, &cache, &*progress),
        Verb::Build(args) => act::build(&args, &cache, &*progress)?,
        Verb::Kernel(verb) => act::kernel_verb(verb, &cache, &*progress)?,
        Verb::Setup(args) => act::set_up(&args, &cache, &*progress)?,
        Verb::Clean(args) => act::clean_up(&args, &cache)?,
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
            &["kernel", "check", "config", "--arch", "x86_64"],
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
