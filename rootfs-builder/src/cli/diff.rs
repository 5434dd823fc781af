// SPDX-License-Identifier: Apache-2.0
//! Being written.

use anyhow::{Result, bail};
use clap::Args;

use super::Context;

/// Being written
#[derive(Debug, Args)]
pub struct DiffArgs {}

/// Being written.
pub fn diff(_args: &DiffArgs, _context: &Context<'_>) -> Result<()> {
    bail!("Being written")
}
