// SPDX-License-Identifier: Apache-2.0
//! The verb `build`.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use guest_kernel::host::Need;
use guest_kernel::{Arch, BuildOptions, Cache, Kernel, Progress};

use super::output::print;
use super::{Context, arch_or_host};
use crate::assemble::{self, Base, Compression, Initramfs};
use crate::base::RootSource;
use crate::{setup, toolchain};

/// Build an initramfs: the guest binary alone, or with a base, and the modules of a modular kernel
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Write the image here instead of leaving it in the cache
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The guest's architecture: x86_64 or aarch64; this machine's if not given
    #[arg(long, value_name = "ARCH")]
    arch: Option<Arch>,
    /// What goes in besides the guest binary: `none`, `debian`, or the path of a directory, an OCI image layout or archive
    #[arg(long, value_name = "none|debian|PATH", default_value = "none")]
    base: String,
    /// Packages of a Debian base besides the essential ones
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    packages: Vec<String>,
    /// The kernel whose modules go in
    #[arg(long, value_enum, default_value_t = KernelSource::Fetched)]
    kernel: KernelSource,
    /// How the image is compressed
    #[arg(long, value_enum, default_value_t = Compressor::None)]
    compress: Compressor,
    /// Take this guest binary instead of building it
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Install what is missing on the host first
    #[arg(long)]
    setup: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compressor {
    /// Larger, and the quickest to boot
    None,
    /// Every kernel can unpack it
    Gzip,
}

/// Which kernel's modules go into an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KernelSource {
    /// A distributor's
    Fetched,
    /// Our own
    Built,
    /// None: the kernel has everything built in
    None,
}

impl KernelSource {
    fn needs(self, arch: Arch) -> Vec<Need> {
        match self {
            KernelSource::Fetched => setup::kernel(arch, false),
            KernelSource::Built => setup::kernel(arch, true),
            KernelSource::None => Vec::new(),
        }
    }

    fn get(self, arch: Arch, cache: &Cache, progress: &dyn Progress) -> Result<Option<Kernel>> {
        Ok(match self {
            KernelSource::Fetched => Some(guest_kernel::fetch(arch, cache, progress)?),
            KernelSource::Built => Some(guest_kernel::build(
                arch,
                &BuildOptions::default(),
                cache,
                progress,
            )?),
            KernelSource::None => None,
        })
    }
}

/// Makes an initramfs and prints where it is.
pub fn build(args: &BuildArgs, context: &Context<'_>) -> Result<()> {
    let (cache, progress) = (context.cache, context.progress);
    let arch = arch_or_host(args.arch)?;
    let base = base(&args.base, &args.packages)?;
    let mut needs = args.kernel.needs(arch);
    if args.binary.is_none() {
        needs.extend(toolchain::needs(arch, cache));
    }
    if matches!(base, Base::Root(RootSource::Debian { .. })) {
        needs.extend(setup::debian_base());
    }
    setup::ensure(&needs, args.setup, cache, progress)?;
    let kernel = args.kernel.get(arch, cache, progress)?;
    let binary = match &args.binary {
        Some(binary) => binary
            .canonicalize()
            .with_context(|| format!("Cannot find the guest binary {}", binary.display()))?,
        None => toolchain::guest_binary(arch, cache, progress)?,
    };
    let compression = match args.compress {
        Compressor::None => Compression::None,
        Compressor::Gzip => Compression::Gzip,
    };
    let what = Initramfs {
        arch,
        binary: &binary,
        kernel: kernel.as_ref(),
        base,
        compression,
    };
    let made = assemble::initramfs(&what, cache, progress)?;
    let place = match &args.output {
        None => made,
        Some(output) => {
            std::fs::copy(&made, output)
                .with_context(|| format!("Cannot write {}", output.display()))?;
            output.clone()
        }
    };
    print(&place.display().to_string())
}

fn base(word: &str, packages: &[String]) -> Result<Base> {
    if !packages.is_empty() && word != "debian" {
        bail!("--packages goes with --base debian only");
    }
    Ok(match word {
        "none" => Base::None,
        "debian" => Base::Root(RootSource::Debian {
            suite: None,
            packages: packages.to_vec(),
        }),
        path => Base::Root(RootSource::at(path.as_ref())?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_need_a_debian() {
        assert!(base("none", &["curl".to_owned()]).is_err());
        assert!(matches!(
            base("debian", &["curl".to_owned()]),
            Ok(Base::Root(RootSource::Debian { .. }))
        ));
        assert_eq!(base("none", &[]).unwrap(), Base::None);
        assert!(base("/no/such/path", &[]).is_err());
    }
}
