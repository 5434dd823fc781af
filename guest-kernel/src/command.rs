// SPDX-License-Identifier: Apache-2.0
//! Runs host programs: output is read line by line while they run, and a failure carries the last lines they wrote.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};

/// How many of a failed program's last lines its error shows.
const TAIL_LINES: usize = 40;

/// A host program could not be run, or failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started or its output could not be read.
    #[error("Cannot run {program}")]
    Start {
        /// The program's name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It ended with a failure.
    #[error("{program} failed ({status}){}", indented(tail))]
    Failed {
        /// The program and its first arguments.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines it wrote to stdout or stderr.
        tail: Vec<String>,
    },
}

fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n    {line}")).collect()
}

/// The program's name and its first arguments, for messages.
pub fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args().take(6) {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    if command.get_args().len() > 6 {
        text.push_str(" …");
    }
    text
}

/// Runs a program to its end with stdin closed, handing each line of stdout and stderr, in the order they were written, to `line`.
pub fn run_lines(command: &mut Command, mut line: impl FnMut(&str)) -> Result<(), CommandError> {
    run_lines_where(command, |text| {
        line(text);
        true
    })
}

/// As [`run_lines`]; `line` says of each line whether it belongs into the error if the program fails.
pub fn run_lines_where(
    command: &mut Command,
    mut line: impl FnMut(&str) -> bool,
) -> Result<(), CommandError> {
    let program = describe(command);
    let start = |source| CommandError::Start {
        program: program.clone(),
        source,
    };
    let (reader, writer) = io::pipe().map_err(start)?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(start)?)
        .stderr(writer);
    let mut child = command.spawn().map_err(start)?;
    // The builder keeps its copies of the pipe's writing end; with them open the reader below would never see its end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut tail = VecDeque::new();
    for bytes in BufReader::new(reader).split(b'\n') {
        let text = String::from_utf8_lossy(&bytes.map_err(start)?)
            .trim_end()
            .to_owned();
        if !line(&text) {
            continue;
        }
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(text);
    }
    let status = child.wait().map_err(start)?;
    if status.success() {
        return Ok(());
    }
    Err(CommandError::Failed {
        program,
        status,
        tail: tail.into(),
    })
}

/// Runs a program to its end, keeping quiet unless it fails.
pub fn run(command: &mut Command) -> Result<(), CommandError> {
    run_lines(command, |_| {})
}

/// Runs a program and returns its stdout, with invalid UTF-8 replaced.
pub fn output(command: &mut Command) -> Result<String, CommandError> {
    let program = describe(command);
    let out = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| CommandError::Start {
            program: program.clone(),
            source,
        })?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&out.stderr);
    let lines: Vec<String> = stderr.lines().map(str::to_owned).collect();
    Err(CommandError::Failed {
        program,
        status: out.status,
        tail: lines[lines.len().saturating_sub(TAIL_LINES)..].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_streams_arrive_and_a_failure_keeps_the_last_ones() {
        let mut seen = Vec::new();
        let script = "echo one; echo two >&2; exit 3";
        let error = run_lines(Command::new("sh").args(["-c", script]), |l| {
            seen.push(l.to_owned())
        })
        .unwrap_err();
        assert_eq!(seen, ["one", "two"]);
        let text = error.to_string();
        assert!(
            text.contains("exit status: 3") && text.ends_with("\n    one\n    two"),
            "{text}"
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = output(&mut Command::new("no-such-program-here")).unwrap_err();
        assert_eq!(error.to_string(), "Cannot run no-such-program-here");
    }
}
