// SPDX-License-Identifier: Apache-2.0
//! Where an image's bytes are read from: a file, or a part of one. Every read is checked against the bounds of the part, and every
//! failure names the file and the byte in it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::ReadError;

/// The most bytes that are read at once into memory on an image's word.
const MAX_PIECE: u64 = 1 << 20;

/// A part of a file.
#[derive(Clone, Debug)]
pub struct Source {
    file: Arc<File>,
    path: Arc<Path>,
    start: u64,
    len: u64,
}

impl Source {
    /// A whole file.
    pub fn open(path: &Path) -> Result<Source, ReadError> {
        let io_error = |action| {
            move |source| ReadError::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        // To open a pipe would wait for its writer.
        let metadata = fs::metadata(path).map_err(io_error("open"))?;
        if !metadata.is_file() {
            return Err(ReadError::UnknownFormat {
                path: path.to_owned(),
            });
        }
        let file = File::open(path).map_err(io_error("open"))?;
        Ok(Source {
            file: Arc::new(file),
            path: path.into(),
            start: 0,
            len: metadata.len(),
        })
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.path.to_path_buf()
    }

    /// Where the part begins in the file.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The number of bytes in the part.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing in the part.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of this part.
    pub fn part(&self, offset: u64, len: u64) -> Result<Source, ReadError> {
        self.check(offset, len)?;
        Ok(Source {
            start: self.start + offset,
            len,
            ..self.clone()
        })
    }

    /// Fails unless all of a range lies inside the part.
    pub fn check(&self, offset: u64, len: u64) -> Result<(), ReadError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(self.broken(offset, format!("{len} bytes lie beyond the end"))),
        }
    }

    /// Fills `buffer` with the bytes at `offset`.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        self.check(offset, buffer.len() as u64)?;
        self.file
            .read_exact_at(buffer, self.start + offset)
            .map_err(|source| ReadError::Io {
                action: "read",
                path: self.path(),
                source,
            })
    }

    /// A few bytes at `offset`.
    pub fn bytes(&self, offset: u64, len: u64) -> Result<Vec<u8>, ReadError> {
        self.check(offset, len)?;
        if len > MAX_PIECE {
            return Err(self.broken(offset, format!("one piece of {len} bytes")));
        }
        let mut bytes = vec![0; len as usize];
        self.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// A few bytes at `offset`, fewer where the part ends before.
    pub fn prefix(&self, offset: u64, len: u64) -> Result<Vec<u8>, ReadError> {
        let there = self.len.saturating_sub(offset).min(len);
        if there == 0 {
            return Ok(Vec::new());
        }
        self.bytes(offset, there)
    }

    /// A reader of a range, which must lie inside the part.
    pub fn reader(&self, offset: u64, len: u64) -> Result<RangeReader, ReadError> {
        Ok(RangeReader {
            source: self.part(offset, len)?,
            at: 0,
        })
    }

    /// The failure of a rule of the format at a byte of this part.
    pub fn broken(&self, offset: u64, what: impl Into<String>) -> ReadError {
        ReadError::Broken {
            path: self.path(),
            offset: self.start.saturating_add(offset),
            what: what.into(),
        }
    }

    /// The failure to read what is not supported.
    pub fn unsupported(&self, feature: impl Into<String>) -> ReadError {
        ReadError::Unsupported {
            path: self.path(),
            feature: feature.into(),
        }
    }
}

/// Reads a range of a [`Source`] from its beginning to its end.
#[derive(Clone, Debug)]
pub struct RangeReader {
    source: Source,
    at: u64,
}

impl Read for RangeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.source.len - self.at;
        let want = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let at = self.source.start + self.at;
        let count = self.source.file.read_at(&mut buffer[..want], at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// The little-endian number of two bytes at a place, 0 where there are none.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u16::from_le_bytes)
}

/// The little-endian number of four bytes at a place, 0 where there are none.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

/// The little-endian number of eight bytes at a place, 0 where there are none.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// CRC-32C without the final complement, as ext4 and erofs keep it in their superblocks.
pub fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_with_a_known_value() {
        // The check value of CRC-32C in its usual, inverted form.
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn nothing_outside_the_part_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"0123456789").unwrap();
        let part = Source::open(&path).unwrap().part(2, 5).unwrap();
        assert_eq!(part.bytes(1, 4).unwrap(), b"3456");
        for (offset, len) in [(1, 5), (6, 0), (u64::MAX, 1), (0, u64::MAX)] {
            assert!(part.bytes(offset, len).is_err() && part.part(offset, len).is_err());
        }
        assert_eq!(part.prefix(3, 100).unwrap(), b"56");
        assert_eq!(part.prefix(300, 100).unwrap(), b"");
        let mut text = String::new();
        let mut reader = part.reader(1, 3).unwrap();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "345");
        let error = part.bytes(4, 9).unwrap_err().to_string();
        assert!(error.ends_with("broken at byte 6: 9 bytes lie beyond the end"));
    }

    #[test]
    fn the_checksum_is_the_published_one() {
        // RFC 3720, appendix B.4: 32 bytes of zeros.
        assert_eq!(!crc32c(!0, &[0; 32]), 0x8a91_36aa);
    }
}
