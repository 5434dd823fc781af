// SPDX-License-Identifier: Apache-2.0
//! Unpacks one compressed member of a file at a time and knows where it ends, because an initramfs may be several archives in a row,
//! each compressed in its own way.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

use super::error::ReadError;
use super::source::{Source, u32_at};
use crate::image::compress::{self, Compression};

/// The first bytes of a legacy LZ4 frame.
const LZ4_LEGACY: u32 = 0x184c_2102;
/// The size of a block of a legacy LZ4 frame, unpacked.
const LZ4_BLOCK: usize = 8 << 20;
/// The largest window that is unpacked, as a power of two: zstd's own default, and the most memory that one takes.
const ZSTD_WINDOW: u32 = 27;

/// How the data is compressed that begins with these bytes; the error is the name of a compressor that cannot be undone here.
pub fn packing(head: &[u8]) -> Result<Option<Compression>, &'static str> {
    const UNKNOWN: [(&[u8], &str); 5] = [
        (b"\x04\x22\x4d\x18", "an LZ4 frame of the new format"),
        (b"\xfd7zXZ\0", "xz compression"),
        (b"BZh", "bzip2 compression"),
        (b"\x5d\0\0", "lzma compression"),
        (b"\x89LZO", "lzo compression"),
    ];
    match UNKNOWN.iter().find(|(magic, _)| head.starts_with(magic)) {
        Some((_, name)) => Err(name),
        None => Ok(Compression::detect(head).filter(|found| *found != Compression::None)),
    }
}

/// A position in a source that is read from there on.
#[derive(Debug)]
pub struct Cursor {
    source: Source,
    /// Where the buffer's first byte comes from.
    base: u64,
    buffer: Vec<u8>,
    used: usize,
}

impl Cursor {
    /// Begins at the source's beginning.
    pub fn new(source: &Source) -> Cursor {
        Cursor {
            source: source.clone(),
            base: 0,
            buffer: Vec::new(),
            used: 0,
        }
    }

    /// Where the next byte comes from.
    pub fn position(&self) -> u64 {
        self.base + self.used as u64
    }

    /// The next bytes without taking them; fewer at the end.
    pub fn peek(&self, count: u64) -> Result<Vec<u8>, ReadError> {
        self.source.prefix(self.position(), count)
    }

    /// Passes over zeros and tells how many there were.
    pub fn skip_zeros(&mut self) -> io::Result<u64> {
        skip_zeros(self)
    }
}

impl BufRead for Cursor {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used == self.buffer.len() {
            self.base = self.position();
            self.used = 0;
            self.buffer = self
                .source
                .prefix(self.base, 1 << 16)
                .map_err(io::Error::other)?;
        }
        Ok(&self.buffer[self.used..])
    }

    fn consume(&mut self, count: usize) {
        self.used = self.buffer.len().min(self.used + count);
    }
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

/// Passes over zeros and tells how many there were.
pub fn skip_zeros(reader: &mut dyn BufRead) -> io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = reader.fill_buf()?;
        let zeros = buffer.iter().take_while(|byte| **byte == 0).count();
        let ended = zeros < buffer.len() || buffer.is_empty();
        reader.consume(zeros);
        skipped += zeros as u64;
        if ended {
            return Ok(skipped);
        }
    }
}

/// A reader of what the member at the cursor unpacks to. When it has been read to its end, the cursor is behind the member.
pub fn member(packing: Compression, cursor: &mut Cursor) -> io::Result<Box<dyn Read + '_>> {
    Ok(match packing {
        Compression::None => Box::new(cursor),
        Compression::Gzip => Box::new(GzDecoder::new(cursor)),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(cursor)?.single_frame();
            decoder.window_log_max(ZSTD_WINDOW)?;
            Box::new(decoder)
        }
        Compression::Lz4 => {
            let len = lz4_len(&cursor.source, cursor.position()).map_err(io::Error::other)?;
            compress::reader(cursor.take(len))?.1
        }
    })
}

/// The length of a legacy LZ4 frame. It has no end mark: it ends where no block can begin.
fn lz4_len(source: &Source, start: u64) -> Result<u64, ReadError> {
    let bound = lz4_flex::block::get_maximum_output_size(LZ4_BLOCK);
    let mut at = start;
    loop {
        let size = u32_at(&source.prefix(at, 4)?, 0);
        at += 4;
        if size == LZ4_LEGACY {
            continue;
        }
        if size == 0 || size as usize > bound {
            return Ok(at - 4 - start);
        }
        at += u64::from(size);
    }
}

/// The first bytes that a compressed file unpacks to.
pub fn head(packing: Compression, source: &Source) -> Result<Vec<u8>, ReadError> {
    let mut head = Vec::new();
    let mut cursor = Cursor::new(source);
    member(packing, &mut cursor)
        .and_then(|reader| reader.take(512).read_to_end(&mut head))
        .map_err(|error| ReadError::Unpack {
            path: source.path(),
            offset: source.start(),
            source: error,
        })?;
    Ok(head)
}
