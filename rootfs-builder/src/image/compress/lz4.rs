// SPDX-License-Identifier: Apache-2.0
//! lz4's legacy frame ("Legacy frame" in lz4's `lz4_Frame_format.md`): a magic number, then blocks of at most 8 MiB, each after its
//! compressed size. `lz4_flex` compresses and decompresses the blocks; it cannot write this frame, and refuses to read blocks that
//! compression made larger.

use std::io::{self, Read, Write};

use lz4_flex::block;

/// 0x184C2102, little-endian.
pub const MAGIC: [u8; 4] = 0x184C_2102_u32.to_le_bytes();
/// What every block but the last holds.
const BLOCK: usize = 8 << 20;

/// Writes the frame.
pub struct Encoder<W: Write> {
    out: W,
    plain: Vec<u8>,
    packed: Vec<u8>,
}

impl<W: Write> Encoder<W> {
    /// Begins a frame.
    pub fn new(mut out: W) -> io::Result<Encoder<W>> {
        out.write_all(&MAGIC)?;
        Ok(Encoder {
            out,
            plain: Vec::with_capacity(BLOCK),
            packed: vec![0; block::get_maximum_output_size(BLOCK)],
        })
    }

    /// Writes what is left. The frame has no end mark: it ends with the file.
    pub fn finish(mut self) -> io::Result<()> {
        self.block()
    }

    fn block(&mut self) -> io::Result<()> {
        if self.plain.is_empty() {
            return Ok(());
        }
        let size = block::compress_into(&self.plain, &mut self.packed).map_err(io::Error::other)?;
        let prefix = u32::try_from(size).map_err(io::Error::other)?;
        self.out.write_all(&prefix.to_le_bytes())?;
        self.out.write_all(&self.packed[..size])?;
        self.plain.clear();
        Ok(())
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(BLOCK - self.plain.len());
        self.plain.extend_from_slice(&bytes[..count]);
        if self.plain.len() == BLOCK {
            self.block()?;
        }
        Ok(count)
    }

    /// Does nothing: a block that is not full would end the content for some readers.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads frames, one after another.
pub struct Decoder<R: Read> {
    input: R,
    plain: Vec<u8>,
    at: usize,
    packed: Vec<u8>,
}

impl<R: Read> Decoder<R> {
    /// Reads from `input`, which begins with the magic number.
    pub fn new(input: R) -> Decoder<R> {
        Decoder {
            input,
            plain: Vec::new(),
            at: 0,
            packed: Vec::new(),
        }
    }

    /// Decompresses the next block; whether there was one.
    fn block(&mut self) -> io::Result<bool> {
        // A magic number where a size could be begins another frame.
        let size = loop {
            match self.word()? {
                None => return Ok(false),
                Some(MAGIC) => {}
                Some(word) => break u32::from_le_bytes(word) as usize,
            }
        };
        if size == 0 || size > block::get_maximum_output_size(BLOCK) {
            return Err(invalid(format!("An lz4 block cannot have {size} bytes")));
        }
        self.packed.resize(size, 0);
        self.input.read_exact(&mut self.packed)?;
        self.plain.resize(BLOCK, 0);
        let count = block::decompress_into(&self.packed, &mut self.plain).map_err(invalid)?;
        self.plain.truncate(count);
        self.at = 0;
        Ok(true)
    }

    /// Four bytes; none at the end.
    fn word(&mut self) -> io::Result<Option<[u8; 4]>> {
        let mut word = Vec::with_capacity(4);
        self.input.by_ref().take(4).read_to_end(&mut word)?;
        if word.is_empty() {
            return Ok(None);
        }
        let word = word.try_into();
        word.map(Some)
            .map_err(|_| io::ErrorKind::UnexpectedEof.into())
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.at == self.plain.len() {
            if !self.block()? {
                return Ok(0);
            }
        }
        let rest = &self.plain[self.at..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
