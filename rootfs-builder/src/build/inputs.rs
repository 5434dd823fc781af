// SPDX-License-Identifier: Apache-2.0
//! What a build starts from and the definition only names: the kernel and the guest binary.

use std::path::{Path, PathBuf};

use guest_kernel::host::Need;
use guest_kernel::{BuildOptions, Cache, Kernel, Progress};

use super::{BuildError, io_error};
use crate::definition::{BaseChoice, Definition, Filesystem, KernelChoice};
use crate::image::ext4;
use crate::kernel::{self, Against};
use crate::{setup, toolchain};

/// What was had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// The kernel that the image is for, where it is one of ours to get.
    pub kernel: Option<Kernel>,
    /// The guest binary; none for an extension.
    pub binary: Option<PathBuf>,
}

/// What the host must have to build a definition.
pub fn needs(definition: &Definition, cache: &Cache) -> Vec<Need> {
    let mut needs = match definition.kernel {
        KernelChoice::Fetched => setup::kernel(definition.arch, false),
        KernelChoice::Built => setup::kernel(definition.arch, true),
        KernelChoice::None => Vec::new(),
    };
    if is_built_here(definition) {
        needs.extend(toolchain::needs(definition.arch, cache));
    }
    if definition.base == BaseChoice::Debian {
        needs.extend(setup::debian_base());
    }
    if definition.root_filesystem() == Some(Filesystem::Ext4) {
        needs.extend(ext4::NEEDS);
    }
    needs
}

/// Whether the guest binary is compiled for this image.
pub fn is_built_here(definition: &Definition) -> bool {
    definition.format.is_root() && definition.binary.is_none()
}

/// Gets what a definition names.
pub fn get(
    definition: &Definition,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<Inputs, BuildError> {
    let arch = definition.arch;
    // The quick question first: a wrong path should not show after a kernel was built.
    let given = definition.binary.as_ref();
    let given = given.map(|path| path.canonicalize().map_err(io_error("find", path)));
    let given = given.transpose()?;
    let kernel = match definition.kernel {
        KernelChoice::Fetched => Some(guest_kernel::fetch(arch, cache, progress)?),
        KernelChoice::Built => {
            let options = BuildOptions {
                with: definition.concerns(),
                extra: definition.fragment_files(),
                ..BuildOptions::default()
            };
            Some(guest_kernel::build(arch, &options, cache, progress)?)
        }
        KernelChoice::None => None,
    };
    let binary = match given {
        Some(path) => Some(path),
        None if is_built_here(definition) => Some(toolchain::guest_binary(arch, cache, progress)?),
        None => None,
    };
    Ok(Inputs { kernel, binary })
}

impl Inputs {
    /// What the kernel lacks to boot the image, each as a sentence for people.
    pub fn lacks(&self, definition: &Definition, image: &Path) -> Result<Vec<String>, BuildError> {
        let Some(kernel) = &self.kernel else {
            return Ok(Vec::new());
        };
        if !definition.format.is_root() || definition.format.is_directory() {
            return Ok(Vec::new());
        }
        let against = Against {
            arch: Some(definition.arch),
            image: Some(image.to_owned()),
            fragments: Vec::new(),
        };
        let checked = kernel::check(&kernel.config, &against)?;
        let release = &kernel.release;
        let lacks = checked.lint.required.iter();
        let mut lacks: Vec<String> = lacks
            .map(|lack| format!("the kernel {release} lacks {lack}"))
            .collect();
        if !lacks.is_empty() && definition.root_filesystem().is_some() {
            // Ours has all of it built in; modules come with an initramfs.
            let way = "so it boots this root from an initramfs with its modules only; --kernel built makes one that needs none";
            lacks.push(way.to_owned());
        }
        Ok(lacks)
    }
}
