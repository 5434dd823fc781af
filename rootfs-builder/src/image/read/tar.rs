// SPDX-License-Identifier: Apache-2.0
//! Reads tar archives: those of this tool, and the layers of OCI images. Of what can precede an entry (GNU and PAX extensions) no more
//! is taken into memory than any real archive has.

use std::collections::BTreeMap;
use std::io::Read;

use tar::{Archive, EntryType, Header};

use super::builder::{Builder, Role, limit, normalise};
use super::error::ReadError;
use super::listing::{Item, ItemKind, Listing};
use super::source::Source;
use crate::image::compress::Compression;

/// The most that a header's extension may have.
const MAX_EXTENSION: u64 = 1 << 20;
/// How a PAX header names an extended attribute.
const PAX_ATTRIBUTE: &[u8] = b"SCHILY.xattr.";
/// Whether an archive begins with these bytes.
pub fn is_archive(head: &[u8]) -> bool {
    head.get(257..262) == Some(b"ustar")
}

/// What extensions say about the entry that follows them.
#[derive(Default)]
struct Ahead {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Reads an archive, compressed or not. A hard link may also lead into `lower`, what the layers below an OCI image's layer hold.
pub fn read(
    source: &Source,
    packing: Compression,
    lower: &Listing,
    builder: &mut Builder,
) -> Result<(), ReadError> {
    let failed = |offset: u64| {
        move |error: std::io::Error| {
            if packing == Compression::None {
                return source.broken(offset, error.to_string());
            }
            ReadError::Unpack {
                path: source.path(),
                offset: source.start(),
                source: error,
            }
        }
    };
    let range = source.reader(0, source.len())?;
    let reader: Box<dyn Read> = match packing {
        Compression::None => Box::new(range),
        _ => crate::image::compress::reader(range).map_err(failed(0))?.1,
    };
    // What is passed over unread takes time too.
    let mut archive = Archive::new(reader.take(limit(source.len())));
    let mut ahead = Ahead::default();
    let mut position = 0;
    for entry in archive.entries().map_err(failed(0))?.raw(true) {
        let mut entry = entry.map_err(failed(position))?;
        position = entry.raw_header_position();
        let at = Entry {
            source,
            position,
            content: entry.raw_file_position(),
            place: packing == Compression::None,
            header: entry.header().clone(),
            lower,
        };
        if !at.extension(&mut entry, &mut ahead)? {
            at.read(&mut entry, std::mem::take(&mut ahead), builder)?;
        }
    }
    Ok(())
}

/// One header and where it was found.
struct Entry<'a> {
    source: &'a Source,
    position: u64,
    content: u64,
    place: bool,
    header: Header,
    lower: &'a Listing,
}

impl Entry<'_> {
    fn broken(&self, what: &str) -> ReadError {
        ReadError::Broken {
            path: self.source.path(),
            offset: self.source.start() + self.position,
            what: what.to_owned(),
        }
    }

    /// Takes in what describes the next entry; tells whether this was such a thing.
    fn extension(&self, reader: &mut dyn Read, ahead: &mut Ahead) -> Result<bool, ReadError> {
        let kind = self.header.entry_type();
        let of_next = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        if !of_next {
            return Ok(false);
        }
        let size = self.size()?;
        if size > MAX_EXTENSION {
            return Err(self.broken("a header's extension is too long"));
        }
        let mut bytes = Vec::new();
        let read = reader.take(size).read_to_end(&mut bytes);
        if read.ok() != usize::try_from(size).ok() {
            return Err(self.broken("a header's extension ends early"));
        }
        let text = || bytes.split(|byte| *byte == 0).next().map(<[u8]>::to_vec);
        match kind {
            EntryType::GNULongName => ahead.path = text(),
            EntryType::GNULongLink => ahead.link = text(),
            EntryType::XHeader => {
                ahead.records =
                    pax(&bytes).ok_or_else(|| self.broken("a PAX record is malformed"))?;
            }
            // A global header holds comments and times, which do not matter here.
            _ => {}
        }
        Ok(true)
    }

    fn size(&self) -> Result<u64, ReadError> {
        self.header
            .entry_size()
            .map_err(|_| self.broken("a size is none"))
    }

    fn read(
        &self,
        reader: &mut dyn Read,
        ahead: Ahead,
        builder: &mut Builder,
    ) -> Result<(), ReadError> {
        let record = |name: &[u8]| ahead.records.get(name).cloned();
        let name = record(b"path")
            .or(ahead.path.clone())
            .unwrap_or_else(|| self.header.path_bytes().into_owned());
        let path = normalise(&name).ok_or_else(|| self.broken("a name leads elsewhere"))?;
        let link = record(b"linkpath")
            .or(ahead.link.clone())
            .or_else(|| self.header.link_name_bytes().map(|name| name.into_owned()))
            .filter(|name| !name.is_empty());
        if self.header.entry_type() == EntryType::Link {
            let target = link
                .and_then(|target| normalise(&target))
                .ok_or_else(|| self.broken("a hard link leads elsewhere"))?;
            let here = builder.listing.entries.get(&target);
            let same = here.or_else(|| self.lower.entries.get(&target)).cloned();
            let same = same.ok_or_else(|| self.broken("a hard link to what is not there"))?;
            match builder.kept.get(&target).cloned() {
                Some(content) => builder.kept.insert(path.clone(), content),
                None => builder.kept.remove(&path),
            };
            return builder.put(&path, same);
        }
        let kind = self.kind()?;
        // Archives of streams leave the owner's fields blank.
        let number = |name: &[u8], field: std::io::Result<u64>| {
            let said = record(name).and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok());
            let number = said
                .or(Some(field.unwrap_or(0)))
                .and_then(|id| u32::try_from(id).ok());
            number.ok_or_else(|| self.broken("an owner is none"))
        };
        let mode = self
            .header
            .mode()
            .map_err(|_| self.broken("a mode is none"))?;
        let uid = number(b"uid", self.header.uid())?;
        let gid = number(b"gid", self.header.gid())?;
        let mut item = Item::new(kind, mode, uid, gid);
        item.xattrs = attributes(&ahead.records);
        match kind {
            ItemKind::File => self.file(&path, reader, &ahead, &mut item, builder)?,
            ItemKind::Symlink => {
                item.target = Some(link.ok_or_else(|| self.broken("a link without a target"))?);
            }
            _ if kind.is_device() => item.device = Some(self.device()?),
            _ => {}
        }
        builder.put(&path, item)
    }

    fn kind(&self) -> Result<ItemKind, ReadError> {
        Ok(match self.header.entry_type() {
            EntryType::Regular | EntryType::Continuous => ItemKind::File,
            EntryType::Directory => ItemKind::Directory,
            EntryType::Symlink => ItemKind::Symlink,
            EntryType::Char => ItemKind::CharDevice,
            EntryType::Block => ItemKind::BlockDevice,
            EntryType::Fifo => ItemKind::Fifo,
            EntryType::GNUSparse => {
                return Err(self.source.unsupported("a sparse file in a tar archive"));
            }
            _ => return Err(self.broken("an entry is of no known kind")),
        })
    }

    fn device(&self) -> Result<(u32, u32), ReadError> {
        match (self.header.device_major(), self.header.device_minor()) {
            (Ok(Some(major)), Ok(Some(minor))) => Ok((major, minor)),
            _ => Err(self.broken("a device without numbers")),
        }
    }

    fn file(
        &self,
        path: &[u8],
        reader: &mut dyn Read,
        ahead: &Ahead,
        item: &mut Item,
        builder: &mut Builder,
    ) -> Result<(), ReadError> {
        let size = self.size()?;
        let said = ahead.records.get(&b"size"[..]);
        if said.is_some_and(|said| *said != size.to_string().into_bytes()) {
            return Err(self
                .source
                .unsupported("a file whose size is in a PAX record alone"));
        }
        item.size = size;
        let failed = |error: std::io::Error| self.broken(&format!("a file's content: {error}"));
        item.sha256 = Some(builder.content(path, size, reader, failed)?);
        if self.place {
            let start = self.source.start() + self.content;
            builder.place(start, size, Role::Content, path);
        }
        Ok(())
    }
}

/// The records of a PAX header, `length key=value\n` each. Values may hold any byte. None if it is malformed.
fn pax(mut bytes: &[u8]) -> Option<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut records = BTreeMap::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        records.insert(record[..equals].to_vec(), record[equals + 1..].to_vec());
        bytes = &bytes[length..];
    }
    Some(records)
}

fn attributes(records: &BTreeMap<Vec<u8>, Vec<u8>>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    records
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(PAX_ATTRIBUTE)?.to_vec(), value.clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_values_may_hold_any_byte() {
        let bytes = b"26 SCHILY.xattr.user.a=\n\0\n7 b=cd\n";
        let records = pax(bytes).unwrap();
        assert_eq!(attributes(&records)[&b"user.a"[..]], b"\n\0");
        assert_eq!(records[&b"b"[..]], b"cd");
        for bad in [
            &b"5 a=b"[..],
            b"99 a=b\n",
            b"x a=b\n",
            b"6 a+b\n",
            b"2 a=b\n",
        ] {
            assert!(pax(bad).is_none());
        }
    }
}
