// SPDX-License-Identifier: Apache-2.0
//! What an image was made from: every input with its digest, and what came out. It is written beside the image.
//!
//! The same inputs give the same manifest, byte for byte: nothing here knows the time of day, a path of the host or a user's name.

pub mod dpkg;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use guest_kernel::Source;
use guest_kernel::cache::{CacheError, Key, file_digest, hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::image::verity::Verity;
use crate::tree::{Content, Entry, Kind, Tree, TreeError};

/// The version of the manifest's form. It counts up when a field changes its meaning or goes away, not when one is added.
pub const SCHEMA: u32 = 1;

/// Why there is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
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
    /// The file is no manifest.
    #[error("{path} is no manifest", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The manifest is of a form that this version does not know.
    #[error("{path} is a manifest of schema {schema}; this version knows {SCHEMA}", path = path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its schema.
        schema: u32,
    },
    /// A file of the image cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A file could not be digested.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ManifestError {
    let path = path.to_owned();
    move |source| ManifestError::Io {
        action,
        path,
        source,
    }
}

/// The manifest of one image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Manifest {
    /// The version of this form, [`SCHEMA`].
    pub schema: u32,
    /// The image's name.
    pub name: String,
    /// Who made it.
    pub tool: Tool,
    /// The architecture, as `uname -m` says it.
    pub arch: String,
    /// The profile it was made by, if any.
    pub profile: Option<String>,
    /// The form of the output.
    pub format: String,
    /// The file system inside, where the form leaves a choice.
    pub filesystem: Option<String>,
    /// The time that everything in it has, in seconds since 1970.
    pub epoch: u64,
    /// The image itself.
    pub image: ImageFile,
    /// The parameters of its hash tree, if it has one.
    pub verity: Option<Verity>,
    /// Words that a kernel needs on its command line to use the image as its root.
    pub kernel_words: Vec<String>,
    /// The kernel that it was made for, if one was given.
    pub kernel: Option<Kernel>,
    /// All that went in, in the order in which it did.
    pub inputs: Vec<Input>,
    /// What is inside.
    pub tree: Contents,
    /// Packages that are inside, sorted.
    pub packages: Vec<Package>,
}

impl Manifest {
    /// Where the manifest of an image lies: beside it, `.manifest.json` added to its name.
    pub fn path_for(image: &Path) -> PathBuf {
        beside(image, ".manifest.json")
    }

    /// Writes it as JSON.
    pub fn write(&self, path: &Path) -> Result<(), ManifestError> {
        let text = serde_json::to_string_pretty(self).map_err(|source| ManifestError::Json {
            path: path.to_owned(),
            source,
        })?;
        fs::write(path, text + "\n").map_err(io_error("write", path))
    }

    /// Reads what [`Manifest::write`] wrote.
    pub fn read(path: &Path) -> Result<Manifest, ManifestError> {
        #[derive(Deserialize)]
        struct Form {
            schema: u32,
        }
        let text = fs::read(path).map_err(io_error("read", path))?;
        let no_manifest = |source| ManifestError::Json {
            path: path.to_owned(),
            source,
        };
        // The form first: another form's fields would only be called wrong.
        let Form { schema } = serde_json::from_slice(&text).map_err(no_manifest)?;
        if schema != SCHEMA {
            return Err(ManifestError::Schema {
                path: path.to_owned(),
                schema,
            });
        }
        serde_json::from_slice(&text).map_err(no_manifest)
    }
}

/// An image's path with something added to its name.
pub(crate) fn beside(image: &Path, ending: &str) -> PathBuf {
    let mut path = OsString::from(image);
    path.push(ending);
    path.into()
}

/// The program that made an image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl Tool {
    /// This program.
    pub fn this() -> Tool {
        Tool {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// The image as a file; for an output that is a directory, its contents.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ImageFile {
    /// Its name, without directories.
    pub file: String,
    /// Its size in bytes; of a directory, that of all files.
    pub size: u64,
    /// Its digest; of a directory, that of its contents.
    pub sha256: String,
}

impl ImageFile {
    /// Reads a file.
    pub fn of(path: &Path) -> Result<ImageFile, ManifestError> {
        let metadata = fs::metadata(path).map_err(io_error("look at", path))?;
        Ok(ImageFile {
            file: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            size: metadata.len(),
            sha256: file_digest(path)?,
        })
    }

    /// A directory of this name with these contents.
    pub fn directory(name: &str, contents: &Contents) -> ImageFile {
        ImageFile {
            file: name.to_owned(),
            size: contents.bytes,
            sha256: contents.sha256.clone(),
        }
    }
}

/// The kernel that an image was made for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Kernel {
    /// What `uname -r` says.
    pub release: String,
    /// Where it comes from.
    pub source: Source,
    /// The digest of its configuration.
    pub config_sha256: String,
}

impl Kernel {
    /// Of a kernel on this host.
    pub fn of(kernel: &guest_kernel::Kernel) -> Result<Kernel, ManifestError> {
        Ok(Kernel {
            release: kernel.release.clone(),
            source: kernel.source,
            config_sha256: file_digest(&kernel.config)?,
        })
    }
}

/// What kind of thing went in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum InputKind {
    /// The guest binary.
    Binary,
    /// The root that the image starts from.
    Base,
    /// The kernel's image.
    Kernel,
    /// A kernel module.
    Module,
    /// A file of the user's.
    File,
    /// The packages asked for, one a line.
    PackageList,
}

/// One thing that went in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Input {
    /// What it is.
    pub kind: InputKind,
    /// What it is called; for a file its path inside the image.
    pub name: String,
    /// Its version, where it has one.
    pub version: Option<String>,
    /// The digest of its content.
    pub sha256: String,
}

impl Input {
    /// A file of the host's. `name` is what it is called in the manifest.
    pub fn file(kind: InputKind, name: &str, path: &Path) -> Result<Input, ManifestError> {
        Ok(Input::digested(kind, name, file_digest(path)?))
    }

    /// Bytes.
    pub fn bytes(kind: InputKind, name: &str, bytes: &[u8]) -> Input {
        Input::digested(kind, name, hex(&Sha256::digest(bytes)))
    }

    /// A whole tree.
    pub fn tree(kind: InputKind, name: &str, tree: &Tree) -> Result<Input, ManifestError> {
        Ok(Input::digested(kind, name, Contents::of(tree)?.sha256))
    }

    fn digested(kind: InputKind, name: &str, sha256: String) -> Input {
        Input {
            kind,
            name: name.to_owned(),
            version: None,
            sha256,
        }
    }

    /// The same with a version.
    pub fn version(self, version: impl Into<String>) -> Input {
        Input {
            version: Some(version.into()),
            ..self
        }
    }
}

/// How much of what is in a tree, and the digest of all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Contents {
    /// The digest of every path with its metadata and its content, wherever the content lies.
    pub sha256: String,
    /// Directories, the root aside.
    pub directories: u64,
    /// Regular files.
    pub files: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Character and block devices.
    pub devices: u64,
    /// Named pipes.
    pub pipes: u64,
    /// The size of all regular files.
    pub bytes: u64,
}

impl Contents {
    /// Reads the whole tree.
    pub fn of(tree: &Tree) -> Result<Contents, ManifestError> {
        let mut contents = Contents::default();
        let mut key = Key::of("tree");
        for (path, entry) in tree.entries() {
            let (numbers, content) = contents.count(path, entry)?;
            key = key
                .field("path", path.as_os_str().as_encoded_bytes())
                .field("numbers", numbers.map(u32::to_le_bytes).concat())
                .field("content", content);
            for (name, value) in &entry.xattrs {
                key = key.field("attribute", name).field("value", value);
            }
        }
        key.finish().digest().clone_into(&mut contents.sha256);
        Ok(contents)
    }

    /// Counts an entry; returns its numbers, and what else makes it what it is: a file's digest, or a link's target.
    fn count(&mut self, path: &Path, entry: &Entry) -> Result<([u32; 5], Vec<u8>), ManifestError> {
        let mut device = (0, 0);
        let mut what = Vec::new();
        match &entry.kind {
            Kind::Directory => self.directories += 1,
            Kind::Fifo => self.pipes += 1,
            Kind::File(content) => {
                self.files += 1;
                let (digest, size) = digest(content, path)?;
                self.bytes += size;
                what = digest;
            }
            Kind::Symlink(target) => {
                self.symlinks += 1;
                what = target.as_os_str().as_encoded_bytes().to_vec();
            }
            Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
                self.devices += 1;
                device = (*major, *minor);
            }
        }
        let mode = entry.kind.type_bits() | entry.mode;
        Ok(([mode, entry.uid, entry.gid, device.0, device.1], what))
    }
}

/// A file's digest and size.
fn digest(content: &Content, path: &Path) -> Result<(Vec<u8>, u64), ManifestError> {
    let mut reader = content.open()?;
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 16]);
    loop {
        match reader.read(&mut buffer).map_err(io_error("read", path))? {
            0 => return Ok((hash.finalize().to_vec(), size)),
            count => {
                hash.update(&buffer[..count]);
                size += count as u64;
            }
        }
    }
}

/// A distributor's package inside an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// The distributor's name of the architecture.
    pub arch: String,
    /// Its version.
    pub version: String,
}

/// The packages that a tree says it has.
pub fn packages(tree: &Tree) -> Result<Vec<Package>, ManifestError> {
    let stanzas = dpkg::installed(tree)?.into_iter();
    let packages = stanzas.map(|stanza| Package {
        name: stanza.package,
        arch: stanza.architecture,
        version: stanza.version,
    });
    Ok(packages.collect())
}

#[cfg(test)]
pub(crate) mod tests;
