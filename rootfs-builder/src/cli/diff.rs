// SPDX-License-Identifier: Apache-2.0
//! The verb `diff`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use super::Context;
use crate::diff::{self, Options};

/// Compare what is in two images of any formats; fails if they differ
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// An image: a file of any format that `build` writes, or a directory
    #[arg(value_name = "A")]
    a: PathBuf,
    /// Another one
    #[arg(value_name = "B")]
    b: PathBuf,
    /// Do not compare owners, which a directory written by an ordinary user does not have
    #[arg(long)]
    ignore_owners: bool,
}

/// `diff`: prints how two images differ.
pub fn diff(args: &DiffArgs, context: &Context<'_>) -> Result<()> {
    let options = Options {
        ignore_owners: args.ignore_owners,
    };
    let comparison = diff::diff(&args.a, &args.b, options)?;
    context.report(&comparison)?;
    if comparison.differs() {
        bail!("The images differ");
    }
    Ok(())
}
