// SPDX-License-Identifier: Apache-2.0
//! Checks an image: against its manifest, against the rules of its format, against its hash tree, and whether a guest can start from
//! it. Changes nothing. Where a check fails, it names the place as far as that can be known.

mod disk;
mod guest;
mod measured;
mod metadata;

use std::path::{Path, PathBuf};

use guest_kernel::Arch;
use serde::Serialize;

use crate::cli::output::Report;
use crate::image::read::{self, Format, Image, ReadError};
use crate::image::verity::Verity;
use crate::inspect;
use crate::manifest::{Manifest, ManifestError};

/// Why an image cannot be checked at all. That it cannot be read is a failed check.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is no such image.
    #[error("There is no {path}", path = path.display())]
    Missing {
        /// The image.
        path: PathBuf,
    },
    /// The manifest cannot be read.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A root hash is given for an image about which nothing else is known.
    #[error("A root hash alone is not enough for {path}: it has no manifest with the salt; give all parameters", path = path.display())]
    Salt {
        /// The image.
        path: PathBuf,
    },
}

/// What to check against, besides what is beside the image.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The root hash, in place of the manifest's.
    pub root_hash: Option<[u8; 32]>,
    /// All parameters of the hash tree, in place of the manifest's.
    pub verity: Option<Verity>,
    /// The architecture, in place of the manifest's.
    pub arch: Option<Arch>,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It holds.
    Ok,
    /// It does not.
    Failed,
    /// There is nothing to check against.
    Skipped,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// How it came out.
    pub outcome: Outcome,
    /// What was found.
    pub detail: String,
}

impl Check {
    fn new(name: &'static str, outcome: Outcome, detail: impl Into<String>) -> Check {
        let detail = detail.into();
        Check {
            name,
            outcome,
            detail,
        }
    }

    fn ok(name: &'static str, detail: impl Into<String>) -> Check {
        Check::new(name, Outcome::Ok, detail)
    }

    fn failed(name: &'static str, detail: impl Into<String>) -> Check {
        Check::new(name, Outcome::Failed, detail)
    }

    fn skipped(name: &'static str, detail: impl Into<String>) -> Check {
        Check::new(name, Outcome::Skipped, detail)
    }
}

/// All checks of an image.
#[derive(Debug, Serialize)]
pub struct Verification {
    /// The image.
    pub path: String,
    /// Whether no check failed.
    pub ok: bool,
    /// The checks in their order.
    pub checks: Vec<Check>,
}

impl Verification {
    /// How many checks failed.
    pub fn failed(&self) -> usize {
        let failed = self.checks.iter();
        failed
            .filter(|check| check.outcome == Outcome::Failed)
            .count()
    }
}

impl Report for Verification {
    const KIND: &'static str = "verification";

    fn text(&self) -> String {
        let line = |check: &Check| {
            let outcome = match check.outcome {
                Outcome::Ok => "ok",
                Outcome::Failed => "FAILED",
                Outcome::Skipped => "skipped",
            };
            format!("{outcome:<8} {:<11} {}", check.name, check.detail)
        };
        self.checks.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Checks an image.
pub fn verify(path: &Path, options: &Options) -> Result<Verification, VerifyError> {
    if !path.exists() {
        return Err(VerifyError::Missing {
            path: path.to_owned(),
        });
    }
    let manifest = inspect::manifest(path)?;
    let verity = parameters(path, manifest.as_ref(), options)?;
    let image = read::open(path);
    let mut checks = vec![readable(&image)];
    let image = image.ok();
    checks.extend(measured::against_manifest(
        path,
        manifest.as_ref(),
        image.as_ref(),
    ));
    checks.extend(disk::checks(path, verity.as_ref(), image.as_ref()));
    if let Some(image) = &image {
        checks.extend(metadata::checks(image));
    }
    checks.extend(measured::tree(path, verity.as_ref(), image.as_ref()));
    if let Some(image) = &image {
        let named = manifest
            .as_ref()
            .and_then(|manifest| manifest.arch.parse().ok());
        checks.extend(guest::checks(image, options.arch.or(named)));
    }
    let failed = |check: &Check| check.outcome == Outcome::Failed;
    Ok(Verification {
        path: path.display().to_string(),
        ok: !checks.iter().any(failed),
        checks,
    })
}

/// The parameters of the hash tree: as given, else as the manifest has them, with another root hash if one is given.
fn parameters(
    path: &Path,
    manifest: Option<&Manifest>,
    options: &Options,
) -> Result<Option<Verity>, VerifyError> {
    let known = manifest.and_then(|manifest| manifest.verity.as_ref());
    let mut verity = options.verity.as_ref().or(known).cloned();
    match (&mut verity, options.root_hash) {
        (Some(verity), Some(root_hash)) => verity.root_hash = root_hash,
        (None, Some(_)) => {
            return Err(VerifyError::Salt {
                path: path.to_owned(),
            });
        }
        _ => {}
    }
    Ok(verity)
}

fn readable(image: &Result<Image, ReadError>) -> Check {
    match image {
        Ok(image) => {
            let format = match (&image.filesystem, image.format) {
                (Some(filesystem), Format::Disk) => format!("{} on a disk", filesystem.kind),
                (_, format) => format.to_string(),
            };
            Check::ok(
                "format",
                format!("{format}, {} entries", image.listing.entries.len()),
            )
        }
        Err(error) => Check::failed("format", chain(error)),
    }
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// What lies in a range of an image, for a message: nothing if that is not known.
fn holds(image: Option<&Image>, start: u64, len: u64) -> String {
    /// How many names are told.
    const NAMED: usize = 3;
    let places = image
        .map(|image| image.places(start, len))
        .unwrap_or_default();
    let mut names: Vec<String> = places.iter().map(|place| place.to_string()).collect();
    names.dedup();
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    match (names.is_empty(), more) {
        (true, _) => String::new(),
        (false, 0) => format!("; there lies {}", names.join(", ")),
        (false, more) => format!("; there lies {} and {more} more", names.join(", ")),
    }
}

#[cfg(test)]
mod tests;
