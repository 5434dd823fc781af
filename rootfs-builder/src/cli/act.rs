// SPDX-License-Identifier: Apache-2.0
//! What each verb does: checks the host, then calls the parts in order. Results go to stdout, one per line.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use guest_kernel::host::Need;
use guest_kernel::{Arch, BuildOptions, Kernel};

use super::{BuildArgs, CleanArgs, Compressor, KernelSource, KernelVerb, SetupArgs};
use crate::assemble::{self, Base, Compression, Initramfs};
use crate::base::RootSource;
use crate::cache::Cache;
use crate::progress::Progress;
use crate::{clean, kernel, setup, toolchain};

/// The architecture meant when none is given.
fn arch_or_host(arch: Option<Arch>) -> Result<Arch> {
    arch.or_else(Arch::host)
        .context("This machine's architecture is none the guest runs on; say which with --arch")
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

/// `build`: makes an initramfs and prints where it is.
pub fn build(args: &BuildArgs, cache: &Cache, progress: &dyn Progress) -> Result<()> {
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

/// `kernel …`: gets or checks a kernel and prints what came of it.
pub fn kernel_verb(verb: KernelVerb, cache: &Cache, progress: &dyn Progress) -> Result<()> {
    let made = match verb {
        KernelVerb::Fetch {
            arch,
            refresh,
            setup,
        } => {
            let arch = arch_or_host(arch)?;
            setup::ensure(&setup::kernel(arch, false), setup, cache, progress)?;
            let fetch = if refresh {
                guest_kernel::fetch_newest
            } else {
                guest_kernel::fetch
            };
            fetch(arch, cache, progress)?
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
            setup::ensure(&setup::kernel(arch, true), setup, cache, progress)?;
            let options = BuildOptions {
                jobs,
                extra: fragments,
                allow_missing,
                refresh,
            };
            guest_kernel::build(arch, &options, cache, progress)?
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

/// `setup`: installs what is missing.
pub fn set_up(args: &SetupArgs, cache: &Cache, progress: &dyn Progress) -> Result<()> {
    let arch = arch_or_host(args.arch)?;
    let mut needs = setup::everything(arch, cache);
    if args.kernel {
        needs.extend(setup::kernel(arch, true));
    }
    setup::ensure(&needs, !args.dry_run, cache, progress)?;
    if !args.dry_run {
        toolchain::prepare(arch, cache, progress)?;
    }
    print("everything is there")
}

/// `clean`: removes parts of the cache and prints what they took.
pub fn clean_up(args: &CleanArgs, cache: &Cache) -> Result<()> {
    let parts = match (args.all, &args.parts[..]) {
        (true, _) => clean::Part::value_variants(),
        (false, []) => clean::DEFAULT,
        (false, parts) => parts,
    };
    let removed = clean::clean(cache, parts, args.dry_run)?;
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

/// Writes a line to stdout; a reader that has gone away is no failure worth a trace.
fn print(text: &str) -> Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("Cannot write to standard output")
        }
        _ => Ok(()),
    }
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
