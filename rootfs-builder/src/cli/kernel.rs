// SPDX-License-Identifier: Apache-2.0
//! The verb `kernel`: gets or checks a kernel.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Subcommand;
use guest_kernel::{Arch, BuildOptions, Kernel};

use super::output::print;
use super::{Context, arch_or_host};
use crate::{kernel, setup};

#[derive(Debug, Subcommand)]
pub enum KernelVerb {
    /// Unpack a distributor's prebuilt kernel into the cache, with the modules the guest needs
    Fetch {
        /// The guest's architecture: x86_64 or aarch64; this machine's if not given
        #[arg(long, value_name = "ARCH")]
        arch: Option<Arch>,
        /// Look for a newer one although one was fetched before
        #[arg(long)]
        refresh: bool,
        /// Install what is missing on the host first
        #[arg(long)]
        setup: bool,
    },
    /// Build our own kernel from a distributor's source package
    Build {
        /// The guest's architecture: x86_64 or aarch64; this machine's if not given
        #[arg(long, value_name = "ARCH")]
        arch: Option<Arch>,
        /// Parallel jobs; as many as there are processors if not given
        #[arg(short, long, value_name = "N")]
        jobs: Option<usize>,
        /// A fragment of kernel options merged after ours; can be given several times
        #[arg(long = "fragment", value_name = "FILE")]
        fragments: Vec<PathBuf>,
        /// Go on although options that were asked for did not survive
        #[arg(long)]
        allow_missing: bool,
        /// Look for a newer source package although one was taken before
        #[arg(long)]
        refresh: bool,
        /// Install what is missing on the host first
        #[arg(long)]
        setup: bool,
    },
    /// Say which of the options our guest asks for a kernel configuration lacks
    Check {
        /// The kernel's `.config`
        config: PathBuf,
        /// The guest's architecture: x86_64 or aarch64; this machine's if not given
        #[arg(long, value_name = "ARCH")]
        arch: Option<Arch>,
        /// Check against these fragments instead of ours; can be given several times
        #[arg(long = "fragment", value_name = "FILE")]
        fragments: Vec<PathBuf>,
    },
}

/// `kernel …`: gets or checks a kernel and prints what came of it.
pub fn kernel_verb(verb: KernelVerb, context: &Context<'_>) -> Result<()> {
    let made = match verb {
        KernelVerb::Fetch {
            arch,
            refresh,
            setup,
        } => {
            let arch = arch_or_host(arch)?;
            setup::ensure(
                &setup::kernel(arch, false),
                setup,
                context.cache,
                context.progress,
            )?;
            let fetch = if refresh {
                guest_kernel::fetch_newest
            } else {
                guest_kernel::fetch
            };
            fetch(arch, context.cache, context.progress)?
        }
        KernelVerb::Build {
            arch,
            jobs,
            fragments,
            allow_missing,
            refresh,
            setup,
        } => {
            let arch = arch_or_host(arch)?;
            setup::ensure(
                &setup::kernel(arch, true),
                setup,
                context.cache,
                context.progress,
            )?;
            let options = BuildOptions {
                jobs,
                extra: fragments,
                allow_missing,
                refresh,
            };
            guest_kernel::build(arch, &options, context.cache, context.progress)?
        }
        KernelVerb::Check {
            config,
            arch,
            fragments,
        } => return check(&config, arch_or_host(arch)?, &fragments),
    };
    describe(&made)
}

/// Prints where a kernel lies, one `name: value` per line.
fn describe(kernel: &Kernel) -> Result<()> {
    let mut text = format!(
        "release: {}\nimage: {}\n",
        kernel.release,
        kernel.image.display()
    );
    if let Some(vmlinux) = &kernel.vmlinux {
        text.push_str(&format!("vmlinux: {}\n", vmlinux.display()));
    }
    text.push_str(&format!("config: {}\n", kernel.config.display()));
    for module in &kernel.modules {
        text.push_str(&format!("module: {}\n", module.path.display()));
    }
    print(text.trim_end())
}

fn check(config: &Path, arch: Arch, fragments: &[PathBuf]) -> Result<()> {
    let missing = kernel::lacking(config, arch, fragments)?;
    for option in &missing {
        print(&option.to_string())?;
    }
    if !missing.is_empty() {
        bail!(
            "{} lacks {} of the options asked for",
            config.display(),
            missing.len()
        );
    }
    print("nothing is missing")
}
