// SPDX-License-Identifier: Apache-2.0
//! Reads an initramfs as the kernel does: archives in the "new ASCII" form, any number of them in a row, each compressed or not, with
//! zeros between them. See the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read};

use super::builder::{Builder, Role, limit, normalise};
use super::decode::{self, Cursor, skip_zeros};
use super::error::ReadError;
use super::listing::{Item, ItemKind};
use super::show;
use super::source::Source;
use crate::image::compress::Compression;

/// The name that ends an archive.
const TRAILER: &[u8] = b"TRAILER!!!";
/// The longest name and link target, with the byte that ends it.
const MAX_NAME: u32 = 4096;

/// Whether an archive begins with these bytes.
pub fn is_archive(head: &[u8]) -> bool {
    head.starts_with(b"070701") || head.starts_with(b"070702")
}

/// Reads all archives of a file; tells how the last one is compressed, which is the one that matters.
pub fn read(source: &Source, builder: &mut Builder) -> Result<Compression, ReadError> {
    let mut cursor = Cursor::new(source);
    let mut last = Compression::None;
    loop {
        cursor
            .skip_zeros()
            .map_err(|error| source.broken(cursor.position(), error.to_string()))?;
        let start = cursor.position();
        let head = cursor.peek(6)?;
        if head.is_empty() {
            return Ok(last);
        }
        if is_archive(&head) {
            let mut archive = Archive::new(source, None, &mut cursor, start);
            archive.read(builder)?;
            last = Compression::None;
            continue;
        }
        match decode::packing(&head) {
            Ok(Some(packing)) => {
                packed(source, packing, &mut cursor, builder)?;
                last = packing;
            }
            Ok(None) => {
                return Err(source.broken(start, "neither an archive nor compressed data"));
            }
            Err(name) => return Err(source.unsupported(name)),
        }
    }
}

/// Reads the archives in one compressed member.
fn packed(
    source: &Source,
    packing: Compression,
    cursor: &mut Cursor,
    builder: &mut Builder,
) -> Result<(), ReadError> {
    let start = cursor.position();
    let failed = |error| ReadError::Unpack {
        path: source.path(),
        offset: source.start() + start,
        source: error,
    };
    // Zeros between archives are not content, and a few bytes can stand for terabytes of them.
    let most = limit(source.len()).saturating_add(1);
    let member = decode::member(packing, cursor).map_err(failed)?;
    let mut reader = BufReader::new(member.take(most));
    let mut position = 0;
    loop {
        let zeros = skip_zeros(&mut reader).map_err(failed)?;
        builder.claim(zeros)?;
        position += zeros;
        if reader.fill_buf().map_err(failed)?.is_empty() {
            return Ok(());
        }
        let mut archive = Archive::new(source, Some(start), &mut reader, position);
        archive.read(builder)?;
        position = archive.position;
    }
}

/// One archive that is being read.
struct Archive<'a> {
    source: &'a Source,
    /// Where the compressed member begins that the archive is in.
    member: Option<u64>,
    reader: &'a mut dyn BufRead,
    /// The next byte's place, in the file or in what is unpacked.
    position: u64,
    /// The names of files with several links, by inode and device.
    links: HashMap<[u32; 3], Vec<Vec<u8>>>,
}

/// The numbers of an entry's header that matter.
struct Header {
    inode: [u32; 3],
    mode: u32,
    uid: u32,
    gid: u32,
    links: u32,
    size: u32,
    device: (u32, u32),
    name_size: u32,
}

impl<'a> Archive<'a> {
    fn new(
        source: &'a Source,
        member: Option<u64>,
        reader: &'a mut dyn BufRead,
        position: u64,
    ) -> Archive<'a> {
        Archive {
            source,
            member,
            reader,
            position,
            links: HashMap::new(),
        }
    }

    fn broken(&self, what: &str) -> ReadError {
        match self.member {
            None => self.source.broken(self.position, what),
            Some(start) => ReadError::Broken {
                path: self.source.path(),
                offset: self.position,
                what: format!(
                    "{what} (counted in what is unpacked from byte {})",
                    self.source.start() + start
                ),
            },
        }
    }

    fn failed(&self, error: io::Error) -> ReadError {
        match self.member {
            Some(start) if error.kind() != io::ErrorKind::UnexpectedEof => ReadError::Unpack {
                path: self.source.path(),
                offset: self.source.start() + start,
                source: error,
            },
            _ => self.broken("the archive ends in the middle of an entry"),
        }
    }

    fn exact(&mut self, count: u32) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; count as usize];
        self.reader
            .read_exact(&mut bytes)
            .map_err(|error| self.failed(error))?;
        self.position += u64::from(count);
        Ok(bytes)
    }

    /// Entries, names and contents begin at multiples of four.
    fn align(&mut self) -> Result<(), ReadError> {
        let over = (self.position.next_multiple_of(4) - self.position) as u32;
        self.exact(over).map(drop)
    }

    /// Reads entries up to the trailer.
    fn read(&mut self, builder: &mut Builder) -> Result<(), ReadError> {
        loop {
            let at_end = match self.reader.fill_buf() {
                Ok(bytes) => bytes.is_empty(),
                Err(error) => return Err(self.failed(error)),
            };
            if at_end {
                builder.finding(format!(
                    "the archive has no trailer at byte {}",
                    self.position
                ));
                break;
            }
            if !self.position.is_multiple_of(4) {
                return Err(self.broken("an entry begins at no multiple of 4"));
            }
            let header = self.header()?;
            let name = self.name(header.name_size)?;
            if name == TRAILER {
                // Zeros up to the next block are passed over by the caller.
                break;
            }
            self.entry(&name, &header, builder)?;
        }
        self.join_links(builder);
        Ok(())
    }

    fn header(&mut self) -> Result<Header, ReadError> {
        let bytes = self.exact(6)?;
        if !is_archive(&bytes) {
            self.position -= 6;
            return Err(self.broken("no entry begins here"));
        }
        let mut fields = [0; 13];
        for field in &mut fields {
            let digits = self.exact(8)?;
            let text = std::str::from_utf8(&digits).unwrap_or_default();
            // A sign would be taken by the conversion.
            let plain = text.bytes().all(|byte| byte.is_ascii_hexdigit());
            *field = match u32::from_str_radix(text, 16) {
                Ok(number) if plain => number,
                _ => return Err(self.broken("a number of an entry's header is none")),
            };
        }
        let [inode, mode, uid, gid, links, _, size, major, minor, ..] = fields;
        Ok(Header {
            inode: [inode, major, minor],
            mode,
            uid,
            gid,
            links,
            size,
            device: (fields[9], fields[10]),
            name_size: fields[11],
        })
    }

    fn name(&mut self, size: u32) -> Result<Vec<u8>, ReadError> {
        if size == 0 || size > MAX_NAME {
            return Err(self.broken("a name is empty or too long"));
        }
        let mut name = self.exact(size)?;
        if name.pop() != Some(0) {
            return Err(self.broken("a name does not end in a zero"));
        }
        self.align()?;
        Ok(name)
    }

    fn entry(
        &mut self,
        name: &[u8],
        header: &Header,
        builder: &mut Builder,
    ) -> Result<(), ReadError> {
        let path = normalise(name).ok_or_else(|| self.broken("a name leads elsewhere"))?;
        let kind = ItemKind::of_mode(header.mode)
            .ok_or_else(|| self.broken("an entry is of no known kind"))?;
        let mut item = Item::new(kind, header.mode, header.uid, header.gid);
        match kind {
            ItemKind::File => self.file(&path, header, &mut item, builder)?,
            ItemKind::Symlink if header.size == 0 || header.size > MAX_NAME => {
                return Err(self.broken("a link's target is empty or too long"));
            }
            ItemKind::Symlink => item.target = Some(self.exact(header.size)?),
            _ if header.size > 0 => return Err(self.broken("content of what can have none")),
            _ if kind.is_device() => item.device = Some(header.device),
            _ => {}
        }
        self.align()?;
        if !has_parent(&path, builder) {
            builder.finding(format!(
                "{} has no directory before it: the kernel leaves it out",
                show(&path)
            ));
        }
        builder.put(&path, item)
    }

    fn file(
        &mut self,
        path: &[u8],
        header: &Header,
        item: &mut Item,
        builder: &mut Builder,
    ) -> Result<(), ReadError> {
        let size = u64::from(header.size);
        let (member, source, position) = (self.member, self.source, self.position);
        let failed = |error: io::Error| match member {
            Some(start) if error.kind() != io::ErrorKind::UnexpectedEof => ReadError::Unpack {
                path: source.path(),
                offset: source.start() + start,
                source: error,
            },
            _ => source.broken(
                position,
                format!("a file of {size} bytes goes beyond the end"),
            ),
        };
        item.size = size;
        item.sha256 = Some(builder.content(path, size, &mut self.reader, failed)?);
        if self.member.is_none() {
            builder.place(source.start() + position, size, Role::Content, path);
        }
        self.position += size;
        if header.links > 1 {
            self.links
                .entry(header.inode)
                .or_default()
                .push(path.to_vec());
        }
        Ok(())
    }

    /// Of several links to one file only one has the content in the archive.
    fn join_links(&mut self, builder: &mut Builder) {
        for names in self.links.values() {
            let entries = &mut builder.listing.entries;
            let content = names
                .iter()
                .filter_map(|name| entries.get(name))
                .filter(|item| item.size > 0)
                .map(|item| (item.size, item.sha256))
                .next_back();
            let Some((size, sha256)) = content else {
                continue;
            };
            for name in names {
                if let Some(item) = entries.get_mut(name) {
                    (item.size, item.sha256) = (size, sha256);
                }
            }
        }
    }
}

/// The kernel makes no directories that the archive does not have.
fn has_parent(path: &[u8], builder: &Builder) -> bool {
    match path.iter().rposition(|byte| *byte == b'/') {
        None => true,
        Some(at) => builder
            .listing
            .entries
            .get(&path[..at])
            .is_some_and(|item| item.kind == ItemKind::Directory),
    }
}
