// SPDX-License-Identifier: Apache-2.0
//! OCI images: an image layout (a directory or an archive of one), or an archive of `docker save`, unpacked into a directory of the
//! cache. No registry is ever asked.
//!
//! Every blob is checked against its digest before it is used, every layer against the digest of its content that the image's
//! configuration has, before anything of it is written.

mod layout;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use guest_kernel::cache::{CacheError, Key, hex};
use guest_kernel::{Arch, Cache, Progress};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::ContainerRoot;
use super::ledger::{Ledger, LedgerError};
use super::unpack::{self, UnpackError};
use crate::image::compress;
use layout::{Image, Layer};

/// Counts up when the way images are unpacked changes.
const FORMAT: &str = "2";

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
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
    /// A file is not the JSON it should be.
    #[error("{path} is not what an image has there", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A digest in a document is no digest.
    #[error("{digest:?} is no sha256 digest")]
    BadDigest {
        /// The word.
        digest: String,
    },
    /// A blob is not what its digest says.
    #[error("{path} is not what the image says: its digest is sha256:{actual}, not sha256:{expected}", path = path.display())]
    Digest {
        /// The blob.
        path: PathBuf,
        /// The digest in the image.
        expected: String,
        /// The blob's.
        actual: String,
    },
    /// The image has nothing for the architecture.
    #[error("{path} has no image for {arch}, only for: {}", found.join(", "), path = path.display())]
    NoImage {
        /// The layout or archive.
        path: PathBuf,
        /// The architecture asked for.
        arch: Arch,
        /// What it has.
        found: Vec<String>,
    },
    /// The file is no image archive.
    #[error("{path} is no image archive: it has neither index.json nor manifest.json", path = path.display())]
    NoArchive {
        /// The file.
        path: PathBuf,
    },
    /// The number of layers and that of their digests differ.
    #[error("The image has {layers} layers and {digests} digests of layers")]
    LayerCount {
        /// Layers in the manifest.
        layers: usize,
        /// Digests in the configuration.
        digests: usize,
    },
    /// A file name in the archive leads elsewhere.
    #[error("The image names a file outside of itself: {name:?}")]
    Outside {
        /// The name.
        name: String,
    },
    /// A layer could not be unpacked.
    #[error("Cannot unpack {path}", path = path.display())]
    Unpack {
        /// The layer or archive.
        path: PathBuf,
        /// Why.
        source: UnpackError,
    },
    /// What the layers say of their entries could not be kept.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OciError {
    let path = path.to_owned();
    move |source| OciError::Io {
        action,
        path,
        source,
    }
}

/// What an image says about its process: the `config` object of an image configuration (OCI image specification, "Properties").
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// `NAME=value` words.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// The arguments, or the command, if the user gives none.
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Words put before the command.
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// The working directory; may be empty.
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    /// `user[:group]`, names or numbers; may be empty.
    #[serde(deserialize_with = "or_default")]
    pub user: String,
}

/// Docker writes `null` where a list is empty.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    value: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(value).map(Option::unwrap_or_default)
}

/// The root of an image layout.
pub fn root_of_layout(
    dir: &Path,
    arch: Arch,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<ContainerRoot, OciError> {
    root_of(&layout::read_layout(dir, arch)?, cache, progress)
}

/// The root of an image archive. What was unpacked from the same file before is taken without reading it again.
pub fn root_of_archive(
    file: &Path,
    arch: Arch,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<ContainerRoot, OciError> {
    let metadata = fs::metadata(file).map_err(io_error("look at", file))?;
    let identity = [
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime() as u64,
        metadata.mtime_nsec() as u64,
    ];
    let recipe = Key::of("archive")
        .field("format", FORMAT)
        .field("path", file.to_string_lossy().as_bytes())
        .field("identity", identity.map(u64::to_le_bytes).concat())
        .field("arch", arch.name())
        .finish();
    if let Some(entry) = cache.current("root", &recipe) {
        return load(&entry);
    }
    let step = progress.step(&format!("Image archive {}", file.display()));
    let work = cache.dir("work")?;
    let dir = tempfile::Builder::new()
        .prefix("archive-")
        .tempdir_in(&work)
        .map_err(io_error("create a directory in", &work))?;
    let reader = decompressed(file)?;
    let unpacked = unpack::layer(reader, dir.path(), &mut Ledger::default());
    unpacked.map_err(|source| OciError::Unpack {
        path: file.to_owned(),
        source,
    })?;
    let image = layout::read_archive(dir.path(), file, arch)?;
    step.done("read");
    let root = root_of(&image, cache, progress)?;
    cache.set_current("root", &recipe, &key_of(&image))?;
    Ok(root)
}

fn key_of(image: &Image) -> Key {
    // The configuration's digest covers the layers' contents: it is the image's identity.
    Key::of("oci")
        .field("format", FORMAT)
        .field("config", &image.config_digest)
        .field(
            "root",
            if guest_kernel::host::is_root() {
                "yes"
            } else {
                "no"
            },
        )
        .finish()
}

fn root_of(
    image: &Image,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<ContainerRoot, OciError> {
    let entry = cache.entry("root", &key_of(image), |entry| {
        let root = entry.join("root");
        fs::create_dir(&root).map_err(io_error("create", &root))?;
        let mut step = progress.step("Image");
        let mut ledger = Ledger::default();
        let count = image.layers.len();
        for (index, layer) in image.layers.iter().enumerate() {
            step.line(&format!("layer {} of {count}", index + 1));
            step.position(index as u64, count as u64);
            unpack_layer(layer, &root, &mut ledger)?;
        }
        ledger.write(&root)?;
        let config = entry.join("config.json");
        fs::copy(&image.config_path, &config).map_err(io_error("copy", &image.config_path))?;
        step.done(&format!("{count} layers unpacked"));
        Ok::<_, OciError>(())
    })?;
    load(&entry)
}

fn load(entry: &Path) -> Result<ContainerRoot, OciError> {
    Ok(ContainerRoot {
        dir: entry.join("root"),
        image_config: Some(
            layout::read_config(&entry.join("config.json"))?
                .config
                .unwrap_or_default(),
        ),
    })
}

/// Checks a layer and unpacks it: reads it three times rather than trust it once.
fn unpack_layer(layer: &Layer, root: &Path, ledger: &mut Ledger) -> Result<(), OciError> {
    let path = &layer.path;
    if let Some(digest) = &layer.digest {
        let file = File::open(path).map_err(io_error("open", path))?;
        verify(file, digest, path)?;
    }
    verify(decompressed(path)?, &layer.diff_id, path)?;
    let failed = |source| OciError::Unpack {
        path: path.to_owned(),
        source,
    };
    unpack::whiteouts(decompressed(path)?, root, ledger).map_err(failed)?;
    unpack::layer(decompressed(path)?, root, ledger).map_err(failed)
}

/// Reads `content` to its end and compares its digest, 64 hexadecimal digits.
fn verify(mut content: impl Read, expected: &str, path: &Path) -> Result<(), OciError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match content.read(&mut buffer).map_err(io_error("read", path))? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    let actual = hex(&hash.finalize());
    if actual == expected {
        return Ok(());
    }
    Err(OciError::Digest {
        path: path.to_owned(),
        expected: expected.to_owned(),
        actual,
    })
}

/// A file's content, decompressed if its first bytes say that it is compressed (media types are not always right).
fn decompressed(path: &Path) -> Result<Box<dyn Read>, OciError> {
    match compress::open(path) {
        Ok((_, content)) => Ok(content),
        Err(error) => Err(io_error("read", path)(error.source)),
    }
}

#[cfg(test)]
mod tests;
