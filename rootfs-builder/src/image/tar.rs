// SPDX-License-Identifier: Apache-2.0
//! A tree as a tar archive, in POSIX's form: what does not fit into an entry's header stands in an extended header before it.
//!
//! The same tree gives the same bytes: entries are sorted, owners are numbers without names, and all times are one time.

use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ::tar::{Builder, EntryType, Header};

use crate::tree::{Content, Entry, Kind, Tree, TreeError};

/// The longest path or link target in a header.
const NAME: usize = 100;
/// The largest owner in a header: seven octal digits.
const OWNER: u32 = 0o7_777_777;
/// The largest size in a header: eleven octal digits.
const SIZE: u64 = 0o77_777_777_777;
/// How an extended header names an extended attribute.
const ATTRIBUTE: &str = "SCHILY.xattr.";

/// Why an archive could not be written.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// An extended attribute has a name that the format cannot hold.
    #[error("{path} has an extended attribute that a tar archive cannot name: {name:?}", path = path.display())]
    Attribute {
        /// The entry.
        path: PathBuf,
        /// The attribute's name.
        name: String,
    },
    /// A file of the host changed its size while it was read.
    #[error("{source_path} changed while it was read", source_path = source_path.display())]
    Changed {
        /// The file.
        source_path: PathBuf,
    },
    /// A file of the host cannot be read.
    #[error("Cannot read {source_path}", source_path = source_path.display())]
    Read {
        /// The file.
        source_path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A content cannot be had.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The archive cannot be written.
    #[error("Cannot write the archive")]
    Write(#[from] io::Error),
}

/// Writes the tree as an archive in which every entry was changed at `mtime`, in seconds since the epoch.
pub fn write(tree: &Tree, mtime: u32, out: &mut dyn Write) -> Result<(), TarError> {
    let mut archive = Builder::new(out);
    for (path, entry) in tree.entries() {
        append(&mut archive, path, entry, mtime)?;
    }
    archive.into_inner()?;
    Ok(())
}

fn append(
    archive: &mut Builder<&mut dyn Write>,
    path: &Path,
    entry: &Entry,
    mtime: u32,
) -> Result<(), TarError> {
    let mut header = Header::new_ustar();
    let mut more = Extended::default();
    header.set_mode(entry.mode);
    header.set_mtime(mtime.into());
    header.set_size(0);
    owner(&mut header, &mut more, entry);
    name(&mut header, &mut more, path, entry);
    for (name, value) in &entry.xattrs {
        more.attribute(path, name, value)?;
    }
    let content = kind(&mut header, &mut more, &entry.kind)?;
    header.set_cksum();
    archive.append_pax_extensions(more.0.iter().map(|(key, value)| (&key[..], &value[..])))?;
    match content {
        None => Ok(archive.append(&header, io::empty())?),
        Some((file, size)) => body(archive, &header, file, size),
    }
}

/// Says what the entry is; a file's content follows the header, with this size.
fn kind<'a>(
    header: &mut Header,
    more: &mut Extended,
    kind: &'a Kind,
) -> Result<Option<(&'a Content, u64)>, TarError> {
    match kind {
        Kind::Directory => header.set_entry_type(EntryType::Directory),
        Kind::Fifo => header.set_entry_type(EntryType::Fifo),
        Kind::CharDevice(major, minor) => device(header, EntryType::Char, *major, *minor)?,
        Kind::BlockDevice(major, minor) => device(header, EntryType::Block, *major, *minor)?,
        Kind::Symlink(target) => {
            header.set_entry_type(EntryType::Symlink);
            let target = target.as_os_str().as_bytes();
            if target.len() > NAME {
                more.put("linkpath", target);
            }
            header.set_link_name_literal(&target[..target.len().min(NAME)])?;
        }
        Kind::File(file) => {
            header.set_entry_type(EntryType::Regular);
            let size = file.len()?;
            header.set_size(size);
            if size > SIZE {
                more.put("size", size.to_string().as_bytes());
            }
            return Ok(Some((file, size)));
        }
    }
    Ok(None)
}

fn owner(header: &mut Header, more: &mut Extended, entry: &Entry) {
    header.set_uid(entry.uid.into());
    header.set_gid(entry.gid.into());
    for (key, id) in [("uid", entry.uid), ("gid", entry.gid)] {
        if id > OWNER {
            more.put(key, id.to_string().as_bytes());
        }
    }
}

/// A directory's name ends with a slash, as every program writes it.
fn name(header: &mut Header, more: &mut Extended, path: &Path, entry: &Entry) {
    let mut name = path.as_os_str().as_bytes().to_vec();
    if entry.kind == Kind::Directory {
        name.push(b'/');
    }
    if name.len() > NAME {
        more.put("path", &name);
        name.truncate(NAME);
    }
    header.as_old_mut().name[..name.len()].copy_from_slice(&name);
}

fn device(header: &mut Header, kind: EntryType, major: u32, minor: u32) -> io::Result<()> {
    header.set_entry_type(kind);
    header.set_device_major(major)?;
    header.set_device_minor(minor)
}

fn body(
    archive: &mut Builder<&mut dyn Write>,
    header: &Header,
    file: &Content,
    size: u64,
) -> Result<(), TarError> {
    let source_path = match file {
        Content::Bytes(_) => PathBuf::new(),
        Content::File(path) => path.clone(),
    };
    let mut content = Counted {
        inner: file.open()?,
        left: size,
        changed: false,
        failed: None,
    };
    let appended = archive.append(header, &mut content);
    match content {
        Counted {
            failed: Some(source),
            ..
        } => Err(TarError::Read {
            source_path,
            source,
        }),
        Counted { changed: true, .. } => Err(TarError::Changed { source_path }),
        _ => Ok(appended?),
    }
}

/// A content that must have the size that stands in its header, or everything after it would be shifted. It keeps its own errors, so
/// that they are told from the archive's.
struct Counted<'a> {
    inner: Box<dyn Read + 'a>,
    left: u64,
    changed: bool,
    failed: Option<io::Error>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let count = match self.inner.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                self.failed = Some(error);
                return Err(io::Error::other("unreadable"));
            }
            Ok(count) => count as u64,
        };
        if count > self.left || (count == 0 && self.left > 0) {
            self.changed = true;
            return Err(io::Error::other("changed"));
        }
        self.left -= count;
        Ok(count as usize)
    }
}

/// The records of an extended header, in the order in which they are written.
#[derive(Default)]
struct Extended(Vec<(String, Vec<u8>)>);

impl Extended {
    fn put(&mut self, key: &str, value: &[u8]) {
        self.0.push((key.to_owned(), value.to_vec()));
    }

    /// An equals sign would end the name in the record.
    fn attribute(&mut self, path: &Path, name: &[u8], value: &[u8]) -> Result<(), TarError> {
        let text = std::str::from_utf8(name).ok();
        let text = text.filter(|text| !text.is_empty() && !text.contains(['=', '\0']));
        let text = text.ok_or_else(|| TarError::Attribute {
            path: path.to_owned(),
            name: String::from_utf8_lossy(name).into_owned(),
        })?;
        self.put(&format!("{ATTRIBUTE}{text}"), value);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
