// SPDX-License-Identifier: Apache-2.0
//! Gets everything a VM is made of: host programs, guest binary, kernel, image, and a container's root.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use guest_kernel::host::Need;
use guest_kernel::modules::Purpose;
use guest_kernel::{Arch, BuildOptions, Kernel, Source, build, fetch};

use super::boot::{BootArgs, Firmware};
use super::guest_image::GuestImage;
use crate::assemble::{self, Base, Compression, Initramfs};
use crate::base::{self, ImageConfig, RootSource};
use crate::cache::Cache;
use crate::progress::Progress;
use crate::vm::{Root, Tools, VmConfig};
use crate::{setup, toolchain};

/// All that is needed to start.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The VM, without anything of the container's.
    pub vm: VmConfig,
    /// The directory that is the container's root; none if the container needs none.
    pub root: Option<PathBuf>,
    /// What the root's image says; empty if the root is no image's.
    pub image: ImageConfig,
}

/// What the user wants, looked at as far as it can be without making anything.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    args: &'a BootArgs,
    arch: Arch,
    kernel: KernelChoice,
    image: Option<GuestImage>,
    /// The root that the image becomes.
    root: Option<Root>,
    /// Kernel words that the image asks for.
    words: Vec<String>,
    /// Where the container's root comes from.
    container: Option<RootSource>,
}

impl<'a> Wanted<'a> {
    /// Looks at what the user names. `container` says where the container's root comes from, if it has one of its own.
    pub fn new(args: &'a BootArgs, container: Option<RootSource>) -> Result<Wanted<'a>> {
        let arch = args.arch.or_else(Arch::host).unwrap_or(Arch::X86_64);
        let image = args.image.as_deref().map(GuestImage::look).transpose()?;
        let (root, words) = match &image {
            Some(image) => (image.root(args, arch)?, image.words()?),
            None => (None, Vec::new()),
        };
        Ok(Wanted {
            args,
            arch,
            kernel: KernelChoice::of(&args.kernel)?,
            image,
            root,
            words,
            container,
        })
    }

    /// The image given by the user.
    pub fn image(&self) -> Option<&GuestImage> {
        self.image.as_ref()
    }

    /// Has a container's root got as well.
    pub fn bring_root(&mut self, source: RootSource) {
        self.container = Some(source);
    }

    /// Gets everything, the quick questions first.
    pub fn prepare(
        &self,
        install: bool,
        cache: &Cache,
        progress: &dyn Progress,
    ) -> Result<Prepared> {
        let mut needs = self.needs();
        if self.args.binary.is_none() && self.may_need_initramfs() {
            needs.extend(toolchain::needs(self.arch, cache));
        }
        setup::ensure(&needs, install, cache, progress)?;
        let tools = Tools::find(self.arch, cache)?;
        let kernel = self.kernel.get(self.arch, cache, progress)?;
        let initramfs = self.initramfs(&kernel, cache, progress)?;
        let vm = self.vm(&kernel, initramfs, tools);
        let container = match &self.container {
            Some(source) => Some(base::container_root(source, self.arch, cache, progress)?),
            None => None,
        };
        let (root, image) =
            container.map_or_else(Default::default, |c| (Some(c.dir), c.image_config));
        Ok(Prepared {
            vm,
            root,
            image: image.unwrap_or_default(),
        })
    }

    fn vm(&self, kernel: &Kernel, initramfs: Option<PathBuf>, tools: Tools) -> VmConfig {
        let mut vm = VmConfig::new(self.arch, kernel, PathBuf::new(), tools);
        vm.initramfs = initramfs;
        vm.root.clone_from(&self.root);
        vm.machine = self.args.machine.into();
        vm.firmware = self.args.firmware.into();
        vm.memory_mib = self.args.memory;
        vm.cpus = self.args.cpus;
        vm.cmdline.clone_from(&self.words);
        let own = self
            .args
            .append
            .iter()
            .flat_map(|words| words.split_whitespace());
        vm.cmdline.extend(own.map(String::from));
        vm.accel = self.args.accel.into();
        vm.echo_console = self.args.console;
        vm.keep_dir = self.args.keep;
        vm
    }

    /// What the host must have for this, besides what building the guest binary takes.
    fn needs(&self) -> Vec<Need> {
        let mut needs = setup::vm(self.arch).to_vec();
        if self.args.firmware == Firmware::Uefi {
            needs.push(setup::firmware(self.arch));
        }
        match &self.kernel {
            KernelChoice::Fetched => needs.extend(setup::kernel(self.arch, false)),
            KernelChoice::Built => needs.extend(setup::kernel(self.arch, true)),
            KernelChoice::At(_) => {}
        }
        if matches!(self.container, Some(RootSource::Debian { .. })) {
            needs.extend(setup::debian_base());
        }
        needs
    }

    /// Whether an initramfs of ours may be needed: as the root, or to mount one whose drivers the kernel has as modules.
    fn may_need_initramfs(&self) -> bool {
        match (&self.image, &self.root) {
            (None, _) => true,
            (_, Some(_)) => self.kernel == KernelChoice::Fetched,
            (Some(_), None) => false,
        }
    }

    /// The initramfs to boot: the user's, or ours where one is needed.
    fn initramfs(
        &self,
        kernel: &Kernel,
        cache: &Cache,
        progress: &dyn Progress,
    ) -> Result<Option<PathBuf>> {
        if let Some(GuestImage::Initramfs(path)) = &self.image {
            return Ok(Some(path.clone()));
        }
        if self.root.is_some() && kernel.modules.is_empty() {
            return Ok(None);
        }
        let binary = match &self.args.binary {
            None => toolchain::guest_binary(self.arch, cache, progress)?,
            Some(path) => path
                .canonicalize()
                .with_context(|| format!("Cannot find the guest binary {}", path.display()))?,
        };
        let mut kernel = kernel.clone();
        if self.root.is_some() {
            kernel.modules = kernel.modules_for(&Purpose::ALL)?;
        }
        let initramfs = Initramfs {
            arch: self.arch,
            binary: &binary,
            kernel: Some(&kernel),
            base: Base::None,
            compression: Compression::None,
        };
        Ok(Some(assemble::initramfs(&initramfs, cache, progress)?))
    }
}

/// Where the container's root comes from: the user's path, or else a small Debian.
pub fn root_source(path: Option<&Path>) -> Result<RootSource> {
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
