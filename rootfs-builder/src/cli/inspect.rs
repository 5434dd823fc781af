// SPDX-License-Identifier: Apache-2.0
//! Being written.

use anyhow::{Result, bail};
use clap::Args;

use super::Context;

/// Being written
#[derive(Debug, Args)]
pub struct InspectArgs {}

/// Being written.
pub fn inspect(_args: &InspectArgs, _context: &Context<'_>) -> Result<()> {
    bail!("Being written")
}
