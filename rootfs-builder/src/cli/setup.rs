// SPDX-License-Identifier: Apache-2.0
//! The verb `setup`.

use anyhow::Result;
use clap::Args;
use guest_kernel::Arch;

use super::output::print;
use super::{Context, arch_or_host};
use crate::{setup, toolchain};

/// Install what the verbs need on this host, as far as this user can
#[derive(Debug, Args)]
pub struct SetupArgs {
    /// The guest's architecture: x86_64 or aarch64; this machine's if not given
    #[arg(long, value_name = "ARCH")]
    arch: Option<Arch>,
    /// Also what building our own kernel needs
    #[arg(long)]
    kernel: bool,
    /// Only say what is missing and how to get it
    #[arg(long)]
    dry_run: bool,
}

/// `setup`: installs what is missing.
pub fn set_up(args: &SetupArgs, context: &Context<'_>) -> Result<()> {
    let arch = arch_or_host(args.arch)?;
    let mut needs = setup::everything(arch, context.cache);
    if args.kernel {
        needs.extend(setup::kernel(arch, true));
    }
    setup::ensure(&needs, !args.dry_run, context.cache, context.progress)?;
    if !args.dry_run {
        toolchain::prepare(arch, context.cache, context.progress)?;
    }
    print("everything is there")
}
