// SPDX-License-Identifier: Apache-2.0
//! Checks of digests: the image's against its manifest, and every block's against the root hash.

use std::fs;
use std::path::Path;

use guest_kernel::cache::Key;

use super::{Check, chain, holds};
use crate::image::disk;
use crate::image::read::{Format, Image, Listing, file_digest};
use crate::image::verity::{self, Verity, VerityError};
use crate::manifest::Manifest;

/// The image's size and digest against those in its manifest.
pub fn against_manifest(
    path: &Path,
    manifest: Option<&Manifest>,
    image: Option<&Image>,
) -> Vec<Check> {
    let Some(manifest) = manifest else {
        let name = Manifest::path_for(path);
        return vec![Check::skipped(
            "manifest",
            format!("there is no {}", name.display()),
        )];
    };
    let said = &manifest.image;
    if path.is_dir() {
        return vec![contents(manifest, image)];
    }
    let size = fs::metadata(path)
        .map(|metadata| metadata.len())
        .unwrap_or_default();
    let mut checks = vec![if size == said.size {
        Check::ok("size", format!("{size} bytes, as the manifest says"))
    } else {
        Check::failed(
            "size",
            format!("{size} bytes, and the manifest says {}", said.size),
        )
    }];
    checks.push(match file_digest(path) {
        Ok(digest) if digest.to_string() == said.sha256 => {
            Check::ok("digest", format!("{digest}, as the manifest says"))
        }
        Ok(digest) => Check::failed(
            "digest",
            format!("{digest}, and the manifest says {}", said.sha256),
        ),
        Err(error) => Check::failed("digest", chain(&error)),
    });
    checks
}

/// A directory has no digest; what is in it can be compared.
fn contents(manifest: &Manifest, image: Option<&Image>) -> Check {
    let Some(image) = image else {
        return Check::failed("contents", "cannot be compared with the manifest");
    };
    let (found, said) = (digest(&image.listing), &manifest.tree.sha256);
    let owned = image.listing.root.as_ref().is_none_or(|root| root.uid == 0);
    if found == *said {
        Check::ok("contents", format!("{found}, as the manifest says"))
    } else if image.format == Format::Directory && !owned {
        Check::skipped(
            "contents",
            "a directory of an ordinary user's does not have the owners that the manifest covers",
        )
    } else {
        Check::failed("contents", format!("{found}, and the manifest says {said}"))
    }
}

/// The digest that [`crate::manifest::Contents`] has of the tree that a listing is of.
fn digest(listing: &Listing) -> String {
    let mut key = Key::of("tree");
    for (path, item) in &listing.entries {
        let (major, minor) = item.device.unwrap_or_default();
        let mode = item.kind.type_bits() | item.mode;
        let numbers = [mode, item.uid, item.gid, major, minor];
        let content = match (&item.sha256, &item.target) {
            (Some(digest), _) => &digest.0[..],
            (None, Some(target)) => target,
            (None, None) => &[],
        };
        key = key
            .field("path", path)
            .field("numbers", numbers.map(u32::to_le_bytes).concat())
            .field("content", content);
        for (name, value) in &item.xattrs {
            key = key.field("attribute", name).field("value", value);
        }
    }
    key.finish().digest().to_owned()
}

/// Every block of the file system against the root hash.
pub fn tree(path: &Path, verity: Option<&Verity>, image: Option<&Image>) -> Vec<Check> {
    let Ok(parts) = disk::read(path) else {
        let unmeasured = "an image of this format has no blocks that could be measured";
        let failed = verity.map(|_| Check::failed("verity", unmeasured));
        return failed.into_iter().collect();
    };
    let [data, rest @ ..] = &parts.partitions[..] else {
        return match verity {
            Some(verity) => vec![beside(path, verity, image)],
            None => Vec::new(),
        };
    };
    match (verity, rest.first()) {
        (None, None) => Vec::new(),
        (None, Some(_)) => vec![Check::failed(
            "verity",
            "there is a partition for a hash tree, and no root hash is known: give --verity",
        )],
        (Some(_), None) => vec![Check::failed(
            "verity",
            "there is no partition with the hash tree",
        )],
        (Some(verity), Some(hashes)) => {
            vec![check(
                (path, data.start),
                (path, hashes.start),
                verity,
                image,
            )]
        }
    }
}

/// A file system that is a file of its own has its hash tree in another file beside it.
fn beside(path: &Path, verity: &Verity, image: Option<&Image>) -> Check {
    let hashes = crate::manifest::beside(path, ".verity");
    if !hashes.exists() {
        return Check::failed(
            "verity",
            format!("there is no hash tree {}", hashes.display()),
        );
    }
    check((path, 0), (&hashes, 0), verity, image)
}

fn check(
    data: (&Path, u64),
    hashes: (&Path, u64),
    verity: &Verity,
    image: Option<&Image>,
) -> Check {
    match verity::verify(data, hashes, verity) {
        Ok(()) => Check::ok(
            "verity",
            format!("{} blocks fit the root hash", verity.data_blocks),
        ),
        Err(error) => {
            let place = match &error {
                VerityError::Data { offset, .. } => {
                    holds(image, *offset, verity.data_block_size.into())
                }
                _ => String::new(),
            };
            Check::failed("verity", chain(&error) + &place)
        }
    }
}
