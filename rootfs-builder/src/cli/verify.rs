// SPDX-License-Identifier: Apache-2.0
//! Being written.

use anyhow::{Result, bail};
use clap::Args;

use super::Context;

/// Being written
#[derive(Debug, Args)]
pub struct VerifyArgs {}

/// Being written.
pub fn verify(_args: &VerifyArgs, _context: &Context<'_>) -> Result<()> {
    bail!("Being written")
}
