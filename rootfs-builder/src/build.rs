// SPDX-License-Identifier: Apache-2.0
//! From a definition to an image: the kernel and the guest binary are had, the tree is put together, the image is written into the
//! cache, with a manifest and a bill of materials beside it, and copied to where it is wanted.
//!
//! The same inputs give the same bytes, wherever and whenever: identities come from the tree's digest, times are `SOURCE_DATE_EPOCH`
//! (else 0), and the cache entry is named by the digest of all that went in. Nothing here formats for people but [`Report`]s.

mod evidence;
mod image;
mod inputs;
mod output;
mod plan;
mod report;
mod words;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use guest_kernel::cache::{CacheError, Key};
use guest_kernel::store::StoreError;
use guest_kernel::{Cache, Progress, host};

use crate::assemble::{self, AssembleError};
use crate::definition::Definition;
use crate::image::cpio::CpioError;
use crate::image::directory::DirectoryError;
use crate::image::disk::DiskError;
use crate::image::erofs::ErofsError;
use crate::image::ext4::Ext4Error;
use crate::image::oci::OciError;
use crate::image::tar::TarError;
use crate::image::verity::VerityError;
use crate::kernel::CheckError;
use crate::manifest::{Manifest, ManifestError};
use crate::sbom::SbomError;
use crate::toolchain::ToolchainError;
use crate::tree::TreeError;

pub use image::{Alignment, hash_file};
use inputs::Inputs;

pub use inputs::needs;
pub use plan::{Plan, Summary, plan, summary};
pub use report::Built;
pub use words::{Boot, INIT_WORD};

#[cfg(doc)]
use crate::cli::output::Report;

/// Counts up when the same inputs give other bytes than before.
const FORMAT: &str = "1";

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The kernel could not be fetched.
    #[error(transparent)]
    Fetch(#[from] guest_kernel::fetch::FetchError),
    /// The kernel could not be built.
    #[error(transparent)]
    Kernel(#[from] guest_kernel::compile::BuildError),
    /// The kernel in the cache is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the kernel lacks could not be told.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The guest binary could not be built.
    #[error(transparent)]
    Toolchain(#[from] ToolchainError),
    /// The tree could not be put together.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// The tree could not be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// An initramfs could not be written.
    #[error(transparent)]
    Cpio(#[from] CpioError),
    /// An ext4 file system could not be written.
    #[error(transparent)]
    Ext4(#[from] Ext4Error),
    /// An EROFS file system could not be written.
    #[error(transparent)]
    Erofs(#[from] ErofsError),
    /// The hash tree could not be written.
    #[error(transparent)]
    Verity(#[from] VerityError),
    /// The disk could not be written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The archive could not be written.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The image layout could not be written.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// The directory could not be written.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The manifest could not be made.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The bill of materials could not be made.
    #[error(transparent)]
    Sbom(#[from] SbomError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The output is a directory with something in it.
    #[error("{path} is there already and is not empty", path = path.display())]
    NotEmpty {
        /// The output.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("Cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BuildError {
    let path = path.to_owned();
    move |source| BuildError::Io {
        action,
        path,
        source,
    }
}

/// Builds what a definition says, or takes it from the cache.
pub fn build(
    definition: &Definition,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<Built, BuildError> {
    let inputs = inputs::get(definition, cache, progress)?;
    make(definition, &inputs, cache, progress)
}

/// The same from inputs that are there.
fn make(
    definition: &Definition,
    inputs: &Inputs,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<Built, BuildError> {
    let parts = assemble::Parts {
        binary: inputs.binary.as_deref(),
        kernel: inputs.kernel.as_ref(),
    };
    let root = assemble::root(definition, parts, cache, progress)?;
    let mtime = assemble::source_date_epoch()?;
    let digest = root.tree.digest_into(Key::of("tree"))?.finish();
    let work = image::Work {
        definition,
        tree: &root.tree,
        identity: image::Identity::of(&digest),
        mtime,
    };
    let draft = evidence::draft(&work, &root, inputs)?;
    let file = output::file_name(definition);
    let key = Key::of(&format!("{}-{}", definition.format, definition.arch))
        .field("format", FORMAT)
        .field("file", &file)
        .field("definition", image::options(definition))
        .field("manifest", draft.text()?)
        .field("tree", digest.digest())
        // Who wrote a directory shows in its owners.
        .field("root", host::is_root().to_string())
        .finish();
    let mut unset = Vec::new();
    let entry = cache.entry("image", &key, |dir| {
        let step = progress.step(&format!("Image {}", definition.name));
        let made = image::write(&work, dir, &file)?;
        let manifest = draft.complete(made.verity.as_ref(), dir, &file)?;
        unset = made.unset;
        evidence::write(&manifest, &root.tree, &dir.join(&file))?;
        step.done(&format!("{} bytes", manifest.image.size));
        Ok::<_, BuildError>(())
    })?;
    let cached = entry.join(&file);
    let manifest = Manifest::read(&Manifest::path_for(&cached))?;
    let (path, there) = output::deliver(&work, &cached)?;
    if definition.output.is_some() {
        unset = there;
    }
    let mut notes = inputs.lacks(definition, &cached)?;
    notes.extend(draft.notes());
    notes.extend(output::note(&unset));
    Ok(report::built(definition, path, &manifest, notes))
}

/// Whether a directory is not there or has nothing in it.
fn is_empty(path: &Path) -> bool {
    fs::read_dir(path).map_or(!path.exists(), |mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests;
