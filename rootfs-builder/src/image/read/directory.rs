// SPDX-License-Identifier: Apache-2.0
//! Reads a plain directory of the host as an image. Links in it are never followed.

use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::builder::{Builder, join};
use super::error::ReadError;
use super::listing::{Item, ItemKind};

/// Room for the names of an entry's attributes, and for one value: the kernel's limits.
const MAX_ATTRIBUTES: usize = 64 << 10;

/// Reads a directory.
pub fn read(dir: &Path, builder: &mut Builder) -> Result<(), ReadError> {
    let metadata = fs::symlink_metadata(dir).map_err(failed("look at", dir))?;
    builder.put(b"", item(dir, &metadata)?)?;
    let mut todo: Vec<(PathBuf, Vec<u8>)> = vec![(dir.to_owned(), Vec::new())];
    while let Some((host, inside)) = todo.pop() {
        for entry in fs::read_dir(&host).map_err(failed("read", &host))? {
            let path = entry.map_err(failed("read", &host))?.path();
            let name = path.file_name().unwrap_or_default().as_bytes();
            let Some(inside) = join(&inside, name) else {
                continue;
            };
            let metadata = fs::symlink_metadata(&path).map_err(failed("look at", &path))?;
            let mut item = item(&path, &metadata)?;
            if item.kind == ItemKind::File {
                let mut file = File::open(&path).map_err(failed("open", &path))?;
                let failed = failed("read", &path);
                item.sha256 = Some(builder.content(&inside, item.size, &mut file, failed)?);
            }
            let is_directory = item.kind == ItemKind::Directory;
            builder.put(&inside, item)?;
            if is_directory {
                todo.push((path, inside));
            }
        }
    }
    Ok(())
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> ReadError + 'a {
    move |source| ReadError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn item(path: &Path, metadata: &Metadata) -> Result<Item, ReadError> {
    let kind = ItemKind::of_mode(metadata.mode()).unwrap_or(ItemKind::File);
    let mut item = Item::new(kind, metadata.mode(), metadata.uid(), metadata.gid());
    match kind {
        ItemKind::File => item.size = metadata.len(),
        ItemKind::Symlink => {
            let target = fs::read_link(path).map_err(failed("read", path))?;
            item.target = Some(target.as_os_str().as_bytes().to_vec());
        }
        _ if kind.is_device() => {
            let device = metadata.rdev();
            item.device = Some((rustix::fs::major(device), rustix::fs::minor(device)));
        }
        _ => {}
    }
    attributes(path, &mut item);
    Ok(item)
}

/// Extended attributes. A file system without them has none, and neither has what they cannot be read of.
fn attributes(path: &Path, item: &mut Item) {
    let mut names = vec![0; MAX_ATTRIBUTES];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names[..]) else {
        return;
    };
    for name in names[..length].split(|byte| *byte == 0) {
        let mut value = vec![0; MAX_ATTRIBUTES];
        // A label is the host's, not the image's.
        if name.is_empty() || name == b"security.selinux" {
            continue;
        }
        if let Ok(length) = rustix::fs::lgetxattr(path, name, &mut value[..]) {
            value.truncate(length);
            item.xattrs.insert(name.to_vec(), value);
        }
    }
}
