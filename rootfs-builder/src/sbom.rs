// SPDX-License-Identifier: Apache-2.0
//! The bill of materials of an image, as SPDX 2.3 in JSON: the image, the packages of a Debian inside, the guest binary with its
//! crates, and the kernel.
//!
//! It is made from the manifest, the tree and the workspace's lock file alone, so it is the same for the same image. Licences are not
//! guessed: `NOASSERTION` says that nobody has looked.

mod crates;
mod purl;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::image::oci::rfc3339;
use crate::manifest::dpkg::{self, Stanza};
use crate::manifest::{Input, InputKind, Manifest, ManifestError};
use crate::tree::{Kind, Tree};
use crates::{Crate, LockError};
use purl::{Distribution, cargo_purl, debian_purl};

/// What SPDX wants where nothing is known.
const NO_ASSERTION: &str = "NOASSERTION";
/// The guest binary's package in the workspace.
const AGENT: &str = "agent";

/// Why there is no bill of materials.
#[derive(Debug, thiserror::Error)]
pub enum SbomError {
    /// The list of packages in the tree cannot be read.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The lock file cannot be read.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The document could not be written.
    #[error("Cannot write {path}", path = path.display())]
    Write {
        /// Where to.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Where the bill of materials of an image lies: beside it, `.spdx.json` added to its name.
pub fn path_for(image: &Path) -> PathBuf {
    crate::manifest::beside(image, ".spdx.json")
}

/// Writes a document.
pub fn write(document: &Value, path: &Path) -> Result<(), SbomError> {
    fs::write(path, format!("{document:#}\n")).map_err(|source| SbomError::Write {
        path: path.to_owned(),
        source,
    })
}

/// The bill of materials of the image with this manifest and this tree. `lock` is the text of the `Cargo.lock` that the guest binary
/// was built with; without it the binary's crates are left out.
pub fn document(manifest: &Manifest, tree: &Tree, lock: Option<&str>) -> Result<Value, SbomError> {
    let mut document = Document::default();
    let image = document.add("Image", image_package(manifest));
    document.relate("DOCUMENT", "DESCRIBES", &image);
    let distribution = Distribution::of(tree)?;
    for stanza in dpkg::installed(tree)? {
        let label = format!("deb-{}-{}", stanza.package, stanza.architecture);
        let package = document.add(&label, debian_package(&stanza, &distribution));
        document.relate(&image, "CONTAINS", &package);
    }
    for input in of_kind(manifest, InputKind::Binary) {
        let binary = document.add(&format!("guest-{}", input.name), binary_package(input));
        document.relate(&image, "CONTAINS", &binary);
        for krate in lock.map_or(Ok(Vec::new()), |text| crates::closure(text, AGENT))? {
            let label = format!("cargo-{}-{}", krate.name, krate.version);
            let package = document.add(&label, cargo_package(&krate));
            document.relate(&binary, "CONTAINS", &package);
        }
    }
    if let Some(kernel) = kernel_package(manifest) {
        // It lies beside the image; only its modules are inside.
        let kernel = document.add("kernel", kernel);
        document.relate("DOCUMENT", "DESCRIBES", &kernel);
        for input in of_kind(manifest, InputKind::Module) {
            let label = format!("module-{}", input.name);
            let module = document.add(&label, module_package(manifest, input));
            document.relate(&image, "CONTAINS", &module);
            document.relate(&kernel, "CONTAINS", &module);
        }
    }
    Ok(document.finish(manifest))
}

fn of_kind(manifest: &Manifest, kind: InputKind) -> impl Iterator<Item = &Input> {
    manifest
        .inputs
        .iter()
        .filter(move |input| input.kind == kind)
}

/// Packages and relationships as they are found.
#[derive(Default)]
struct Document {
    packages: Vec<Value>,
    relationships: Vec<Value>,
    labels: BTreeMap<String, u32>,
}

impl Document {
    /// Adds a package; returns its identifier, without the prefix that all have.
    fn add(&mut self, label: &str, mut package: Value) -> String {
        // SPDX allows letters, digits, `.` and `-` in an identifier.
        let letter = |c: char| match c {
            c if c.is_ascii_alphanumeric() || c == '.' => c,
            _ => '-',
        };
        let mut id: String = label.chars().map(letter).collect();
        let count = self.labels.entry(id.clone()).or_default();
        *count += 1;
        if *count > 1 {
            // No label ends in a dot and a number after a dash, so this is nobody else's.
            id = format!("{id}-.{count}");
        }
        package["SPDXID"] = spdx_id(&id).into();
        self.packages.push(package);
        id
    }

    fn relate(&mut self, from: &str, relationship: &str, to: &str) {
        self.relationships.push(json!({
            "spdxElementId": spdx_id(from),
            "relationshipType": relationship,
            "relatedSpdxElement": spdx_id(to),
        }));
    }

    fn finish(self, manifest: &Manifest) -> Value {
        let (name, digest) = (&manifest.image.file, &manifest.image.sha256);
        let namespace = purl::encoded(name);
        json!({
            "spdxVersion": "SPDX-2.3",
            "dataLicense": "CC0-1.0",
            "SPDXID": spdx_id("DOCUMENT"),
            "name": name,
            // Unique to the image, as it must be, and the same for the same image; nothing is there.
            "documentNamespace": format!("https://spdx.org/spdxdocs/{namespace}-{digest}"),
            "creationInfo": {
                "created": rfc3339(manifest.epoch),
                "creators": [format!("Tool: {}-{}", manifest.tool.name, manifest.tool.version)],
            },
            "packages": self.packages,
            "relationships": self.relationships,
        })
    }
}

fn spdx_id(label: &str) -> String {
    format!("SPDXRef-{label}")
}

/// What every package must say.
fn package(name: &str, version: Option<&str>, purpose: &str) -> Value {
    let mut package = json!({
        "name": name,
        "downloadLocation": NO_ASSERTION,
        "filesAnalyzed": false,
        "licenseConcluded": NO_ASSERTION,
        "licenseDeclared": NO_ASSERTION,
        "copyrightText": NO_ASSERTION,
        "primaryPackagePurpose": purpose,
    });
    if let Some(version) = version {
        package["versionInfo"] = version.into();
    }
    package
}

fn with_checksum(mut package: Value, sha256: &str) -> Value {
    package["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": sha256 }]);
    package
}

fn with_purl(mut package: Value, purl: &str) -> Value {
    package["externalRefs"] = json!([{
        "referenceCategory": "PACKAGE-MANAGER",
        "referenceType": "purl",
        "referenceLocator": purl,
    }]);
    package
}

fn image_package(manifest: &Manifest) -> Value {
    let mut image = package(&manifest.name, None, "OPERATING-SYSTEM");
    image["packageFileName"] = manifest.image.file.as_str().into();
    with_checksum(image, &manifest.image.sha256)
}

fn debian_package(stanza: &Stanza, distribution: &Distribution) -> Value {
    let mut debian = package(&stanza.package, Some(&stanza.version), "INSTALL");
    debian["supplier"] = format!("Organization: {}", distribution.name).into();
    if let Some(maintainer) = &stanza.maintainer {
        debian["originator"] = party(maintainer).into();
    }
    if let Some(source) = &stanza.source {
        debian["sourceInfo"] = format!("built from the source package {source}").into();
    }
    with_purl(debian, &debian_purl(stanza, distribution))
}

/// A maintainer as SPDX writes parties. Who is a person and who is not, the field does not say; most are teams.
fn party(maintainer: &str) -> String {
    match maintainer.split_once('<') {
        Some((name, mail)) => {
            let mail = mail.trim_end().trim_end_matches('>');
            let name = name.trim().trim_matches('"');
            format!("Organization: {name} ({mail})")
        }
        None => format!("Organization: {}", maintainer.trim()),
    }
}

fn binary_package(input: &Input) -> Value {
    let mut binary = package(&input.name, input.version.as_deref(), "APPLICATION");
    binary["comment"] = "Its packages are those that the lock file names for it; some are of use only to build or test it, or on \
        other platforms."
        .into();
    with_checksum(binary, &input.sha256)
}

fn cargo_package(krate: &Crate) -> Value {
    let mut cargo = package(&krate.name, Some(&krate.version), "LIBRARY");
    if let Some(checksum) = &krate.checksum {
        cargo = with_checksum(cargo, checksum);
    }
    if krate.is_published {
        cargo = with_purl(cargo, &cargo_purl(krate));
    }
    cargo
}

fn kernel_package(manifest: &Manifest) -> Option<Value> {
    let input = of_kind(manifest, InputKind::Kernel).next();
    let release = manifest.kernel.as_ref().map(|kernel| &kernel.release[..]);
    if input.is_none() && release.is_none() {
        return None;
    }
    let version = release.or(input.and_then(|input| input.version.as_deref()));
    let kernel = package("linux", version, "OPERATING-SYSTEM");
    Some(match input {
        Some(input) => with_checksum(kernel, &input.sha256),
        None => kernel,
    })
}

fn module_package(manifest: &Manifest, input: &Input) -> Value {
    let release = manifest.kernel.as_ref().map(|kernel| &kernel.release[..]);
    let version = input.version.as_deref().or(release);
    with_checksum(package(&input.name, version, "FILE"), &input.sha256)
}

/// The text of a tree's file, if it has it.
fn text(tree: &Tree, path: &str) -> Result<Option<String>, ManifestError> {
    match tree.get(path).map(|entry| &entry.kind) {
        Some(Kind::File(content)) => dpkg::text(content, Path::new(path)).map(Some),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests;
