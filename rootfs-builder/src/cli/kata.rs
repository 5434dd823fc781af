// SPDX-License-Identifier: Apache-2.0
//! The verb `kata-config`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::Context;
use crate::kata::{self, KataConfig, Request};

/// Print what makes an installed Kata use an image: a drop-in for its configuration
///
/// What it prints for Kubernetes, too, is meant to be read; with --output the parts are files.
#[derive(Debug, Args)]
pub struct KataArgs {
    /// The image: an initramfs, a disk or a guest extension
    image: PathBuf,
    /// The kernel; Kata's own if not given
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The hypervisor whose section of the configuration it is for
    #[arg(long, value_name = "NAME", default_value = "qemu")]
    hypervisor: String,
    /// Write it for Kata's runtime in Rust
    #[arg(long)]
    runtime_rs: bool,
    /// Add a Kubernetes RuntimeClass, and what containerd must know of its handler
    #[arg(long)]
    kubernetes: bool,
    /// The name of the RuntimeClass and the handler
    #[arg(
        long,
        value_name = "NAME",
        default_value = "keelson",
        requires = "kubernetes"
    )]
    handler: String,
    /// Write the parts as files into this directory
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Prints the configuration, or writes it into a directory.
pub fn kata(args: &KataArgs, context: &Context<'_>) -> Result<()> {
    for (option, name) in [
        ("--handler", &args.handler),
        ("--hypervisor", &args.hypervisor),
    ] {
        ensure!(
            is_plain(name),
            "{option} {name:?} is no name: lower-case letters, digits and '-' are"
        );
    }
    let config = kata::config(&Request {
        image: args.image.clone(),
        kernel: args.kernel.clone(),
        hypervisor: args.hypervisor.clone(),
        runtime_rs: args.runtime_rs,
        handler: args.kubernetes.then(|| args.handler.clone()),
    })?;
    if let Some(directory) = &args.output {
        write(&config, directory)?;
    }
    context.report(&config)
}

/// A name of a Kubernetes object, which is also one of TOML's bare keys.
fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.len() <= 63
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !name.ends_with('-')
}

fn write(config: &KataConfig, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("Cannot create {}", directory.display()))?;
    let name = config.drop_in.path.file_name().unwrap_or_default();
    let parts = [
        (directory.join(name), Some(&config.drop_in.content)),
        (
            directory.join("runtimeclass.yaml"),
            config.runtime_class.as_ref(),
        ),
        (
            directory.join("containerd.toml"),
            config.containerd.as_ref(),
        ),
    ];
    for (path, content) in parts {
        if let Some(content) = content {
            fs::write(&path, content)
                .with_context(|| format!("Cannot write {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_kubernetes() {
        for name in ["keelson", "k", "kata-qemu-2"] {
            assert!(is_plain(name), "{name}");
        }
        for name in ["", "-a", "a-", "A", "a.b", "a b", &"a".repeat(64)] {
            assert!(!is_plain(name), "{name}");
        }
    }
}
