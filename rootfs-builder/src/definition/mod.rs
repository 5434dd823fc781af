// SPDX-License-Identifier: Apache-2.0
//! What an image is to be: a definition file, flags, osbuilder's variables and a profile, put together into one checked definition.
//!
//! Flags come before osbuilder's variables, these before the file, the file before the profile, and the profile before the defaults.
//! Lists (packages, files, directories, kernel words and fragments) add up. Nothing here builds, or looks at the host but to read the
//! file.

pub mod layer;
pub mod osbuilder;
pub mod profile;
pub mod value;

mod check;
mod resolve;

use std::path::PathBuf;

use guest_kernel::{Arch, Concern};
use serde::{Serialize, Serializer};

pub use check::DefinitionError;
pub use layer::{DirectoryEntry, FileContent, FileEntry, FileError, Layer};
pub use profile::Profile;
pub use resolve::{Origin, Resolved, Setting, resolve};
pub use value::{BaseChoice, Filesystem, Format, KernelChoice, Mode, Owner, Size};

use crate::image::compress::Compression;

/// What an image is to be, complete and checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Definition {
    /// What it is called in its manifest, and its file's name where nobody gives one.
    pub name: String,
    /// The guest's architecture.
    #[serde(serialize_with = "arch_name")]
    pub arch: Arch,
    /// The profile its settings began with.
    pub profile: Option<Profile>,
    /// Where the files besides the guest binary come from.
    pub base: BaseChoice,
    /// Debian's release; the host's own, or a default, if not given.
    pub suite: Option<String>,
    /// Debian's packages besides the essential ones.
    pub packages: Vec<String>,
    /// Files, links and directory trees that are added last, in this order.
    pub files: Vec<FileEntry>,
    /// Directories that are made before the files are added.
    pub directories: Vec<DirectoryEntry>,
    /// Which kernel it is for: the modules of a modular one go in.
    pub kernel: KernelChoice,
    /// Fragments of kernel options besides ours: a concern of the kernel crate by its name, or a file by a path with a `/`.
    pub fragments: Vec<String>,
    /// What comes out.
    pub format: Format,
    /// The file system on a disk or in an extension.
    pub filesystem: Filesystem,
    /// How an initramfs or archive is compressed.
    pub compression: Compression,
    /// Whether a dm-verity hash tree goes with it.
    pub verity: bool,
    /// Whether a disk begins with the header that lets an nvdimm be mapped (DAX).
    pub dax: bool,
    /// What a disk's size is a multiple of; what the layout asks for if not given.
    pub align: Option<Size>,
    /// Free space in an ext4 file system.
    pub free: Size,
    /// The VM's host name until the host gives one.
    pub hostname: Option<String>,
    /// Kernel words that belong to the image, besides those its root needs.
    pub words: Vec<String>,
    /// The name of a guest extension.
    pub extension: Option<String>,
    /// Whether a static shell goes in.
    pub shell: bool,
    /// The guest binary; built here if not given.
    pub binary: Option<PathBuf>,
    /// Where the image goes; it stays in the cache if not given.
    pub output: Option<PathBuf>,
}

impl Definition {
    /// The file system in the image, if it has one that is mounted.
    pub fn root_filesystem(&self) -> Option<Filesystem> {
        match self.format {
            Format::Disk | Format::Extension => Some(self.filesystem),
            Format::Ext4 => Some(Filesystem::Ext4),
            Format::Erofs => Some(Filesystem::Erofs),
            _ => None,
        }
    }

    /// The fragments that are the kernel crate's own.
    pub fn concerns(&self) -> Vec<Concern> {
        let named = self.fragments.iter();
        named.filter_map(|name| name.parse().ok()).collect()
    }

    /// The fragments that are files.
    pub fn fragment_files(&self) -> Vec<PathBuf> {
        let files = self.fragments.iter().filter(|name| name.contains('/'));
        files.map(PathBuf::from).collect()
    }
}

fn arch_name<S: Serializer>(arch: &Arch, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(arch.name())
}

#[cfg(test)]
mod tests;
