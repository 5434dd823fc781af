// SPDX-License-Identifier: Apache-2.0
//! What a build has to say.

use std::path::PathBuf;

use serde::Serialize;

use super::image::{self, Alignment, hash_file};
use super::words::{Boot, boots};
use crate::cli::output::Report;
use crate::definition::Definition;
use crate::image::verity::Verity;
use crate::manifest::Manifest;
use crate::sbom;

/// An image that was built.
#[derive(Clone, Debug, Serialize)]
pub struct Built {
    /// Where it is.
    pub image: PathBuf,
    /// What came out, and for which architecture.
    pub format: String,
    /// The file system in it, if there is one.
    pub filesystem: Option<String>,
    /// The guest's architecture.
    pub arch: String,
    /// Its size in bytes; of a directory, the size of all files in it.
    pub size: u64,
    /// Its digest; of a directory, that of its content.
    pub sha256: String,
    /// The root hash, if it is measured.
    pub root_hash: Option<String>,
    /// All that it is measured by, as in Kata's configuration.
    pub verity_params: Option<String>,
    /// Where the hash tree is, if it is a file of its own.
    pub hash_tree: Option<PathBuf>,
    /// The ways to boot it, the best first.
    pub boot: Vec<Boot>,
    /// What its size is a multiple of.
    pub alignment: Option<Alignment>,
    /// What it was made of.
    pub manifest: PathBuf,
    /// Its bill of materials.
    pub sbom: PathBuf,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// The report of an image that lies at `path`.
pub fn built(
    definition: &Definition,
    path: PathBuf,
    manifest: &Manifest,
    notes: Vec<String>,
) -> Built {
    let verity = manifest.verity.as_ref();
    Built {
        format: manifest.format.clone(),
        filesystem: manifest.filesystem.clone(),
        arch: manifest.arch.clone(),
        size: manifest.image.size,
        sha256: manifest.image.sha256.clone(),
        root_hash: verity.map(image::root_hash),
        verity_params: verity.map(Verity::params),
        hash_tree: Some(hash_file(&path)).filter(|file| verity.is_some() && file.exists()),
        boot: boots(definition, verity),
        alignment: image::alignment(definition),
        manifest: Manifest::path_for(&path),
        sbom: sbom::path_for(&path),
        image: path,
        notes,
    }
}

impl Report for Built {
    const KIND: &'static str = "build";

    fn text(&self) -> String {
        let mut lines = vec![format!("image: {}", self.image.display())];
        let what = match &self.filesystem {
            Some(filesystem) if *filesystem != self.format => {
                format!("{} ({filesystem})", self.format)
            }
            _ => self.format.clone(),
        };
        lines.push(format!("format: {what}, {}", self.arch));
        lines.push(format!("size: {}", readable(self.size)));
        lines.push(format!("sha256: {}", self.sha256));
        if let Some(hash) = &self.root_hash {
            lines.push(format!("root hash: {hash}"));
        }
        if let Some(tree) = &self.hash_tree {
            lines.push(format!("hash tree: {}", tree.display()));
        }
        if let Some(alignment) = &self.alignment {
            lines.push(format!("alignment: {}", alignment.reason));
        }
        for boot in self.boot.iter().filter(|boot| !boot.words.is_empty()) {
            lines.push(format!("boot from {}: {}", boot.device, boot.line()));
        }
        lines.push(format!("manifest: {}", self.manifest.display()));
        lines.push(format!("sbom: {}", self.sbom.display()));
        lines.extend(self.notes.iter().map(|note| format!("note: {note}")));
        lines.join("\n")
    }
}

/// A size for people: with a unit where that says more.
fn readable(bytes: u64) -> String {
    const UNITS: [(&str, u64); 2] = [("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => {
            let tenths = bytes * 10 / unit;
            format!("{}.{} {name} ({bytes} bytes)", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} bytes"),
    }
}
