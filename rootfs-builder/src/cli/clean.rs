// SPDX-License-Identifier: Apache-2.0
//! The verb `clean`.

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::Context;
use super::output::print;
use crate::clean;

/// Remove what is in the cache
#[derive(Debug, Args)]
pub struct CleanArgs {
    /// What to remove; everything but tools and kernels if not given
    #[arg(value_enum)]
    parts: Vec<clean::Part>,
    /// Everything
    #[arg(long, conflicts_with = "parts")]
    all: bool,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
}

/// `clean`: removes parts of the cache and prints what they took.
pub fn clean_up(args: &CleanArgs, context: &Context<'_>) -> Result<()> {
    let parts = match (args.all, &args.parts[..]) {
        (true, _) => clean::Part::value_variants(),
        (false, []) => clean::DEFAULT,
        (false, parts) => parts,
    };
    let removed = clean::clean(context.cache, parts, args.dry_run)?;
    for (path, bytes) in &removed {
        print(&format!("{:>8}  {}", clean::size(*bytes), path.display()))?;
    }
    let total = removed.iter().map(|(_, bytes)| bytes).sum();
    let verb = if args.dry_run {
        "would be removed"
    } else {
        "removed"
    };
    print(&format!("{:>8}  {verb}", clean::size(total)))
}
