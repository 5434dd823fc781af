// SPDX-License-Identifier: Apache-2.0
//! Reads an OCI image layout: the documents down to the layers, every one checked against its digest, and the layers put over one
//! another. See the OCI image specification, `image-layout.md` and `layer.md`.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::builder::Builder;
use super::decode::packing;
use super::error::ReadError;
use super::listing::{Digest, digest};
use super::source::Source;
use super::tar;

/// How deep indexes may be nested.
const MAX_DEPTH: usize = 4;
/// The most layers; overlayfs takes 500, engines 128.
const MAX_LAYERS: usize = 500;
/// The prefix of the name of what is gone from the layers below.
const WHITEOUT: &[u8] = b".wh.";
/// The name that empties its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
}

/// Whether a directory is an image layout.
pub fn is_layout(dir: &Path) -> bool {
    dir.join("oci-layout").is_file() && dir.join("index.json").is_file()
}

/// Reads the image of a layout: the one for this machine's architecture if there are several.
pub fn read(dir: &Path, builder: &mut Builder) -> Result<(), ReadError> {
    let mut document: Document = json(&Source::open(&dir.join("index.json"))?)?;
    let mut depth = 0;
    while document.layers.is_empty() {
        let Some(descriptor) = choose(&document.manifests) else {
            return Err(missing(dir));
        };
        depth += 1;
        if depth > MAX_DEPTH {
            return Err(missing(dir));
        }
        document = json(&blob(dir, &descriptor.digest)?)?;
    }
    if document.layers.len() > MAX_LAYERS {
        return Err(ReadError::TooMuch {
            path: dir.to_owned(),
            limit: "500 layers",
        });
    }
    for layer in &document.layers {
        add(&blob(dir, &layer.digest)?, builder)?;
    }
    Ok(())
}

fn missing(dir: &Path) -> ReadError {
    ReadError::Unsupported {
        path: dir.to_owned(),
        feature: "no image with layers".to_owned(),
    }
}

fn choose(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let host = guest_kernel::Arch::host().map(guest_kernel::Arch::oci);
    let fits = |descriptor: &&Descriptor| {
        let platform = descriptor.platform.as_ref();
        platform.is_some_and(|platform| Some(platform.architecture.as_str()) == host)
    };
    manifests.iter().find(fits).or_else(|| manifests.first())
}

/// Opens a blob, the content of which has the digest that names it.
fn blob(dir: &Path, name: &str) -> Result<Source, ReadError> {
    let digits = name
        .strip_prefix("sha256:")
        .filter(|digits| digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()));
    let Some(digits) = digits else {
        return Err(ReadError::Unsupported {
            path: dir.to_owned(),
            feature: format!("the digest {name:?}"),
        });
    };
    let path: PathBuf = dir.join("blobs/sha256").join(digits);
    let source = Source::open(&path)?;
    let found = digest(&mut source.reader(0, source.len())?).map_err(|source| ReadError::Io {
        action: "read",
        path,
        source,
    })?;
    if found.1.to_string() != digits {
        return Err(source.broken(0, format!("its digest is {}", found.1)));
    }
    Ok(source)
}

fn json<T: DeserializeOwned>(source: &Source) -> Result<T, ReadError> {
    let text = source.bytes(0, source.len())?;
    serde_json::from_slice(&text).map_err(|error| ReadError::Json {
        path: source.path(),
        source: error,
    })
}

/// Puts a layer over those below it. Whiteouts are about the layers below alone, wherever they stand in the archive.
fn add(source: &Source, builder: &mut Builder) -> Result<(), ReadError> {
    let head = source.prefix(0, 8)?;
    let packing = packing(&head).map_err(|name| source.unsupported(name))?;
    let mut layer = Builder::new(&source.path(), source.len());
    tar::read(
        source,
        packing.unwrap_or_default(),
        &builder.listing,
        &mut layer,
    )?;
    let (marks, entries): (Vec<_>, Vec<_>) = layer
        .listing
        .entries
        .into_iter()
        .partition(|(path, _)| split(path).1.starts_with(WHITEOUT));
    for (path, _) in marks {
        let (above, name) = split(&path);
        if name == OPAQUE && above.is_empty() {
            builder.listing.entries.clear();
        } else if name == OPAQUE {
            builder.empty(above);
        } else {
            let gone = [above, &name[WHITEOUT.len()..]];
            let gone = gone.join(&b"/"[..usize::from(!above.is_empty())]);
            builder.empty(&gone);
            builder.listing.entries.remove(&gone);
        }
    }
    for (path, item) in entries {
        // What a lower layer had there is not what is there now.
        builder.kept.remove(&path);
        builder.put(&path, item)?;
    }
    builder.listing.root = layer.listing.root.or(builder.listing.root.take());
    builder.kept.extend(layer.kept);
    Ok(())
}

/// The directory of a path, and the name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        None => (b"", path),
        Some(at) => (&path[..at], &path[at + 1..]),
    }
}

/// The digest of a file that a layout or a manifest names.
pub fn file_digest(path: &Path) -> Result<Digest, ReadError> {
    let source = Source::open(path)?;
    let result = digest(&mut source.reader(0, source.len())?);
    result
        .map(|(_, digest)| digest)
        .map_err(|error| ReadError::Io {
            action: "read",
            path: path.to_owned(),
            source: error,
        })
}
