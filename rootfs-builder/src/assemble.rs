// SPDX-License-Identifier: Apache-2.0
//! Puts the trees of images together: the guest binary, a base, the modules of a modular kernel, and what a definition adds; and writes
//! an initramfs of the plain kind that VMs here boot from. The same inputs give the same bytes, and a cache entry.

mod elf;
pub mod place;
mod root;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use guest_kernel::cache::{CacheError, Key};
use guest_kernel::{Arch, Cache, Kernel, Progress};

use crate::base::{self, BaseError, RootSource, none};
use crate::image::compress;
use crate::image::cpio::{self, CpioError};
use crate::tree::{Entry, Tree, TreeError};

pub use crate::image::compress::Compression;
pub use root::{Parts, Root, RootError, root, source_of};

/// The list of modules that the guest loads, in load order: one `path [params…]` per line.
const MODULE_LIST: &str = "lib/keelson/modules.load";
/// Counts up when the same tree gives other bytes than before.
const FORMAT: &str = "1";
/// The name of the image inside its cache entry.
const IMAGE: &str = "initramfs";

/// What the initramfs holds besides the guest binary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Base {
    /// Nothing but a few empty directories.
    #[default]
    None,
    /// A whole root file system.
    Root(RootSource),
}

/// What an initramfs is made of.
#[derive(Clone, Debug)]
pub struct Initramfs<'a> {
    /// The architecture.
    pub arch: Arch,
    /// The guest binary.
    pub binary: &'a Path,
    /// The kernel whose modules go in; none for a kernel with everything built in.
    pub kernel: Option<&'a Kernel>,
    /// What else goes in.
    pub base: Base,
    /// How it is compressed.
    pub compression: Compression,
}

/// Why an initramfs could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// The base could not be had.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The tree could not be made.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Something cannot be put where it is to be.
    #[error(transparent)]
    Put(#[from] place::PutError),
    /// The definition asks for what is not there.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The archive could not be written.
    #[error(transparent)]
    Cpio(#[from] CpioError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// `SOURCE_DATE_EPOCH` is no time that the format can hold.
    #[error(
        "SOURCE_DATE_EPOCH is {value:?}, which is no number of seconds from 0 to {}",
        u32::MAX
    )]
    Epoch {
        /// The variable's value.
        value: String,
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

/// Makes the initramfs, or takes it from the cache, and returns the file.
pub fn initramfs(
    what: &Initramfs<'_>,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<PathBuf, AssembleError> {
    let tree = tree(what, cache, progress)?;
    let mtime = source_date_epoch()?;
    let key = Key::of(&format!("initramfs-{}", what.arch))
        .field("format", FORMAT)
        .field("compression", what.compression.name())
        .field("mtime", mtime.to_le_bytes());
    let key = tree.digest_into(key)?.finish();
    let entry = cache.entry("image", &key, |dir| {
        let step = progress.step("Initramfs");
        let path = dir.join(IMAGE);
        let size = write(&tree, mtime, what.compression, &path)?;
        step.done(&format!("{} entries, {size} bytes", tree.entries().len()));
        Ok::<_, AssembleError>(())
    })?;
    Ok(entry.join(IMAGE))
}

/// All that goes into the initramfs.
fn tree(
    what: &Initramfs<'_>,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<Tree, AssembleError> {
    let mut tree = match &what.base {
        Base::None => none::tree(what.binary)?,
        Base::Root(source) => {
            let mut tree = base::tree(source, what.arch, cache, progress)?;
            none::add_init(&mut tree, what.binary)?;
            tree
        }
    };
    if let Some(kernel) = what.kernel {
        add_modules(&mut tree, kernel)?;
    }
    Ok(tree)
}

/// Adds a kernel's modules and the list that init loads them by.
fn add_modules(tree: &mut Tree, kernel: &Kernel) -> Result<(), place::PutError> {
    if kernel.modules.is_empty() {
        return Ok(());
    }
    let mut list = String::from("# Loaded by init in this order: path [parameters]\n");
    for module in &kernel.modules {
        let name = module
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let path = format!("/lib/modules/{}/{name}", kernel.release);
        place::put(tree, &path, Entry::file(&module.path, 0o644))?;
        list.push_str(&path);
        for param in &module.params {
            list.push(' ');
            list.push_str(param);
        }
        list.push('\n');
    }
    place::put(tree, MODULE_LIST, Entry::bytes(list, 0o644))
}

/// The one time of everything in an image: `SOURCE_DATE_EPOCH` (reproducible-builds.org), else the epoch.
pub fn source_date_epoch() -> Result<u32, AssembleError> {
    epoch(std::env::var("SOURCE_DATE_EPOCH").ok())
}

fn epoch(value: Option<String>) -> Result<u32, AssembleError> {
    match value {
        None => Ok(0),
        Some(value) => value.parse().map_err(|_| AssembleError::Epoch { value }),
    }
}

/// Writes the image and returns its size in bytes.
fn write(
    tree: &Tree,
    mtime: u32,
    compression: Compression,
    path: &Path,
) -> Result<u64, AssembleError> {
    let failed = |action: &'static str| {
        let path = path.to_owned();
        move |source| AssembleError::Io {
            action,
            path,
            source,
        }
    };
    let out = File::create(path).map_err(failed("create"))?;
    compress::write(compression, out, |out| cpio::write(tree, mtime, out))?;
    fs::metadata(path)
        .map(|m| m.len())
        .map_err(failed("look at"))
}

#[cfg(test)]
mod tests;
