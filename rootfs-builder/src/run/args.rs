// SPDX-License-Identifier: Apache-2.0
//! The words `run` takes on the command line.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::boot::BootArgs;

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
    /// The VM
    #[command(flatten)]
    pub boot: BootArgs,
    /// The command and its arguments. Without one the image's own, or else one that tells where it runs
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
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
            &["--writable"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
