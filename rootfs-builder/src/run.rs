// SPDX-License-Identifier: Apache-2.0
//! The main job: boot a VM, run a command in a container inside it, be that command to whoever called us.
//!
//! The story is [`execute`]: prepare what the VM is made of ([`prepare`]), decide ([`plan`]), run (`session`).

pub mod args;
pub mod boot;
pub mod guest_image;
pub mod plan;
pub mod prepare;
mod session;
mod signals;
mod streams;
pub mod users;

use anyhow::{Context, Result, bail};

pub use args::Args;

use crate::cache::Cache;
use crate::client::ClientError;
use crate::progress::Progress;
use crate::terminal;
use crate::timings::Timings;
use boot::BootArgs;
use plan::Plan;
use prepare::Wanted;

/// The exit code of failures of our own, as container engines have it.
pub const FAILED: u8 = 125;
/// The command is there but cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The command was not found.
pub const NOT_FOUND: u8 = 127;

/// The run was ended by a signal to us before the container could take it.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("Interrupted by signal {0}")]
pub struct Interrupted(pub i32);

/// The container's command could not be started, for a reason that has an exit code of its own.
#[derive(Debug, thiserror::Error)]
#[error("Cannot start the command")]
pub struct NotStarted {
    /// [`NOT_EXECUTABLE`] or [`NOT_FOUND`].
    pub code: u8,
    /// What the agent said.
    pub source: ClientError,
}

impl NotStarted {
    /// The exit code for a failed start, if the agent's text blames the command itself.
    fn classify(error: &ClientError) -> Option<u8> {
        let text = error.text()?.to_ascii_lowercase();
        if !["exec", "program", "command"]
            .iter()
            .any(|word| text.contains(word))
        {
            return None;
        }
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        // The errno is what tells; the words before it may name both.
        if has(&[
            "permission denied",
            "eacces",
            "exec format error",
            "enoexec",
            "is a directory",
        ]) {
            Some(NOT_EXECUTABLE)
        } else if has(&["no such file", "not found", "enoent"]) {
            Some(NOT_FOUND)
        } else {
            None
        }
    }
}

/// The exit code for a failed run.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(Interrupted(number)) = error.downcast_ref() {
        return u8::try_from(128 + number).unwrap_or(FAILED);
    }
    error
        .downcast_ref()
        .map_or(FAILED, |NotStarted { code, .. }| *code)
}

/// Does the job; the exit code of the command.
pub fn execute(args: &Args, cache: &Cache, progress: &dyn Progress) -> Result<u8> {
    if args.tty && args.interactive && !terminal::is_interactive() {
        bail!("-t with -i needs a terminal on standard input");
    }
    let mut timings = Timings::start();
    let source = prepare::root_source(args.rootfs.as_deref())?;
    let wanted = Wanted::new(&args.boot, Some(source))?;
    let plan = Plan::new(args, wanted.prepare(args.setup, cache, progress)?)?;
    timings.end("prepare");
    run_plan(&plan, &args.boot, timings)
}

/// Runs a plan; the exit code of its command.
pub(crate) fn run_plan(plan: &Plan, args: &BootArgs, mut timings: Timings) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("Cannot start the runtime")?;
    let result = runtime.block_on(session::run(plan, &mut timings));
    // A read of standard input may still be under way in a thread of its own; it must not hold us up.
    runtime.shutdown_background();
    if args.timings {
        eprintln!("{timings}");
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(text: &str) -> ClientError {
        ClientError::Status {
            method: "CreateContainer",
            code: ttrpc::Code::INTERNAL,
            text: text.into(),
        }
    }

    #[test]
    fn exit_codes() {
        let code = |text: &str| NotStarted::classify(&status(text));
        assert_eq!(
            code("Cannot execute /bin/nope: No such file or directory"),
            Some(NOT_FOUND)
        );
        assert_eq!(
            code("Exec /etc/passwd: Permission denied"),
            Some(NOT_EXECUTABLE)
        );
        assert_eq!(
            code("Program 'x' not found or not executable: Permission denied"),
            Some(NOT_EXECUTABLE)
        );
        assert_eq!(code("Mount /proc: Permission denied"), None);
        assert_eq!(exit_code(&Interrupted(2).into()), 130);
        assert_eq!(
            exit_code(
                &NotStarted {
                    code: 127,
                    source: status("")
                }
                .into()
            ),
            127
        );
        assert_eq!(exit_code(&anyhow::anyhow!("other")), FAILED);
    }
}
