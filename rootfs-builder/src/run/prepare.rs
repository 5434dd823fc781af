// SPDX-License-Identifier: Apache-2.0
//! Gets everything a VM is made of: host programs, guest binary, kernel, initramfs, container root.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use guest_kernel::host::Need;
use guest_kernel::{Arch, BuildOptions, Kernel, Source, build, fetch};

use super::args::Args;
use crate::assemble::{self, Base, Compression, Initramfs};
use crate::base::{self, ImageConfig, RootSource};
use crate::cache::Cache;
use crate::progress::Progress;
use crate::vm::Tools;
use crate::{setup, toolchain};

/// All that is needed to start.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The guest's architecture.
    pub arch: Arch,
    /// The kernel.
    pub kernel: Kernel,
    /// The initramfs with the agent and the kernel's modules.
    pub initramfs: PathBuf,
    /// The host programs.
    pub tools: Tools,
    /// The directory that is the container's root.
    pub root: PathBuf,
    /// What the root's image says; empty if the root is no image's.
    pub image: ImageConfig,
}

/// Gets everything, the quick questions first.
pub fn prepare(args: &Args, cache: &Cache, progress: &dyn Progress) -> Result<Prepared> {
    let arch = args.arch.or_else(Arch::host).unwrap_or(Arch::X86_64);
    let choice = KernelChoice::of(&args.kernel)?;
    let source = root_source(args.rootfs.as_deref())?;
    let mut needs = needs(arch, &choice, &source);
    if args.binary.is_none() {
        needs.extend(toolchain::needs(arch, cache));
    }
    setup::ensure(&needs, args.setup, cache, progress)?;
    let tools = Tools::find(arch, cache)?;
    let kernel = choice.get(arch, cache, progress)?;
    let binary = match &args.binary {
        None => toolchain::guest_binary(arch, cache, progress)?,
        Some(path) => path
            .canonicalize()
            .with_context(|| format!("Cannot find the guest binary {}", path.display()))?,
    };
    let initramfs = Initramfs {
        arch,
        binary: &binary,
        kernel: Some(&kernel),
        base: Base::None,
        compression: Compression::None,
    };
    let initramfs = assemble::initramfs(&initramfs, cache, progress)?;
    let root = base::container_root(&source, arch, cache, progress)?;
    Ok(Prepared {
        arch,
        kernel,
        initramfs,
        tools,
        root: root.dir,
        image: root.image_config.unwrap_or_default(),
    })
}

/// What the host must have for this run, besides what building the guest binary takes.
fn needs(arch: Arch, kernel: &KernelChoice, root: &RootSource) -> Vec<Need> {
    let mut needs = setup::vm(arch).to_vec();
    match kernel {
        KernelChoice::Fetched => needs.extend(setup::kernel(arch, false)),
        KernelChoice::Built => needs.extend(setup::kernel(arch, true)),
        KernelChoice::At(_) => {}
    }
    if matches!(root, RootSource::Debian { .. }) {
        needs.extend(setup::DEBIAN_BASE);
    }
    needs
}

fn root_source(path: Option<&Path>) -> Result<RootSource> {
    match path {
        None => Ok(RootSource::Debian {
            suite: None,
            packages: Vec::new(),
        }),
        Some(path) => Ok(RootSource::at(path)?),
    }
}

/// Which kernel the user wants.
#[derive(Clone, Debug, PartialEq, Eq)]
enum KernelChoice {
    Fetched,
    Built,
    At(PathBuf),
}

impl KernelChoice {
    fn of(word: &str) -> Result<KernelChoice> {
        match word {
            "fetched" => Ok(KernelChoice::Fetched),
            "built" => Ok(KernelChoice::Built),
            path => {
                let path = Path::new(path);
                let path = path
                    .canonicalize()
                    .with_context(|| format!("Cannot find the kernel {}", path.display()))?;
                if path.is_dir() {
                    bail!("The kernel {} is a directory, not an image", path.display());
                }
                Ok(KernelChoice::At(path))
            }
        }
    }

    fn get(&self, arch: Arch, cache: &Cache, progress: &dyn Progress) -> Result<Kernel> {
        match self {
            KernelChoice::Fetched => Ok(fetch(arch, cache, progress)?),
            KernelChoice::Built => Ok(build(arch, &BuildOptions::default(), cache, progress)?),
            KernelChoice::At(image) => Ok(foreign_kernel(image)),
        }
    }
}

/// A kernel of the user's, of which nothing is known but that it needs no modules.
fn foreign_kernel(image: &Path) -> Kernel {
    Kernel {
        image: image.to_owned(),
        vmlinux: None,
        config: PathBuf::new(),
        release: String::new(),
        modules: Vec::new(),
        source: Source::Built,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_a_word_or_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().canonicalize().unwrap().join("bzImage");
        std::fs::write(&image, "").unwrap();
        assert_eq!(KernelChoice::of("built").unwrap(), KernelChoice::Built);
        assert_eq!(
            KernelChoice::of(image.to_str().unwrap()).unwrap(),
            KernelChoice::At(image)
        );
        assert!(KernelChoice::of(dir.path().to_str().unwrap()).is_err());
        assert!(
            KernelChoice::of("/nonexistent/bzImage")
                .unwrap_err()
                .to_string()
                .contains("/nonexistent/bzImage")
        );
    }
}
