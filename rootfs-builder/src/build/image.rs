// SPDX-License-Identifier: Apache-2.0
//! Writes a tree as the image that its definition asks for.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use guest_kernel::cache::{Key, hex};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{BuildError, io_error};
use crate::definition::{Definition, Filesystem, Format};
use crate::image::directory::Unset;
use crate::image::disk::Layout;
use crate::image::verity::{self, Verity};
use crate::image::{compress, cpio, directory, disk, erofs, ext4, oci, tar};
use crate::tree::Tree;

/// What a file system is called.
const LABEL: &str = "keelson";

/// What is written, and how.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// What is asked for.
    pub definition: &'a Definition,
    /// What goes in.
    pub tree: &'a Tree,
    /// What it is known by.
    pub identity: Identity,
    /// The time of everything, in seconds since the epoch.
    pub mtime: u32,
}

/// What would be drawn at random elsewhere, here from the tree's digest: equal trees make equal images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// A file system's identity.
    pub uuid: [u8; 16],
    /// The salt of a hash tree.
    pub salt: [u8; 32],
}

impl Identity {
    /// The identity of what has this digest.
    pub fn of(digest: &Key) -> Identity {
        let derive = |purpose: &str| -> [u8; 32] {
            let hash = Sha256::new()
                .chain_update(purpose)
                .chain_update(digest.digest());
            hash.finalize().into()
        };
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&derive("uuid ")[..16]);
        // RFC 9562: version 8, which is for what is made like this, and the variant of all of them.
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        Identity {
            uuid,
            salt: derive("salt "),
        }
    }
}

/// What a disk's size is a multiple of, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Alignment {
    /// In bytes.
    pub bytes: u64,
    /// Why, as a sentence.
    pub reason: String,
}

/// The options of a definition that change the bytes of an image of the same tree.
pub fn options(definition: &Definition) -> String {
    let Definition {
        format,
        filesystem,
        compression,
        verity,
        dax,
        align,
        free,
        ..
    } = definition;
    format!("{format} {filesystem} {compression} {verity} {dax} {align:?} {free}")
}

/// How a disk of this definition is laid out; nothing for what is none.
pub fn layout(definition: &Definition) -> Option<Layout> {
    let layout = match definition.format {
        Format::Extension => Layout::extension(),
        Format::Disk if definition.dax => Layout::dax(),
        Format::Disk => Layout::plain(),
        _ => return None,
    };
    Some(match definition.align {
        Some(align) => layout.aligned(align.0),
        None => layout,
    })
}

/// What the size of an image of this definition is a multiple of.
pub fn alignment(definition: &Definition) -> Option<Alignment> {
    layout(definition).map(|layout| Alignment {
        bytes: layout.align,
        reason: layout.reason(),
    })
}

/// Where the hash tree of a file system without partitions goes.
pub fn hash_file(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".verity");
    name.into()
}

/// What was written.
#[derive(Clone, Debug, Default)]
pub struct Made {
    /// What it is measured by, if it is.
    pub verity: Option<Verity>,
    /// What could not be made as it is to be, since that takes root's rights.
    pub unset: Vec<Unset>,
}

/// Writes the image `file` into `dir`.
pub fn write(work: &Work<'_>, dir: &Path, file: &str) -> Result<Made, BuildError> {
    let path = dir.join(file);
    let mut made = Made::default();
    match work.definition.format {
        Format::Initramfs => stream(work, &path, |out| {
            Ok(cpio::write(work.tree, work.mtime, out)?)
        })?,
        Format::Tar => stream(work, &path, |out| {
            Ok(tar::write(work.tree, work.mtime, out)?)
        })?,
        Format::Oci => write_oci(work, &path)?,
        Format::Directory => made.unset = directory::write(work.tree, work.mtime, &path)?,
        Format::Ext4 | Format::Erofs => {
            write_filesystem(work, &path)?;
            if work.definition.verity {
                let verity = verity::format(&path, &work.identity.salt, &hash_file(&path))?;
                made.verity = Some(verity);
            }
        }
        Format::Disk | Format::Extension => made.verity = write_disk(work, dir, &path)?,
    }
    Ok(made)
}

/// Writes the image layout of a tree.
pub fn write_oci(work: &Work<'_>, path: &Path) -> Result<(), BuildError> {
    let definition = work.definition;
    let options = oci::Options {
        compression: definition.compression,
        name: definition.name.clone(),
        config: oci::Config {
            entrypoint: vec!["/sbin/init".to_owned()],
            ..oci::Config::default()
        },
        ..oci::Options::new(definition.arch, work.mtime)
    };
    oci::write(work.tree, &options, path)?;
    Ok(())
}

fn stream(
    work: &Work<'_>,
    path: &Path,
    body: impl FnOnce(&mut dyn std::io::Write) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let out = File::create(path).map_err(io_error("create", path))?;
    // Errors of the compressor itself come without the file's name.
    compress::write(work.definition.compression, out, |out| {
        body(out).map_err(Inner::Build)
    })
    .map_err(|error| match error {
        Inner::Build(error) => error,
        Inner::Io(source) => io_error("write", path)(source),
    })
}

enum Inner {
    Build(BuildError),
    Io(std::io::Error),
}

impl From<std::io::Error> for Inner {
    fn from(error: std::io::Error) -> Inner {
        Inner::Io(error)
    }
}

fn write_filesystem(work: &Work<'_>, path: &Path) -> Result<(), BuildError> {
    let definition = work.definition;
    let (uuid, mtime, label) = (work.identity.uuid, work.mtime, LABEL.to_owned());
    match definition.root_filesystem().unwrap_or_default() {
        Filesystem::Ext4 => {
            let options = ext4::Options {
                uuid,
                mtime,
                label,
                free: definition.free.0,
                ..ext4::Options::default()
            };
            ext4::write(work.tree, &options, path)?;
        }
        Filesystem::Erofs => {
            let options = erofs::Options { uuid, mtime, label };
            erofs::write(work.tree, &options, path)?;
        }
    }
    if definition.verity {
        two_blocks(path)?;
    }
    Ok(())
}

/// A single block has no hash tree, and so nothing to put into its partition: such a file system gets a second one.
fn two_blocks(path: &Path) -> Result<(), BuildError> {
    let least = 2 * u64::from(verity::BLOCK);
    let file = OpenOptions::new().write(true).open(path);
    let file = file.map_err(io_error("open", path))?;
    let size = file.metadata().map_err(io_error("look at", path))?.len();
    if size < least {
        file.set_len(least).map_err(io_error("write", path))?;
    }
    Ok(())
}

/// Writes the parts beside each other, then the disk of them.
fn write_disk(work: &Work<'_>, dir: &Path, path: &Path) -> Result<Option<Verity>, BuildError> {
    let (root, hashes) = (dir.join(".root"), dir.join(".hashes"));
    write_filesystem(work, &root)?;
    let verity = match work.definition.verity {
        true => Some(verity::format(&root, &work.identity.salt, &hashes)?),
        false => None,
    };
    let layout = layout(work.definition).unwrap_or_else(Layout::plain);
    disk::write(&root, verity.as_ref().map(|_| &*hashes), &layout, path)?;
    for part in [&root, &hashes] {
        if part.exists() {
            fs::remove_file(part).map_err(io_error("remove", part))?;
        }
    }
    Ok(verity)
}

/// The root hash as people compare it.
pub fn root_hash(verity: &Verity) -> String {
    hex(&verity.root_hash)
}
