// SPDX-License-Identifier: Apache-2.0
//! Collects what a format's reader finds: checks paths, sets limits to what an image may claim, digests contents on the way, keeps the
//! few files that say what the image is, and remembers where in the image everything lies.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::error::ReadError;
use super::listing::{Digest, Item, ItemKind, Listing};
use super::show;

/// More entries than any guest image has.
const MAX_ENTRIES: usize = 4_000_000;
/// How much content an image may have for each of its own bytes, and in any case: far more than what is compressed well, or has holes,
/// and it bounds the time that a small image with a large claim can take.
const MAX_RATIO: u64 = 256;
/// See [`MAX_RATIO`].
const MIN_LIMIT: u64 = 64 << 20;
/// The longest path, as in the kernel.
const MAX_PATH: usize = 4096;
/// How much of a kept file is kept.
const MAX_KEPT: usize = 32 << 20;
/// Files that are kept, and with them whatever links may lead to from `/init` and `/sbin/init`.
const KEPT: &[&[u8]] = &[
    b"init",
    b"sbin/init",
    b"usr/sbin/init",
    b"usr/bin/kata-agent",
    b"lib/systemd/systemd",
    b"usr/lib/systemd/systemd",
    b"lib/keelson/modules.load",
    b"usr/lib/keelson/modules.load",
];

/// What lies somewhere in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A file's content.
    Content,
    /// An entry's metadata.
    Metadata,
}

/// Something's place in the image file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The first byte.
    pub start: u64,
    /// The number of bytes.
    pub len: u64,
    /// What is there.
    pub role: Role,
    /// Whose it is; empty for the root directory.
    pub path: Vec<u8>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self.role {
            Role::Content => "content",
            Role::Metadata => "metadata",
        };
        write!(f, "the {role} of {}", show(&self.path))
    }
}

/// What reading an image gives.
#[derive(Debug)]
pub struct Builder {
    image: PathBuf,
    /// The entries so far.
    pub listing: Listing,
    /// Where they lie.
    pub places: Vec<Place>,
    /// The beginnings of the files that are kept.
    pub kept: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What is wrong with the image although it can be read.
    pub findings: Vec<String>,
    /// How many bytes of content may still come.
    left: u64,
}

/// Whether the beginning of the file at this path is kept.
pub fn is_kept(path: &[u8]) -> bool {
    KEPT.contains(&path)
}

/// How much content an image of `size` bytes may have.
pub fn limit(size: u64) -> u64 {
    size.saturating_mul(MAX_RATIO).saturating_add(MIN_LIMIT)
}

impl Builder {
    /// Nothing yet; `image` is the name in messages, and `size` the bytes that it has itself.
    pub fn new(image: &Path, size: u64) -> Builder {
        Builder {
            image: image.to_owned(),
            listing: Listing::default(),
            places: Vec::new(),
            kept: BTreeMap::new(),
            findings: Vec::new(),
            left: limit(size),
        }
    }

    /// Remembers a finding; of many only the first few.
    pub fn finding(&mut self, text: String) {
        if self.findings.len() < 20 {
            self.findings.push(text);
        }
    }

    /// Remembers a place.
    pub fn place(&mut self, start: u64, len: u64, role: Role, path: &[u8]) {
        // Each place costs memory; an image with more extents than this has them scattered on purpose.
        let room = len > 0 && self.places.len() < 4 * MAX_ENTRIES;
        if room && self.claim(path.len() as u64).is_ok() {
            let path = path.to_vec();
            self.places.push(Place {
                start,
                len,
                role,
                path,
            });
        }
    }

    /// Puts an entry in. What is there already is replaced, and emptied unless both are directories.
    pub fn put(&mut self, path: &[u8], item: Item) -> Result<(), ReadError> {
        // Names, link targets and attributes cost memory too, and may be many times what the image has bytes for.
        let attributes = item.xattrs.iter();
        let attributes: usize = attributes.map(|(n, v)| n.len() + v.len()).sum();
        let target = item.target.as_ref().map_or(0, Vec::len);
        self.claim((path.len() + target + attributes) as u64)?;
        if path.is_empty() {
            self.listing.root = Some(item);
            return Ok(());
        }
        let entries = &mut self.listing.entries;
        if entries.len() >= MAX_ENTRIES {
            return Err(self.too_much("4 million entries"));
        }
        let is_directory = item.kind == ItemKind::Directory;
        let before = entries.insert(path.to_vec(), item);
        if !is_directory && before.is_some_and(|item| item.kind == ItemKind::Directory) {
            self.empty(path);
        }
        Ok(())
    }

    /// Removes everything below a path.
    pub fn empty(&mut self, path: &[u8]) {
        let below = [path, b"/"].concat();
        let gone: Vec<Vec<u8>> = self
            .listing
            .entries
            .range(below.clone()..)
            .map(|(path, _)| path)
            .take_while(|path| path.starts_with(&below))
            .cloned()
            .collect();
        for path in gone {
            self.listing.entries.remove(&path);
        }
    }

    /// Digests `size` bytes of content, and keeps the beginning of those files that are kept.
    pub fn content(
        &mut self,
        path: &[u8],
        size: u64,
        reader: &mut dyn Read,
        failed: impl Fn(io::Error) -> ReadError,
    ) -> Result<Digest, ReadError> {
        self.claim(size)?;
        let mut kept = is_kept(path).then(Vec::new);
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; size.clamp(1, 1 << 16) as usize];
        let mut left = size;
        while left > 0 {
            let want = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            let count = reader.read(&mut buffer[..want]).map_err(&failed)?;
            if count == 0 {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
            hasher.update(&buffer[..count]);
            if let Some(kept) = &mut kept {
                let room = MAX_KEPT - kept.len();
                kept.extend_from_slice(&buffer[..count.min(room)]);
            }
            left -= count as u64;
        }
        if let Some(kept) = kept {
            self.kept.insert(path.to_vec(), kept);
        }
        Ok(Digest(hasher.finalize().into()))
    }

    /// Counts bytes that an image makes its reader go through.
    pub fn claim(&mut self, bytes: u64) -> Result<(), ReadError> {
        match self.left.checked_sub(bytes) {
            Some(left) => self.left = left,
            None => return Err(self.too_much("256 times its own size")),
        }
        Ok(())
    }

    fn too_much(&self, limit: &'static str) -> ReadError {
        ReadError::TooMuch {
            path: self.image.clone(),
            limit,
        }
    }
}

/// The path of an archive's entry without a leading `/`, `.`, and doubled slashes; none for what names no entry of an image.
pub fn normalise(path: &[u8]) -> Option<Vec<u8>> {
    if path.len() > MAX_PATH || path.contains(&0) {
        return None;
    }
    let parts: Vec<&[u8]> = path
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .collect();
    (!parts.contains(&&b".."[..])).then(|| parts.join(&b'/'))
}

/// The path of a name in a directory of a file system; none if either is none.
pub fn join(directory: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
        return None;
    }
    let path = if directory.is_empty() {
        name.to_vec()
    } else {
        [directory, b"/", name].concat()
    };
    (path.len() <= MAX_PATH).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io(_: io::Error) -> ReadError {
        ReadError::UnknownFormat { path: "x".into() }
    }

    /// An inode may have a thousand names and each a copy of its attributes.
    #[test]
    fn names_and_attributes_are_claimed_too() {
        let mut builder = Builder::new(Path::new("/i"), 0);
        let mut item = Item::new(ItemKind::Fifo, 0o644, 0, 0);
        item.xattrs.insert(b"user.x".into(), vec![0; 1 << 20]);
        let refused = (0..MIN_LIMIT >> 20)
            .map(|n| builder.put(format!("{n}").as_bytes(), item.clone()))
            .find(Result::is_err);
        assert!(refused.is_some());
    }

    #[test]
    fn a_claim_beyond_all_reason_is_refused_before_it_costs_anything() {
        let mut builder = Builder::new(Path::new("x"), 0);
        let error = builder
            .content(b"f", 17 << 30, &mut io::repeat(0), io)
            .unwrap_err();
        assert!(matches!(error, ReadError::TooMuch { .. }));
        builder.claim(MIN_LIMIT).unwrap();
        assert!(builder.claim(1).is_err());
    }

    #[test]
    fn content_that_ends_early_fails() {
        let mut builder = Builder::new(Path::new("x"), 0);
        assert!(builder.content(b"f", 4, &mut &b"abc"[..], io).is_err());
        assert_eq!(
            builder.content(b"init", 3, &mut &b"abc"[..], io).unwrap(),
            Digest::of(b"abc")
        );
        assert_eq!(builder.kept[&b"init"[..]], b"abc");
    }

    #[test]
    fn a_file_over_a_directory_empties_it() {
        let mut builder = Builder::new(Path::new("x"), 0);
        let item = |kind| Item::new(kind, 0o755, 0, 0);
        for path in [&b"d"[..], b"d-", b"d/e", b"d/e/f", b"d0"] {
            builder.put(path, item(ItemKind::Directory)).unwrap();
        }
        builder.put(b"d", item(ItemKind::Directory)).unwrap();
        assert_eq!(builder.listing.entries.len(), 5);
        builder.put(b"d", item(ItemKind::Fifo)).unwrap();
        let left: Vec<_> = builder.listing.entries.keys().cloned().collect();
        assert_eq!(left, [&b"d"[..], b"d-", b"d0"]);
    }

    #[test]
    fn paths_that_lead_elsewhere_are_none() {
        assert_eq!(normalise(b"./a//b/").unwrap(), b"a/b");
        assert_eq!(normalise(b"/.").unwrap(), b"");
        for bad in [&b"../a"[..], b"a/..", b"a\0", &[b'a'; 5000]] {
            assert!(normalise(bad).is_none());
        }
        assert_eq!(join(b"", b"a").unwrap(), b"a");
        for bad in [&b""[..], b"a/b", b"\0"] {
            assert!(join(b"d", bad).is_none());
        }
    }
}
