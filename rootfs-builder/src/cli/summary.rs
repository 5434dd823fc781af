// SPDX-License-Identifier: Apache-2.0
//! The verb `summary`.

use anyhow::Result;
use clap::Args;

use super::Context;
use super::build::DefinitionArgs;
use crate::build;

/// Say what would be built, and who said so, without building it
#[derive(Debug, Args)]
pub struct SummaryArgs {
    #[command(flatten)]
    definition: DefinitionArgs,
}

/// Prints the summary of a definition.
pub fn summary(args: &SummaryArgs, context: &Context<'_>) -> Result<()> {
    let resolved = args.definition.resolve()?;
    context.report(&build::summary(&resolved))
}
