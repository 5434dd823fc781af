// SPDX-License-Identifier: Apache-2.0
//! The verb `inspect`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::Context;
use crate::inspect;

/// Tell what an image is, what is in it, and what a kernel needs to boot it
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The image: a file of any format that `build` writes, or a directory
    image: PathBuf,
    /// List every entry, as `ls -l` does
    #[arg(long)]
    files: bool,
}

/// `inspect`: prints what an image is.
pub fn inspect(args: &InspectArgs, context: &Context<'_>) -> Result<()> {
    let inspection = inspect::inspect(&args.image, args.files)?;
    context.report(&inspection)
}
