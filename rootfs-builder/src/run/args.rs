// SPDX-License-Identifier: Apache-2.0
//! The words `run` takes on the command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use guest_kernel::Arch;

use crate::vm;

/// Boot a VM and run a command in an OCI container inside it.
///
/// Exits with the command's exit code, or 128 + N if signal N ended it. Failures of our own: 125 something else went wrong,
/// 126 the command cannot be executed, 127 the command was not found.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// The container's root: a directory, an OCI image layout, or an archive of `docker save`. Without it a small Debian
    #[arg(long, value_name = "PATH")]
    pub rootfs: Option<PathBuf>,
    /// Install what the host lacks
    #[arg(long)]
    pub setup: bool,
    /// Let the container write to the directory given by --rootfs. Otherwise changes go to the guest's memory and are lost
    #[arg(long, requires = "rootfs")]
    pub writable: bool,
    /// Give the command a terminal
    #[arg(short = 't', long)]
    pub tty: bool,
    /// Pass our standard input on to the command
    #[arg(short = 'i', long)]
    pub interactive: bool,
    /// Set an environment variable
    #[arg(short = 'e', long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<String>,
    /// The command's working directory
    #[arg(short = 'w', long, value_name = "DIR", value_parser = absolute)]
    pub workdir: Option<String>,
    /// Who runs the command: names of the container's or numbers
    #[arg(short = 'u', long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// The VM's memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(128..=1 << 20))]
    pub memory: u32,
    /// The VM's processors
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=255))]
    pub cpus: u32,
    /// The kernel: `fetched` (a distributor's), `built` (our own), or the path of an image with built-in drivers
    #[arg(long, value_name = "fetched|built|PATH", default_value = "fetched")]
    pub kernel: String,
    /// Take this guest binary instead of building it
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// More words for the kernel command line
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub append: Vec<String>,
    /// The guest's architecture: x86_64 or aarch64; this machine's if not given
    #[arg(long)]
    pub arch: Option<Arch>,
    /// How the processor is made
    #[arg(long, value_enum, default_value_t = Accel::Auto)]
    pub accel: Accel,
    /// Print where the time went
    #[arg(long)]
    pub timings: bool,
    /// Show the VM's console on standard error
    #[arg(long)]
    pub console: bool,
    /// Keep the VM's directory with its logs, and say where it is
    #[arg(long)]
    pub keep: bool,
    /// The command and its arguments. Without one the image's own, or else one that tells where it runs
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// As [`vm::Accel`], for the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// KVM if it is usable, else emulation
    Auto,
    /// KVM
    Kvm,
    /// Emulation
    Tcg,
}

impl From<Accel> for vm::Accel {
    fn from(accel: Accel) -> vm::Accel {
        match accel {
            Accel::Auto => vm::Accel::Auto,
            Accel::Kvm => vm::Accel::Kvm,
            Accel::Tcg => vm::Accel::Tcg,
        }
    }
}

fn variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err("NAME=VALUE is expected".to_owned()),
    }
}

fn absolute(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err("an absolute path is expected".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Result<Args, clap::Error> {
        Program::try_parse_from([&["run"], words].concat()).map(|program| program.args)
    }

    #[test]
    fn what_follows_the_dashes_is_the_command() {
        let args = parse(&["-ti", "-e", "A=b=c", "--", "ls", "-t", "--", "x"]).unwrap();
        assert!(args.tty && args.interactive);
        assert_eq!(args.env, ["A=b=c"]);
        assert_eq!(args.command, ["ls", "-t", "--", "x"]);
        assert!(parse(&[]).unwrap().command.is_empty());
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [
            &["-e", "=x"][..],
            &["-e", "x"],
            &["-w", "rel"],
            &["--cpus", "0"],
            &["--memory", "1"],
            &["--writable"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn kernel_words_may_begin_with_a_dash() {
        assert_eq!(
            parse(&["--append", "-x quiet"]).unwrap().append,
            ["-x quiet"]
        );
    }
}
