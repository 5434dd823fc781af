// SPDX-License-Identifier: Apache-2.0
//! The verb `kernel`: gets or checks a kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Subcommand;
use guest_kernel::lint::Lack;
use guest_kernel::modules::Purpose;
use guest_kernel::{Arch, BuildOptions, Concern, Kernel, Module, Source};
use serde::Serialize;

use super::output::Report;
use super::{Context, arch_or_host};
use crate::kernel::{self, Against, Checked};
use crate::setup;

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
        /// Options besides those of every kernel: `confidential` or `debug`; can be given several times
        #[arg(long, value_name = "CONCERN")]
        with: Vec<Concern>,
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
    /// Say what a kernel lacks for the guest, and for an image: what is required, what is wished, what is only tuned otherwise
    ///
    /// Fails if something required is missing. An option that is a module counts where the guest loads that module; the root that a
    /// kernel mounts itself it must have built in.
    Check {
        /// `fetched` or `built`; or a kernel's configuration, an uncompressed kernel with it inside, or a directory with either
        kernel: PathBuf,
        /// The guest's architecture: x86_64 or aarch64; the configuration's own if not given
        #[arg(long, value_name = "ARCH")]
        arch: Option<Arch>,
        /// An image that the kernel is to boot
        #[arg(long, value_name = "IMAGE", conflicts_with = "fragments")]
        image: Option<PathBuf>,
        /// Check against these fragments instead, all of them required; can be given several times
        #[arg(long = "fragment", value_name = "FILE")]
        fragments: Vec<PathBuf>,
        /// Fail for what is wished too
        #[arg(long)]
        strict: bool,
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
            with,
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
                with,
                extra: fragments,
                allow_missing,
                refresh,
            };
            guest_kernel::build(arch, &options, context.cache, context.progress)?
        }
        KernelVerb::Check {
            kernel,
            arch,
            image,
            fragments,
            strict,
        } => {
            let against = Against {
                arch,
                image,
                fragments,
            };
            return check(&kernel, &against, strict, context);
        }
    };
    context.report(&Made::of(&made)?)
}

/// Where a kernel lies, as it is reported.
#[derive(Debug, Serialize)]
struct Made {
    release: String,
    source: Source,
    image: PathBuf,
    vmlinux: Option<PathBuf>,
    symbols: Option<PathBuf>,
    config: PathBuf,
    /// What every guest loads, in order.
    modules: Vec<PathBuf>,
    /// What only images with a disk's root or with extensions load, after the former.
    disk_modules: Vec<PathBuf>,
}

impl Made {
    fn of(kernel: &Kernel) -> Result<Made> {
        let paths = |modules: Vec<Module>| modules.into_iter().map(|m| m.path);
        let all = kernel.modules_for(&[Purpose::Disk])?;
        Ok(Made {
            release: kernel.release.clone(),
            source: kernel.source,
            image: kernel.image.clone(),
            vmlinux: kernel.vmlinux.clone(),
            symbols: kernel.symbols(),
            config: kernel.config.clone(),
            modules: paths(kernel.modules.clone()).collect(),
            disk_modules: paths(all).skip(kernel.modules.len()).collect(),
        })
    }
}

impl Report for Made {
    const KIND: &'static str = "kernel";

    /// One `name: value` per line.
    fn text(&self) -> String {
        let mut lines = vec![format!("release: {}", self.release)];
        let mut add = |name: &str, path: &Path| lines.push(format!("{name}: {}", path.display()));
        add("image", &self.image);
        if let Some(vmlinux) = &self.vmlinux {
            add("vmlinux", vmlinux);
        }
        if let Some(symbols) = &self.symbols {
            add("symbols", symbols);
        }
        add("config", &self.config);
        for module in &self.modules {
            add("module", module);
        }
        for module in &self.disk_modules {
            add("disk module", module);
        }
        lines.join("\n")
    }
}

fn check(path: &Path, against: &Against, strict: bool, context: &Context<'_>) -> Result<()> {
    let path = match path.to_str() {
        Some("fetched") => {
            let arch = arch_or_host(against.arch)?;
            guest_kernel::fetch(arch, context.cache, context.progress)?.config
        }
        Some("built") => {
            let arch = arch_or_host(against.arch)?;
            let options = BuildOptions::default();
            guest_kernel::build(arch, &options, context.cache, context.progress)?.config
        }
        _ => path.to_owned(),
    };
    let checked = kernel::check(&path, against)?;
    context.report(&checked)?;
    let lint = &checked.lint;
    let (required, wished) = (lint.required.len(), lint.wished.len());
    if required > 0 {
        bail!("{} lacks {required} required options", path.display());
    }
    if strict && wished > 0 {
        bail!("{} lacks {wished} wished options", path.display());
    }
    Ok(())
}

impl Report for Checked {
    const KIND: &'static str = "kernel-check";

    fn text(&self) -> String {
        let mut lines = vec![format!("config: {} ({})", self.config.display(), self.arch)];
        let lint = &self.lint;
        lines.extend(lint.required.iter().map(|lack| format!("required: {lack}")));
        lines.extend(wished(&lint.wished));
        if !lint.modules.is_empty() {
            let names: BTreeSet<&str> = lint.modules.values().map(String::as_str).collect();
            let names: Vec<&str> = names.into_iter().collect();
            lines.push(format!("as modules: {}", names.join(", ")));
        }
        if !lint.tuning.is_empty() {
            let count = lint.tuning.len();
            lines.push(format!(
                "otherwise than in our kernels: {count} options that none needs (--json names them)"
            ));
        }
        lines.push(match (lint.required.len(), lint.wished.len()) {
            (0, 0) => "nothing is missing".to_owned(),
            (required, wished) => {
                format!("{required} required and {wished} wished options are missing")
            }
        });
        lines.join("\n")
    }
}

/// What is wished, a line for each concern.
fn wished(lacks: &[Lack]) -> Vec<String> {
    let mut concerns: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for lack in lacks {
        let stranded = lack.has.as_deref() == Some("m");
        let mark = if stranded { " (m)" } else { "" };
        let names = concerns.entry(lack.concern.as_deref().unwrap_or("other"));
        names.or_default().push(format!("{}{mark}", lack.option));
    }
    let line = |(concern, names): (&str, Vec<String>)| {
        format!("wished for {concern}: {}", names.join(", "))
    };
    let mut lines: Vec<String> = concerns.into_iter().map(line).collect();
    if lacks.iter().any(|lack| lack.has.as_deref() == Some("m")) {
        lines.push("(m): a module that nothing loads".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_kernel::lint::Lint;

    #[test]
    fn a_check_is_told_by_weight() {
        let lack = |option: &str, has: Option<&str>, reason: Option<&str>| Lack {
            option: option.to_owned(),
            wanted: "y".to_owned(),
            has: has.map(str::to_owned),
            concern: Some("network".to_owned()),
            reason: reason.map(str::to_owned),
        };
        let mut checked = Checked {
            config: "config".into(),
            arch: "x86_64",
            image: None,
            lint: Lint {
                required: vec![lack("A", None, Some("why"))],
                wished: vec![lack("B", None, None), lack("E", Some("m"), None)],
                tuning: vec![lack("C", None, None)],
                modules: [("D".to_owned(), "d".to_owned())].into(),
            },
        };
        assert_eq!(
            checked.text(),
            "config: config (x86_64)\nrequired: CONFIG_A=y (is not set): why\nwished for network: B, E (m)\n\
             (m): a module that nothing loads\nas modules: d\n\
             otherwise than in our kernels: 1 options that none needs (--json names them)\n\
             1 required and 2 wished options are missing"
        );
        checked.lint = Lint::default();
        assert_eq!(
            checked.text(),
            "config: config (x86_64)\nnothing is missing"
        );
    }
}
