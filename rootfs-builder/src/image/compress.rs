// SPDX-License-Identifier: Apache-2.0
//! Compression as the kernel's initramfs unpacker takes it, and readers that know it again by its first bytes.
//!
//! The same content gives the same bytes. What is compressed is never looked at.

mod lz4;

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use flate2::read::MultiGzDecoder;
use flate2::{Compression as Deflate, GzBuilder};
use serde::{Deserialize, Serialize};

/// zstd's level: the highest that needs no more memory to unpack than the window.
const ZSTD_LEVEL: i32 = 19;
/// The logarithm of zstd's window, 8 MiB: what every zstd decoder must take (RFC 8878, section 3.1.1.1.2).
const ZSTD_WINDOW: u32 = 23;
/// The largest window that is read, 128 MiB: the kernel's limit too.
const ZSTD_WINDOW_READ: u32 = 27;

/// How a file is compressed.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all: larger, and the quickest to boot.
    #[default]
    None,
    /// gzip, which every kernel can unpack.
    Gzip,
    /// zstd: the smallest, where the kernel has RD_ZSTD.
    Zstd,
    /// lz4 in its legacy frame, the only one that kernels unpack: the quickest of the compressed, where the kernel has RD_LZ4.
    Lz4,
}

/// Why a compressed file cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("Cannot read {path}", path = path.display())]
pub struct OpenError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

impl Compression {
    /// All of them.
    pub const ALL: [Compression; 4] = [
        Compression::None,
        Compression::Gzip,
        Compression::Zstd,
        Compression::Lz4,
    ];

    /// Its word: `none`, `gzip`, `zstd`, `lz4`.
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
            Compression::Lz4 => "lz4",
        }
    }

    /// The kernel option that unpacks an initramfs of this kind; none if no option is needed.
    pub fn kernel_option(self) -> Option<&'static str> {
        match self {
            Compression::None => None,
            Compression::Gzip => Some("RD_GZIP"),
            Compression::Zstd => Some("RD_ZSTD"),
            Compression::Lz4 => Some("RD_LZ4"),
        }
    }

    /// What a file that begins with these bytes is (four are enough): [`Compression::None`] for a plain cpio archive, nothing for
    /// what is neither compressed by one of ours nor such an archive.
    pub fn detect(first: &[u8]) -> Option<Compression> {
        match first {
            [0x1f, 0x8b, ..] => Some(Compression::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Compression::Zstd),
            [b'0', b'7', b'0', b'7', ..] => Some(Compression::None),
            _ if first.starts_with(&lz4::MAGIC) => Some(Compression::Lz4),
            _ => None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Writes to `out`, compressed, what `body` writes.
pub fn write<E: From<io::Error>>(
    compression: Compression,
    out: impl Write,
    body: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    let mut out = BufWriter::new(out);
    match compression {
        Compression::None => body(&mut out)?,
        Compression::Gzip => {
            // Without a name and a time in its header, equal content gives equal bytes.
            let mut gzip = GzBuilder::new().mtime(0).write(&mut out, Deflate::best());
            body(&mut gzip)?;
            gzip.finish()?;
        }
        Compression::Zstd => {
            let mut zstd = zstd::Encoder::new(&mut out, ZSTD_LEVEL)?;
            zstd.window_log(ZSTD_WINDOW)?;
            zstd.include_checksum(true)?;
            body(&mut zstd)?;
            zstd.finish()?;
        }
        Compression::Lz4 => {
            let mut lz4 = lz4::Encoder::new(&mut out)?;
            body(&mut lz4)?;
            lz4.finish()?;
        }
    }
    Ok(out.flush()?)
}

/// A reader of the content, decompressed if the first bytes say that it is compressed, and what they say.
pub fn reader<'a>(
    mut input: impl Read + 'a,
) -> io::Result<(Option<Compression>, Box<dyn Read + 'a>)> {
    let mut first = Vec::with_capacity(4);
    input.by_ref().take(4).read_to_end(&mut first)?;
    let compression = Compression::detect(&first);
    let whole = io::Cursor::new(first).chain(input);
    let content: Box<dyn Read + 'a> = match compression {
        None | Some(Compression::None) => Box::new(whole),
        Some(Compression::Gzip) => Box::new(MultiGzDecoder::new(whole)),
        Some(Compression::Zstd) => {
            let mut zstd = zstd::Decoder::new(whole)?;
            zstd.window_log_max(ZSTD_WINDOW_READ)?;
            Box::new(zstd)
        }
        Some(Compression::Lz4) => Box::new(lz4::Decoder::new(whole)),
    };
    Ok((compression, content))
}

/// [`reader`] of a file of the host.
pub fn open(path: &Path) -> Result<(Option<Compression>, Box<dyn Read>), OpenError> {
    File::open(path)
        .and_then(|file| reader(BufReader::new(file)))
        .map_err(|source| OpenError {
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests;
