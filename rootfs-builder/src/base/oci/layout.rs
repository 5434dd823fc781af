// SPDX-License-Identifier: Apache-2.0
//! Reads what an image is made of: `index.json` of an OCI image layout, or `manifest.json` of `docker save`. Only documents are read
//! here; each is checked against its digest.

use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

use guest_kernel::Arch;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{ImageConfig, OciError, io_error, verify};

/// How deep indexes may be nested. The specification sets no limit; images have one level at most.
const MAX_DEPTH: usize = 4;

/// The parts of an image on disk.
#[derive(Debug)]
pub struct Image {
    /// The configuration's digest, which covers all contents.
    pub config_digest: String,
    /// The configuration.
    pub config_path: PathBuf,
    /// The layers, the lowest first.
    pub layers: Vec<Layer>,
}

/// One layer on disk.
#[derive(Debug)]
pub struct Layer {
    /// The file.
    pub path: PathBuf,
    /// The file's digest, where the image has one.
    pub digest: Option<String>,
    /// The digest of the uncompressed content.
    pub diff_id: String,
}

/// An image configuration, as far as it matters here.
#[derive(Debug, Deserialize)]
pub struct ConfigFile {
    /// For the process.
    pub config: Option<ImageConfig>,
    #[serde(default)]
    architecture: String,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// An index or a manifest: which it is shows in what it has.
#[derive(Debug, Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Descriptor {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    layers: Vec<String>,
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T, OciError> {
    let text = fs::read(path).map_err(io_error("read", path))?;
    serde_json::from_slice(&text).map_err(|source| OciError::Json {
        path: path.to_owned(),
        source,
    })
}

/// Reads an image configuration.
pub fn read_config(path: &Path) -> Result<ConfigFile, OciError> {
    json(path)
}

/// The hexadecimal digits of a `sha256:` digest.
fn digits(digest: &str) -> Result<&str, OciError> {
    let digits = digest.strip_prefix("sha256:").unwrap_or_default();
    let valid = digits.len() == 64
        && digits
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if valid {
        Ok(digits)
    } else {
        Err(OciError::BadDigest {
            digest: digest.to_owned(),
        })
    }
}

/// The file of a blob. The digest is checked to be one, so it cannot lead elsewhere.
fn blob(dir: &Path, digest: &str) -> Result<PathBuf, OciError> {
    Ok(dir.join("blobs/sha256").join(digits(digest)?))
}

/// Reads the image for `arch` out of an image layout.
pub fn read_layout(dir: &Path, arch: Arch) -> Result<Image, OciError> {
    let index: Document = json(&dir.join("index.json"))?;
    let mut found = Vec::new();
    match find(dir, &index, arch, &mut found, 0)? {
        Some(image) => Ok(image),
        None => Err(OciError::NoImage {
            path: dir.to_owned(),
            arch,
            found,
        }),
    }
}

/// Looks for the architecture's image below an index; says in `found` what else there is.
fn find(
    dir: &Path,
    index: &Document,
    arch: Arch,
    found: &mut Vec<String>,
    depth: usize,
) -> Result<Option<Image>, OciError> {
    for descriptor in &index.manifests {
        if let Some(platform) = &descriptor.platform
            && (platform.os != "linux" || platform.architecture != arch.oci())
        {
            found.push(format!("{}/{}", platform.os, platform.architecture));
            continue;
        }
        let path = blob(dir, &descriptor.digest)?;
        check(&path, &descriptor.digest)?;
        let document: Document = json(&path)?;
        let image = match &document.config {
            Some(config) => manifest(dir, config, &document.layers, arch, found)?,
            None if depth < MAX_DEPTH => find(dir, &document, arch, found, depth + 1)?,
            None => None,
        };
        if image.is_some() {
            return Ok(image);
        }
    }
    Ok(None)
}

fn check(path: &Path, digest: &str) -> Result<(), OciError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    verify(file, digits(digest)?, path)
}

fn manifest(
    dir: &Path,
    config: &Descriptor,
    layers: &[Descriptor],
    arch: Arch,
    found: &mut Vec<String>,
) -> Result<Option<Image>, OciError> {
    let config_path = blob(dir, &config.digest)?;
    check(&config_path, &config.digest)?;
    let file = read_config(&config_path)?;
    if !is_for(&file, arch) {
        found.push(format!("linux/{}", file.architecture));
        return Ok(None);
    }
    let files = layers.iter().map(|layer| {
        Ok((
            blob(dir, &layer.digest)?,
            Some(digits(&layer.digest)?.to_owned()),
        ))
    });
    let files = files.collect::<Result<Vec<_>, OciError>>()?;
    Ok(Some(Image {
        config_digest: digits(&config.digest)?.to_owned(),
        config_path,
        layers: pair(files, &file.rootfs.diff_ids)?,
    }))
}

/// An image that does not say its architecture is taken at its user's word.
fn is_for(config: &ConfigFile, arch: Arch) -> bool {
    config.architecture.is_empty() || config.architecture == arch.oci()
}

fn pair(
    files: Vec<(PathBuf, Option<String>)>,
    diff_ids: &[String],
) -> Result<Vec<Layer>, OciError> {
    if files.len() != diff_ids.len() {
        return Err(OciError::LayerCount {
            layers: files.len(),
            digests: diff_ids.len(),
        });
    }
    let layer = |((path, digest), diff_id): ((PathBuf, Option<String>), &String)| {
        Ok(Layer {
            path,
            digest,
            diff_id: digits(diff_id)?.to_owned(),
        })
    };
    files.into_iter().zip(diff_ids).map(layer).collect()
}

/// Reads the image for `arch` out of an unpacked archive; `archive` is its name in messages.
pub fn read_archive(dir: &Path, archive: &Path, arch: Arch) -> Result<Image, OciError> {
    let none = |found| OciError::NoImage {
        path: archive.to_owned(),
        arch,
        found,
    };
    if dir.join("index.json").is_file() && dir.join("oci-layout").is_file() {
        return read_layout(dir, arch).map_err(|error| match error {
            OciError::NoImage { found, .. } => none(found),
            other => other,
        });
    }
    let path = dir.join("manifest.json");
    if !path.is_file() {
        return Err(OciError::NoArchive {
            path: archive.to_owned(),
        });
    }
    let mut found = Vec::new();
    for manifest in json::<Vec<DockerManifest>>(&path)? {
        let config_path = inside(dir, &manifest.config)?;
        let file = read_config(&config_path)?;
        if is_for(&file, arch) {
            let files = manifest
                .layers
                .iter()
                .map(|name| Ok((inside(dir, name)?, None)));
            let files = files.collect::<Result<Vec<_>, OciError>>()?;
            return Ok(Image {
                config_digest: guest_kernel::cache::file_digest(&config_path)?,
                config_path,
                layers: pair(files, &file.rootfs.diff_ids)?,
            });
        }
        found.push(format!("linux/{}", file.architecture));
    }
    Err(none(found))
}

/// A file that `manifest.json` names. Older Dockers write links from one layer to another, so a link is followed, but the file must lie
/// inside the unpacked archive.
fn inside(dir: &Path, name: &str) -> Result<PathBuf, OciError> {
    let outside = || OciError::Outside {
        name: name.to_owned(),
    };
    if !Path::new(name)
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
    {
        return Err(outside());
    }
    let path = dir.join(name);
    let real = path.canonicalize().map_err(io_error("find", &path))?;
    let root = dir.canonicalize().map_err(io_error("find", dir))?;
    if real.starts_with(root) {
        Ok(real)
    } else {
        Err(outside())
    }
}
