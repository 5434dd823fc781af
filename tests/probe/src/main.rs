// SPDX-License-Identifier: Apache-2.0
//! A program for the inside of a guest: it reports what a container sees there, as lines `key=value` on stdout.
//!
//! For the tests only, and never part of an image. It judges nothing: what a fact should be is the test's business. A fact that the
//! kernel does not tell is left out. Ends with 0, or with 1 and a line on stderr if a fact could not be had, 2 if it was called wrongly.

mod facts;
mod mounts;
mod stat;
mod system;

use std::env;
use std::process::ExitCode;

use facts::{Error, Facts};

/// A subcommand.
struct Command {
    name: &'static str,
    /// What its arguments are called, for the usage and to count them.
    args: &'static [&'static str],
    about: &'static str,
    run: fn(&[String]) -> Result<Facts, Error>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "statx",
        args: &["PATH"],
        about: "a file: size, mode, devices, whether it is mapped without a page cache (dax), its mount",
        run: |args| stat::statx(&args[0]),
    },
    Command {
        name: "mount",
        args: &["PATH"],
        about: "the mount a path lies on: file system, source, options",
        run: |args| mounts::mount(&args[0]),
    },
    Command {
        name: "uname",
        args: &[],
        about: "the kernel",
        run: |_| Ok(system::uname()),
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let Some(command) = chosen(&args) else {
        eprint!("{}", usage());
        return ExitCode::from(2);
    };
    match (command.run)(&args[1..]) {
        Ok(facts) => {
            print!("{}", facts.text());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("probe: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The subcommand named, if it has as many arguments as it takes.
fn chosen(args: &[String]) -> Option<&'static Command> {
    let (name, rest) = args.split_first()?;
    COMMANDS
        .iter()
        .find(|c| c.name == name && c.args.len() == rest.len())
}

fn usage() -> String {
    let line = |c: &Command| {
        let call = [&[c.name], c.args].concat().join(" ");
        format!("  probe {call:<14} {}\n", c.about)
    };
    COMMANDS.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_taken_with_its_arguments_only() {
        let args = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        let name = |words: &[&str]| chosen(&args(words)).map(|c| c.name);
        assert_eq!(name(&["uname"]), Some("uname"));
        assert_eq!(name(&["statx", "/"]), Some("statx"));
        for words in [&[][..], &["statx"], &["uname", "x"], &["what"]] {
            assert_eq!(name(words), None, "{words:?}");
        }
    }

    #[test]
    fn every_command_is_in_the_usage() {
        let usage = usage();
        assert!(
            COMMANDS
                .iter()
                .all(|c| usage.contains(c.name) && usage.contains(c.about))
        );
    }
}
