// SPDX-License-Identifier: Apache-2.0
//! The `shell` verb.

use anyhow::Result;

pub use crate::shell::ShellArgs;

use super::Context;

/// Opens the shell; the exit code of what ran in it.
pub fn shell(args: &ShellArgs, context: &Context<'_>) -> Result<u8> {
    crate::shell::execute(args, context.cache, context.progress)
}
