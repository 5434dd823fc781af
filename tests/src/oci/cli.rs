// SPDX-License-Identifier: Apache-2.0
//! The words of the command line: those of runc that validation suites use. Some have nothing to decide here and are taken and ignored.

use std::fmt;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The version of the OCI runtime specification that this speaks.
pub const SPEC_VERSION: &str = "1.2.0";

/// An OCI runtime's command line over Keelson's agent, without a VM.
#[derive(Debug, Parser)]
#[command(name = "oci", version = concat!(env!("CARGO_PKG_VERSION"), "\nspec: 1.2.0"))]
pub struct Options {
    /// Directory of the containers' state; one agent serves each
    #[arg(
        long,
        global = true,
        default_value = "/run/keelson-oci",
        value_name = "DIR"
    )]
    pub root: PathBuf,
    /// Where errors are written too
    #[arg(long, global = true, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// How errors are written there
    #[arg(long, global = true, default_value = "text")]
    pub log_format: LogFormat,
    /// Ignored: the agent makes cgroups itself
    #[arg(long, global = true)]
    pub systemd_cgroup: bool,
    /// Ignored: errors are always told in full
    #[arg(long, global = true)]
    pub debug: bool,
    /// The guest binary; built if it is not given
    #[arg(long, global = true, env = tests::artifacts::AGENT_VARIABLE, value_name = "FILE")]
    pub agent: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Creates a container from a bundle
    Create(Create),
    /// Executes the process of a created container
    Start { id: String },
    /// Creates and starts a container, waits for its end, and deletes it
    Run(Create),
    /// Prints a container's state
    State { id: String },
    /// Lists the containers of the root directory
    List,
    /// Sends a signal to a container's process
    Kill(Kill),
    /// Deletes a container that has stopped
    Delete {
        id: String,
        /// Kills it first if it has not
        #[arg(short, long)]
        force: bool,
    },
    /// Runs another process in a running container
    Exec(Box<Exec>),
    /// Lists the processes of a container
    Ps {
        id: String,
        #[arg(short, long, default_value = "table")]
        format: PsFormat,
    },
    /// Stops all processes of a container for a while
    Pause { id: String },
    /// Has them go on
    Resume { id: String },
    /// Changes the limits of a container
    Update(Box<Update>),
    /// Prints statistics and OOM kills of a container
    Events {
        id: String,
        /// Statistics once, and no waiting
        #[arg(long)]
        stats: bool,
        /// Seconds between statistics
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
        interval: u64,
    },
    /// Prints what this supports
    Features,
    /// Carries a process's standard streams
    #[command(hide = true)]
    Relay {
        id: String,
        #[arg(long, default_value = "")]
        exec: String,
        #[arg(long)]
        terminal: bool,
    },
}

#[derive(Debug, Args)]
pub struct Create {
    pub id: String,
    /// Directory with config.json
    #[arg(short, long, default_value = ".", value_name = "DIR")]
    pub bundle: PathBuf,
    /// Socket that is given the terminal's master
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Written with the process's pid
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Ignored: the agent knows what its root is on
    #[arg(long)]
    pub no_pivot: bool,
    /// Ignored: the agent makes no session keyring
    #[arg(long)]
    pub no_new_keyring: bool,
}

#[derive(Debug, Args)]
pub struct Kill {
    pub id: String,
    /// Name or number
    #[arg(default_value = "TERM")]
    pub signal: String,
    /// All processes of the container
    #[arg(short, long)]
    pub all: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PsFormat {
    Table,
    Json,
}

#[derive(Debug, Args)]
pub struct Exec {
    pub id: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
    /// Do not wait for its end
    #[arg(short, long)]
    pub detach: bool,
    /// File with the process as config.json has it
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// KEY=value, besides the container's
    #[arg(short, long)]
    pub env: Vec<String>,
    /// Working directory
    #[arg(long)]
    pub cwd: Option<String>,
    /// UID[:GID]
    #[arg(short, long)]
    pub user: Option<String>,
    /// Written with the process's pid
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Socket that is given the terminal's master
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Update {
    pub id: String,
    /// File with linux.resources, - for standard input
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Bytes
    #[arg(long, allow_hyphen_values = true)]
    pub memory: Option<i64>,
    /// Bytes of memory and swap together
    #[arg(long, allow_hyphen_values = true)]
    pub memory_swap: Option<i64>,
    /// Bytes
    #[arg(long, allow_hyphen_values = true)]
    pub memory_reservation: Option<i64>,
    #[arg(long)]
    pub cpu_shares: Option<u64>,
    /// Microseconds in a period
    #[arg(long, allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// Microseconds
    #[arg(long)]
    pub cpu_period: Option<u64>,
    #[arg(long)]
    pub cpuset_cpus: Option<String>,
    #[arg(long)]
    pub cpuset_mems: Option<String>,
    /// Most tasks
    #[arg(long, allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
}

/// An error that knows what to do about it.
#[derive(Debug)]
pub struct Advice {
    pub text: String,
    pub hint: String,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Advice {}

/// An error with its hint.
pub fn advice(text: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    let (text, hint) = (text.into(), hint.into());
    Advice { text, hint }.into()
}

/// What to do about an error: its own advice, else where to read on.
pub fn hint(error: &anyhow::Error, options: &Options) -> String {
    match error.downcast_ref::<Advice>() {
        Some(advice) => advice.hint.clone(),
        None => format!(
            "the agent's log is {}",
            options.root.join("agent.log").display()
        ),
    }
}
