// SPDX-License-Identifier: Apache-2.0
//! Documents checked against what SPDX 2.3 requires of one, clause by clause.

use std::collections::BTreeSet;

use super::*;
use crate::manifest::tests::manifest;
use crate::tree::Entry;

const STATUS: &str = "Package: bash\nStatus: install ok installed\nVersion: 5.2-1+b1\nArchitecture: amd64\n\
    Maintainer: Some Team <team@example.org>\n\nPackage: g++\nVersion: 1\nArchitecture: amd64\n\n\
    Package: g--\nVersion: 1\nArchitecture: amd64\nSource: gcc (2)\n";

fn tree() -> Tree {
    let mut tree = Tree::default();
    tree.insert("var/lib/dpkg/status", Entry::bytes(STATUS, 0o644))
        .unwrap();
    tree.insert(
        "usr/lib/os-release",
        Entry::bytes("ID=debian\nVERSION_CODENAME=trixie\n", 0o644),
    )
    .unwrap();
    tree
}

fn whole() -> Value {
    let mut manifest = manifest();
    let kernel = Input::bytes(InputKind::Kernel, "bzImage", b"kernel");
    let module = Input::bytes(InputKind::Module, "virtio_net.ko", b"module");
    manifest.inputs.extend([kernel, module]);
    document(
        &manifest,
        &tree(),
        Some(include_str!("../../../Cargo.lock")),
    )
    .unwrap()
}

fn is_id(value: &Value) -> bool {
    let id = value.as_str().and_then(|id| id.strip_prefix("SPDXRef-"));
    id.is_some_and(|id| {
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
        !id.is_empty() && id.chars().all(letter)
    })
}

/// Clauses 6 (document), 7 (packages) and 11 (relationships), as far as they bind a document without files and snippets.
fn check(document: &Value) {
    assert_eq!(document["spdxVersion"], "SPDX-2.3");
    assert_eq!(document["dataLicense"], "CC0-1.0");
    assert_eq!(document["SPDXID"], "SPDXRef-DOCUMENT");
    assert!(!document["name"].as_str().unwrap().is_empty());
    let namespace = document["documentNamespace"].as_str().unwrap();
    assert!(namespace.starts_with("https://") && !namespace.contains(['#', ' ']));
    let created = document["creationInfo"]["created"].as_str().unwrap();
    assert!(created.len() == 20 && created.ends_with('Z'), "{created}");
    let creators = document["creationInfo"]["creators"].as_array().unwrap();
    assert!(
        creators
            .iter()
            .all(|c| c.as_str().unwrap().starts_with("Tool: "))
    );
    let mut ids = BTreeSet::from(["SPDXRef-DOCUMENT"]);
    for package in document["packages"].as_array().unwrap() {
        assert!(is_id(&package["SPDXID"]), "{package}");
        assert!(ids.insert(package["SPDXID"].as_str().unwrap()), "{package}");
        assert!(!package["name"].as_str().unwrap().is_empty());
        assert_eq!(package["downloadLocation"], NO_ASSERTION);
        assert_eq!(package["filesAnalyzed"], false);
        // Packages whose files were not analysed have no verification code.
        assert!(package.get("packageVerificationCode").is_none());
        for party in ["supplier", "originator"] {
            if let Some(party) = package.get(party) {
                assert!(party.as_str().unwrap().starts_with("Organization: "));
            }
        }
        for sum in package
            .get("checksums")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            assert_eq!(sum["algorithm"], "SHA256");
            assert_eq!(sum["checksumValue"].as_str().unwrap().len(), 64);
        }
        for reference in package
            .get("externalRefs")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            assert_eq!(reference["referenceCategory"], "PACKAGE-MANAGER");
            assert_eq!(reference["referenceType"], "purl");
            assert!(
                reference["referenceLocator"]
                    .as_str()
                    .unwrap()
                    .starts_with("pkg:")
            );
        }
    }
    let relationships = document["relationships"].as_array().unwrap();
    for relationship in relationships {
        for end in ["spdxElementId", "relatedSpdxElement"] {
            assert!(
                ids.contains(relationship[end].as_str().unwrap()),
                "{relationship}"
            );
        }
    }
    assert!(
        relationships
            .iter()
            .any(|r| r["relationshipType"] == "DESCRIBES")
    );
    // Whatever is listed hangs together with the document.
    for id in ids.iter().filter(|id| **id != "SPDXRef-DOCUMENT") {
        assert!(
            relationships.iter().any(|r| r["relatedSpdxElement"] == *id),
            "{id}"
        );
    }
}

fn find<'a>(document: &'a Value, id: &str) -> &'a Value {
    let packages = document["packages"].as_array().unwrap();
    packages.iter().find(|p| p["SPDXID"] == id).unwrap()
}

#[test]
fn a_document_has_what_the_specification_requires() {
    check(&whole());
    check(&document(&manifest(), &Tree::default(), None).unwrap());
}

#[test]
fn every_kind_of_part_is_listed() {
    let document = whole();
    let bash = find(&document, "SPDXRef-deb-bash-amd64");
    assert_eq!(bash["versionInfo"], "5.2-1+b1");
    assert_eq!(bash["supplier"], "Organization: Debian");
    assert_eq!(
        bash["originator"],
        "Organization: Some Team (team@example.org)"
    );
    assert_eq!(
        bash["externalRefs"][0]["referenceLocator"],
        "pkg:deb/debian/bash@5.2-1%2Bb1?arch=amd64&distro=trixie"
    );
    // Names that SPDX cannot tell apart stay apart.
    assert_eq!(find(&document, "SPDXRef-deb-g---amd64")["name"], "g++");
    let other = find(&document, "SPDXRef-deb-g---amd64-.2");
    assert_eq!(other["sourceInfo"], "built from the source package gcc (2)");
    assert_eq!(find(&document, "SPDXRef-kernel")["versionInfo"], "6.12.1");
    let module = find(&document, "SPDXRef-module-virtio-net.ko");
    assert_eq!(module["versionInfo"], "6.12.1");
    assert_eq!(
        find(&document, "SPDXRef-guest-keelson")["versionInfo"],
        "0.1.0"
    );
    let agent = find(&document, "SPDXRef-cargo-agent-0.1.0");
    assert!(agent.get("externalRefs").is_none());
    let image = find(&document, "SPDXRef-Image");
    assert_eq!(image["checksums"][0]["checksumValue"], "ab".repeat(32));
}

#[test]
fn the_same_image_has_the_same_document_and_another_has_another() {
    assert_eq!(whole(), whole());
    let mut other = manifest();
    other.image.sha256 = "ef".repeat(32);
    let one = document(&manifest(), &Tree::default(), None).unwrap();
    let two = document(&other, &Tree::default(), None).unwrap();
    assert_ne!(one["documentNamespace"], two["documentNamespace"]);
    let dir = tempfile::tempdir().unwrap();
    let path = path_for(&dir.path().join("a.img"));
    assert!(path.ends_with("a.img.spdx.json"));
    write(&one, &path).unwrap();
    let read: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(read, one);
}
