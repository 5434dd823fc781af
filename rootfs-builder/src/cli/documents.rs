// SPDX-License-Identifier: Apache-2.0
//! The verbs `completions` and `man`: both are written from the definition of the command line itself.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use super::output::print;

/// Print the completions for a shell
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Write the manual: one page to stdout, or with a directory a page for each verb
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write the pages of all verbs into this directory
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// The program's name in completions and pages.
const NAME: &str = "rootfs-builder";

/// Prints completions, for instance to be read by the shell's start file.
pub fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut script);
    print(String::from_utf8_lossy(&script).trim_end())
}

/// Prints or writes the manual.
pub fn man(args: &ManArgs) -> Result<()> {
    match &args.directory {
        Some(directory) => pages(directory),
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            print(String::from_utf8_lossy(&page).trim_end())
        }
    }
}

fn pages(directory: &Path) -> Result<()> {
    let failed = || format!("Cannot write the pages into {}", directory.display());
    fs::create_dir_all(directory).with_context(failed)?;
    clap_mangen::generate_to(Cli::command(), directory).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        pages(dir.path()).unwrap();
        for verb in Cli::command().get_subcommands() {
            let page = dir.path().join(format!("{NAME}-{}.1", verb.get_name()));
            let text = fs::read_to_string(&page).unwrap();
            assert!(text.contains(".SH OPTIONS"), "{}", page.display());
        }
    }

    #[test]
    fn every_shell_completes_every_verb() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
            let script = String::from_utf8(script).unwrap();
            for verb in Cli::command().get_subcommands() {
                assert!(script.contains(verb.get_name()), "{shell}");
            }
        }
    }
}
