// SPDX-License-Identifier: Apache-2.0
//! Brings an image from the cache to where it is wanted, with what lies beside it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::image::{self, Work};
use super::{BuildError, io_error, is_empty};
use crate::definition::{Definition, Format};
use crate::image::compress::Compression;
use crate::image::directory::{self, Unset};
use crate::manifest::Manifest;
use crate::sbom;

/// What the image's file is called: as the output, else after the definition and its format.
pub fn file_name(definition: &Definition) -> String {
    let given = definition.output.as_deref().and_then(Path::file_name);
    if let Some(name) = given {
        return name.to_string_lossy().into_owned();
    }
    let ending = match definition.format {
        Format::Initramfs => ".initrd",
        Format::Disk | Format::Extension => ".img",
        Format::Ext4 => ".ext4",
        Format::Erofs => ".erofs",
        Format::Tar => ".tar",
        Format::Oci => ".oci",
        Format::Directory => "",
    };
    let packed = match definition.compression {
        Compression::Gzip if definition.format == Format::Tar => ".gz",
        Compression::Zstd if definition.format == Format::Tar => ".zst",
        Compression::Lz4 if definition.format == Format::Tar => ".lz4",
        _ => "",
    };
    format!("{}-{}{ending}{packed}", definition.name, definition.arch)
}

/// Puts the image where the definition wants it and returns the place, and what could not be made there as it is to be; without a
/// place it stays where it is.
pub fn deliver(work: &Work<'_>, cached: &Path) -> Result<(PathBuf, Vec<Unset>), BuildError> {
    let mut unset = Vec::new();
    let Some(output) = &work.definition.output else {
        return Ok((cached.to_owned(), unset));
    };
    if let Some(dir) = output.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
    }
    match work.definition.format {
        Format::Directory | Format::Oci if !is_empty(output) => {
            let path = output.clone();
            return Err(BuildError::NotEmpty { path });
        }
        // Written once more: a copy would need what the writer knows about owners.
        Format::Directory => unset = directory::write(work.tree, work.mtime, output)?,
        Format::Oci => image::write_oci(work, output)?,
        _ => copy(cached, output)?,
    }
    let beside: [fn(&Path) -> PathBuf; 3] = [Manifest::path_for, sbom::path_for, image::hash_file];
    for name in beside {
        let (from, to) = (name(cached), name(output));
        if from.exists() {
            copy(&from, &to)?;
            continue;
        }
        // What lies beside an earlier image of this name says nothing of this one.
        match fs::remove_file(&to) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(BuildError::Io {
                    action: "remove",
                    path: to,
                    source,
                });
            }
            _ => {}
        }
    }
    Ok((output.clone(), unset))
}

/// What could not be made, in a line.
pub fn note(unset: &[Unset]) -> Option<String> {
    let first = unset.first()?;
    let others = match unset.len() - 1 {
        0 => String::new(),
        count => format!(", and {count} more like it"),
    };
    Some(format!(
        "only root can make everything as it is to be: {first}{others}"
    ))
}

/// Copies a file; the place has the old content or the new one, never a part. Holes stay holes.
fn copy(from: &Path, to: &Path) -> Result<(), BuildError> {
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or(Path::new("."));
    let mut partial = tempfile::Builder::new();
    let partial = partial.prefix(".partial-").tempfile_in(dir);
    let mut partial = partial.map_err(io_error("create a file in", dir))?;
    let mut source = File::open(from).map_err(io_error("open", from))?;
    let mode = source
        .metadata()
        .map_err(io_error("look at", from))?
        .permissions();
    io::copy(&mut source, &mut partial).map_err(io_error("write", to))?;
    let failed = |error: io::Error| io_error("write", to)(error);
    partial.as_file().set_permissions(mode).map_err(failed)?;
    partial.persist(to).map_err(|error| failed(error.error))?;
    Ok(())
}
