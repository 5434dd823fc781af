// SPDX-License-Identifier: Apache-2.0
//! GetIPTables and SetIPTables (protocol 3.4): the guest's own programs are run,
//! be they the old ones or those over nftables, and what goes in and comes out
//! is the host's business. Bounded in time and size.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use crate::children::Children;
use crate::pool::at_host_pace;
use crate::program::{self, Call};

/// Where the programs are, in the order in which they are looked for.
const PLACES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// How long, in seconds, a program waits for another that changes the tables.
const WAIT: &str = "5";

/// How long a program may take in all.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes of tables that fit into an answer of 4 MiB.
const MAX_OUTPUT: usize = (4 << 20) - 4096;

/// Why the tables could not be had or set.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    /// The guest has no such program.
    #[error("Program {0} is neither in /usr/sbin nor in /sbin of the guest")]
    Missing(&'static str),
    /// It did not run, or not as it should.
    #[error("{program} could not be run")]
    Run {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It did not end.
    #[error("{program} did not end within {} s", PATIENCE.as_secs())]
    Late {
        /// The program.
        program: String,
    },
    /// It printed more than an answer can hold.
    #[error("{program} printed more than {MAX_OUTPUT} bytes")]
    TooMuch {
        /// The program.
        program: String,
    },
    /// It failed.
    #[error("{program} ended with exit status {code}: {output}")]
    Failed {
        /// The program.
        program: String,
        /// Exit status, 128+N for death by signal N.
        code: i32,
        /// What it said.
        output: String,
    },
    /// A task of ours was lost.
    #[error("Internal task ended early")]
    Task,
}

/// The tables of a family, as the save program prints them.
///
/// # Errors
/// [`IptablesError`].
pub async fn save(children: &Children, v6: bool) -> Result<Vec<u8>, IptablesError> {
    let name = if v6 {
        "ip6tables-save"
    } else {
        "iptables-save"
    };
    run(children, name, &[], Vec::new()).await
}

/// Has the restore program read `rules`, and gives what it prints.
///
/// # Errors
/// [`IptablesError`].
pub async fn restore(
    children: &Children,
    v6: bool,
    rules: Vec<u8>,
) -> Result<Vec<u8>, IptablesError> {
    let name = match v6 {
        true => "ip6tables-restore",
        false => "iptables-restore",
    };
    run(children, name, &["--wait", WAIT], rules).await
}

/// Runs a program to its end, even if the caller goes away.
async fn run(
    children: &Children,
    name: &'static str,
    arguments: &'static [&'static str],
    input: Vec<u8>,
) -> Result<Vec<u8>, IptablesError> {
    let children = children.clone();
    let work = async move {
        // The programs may lie on the host.
        let found = at_host_pace(|| find(name, &PLACES)).await;
        let program = found.map_err(|_| IptablesError::Task)??;
        let call = Call {
            program: &program,
            arguments,
            input: &input,
            most: MAX_OUTPUT,
        };
        let ended = match timeout(PATIENCE, program::run(&children, call)).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(source)) => return Err(IptablesError::Run { program, source }),
            Err(_) => return Err(IptablesError::Late { program }),
        };
        match ended.code {
            0 if ended.output.len() > MAX_OUTPUT => Err(IptablesError::TooMuch { program }),
            0 => Ok(ended.output),
            code => Err(IptablesError::Failed {
                program,
                code,
                output: ended.complaint,
            }),
        }
    };
    tokio::spawn(work).await.map_err(|_| IptablesError::Task)?
}

fn find(name: &'static str, places: &[&str]) -> Result<String, IptablesError> {
    let mut paths = places.iter().map(|place| format!("{place}/{name}"));
    let found = paths.find(|path| Path::new(path).is_file());
    found.ok_or(IptablesError::Missing(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_in_both_places() {
        let (usr, sbin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let places = [usr.path().to_str().unwrap(), sbin.path().to_str().unwrap()];
        let error = find("iptables-save", &places).unwrap_err();
        assert!(error.to_string().contains("iptables-save"), "{error}");
        for place in places.iter().rev() {
            let path = format!("{place}/iptables-save");
            std::fs::write(&path, "").unwrap();
            assert_eq!(find("iptables-save", &places).unwrap(), path);
        }
    }
}
