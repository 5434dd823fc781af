// SPDX-License-Identifier: Apache-2.0
//! Tells what an image is and what it needs, from its bytes alone and from the manifest beside it. Changes nothing.

mod text;

use std::path::Path;

use serde::Serialize;

use crate::image::dax::InfoBlock;
use crate::image::partition::Partition;
use crate::image::read::{
    self, Elf, Filesystem, Image, Item, ItemKind, ReadError, escape, requirements, show,
};
use crate::image::verity::Verity;
use crate::manifest::{Manifest, ManifestError};

/// How many of the largest files are told.
const LARGEST: usize = 10;
/// The attribute that gives a program rights.
const CAPABILITY: &[u8] = b"security.capability";

/// Why an image cannot be inspected.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Its manifest cannot be read.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// What an image is.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// The file or directory.
    pub path: String,
    /// The format's word.
    pub format: &'static str,
    /// The compression's word.
    pub compression: &'static str,
    /// Bytes.
    pub size: u64,
    /// The partitions.
    pub partitions: Vec<Partition>,
    /// The DAX information block.
    pub dax: Option<InfoBlock>,
    /// The file system.
    pub filesystem: Option<Filesystem>,
    /// How the file system is measured, as the manifest says.
    pub verity: Option<Verity>,
    /// What is inside, counted.
    pub entries: Counts,
    /// The largest files.
    pub largest: Vec<File>,
    /// What the kernel starts.
    pub init: Option<Init>,
    /// Kernel modules that init loads.
    pub modules: Vec<String>,
    /// Programs that run with another user's rights.
    pub set_id: Vec<File>,
    /// Programs with capabilities.
    pub capabilities: Vec<File>,
    /// Device nodes.
    pub devices: Vec<File>,
    /// What the kernel must have.
    pub requirements: Vec<Requirement>,
    /// How it can be booted.
    pub boot: Vec<Boot>,
    /// What is wrong with it.
    pub findings: Vec<String>,
    /// Every entry, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<File>>,
}

/// Numbers of entries.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Directories.
    pub directories: usize,
    /// Regular files.
    pub files: usize,
    /// Symbolic links.
    pub symlinks: usize,
    /// Device nodes.
    pub devices: usize,
    /// Pipes and sockets.
    pub others: usize,
    /// Bytes in files.
    pub bytes: u64,
}

/// One entry.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct File {
    /// Its path; bytes that are no text are escaped.
    pub path: String,
    /// What it is.
    pub kind: ItemKind,
    /// The mode as octal digits.
    pub mode: String,
    /// The owner.
    pub uid: u32,
    /// The owning group.
    pub gid: u32,
    /// The number of bytes of a file.
    pub size: u64,
    /// The digest of a file's content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<read::Digest>,
    /// A link's target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// A device's numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<(u32, u32)>,
    /// The names of its extended attributes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<String>,
}

impl File {
    fn of(path: &[u8], item: &Item) -> File {
        File {
            path: show(path),
            kind: item.kind,
            mode: format!("{:04o}", item.mode),
            uid: item.uid,
            gid: item.gid,
            size: item.size,
            sha256: item.sha256,
            target: item.target.as_deref().map(lossy),
            device: item.device,
            attributes: item.xattrs.keys().map(|name| lossy(name)).collect(),
        }
    }
}

/// What the kernel starts.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Init {
    /// Where the kernel looks.
    pub path: &'static str,
    /// The file that links lead to from there.
    pub file: String,
    /// The program; none for a script.
    #[serde(flatten)]
    pub program: Option<Elf>,
}

/// A kernel option.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Requirement {
    /// Its name as in a kernel's configuration.
    pub option: String,
    /// Why it is needed.
    pub reason: String,
}

/// Kernel words for a way to boot an image.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Boot {
    /// How the VM offers the image: `initrd`, `virtio-blk`, `nvdimm`, `virtio-fs`, or `manifest` for what the manifest says.
    pub way: &'static str,
    /// The words.
    pub words: Vec<String>,
}

/// Inspects an image; with `files`, every entry is in the result.
pub fn inspect(path: &Path, files: bool) -> Result<Inspection, InspectError> {
    let manifest = manifest(path)?;
    let image = read::open(path)?;
    let picked = |pick: fn(&Item) -> bool| {
        let entries = image.listing.entries.iter();
        let picked = entries.filter(|(_, item)| pick(item));
        picked.map(|(path, item)| File::of(path, item)).collect()
    };
    let init = image.init().map(|(path, file, program)| Init {
        path,
        file: show(&file),
        program,
    });
    let requirements = requirements::requirements(&image)
        .into_iter()
        .map(|(option, reason)| Requirement {
            option: format!("CONFIG_{option}"),
            reason,
        });
    let disk = image.disk.as_ref();
    Ok(Inspection {
        path: path.display().to_string(),
        format: image.format.name(),
        compression: image.compression.name(),
        size: image.size,
        partitions: disk.map(|disk| disk.partitions.clone()).unwrap_or_default(),
        dax: disk.and_then(|disk| disk.dax.clone()),
        filesystem: image.filesystem.clone(),
        verity: manifest
            .as_ref()
            .and_then(|manifest| manifest.verity.clone()),
        entries: counts(&image),
        largest: largest(&image),
        init,
        modules: image.modules(),
        set_id: picked(|item| item.kind == ItemKind::File && item.mode & 0o6000 != 0),
        capabilities: picked(|item| item.xattrs.contains_key(CAPABILITY)),
        devices: picked(|item| item.kind.is_device()),
        requirements: requirements.collect(),
        boot: boot(&image, manifest.as_ref()),
        findings: image.findings.clone(),
        files: files.then(|| picked(|_| true)),
    })
}

/// The manifest beside an image, if there is one.
pub fn manifest(image: &Path) -> Result<Option<Manifest>, ManifestError> {
    let path = Manifest::path_for(image);
    if path.exists() {
        return Manifest::read(&path).map(Some);
    }
    Ok(None)
}

fn lossy(bytes: &[u8]) -> String {
    escape(bytes)
}

fn counts(image: &Image) -> Counts {
    let mut counts = Counts::default();
    for item in image.listing.entries.values() {
        counts.bytes += item.size;
        *match item.kind {
            ItemKind::Directory => &mut counts.directories,
            ItemKind::File => &mut counts.files,
            ItemKind::Symlink => &mut counts.symlinks,
            ItemKind::CharDevice | ItemKind::BlockDevice => &mut counts.devices,
            ItemKind::Fifo | ItemKind::Socket => &mut counts.others,
        } += 1;
    }
    counts
}

fn largest(image: &Image) -> Vec<File> {
    let mut files: Vec<_> = image.listing.entries.iter().collect();
    files.retain(|(_, item)| item.size > 0);
    files.sort_by_key(|(path, item)| (std::cmp::Reverse(item.size), *path));
    let largest = files.into_iter().take(LARGEST);
    largest.map(|(path, item)| File::of(path, item)).collect()
}

/// The ways in which an image can be booted.
fn boot(image: &Image, manifest: Option<&Manifest>) -> Vec<Boot> {
    let mut ways = Vec::new();
    if let Some(manifest) = manifest
        && !manifest.kernel_words.is_empty()
    {
        ways.push(Boot {
            way: "manifest",
            words: manifest.kernel_words.clone(),
        });
    }
    let words = |words: &[&str]| {
        words
            .iter()
            .map(|&word| word.to_owned())
            .collect::<Vec<_>>()
    };
    match image.format {
        read::Format::Cpio => ways.push(Boot {
            way: "initrd",
            words: Vec::new(),
        }),
        read::Format::Directory => ways.push(Boot {
            way: "virtio-fs",
            words: words(&["root=TAG", "rootfstype=virtiofs", "ro"]),
        }),
        _ => {}
    }
    let Some(filesystem) = &image.filesystem else {
        return ways;
    };
    let measured = manifest.and_then(|manifest| manifest.verity.as_ref());
    let partition = if image.disk.is_some() { "1" } else { "" };
    let mapped = image.disk.as_ref().is_some_and(|disk| disk.dax.is_some());
    for (way, device, offered, dax) in [
        (
            "nvdimm",
            "/dev/pmem0p",
            mapped,
            filesystem.unaligned.is_none(),
        ),
        ("virtio-blk", "/dev/vda", true, false),
    ] {
        if !offered {
            continue;
        }
        let (data, hashes) = match &image.disk {
            Some(_) => (format!("{device}1"), format!("{device}2")),
            None => ("/dev/vda".to_owned(), "/dev/vdb".to_owned()),
        };
        let mut found = match measured {
            // DAX would go round the digests, and the device mapper does not offer it.
            Some(verity) => vec![
                format!(
                    "dm-mod.create=\"{}\"",
                    verity.dm_create("dm-verity", &data, &hashes)
                ),
                "root=/dev/dm-0".to_owned(),
            ],
            None => vec![format!("root={device}{partition}")],
        };
        found.push(format!("rootfstype={}", filesystem.kind));
        if dax && measured.is_none() {
            found.push("rootflags=dax".to_owned());
        }
        found.push("ro".to_owned());
        found.extend(measured.map(|_| crate::build::INIT_WORD.to_owned()));
        ways.push(Boot { way, words: found });
    }
    ways
}

#[cfg(test)]
mod tests;
