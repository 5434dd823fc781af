// SPDX-License-Identifier: Apache-2.0
//! The few bytes of an ELF file that say whether it runs in a guest on its own (elf(5)).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use guest_kernel::Arch;

const MAGIC: &[u8] = b"\x7fELF";
/// `ELFCLASS64` and `ELFDATA2LSB`.
const CLASS_AND_ORDER: [u8; 2] = [2, 1];
/// The type of the program header that names an interpreter.
const PT_INTERP: u32 = 3;
const HEADER: usize = 64;
const PROGRAM_HEADER: u64 = 56;

/// `e_machine` of an architecture.
fn machine(arch: Arch) -> u16 {
    match arch {
        Arch::X86_64 => 62,
        Arch::Aarch64 => 183,
    }
}

/// Whether a file is an ELF file.
pub fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path)
        .and_then(|file| file.read_exact_at(&mut magic, 0))
        .is_ok_and(|()| magic == MAGIC)
}

/// Why an ELF file does not run in a guest without anything else; none if it does, and none for what is no ELF file and so may be
/// anything.
pub fn unfit(path: &Path, arch: Arch) -> io::Result<Option<&'static str>> {
    let file = File::open(path)?;
    let mut header = [0; HEADER];
    if file.read_exact_at(&mut header, 0).is_err() || !header.starts_with(MAGIC) {
        return Ok(None);
    }
    if header[4..6] != CLASS_AND_ORDER {
        return Ok(Some("it is not a 64-bit little-endian one"));
    }
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    if u16_at(18) != machine(arch) {
        return Ok(Some("it is for another machine"));
    }
    let mut table = [0; 8];
    table.copy_from_slice(&header[32..40]);
    let table = u64::from_le_bytes(table);
    for index in 0..u64::from(u16_at(56)) {
        let mut kind = [0; 4];
        let at = table.saturating_add(index * PROGRAM_HEADER);
        file.read_exact_at(&mut kind, at)?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Ok(Some("it is not static"));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn this_test_is_a_dynamic_program_of_this_machine() {
        let own = std::env::current_exe().unwrap();
        let arch = Arch::host().unwrap();
        assert!(is_elf(&own));
        assert_eq!(unfit(&own, arch).unwrap(), Some("it is not static"));
        let other = Arch::ALL.into_iter().find(|a| *a != arch).unwrap();
        assert_eq!(
            unfit(&own, other).unwrap(),
            Some("it is for another machine")
        );
    }

    #[test]
    fn what_is_no_elf_file_is_not_judged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for content in [&b""[..], b"#!/bin/sh\n", b"\x7fELF"] {
            fs::write(&path, content).unwrap();
            assert_eq!(unfit(&path, Arch::X86_64).unwrap(), None);
        }
        let mut header = [0; 64];
        header[..6].copy_from_slice(b"\x7fELF\x01\x01");
        fs::write(&path, header).unwrap();
        assert!(unfit(&path, Arch::X86_64).unwrap().is_some());
        assert!(unfit(&dir.path().join("gone"), Arch::X86_64).is_err());
    }
}
