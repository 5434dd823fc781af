// SPDX-License-Identifier: Apache-2.0
//! GetIPTables and SetIPTables (protocol 3.4): the guest's own programs are run,
//! be they the old ones or those over nftables, and what goes in and comes out
//! is the host's business. Bounded in time and size.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::time::timeout;

use crate::children::{Children, Exit, code_of};
use crate::pool::at_host_pace;

/// Where the programs are, in the order in which they are looked for.
const PLACES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// How long, in seconds, a program waits for another that changes the tables.
const WAIT: &str = "5";

/// How long a program may take over its input.
const FEEDING: Duration = Duration::from_secs(5);

/// How long a program may take in all.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes of tables that fit into an answer of 4 MiB.
const MAX_OUTPUT: usize = (4 << 20) - 4096;

/// Bytes of complaints that go into an error.
const MAX_COMPLAINT: usize = 4096;

/// Why the tables could not be had or set.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    /// The guest has no such program.
    #[error("Program {0} is neither in /usr/sbin nor in /sbin of the guest")]
    Missing(&'static str),
    /// It did not run.
    #[error("{} could not be run", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It did not take the rules.
    #[error("{}: timeout waiting for stdin writer to complete", program.display())]
    Feeding {
        /// The program.
        program: PathBuf,
    },
    /// It did not end.
    #[error("{} did not end within {} s", program.display(), PATIENCE.as_secs())]
    Late {
        /// The program.
        program: PathBuf,
    },
    /// It printed more than an answer can hold.
    #[error("{} printed more than {MAX_OUTPUT} bytes", program.display())]
    TooMuch {
        /// The program.
        program: PathBuf,
    },
    /// It failed.
    #[error("{} ended with exit status {code}: {output}", program.display())]
    Failed {
        /// The program.
        program: PathBuf,
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
        let start = move || start(&children, name, arguments);
        let (program, mut child) = at_host_pace(start)
            .await
            .map_err(|_| IptablesError::Task)??;
        let result = timeout(PATIENCE, converse(&program, &mut child, input)).await;
        let result = result.unwrap_or_else(|_| {
            let program = program.clone();
            Err(IptablesError::Late { program })
        });
        child.end();
        result
    };
    tokio::spawn(work).await.map_err(|_| IptablesError::Task)?
}

struct Child {
    pid: Pid,
    exit: Exit,
    stdin: Option<pipe::Sender>,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
}

impl Child {
    /// Nothing of ours outlives its request.
    fn end(self) {
        // Reaping is done on this thread: what has no exit yet has its pid still.
        if self.exit.borrow().is_none()
            && let Err(error) = kill(self.pid, Signal::SIGKILL)
        {
            log::warn!("Process {} cannot be killed: {error}", self.pid);
        }
    }
}

fn find(name: &'static str, places: &[&str]) -> Result<PathBuf, IptablesError> {
    let mut paths = places.iter().map(|place| Path::new(place).join(name));
    let found = paths.find(|path| path.is_file());
    found.ok_or(IptablesError::Missing(name))
}

fn start(
    children: &Children,
    name: &'static str,
    arguments: &[&str],
) -> Result<(PathBuf, Child), IptablesError> {
    let program = find(name, &PLACES)?;
    match spawn(children, &program, arguments) {
        Ok(child) => Ok((program, child)),
        Err(source) => Err(IptablesError::Run { program, source }),
    }
}

fn spawn(children: &Children, program: &Path, arguments: &[&str]) -> io::Result<Child> {
    let (stdin, input) = pipe::pipe()?;
    let (output, stdout) = pipe::pipe()?;
    let (complaints, stderr) = pipe::pipe()?;
    let expectation = children.expect();
    // Not waited for here: the one reaper collects it.
    #[allow(clippy::zombie_processes)]
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::from(input.into_blocking_fd()?))
        .stdout(output.into_blocking_fd()?)
        .stderr(complaints.into_blocking_fd()?)
        .spawn()?;
    // Process ids are positive numbers of this type.
    let pid = Pid::from_raw(child.id().cast_signed());
    Ok(Child {
        pid,
        exit: expectation.claim(pid),
        stdin: Some(stdin),
        stdout,
        stderr,
    })
}

/// Feeds the program and listens to it at the same time, until it ends.
async fn converse(
    program: &Path,
    child: &mut Child,
    input: Vec<u8>,
) -> Result<Vec<u8>, IptablesError> {
    let failed = |source| IptablesError::Run {
        program: program.to_owned(),
        source,
    };
    let stdin = child.stdin.take();
    let feeding = async {
        let fed = timeout(FEEDING, feed(stdin, &input)).await;
        let late = || IptablesError::Feeding {
            program: program.to_owned(),
        };
        fed.map_err(|_| late())?.map_err(failed)
    };
    let output = async { listen(&mut child.stdout, MAX_OUTPUT).await.map_err(failed) };
    let complaint = async {
        listen(&mut child.stderr, MAX_COMPLAINT)
            .await
            .map_err(failed)
    };
    let ((), output, complaint) = tokio::try_join!(feeding, output, complaint)?;
    match code_of(&mut child.exit).await {
        0 if output.len() > MAX_OUTPUT => Err(IptablesError::TooMuch {
            program: program.to_owned(),
        }),
        0 => Ok(output),
        code => Err(IptablesError::Failed {
            program: program.to_owned(),
            code,
            output: String::from_utf8_lossy(&complaint).trim().to_owned(),
        }),
    }
}

/// Writes everything and closes. A program that has heard enough says so by its exit status.
async fn feed(stdin: Option<pipe::Sender>, input: &[u8]) -> io::Result<()> {
    let Some(mut stdin) = stdin else {
        return Ok(());
    };
    match stdin.write_all(input).await {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Reads to the end and keeps a little more than `most` bytes at most.
async fn listen(from: &mut (impl AsyncRead + Unpin), most: usize) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let mut piece = [0u8; 4096];
    loop {
        match from.read(&mut piece).await? {
            0 => return Ok(kept),
            read if kept.len() <= most => kept.extend_from_slice(&piece[..read]),
            _ => {}
        }
    }
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
        let (first, second) = (
            usr.path().join("iptables-save"),
            sbin.path().join("iptables-save"),
        );
        std::fs::write(&second, "").unwrap();
        assert_eq!(find("iptables-save", &places).unwrap(), second);
        std::fs::write(&first, "").unwrap();
        assert_eq!(find("iptables-save", &places).unwrap(), first);
    }

    #[tokio::test]
    async fn what_is_too_long_is_read_but_not_kept() {
        let text = vec![b'x'; 100_000];
        let kept = listen(&mut &*text, 5000).await.unwrap();
        assert!(kept.len() > 5000 && kept.len() <= 5000 + 4096);
        assert_eq!(listen(&mut &text[..7], 5000).await.unwrap().len(), 7);
    }
}
