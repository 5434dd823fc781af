// SPDX-License-Identifier: Apache-2.0
//! What makes an installed Kata use an image: a drop-in for its configuration, and a Kubernetes RuntimeClass with the snippet for
//! containerd that goes with it.
//!
//! What the image is comes from its manifest, else from the image. Nothing is installed, and Kata's own files are not looked at.

mod text;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cli::output::Report;
use crate::definition::{Filesystem, Format};
use crate::image::disk::{self, DiskError};
use crate::image::read::{self, ReadError};
use crate::image::verity::Verity;
use crate::manifest::{Manifest, ManifestError};

/// Where Kata looks for configurations first.
const CONFIGURATION: &str = "/etc/kata-containers";

/// Why Kata cannot use an image.
#[derive(Debug, thiserror::Error)]
pub enum KataError {
    /// Kata takes no such image.
    #[error("Kata takes an initramfs or a disk with a partition, and {path} is {format}", path = path.display())]
    Format {
        /// The image.
        path: PathBuf,
        /// What it is.
        format: String,
    },
    /// The image has a hash tree, and nobody says what it is measured by.
    #[error("{path} is measured, and its manifest, which says by what, is not beside it", path = path.display())]
    NoManifest {
        /// The image.
        path: PathBuf,
    },
    /// A path cannot be written into a configuration.
    #[error("{path:?} is no text, and configurations are")]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// The manifest cannot be read.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The image cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The image's partitions cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The image.
    pub image: PathBuf,
    /// The kernel; Kata's own if not given.
    pub kernel: Option<PathBuf>,
    /// The hypervisor whose section it goes into, such as `qemu`.
    pub hypervisor: String,
    /// Whether it is for Kata's runtime in Rust, whose keys differ in one.
    pub runtime_rs: bool,
    /// The name of the RuntimeClass and of containerd's handler, if they are asked for.
    pub handler: Option<String>,
}

/// What Kata has to be told of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    kind: Kind,
    words: Vec<String>,
}

/// The ways Kata uses an image.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Initrd,
    Disk {
        filesystem: Filesystem,
        dax: bool,
        verity: Option<Verity>,
    },
    Extension {
        name: String,
        verity: Option<Verity>,
    },
}

/// A file to be installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Installed {
    /// Where it goes.
    pub path: PathBuf,
    /// What is in it.
    pub content: String,
}

/// The files that make an installed Kata use an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KataConfig {
    /// The drop-in of Kata's configuration.
    pub drop_in: Installed,
    /// The RuntimeClass, for `kubectl apply`.
    pub runtime_class: Option<String>,
    /// What containerd must know of the handler.
    pub containerd: Option<String>,
}

/// Writes what Kata has to be told.
pub fn config(request: &Request) -> Result<KataConfig, KataError> {
    let facts = facts(&request.image)?;
    let drop_in = Installed {
        path: directory(request.handler.as_deref()).join("config.d/50-keelson.toml"),
        content: text::drop_in(request, &facts)?,
    };
    let handler = request.handler.as_deref();
    Ok(KataConfig {
        drop_in,
        runtime_class: handler.map(text::runtime_class),
        containerd: handler.map(text::containerd),
    })
}

/// A handler has a configuration of its own, so that other pods keep theirs.
fn directory(handler: Option<&str>) -> PathBuf {
    let all = Path::new(CONFIGURATION);
    handler.map_or_else(|| all.to_owned(), |handler| all.join(handler))
}

/// What an image is, by its manifest, else by itself.
fn facts(path: &Path) -> Result<Facts, KataError> {
    let manifest = Manifest::path_for(path);
    match manifest.exists() {
        true => of_manifest(path, &Manifest::read(&manifest)?),
        false => of_image(path),
    }
}

fn of_manifest(path: &Path, manifest: &Manifest) -> Result<Facts, KataError> {
    let is = |format: Format| manifest.format == format.to_string();
    let ext4 = manifest.filesystem == Some(Filesystem::Ext4.to_string());
    let filesystem = match ext4 {
        true => Filesystem::Ext4,
        false => Filesystem::Erofs,
    };
    let kind = if is(Format::Initramfs) {
        Kind::Initrd
    } else if is(Format::Disk) {
        Kind::Disk {
            filesystem,
            dax: disk::read(path)?.dax.is_some(),
            verity: manifest.verity.clone(),
        }
    } else if is(Format::Extension) {
        Kind::Extension {
            name: extension_name(manifest).unwrap_or_else(|| manifest.name.clone()),
            verity: manifest.verity.clone(),
        }
    } else {
        return Err(KataError::Format {
            path: path.to_owned(),
            format: manifest.format.clone(),
        });
    };
    let words = manifest.kernel_words.iter();
    Ok(Facts {
        kind,
        words: words.filter(|word| !is_of_root(word)).cloned().collect(),
    })
}

/// The name stands in the word that makes the guest mount the extension.
fn extension_name(manifest: &Manifest) -> Option<String> {
    let mut words = manifest.kernel_words.iter();
    let name = words.find_map(|word| word.strip_prefix("kata.extension."))?;
    name.split_once(".verity_params")
        .map(|(name, _)| name.to_owned())
}

/// Whether Kata gives this word itself.
fn is_of_root(word: &str) -> bool {
    const KEYS: [&str; 5] = ["root", "rootfstype", "rootflags", "dm-mod.create", "ro"];
    let key = word.split_once('=').map_or(word, |(key, _)| key);
    KEYS.contains(&key) || key.starts_with("kata.extension.")
}

fn of_image(path: &Path) -> Result<Facts, KataError> {
    let image = read::open(path)?;
    let kind = match (image.format, &image.disk, &image.filesystem) {
        (read::Format::Cpio, ..) => Kind::Initrd,
        (read::Format::Disk, Some(disk), Some(filesystem)) => {
            if disk.partitions.len() > 1 {
                let path = path.to_owned();
                return Err(KataError::NoManifest { path });
            }
            Kind::Disk {
                filesystem: match filesystem.kind {
                    "ext4" => Filesystem::Ext4,
                    _ => Filesystem::Erofs,
                },
                dax: disk.dax.is_some(),
                verity: None,
            }
        }
        (format, ..) => {
            return Err(KataError::Format {
                path: path.to_owned(),
                format: format.to_string(),
            });
        }
    };
    let words = Vec::new();
    Ok(Facts { kind, words })
}

impl Report for KataConfig {
    const KIND: &'static str = "kata-config";

    fn text(&self) -> String {
        let mut text = self.drop_in.content.clone();
        if let Some(containerd) = &self.containerd {
            text.push('\n');
            text.push_str(containerd);
        }
        if let Some(class) = &self.runtime_class {
            text.push('\n');
            text.push_str(class);
        }
        text.trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests;
