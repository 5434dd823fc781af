// SPDX-License-Identifier: Apache-2.0
//! A tree as an OCI image layout (OCI image specification, "Image Layout"): one image of one layer, for tools that take a root file
//! system as a container image.
//!
//! The same tree and options give the same bytes: documents have their fields in a fixed order, and all times are one time.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use guest_kernel::Arch;
use guest_kernel::cache::hex;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::compress::{self, Compression};
use super::tar::{self, TarError};
use crate::tree::Tree;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// The annotation that names an image of a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// A blob that has no name yet, since that is its digest.
const UNNAMED: &str = ".layer.partial";

/// Why a layout could not be written.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// No layer is compressed like this.
    #[error("An OCI layer cannot be compressed by {0}, only by gzip, zstd or none")]
    Compression(Compression),
    /// The layer could not be written.
    #[error("Cannot write the layer {path}", path = path.display())]
    Layer {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TarError,
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

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OciError {
    let path = path.to_owned();
    move |source| OciError::Io {
        action,
        path,
        source,
    }
}

/// What the image says besides its content.
#[derive(Clone, Debug)]
pub struct Options {
    /// The architecture that it is for.
    pub arch: Arch,
    /// The time of everything, in seconds since the epoch.
    pub mtime: u32,
    /// How the layer is compressed: gzip, which everything reads, zstd, or not.
    pub compression: Compression,
    /// The image's name in the layout, such as `latest`.
    pub name: String,
    /// What a container of it runs.
    pub config: Config,
}

/// What a container of the image runs, where nothing else is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Config {
    /// Words put before the command.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The command, or the entry point's arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// `NAME=value` words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The working directory.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
}

impl Options {
    /// Options for an image that runs nothing, named `latest`, with a layer compressed by gzip.
    pub fn new(arch: Arch, mtime: u32) -> Options {
        Options {
            arch,
            mtime,
            compression: Compression::Gzip,
            name: "latest".to_owned(),
            config: Config::default(),
        }
    }
}

/// Writes the layout into a directory, which is made if it is not there, and returns the digest of the image's manifest.
pub fn write(tree: &Tree, options: &Options, dir: &Path) -> Result<String, OciError> {
    let media_type = match options.compression {
        Compression::None => LAYER.to_owned(),
        Compression::Gzip | Compression::Zstd => format!("{LAYER}+{}", options.compression),
        Compression::Lz4 => return Err(OciError::Compression(options.compression)),
    };
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(io_error("create", &blobs))?;
    let layer = layer(tree, options, &blobs)?;
    let config = config(options, &layer.content);
    let config = document(&blobs, CONFIG, &config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config,
        "layers": [descriptor(&media_type, &layer.digest, layer.size)],
    });
    let mut manifest = document(&blobs, MANIFEST, &manifest)?;
    let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
    manifest["platform"] = json!({ "architecture": options.arch.oci(), "os": "linux" });
    manifest["annotations"] = json!({ REF_NAME: options.name });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest] });
    put(&dir.join("index.json"), index.to_string().as_bytes())?;
    let version = json!({ "imageLayoutVersion": "1.0.0" });
    put(&dir.join("oci-layout"), version.to_string().as_bytes())?;
    Ok(digest)
}

fn config(options: &Options, content: &str) -> Value {
    let created = rfc3339(options.mtime.into());
    json!({
        "created": created,
        "architecture": options.arch.oci(),
        "os": "linux",
        "config": options.config,
        "rootfs": { "type": "layers", "diff_ids": [content] },
        "history": [{ "created": created, "created_by": "rootfs-builder" }],
    })
}

/// A written layer.
struct Layer {
    /// The blob's digest.
    digest: String,
    /// The digest of what is compressed in it.
    content: String,
    /// The blob's size.
    size: u64,
}

fn layer(tree: &Tree, options: &Options, blobs: &Path) -> Result<Layer, OciError> {
    let path = blobs.join(UNNAMED);
    let failed = |source| OciError::Layer {
        path: path.clone(),
        source,
    };
    let file = File::create(&path).map_err(io_error("create", &path))?;
    let mut blob = Digesting::new(file);
    let mut content = String::new();
    compress::write(options.compression, &mut blob, |body| {
        let mut plain = Digesting::new(body);
        tar::write(tree, options.mtime, &mut plain)?;
        content = plain.digest();
        Ok(())
    })
    .map_err(|source| {
        // The first error is the one to report.
        let _ = fs::remove_file(&path);
        failed(source)
    })?;
    let (size, digest) = (blob.size, blob.digest());
    let named = blob_path(blobs, &digest);
    fs::rename(&path, &named).map_err(io_error("rename", &path))?;
    Ok(Layer {
        digest,
        content,
        size,
    })
}

/// Writes a document as a blob and returns its descriptor.
fn document(blobs: &Path, media_type: &str, document: &Value) -> Result<Value, OciError> {
    let text = document.to_string();
    let digest = format!("sha256:{}", hex(&Sha256::digest(&text)));
    put(&blob_path(blobs, &digest), text.as_bytes())?;
    Ok(descriptor(media_type, &digest, text.len() as u64))
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

fn blob_path(blobs: &Path, digest: &str) -> PathBuf {
    blobs.join(digest.trim_start_matches("sha256:"))
}

fn put(path: &Path, content: &[u8]) -> Result<(), OciError> {
    fs::write(path, content).map_err(io_error("write", path))
}

/// Digests what goes through it.
struct Digesting<W> {
    out: W,
    hash: Sha256,
    size: u64,
}

impl<W> Digesting<W> {
    fn new(out: W) -> Digesting<W> {
        Digesting {
            out,
            hash: Sha256::new(),
            size: 0,
        }
    }

    /// The digest as the specification writes it.
    fn digest(self) -> String {
        format!("sha256:{}", hex(&self.hash.finalize()))
    }
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A time in seconds since the epoch as documents have it: `1970-01-01T00:00:00Z`.
pub fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The date that is so many days after 1970-01-01.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests;
