// SPDX-License-Identifier: Apache-2.0
//! Reads what an archive's headers say of an entry.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use tar::{Entry, EntryType, Header};

use super::{UnpackError, at};
use crate::base::ledger::{Device, Record};

/// How a PAX header names an extended attribute.
const PAX_ATTRIBUTE: &str = "SCHILY.xattr.";
/// Linux's device numbers end here, see `new_valid_dev` in its sources.
const MAX_MAJOR: u32 = (1 << 12) - 1;
/// See [`MAX_MAJOR`].
const MAX_MINOR: u32 = (1 << 20) - 1;
/// `XATTR_NAME_MAX` and `XATTR_SIZE_MAX` of Linux.
const MAX_NAME: usize = 255;
/// See [`MAX_NAME`].
const MAX_VALUE: usize = 1 << 16;

/// A path of the archive's.
pub fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

/// All that is said of an entry but its path and content.
pub fn record<R: Read>(entry: &mut Entry<'_, R>, path: &Path) -> Result<Record, UnpackError> {
    let header = entry.header().clone();
    let kind = header.entry_type();
    Ok(Record {
        mode: match kind {
            // Links have no mode of their own.
            EntryType::Symlink => 0o777,
            _ => header.mode().unwrap_or(0o644) & 0o7777,
        },
        uid: owner(header.uid()),
        gid: owner(header.gid()),
        device: device(&header, path)?,
        xattrs: match kind {
            EntryType::Symlink | EntryType::Char | EntryType::Block | EntryType::Fifo => {
                BTreeMap::new()
            }
            _ => attributes(entry, path)?,
        },
    })
}

fn device(header: &Header, path: &Path) -> Result<Option<Device>, UnpackError> {
    let number = |field: io::Result<Option<u32>>| field.ok().flatten().unwrap_or(0);
    let (major, minor) = (number(header.device_major()), number(header.device_minor()));
    let device = match header.entry_type() {
        EntryType::Char => Device::Char(major, minor),
        EntryType::Block => Device::Block(major, minor),
        _ => return Ok(None),
    };
    // Without root's rights no kernel checks this.
    if major > MAX_MAJOR || minor > MAX_MINOR {
        return Err(at("create", path)(Errno::INVAL));
    }
    Ok(Some(device))
}

/// Extended attributes, checked as the kernel checks them where it is asked to set them.
fn attributes<R: Read>(
    entry: &mut Entry<'_, R>,
    path: &Path,
) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, UnpackError> {
    let mut attributes = BTreeMap::new();
    let Some(extensions) = entry.pax_extensions().map_err(UnpackError::Archive)? else {
        return Ok(attributes);
    };
    for extension in extensions {
        let extension = extension.map_err(UnpackError::Archive)?;
        let name = extension.key().ok();
        let Some(name) = name.and_then(|key| key.strip_prefix(PAX_ATTRIBUTE)) else {
            continue;
        };
        let value = extension.value_bytes();
        if name.is_empty() || name.len() > MAX_NAME || name.contains('\0') {
            return Err(at("set an attribute of", path)(Errno::RANGE));
        }
        if value.len() > MAX_VALUE {
            return Err(at("set an attribute of", path)(Errno::TOOBIG));
        }
        attributes.insert(name.into(), value.to_vec());
    }
    Ok(attributes)
}

/// Numbers beyond 32 bits are those of no Linux system; such files are root's.
fn owner(field: io::Result<u64>) -> u32 {
    let number = field.ok().and_then(|number| u32::try_from(number).ok());
    number.filter(|number| *number != u32::MAX).unwrap_or(0)
}

/// When the entry was changed last, in seconds.
pub fn mtime(header: &Header) -> u64 {
    header.mtime().unwrap_or(0)
}

/// That time for a file, which is not said to have been read.
pub fn times(mtime: u64) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    Timestamps {
        last_access: time(0, UTIME_OMIT),
        last_modification: time(i64::try_from(mtime).unwrap_or(0), 0),
    }
}
