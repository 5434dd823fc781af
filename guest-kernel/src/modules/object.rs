// SPDX-License-Identifier: Apache-2.0
//! Reads a module's file: an ELF object with a `.modinfo` section, and perhaps a signature behind it.

/// What the kernel's `scripts/sign-file` appends last.
const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";
/// Size of `struct module_signature` before it; its last four bytes are the length of the signature proper (big endian).
const SIGNATURE_INFO: usize = 12;

/// A module without its appended signature. A kernel that does not insist on signatures checks those that are there all the same, and
/// that is two thirds of the time that loading takes.
pub fn unsigned(module: &[u8]) -> &[u8] {
    let Some(signed) = module.strip_suffix(SIGNATURE_MAGIC) else {
        return module;
    };
    let Some((_, length)) = signed.split_last_chunk::<4>() else {
        return module;
    };
    let appended = SIGNATURE_INFO + u32::from_be_bytes(*length) as usize;
    match signed.len().checked_sub(appended) {
        Some(end) => &signed[..end],
        None => module,
    }
}

/// What a module says about its dependencies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModInfo {
    /// It cannot be linked without these.
    pub depends: Vec<String>,
    /// These should be loaded before it, where they exist.
    pub soft: Vec<String>,
}

/// Reads the `.modinfo` section of a module; none if the bytes are no 64-bit little-endian ELF object with one.
pub fn modinfo(elf: &[u8]) -> Option<ModInfo> {
    let mut info = ModInfo::default();
    let name = |word: &str| word.replace('-', "_");
    for entry in section(elf, b".modinfo")?.split(|b| *b == 0) {
        let Ok(entry) = std::str::from_utf8(entry) else {
            continue;
        };
        match entry.split_once('=') {
            Some(("depends", list)) => {
                info.depends
                    .extend(list.split(',').filter(|n| !n.is_empty()).map(name));
            }
            Some(("softdep", list)) => {
                let words = list.split_whitespace().skip_while(|w| *w != "pre:").skip(1);
                info.soft
                    .extend(words.take_while(|w| *w != "post:").map(name));
            }
            _ => {}
        }
    }
    Some(info)
}

/// The content of an ELF section; none if there is none or the file is not what it should be.
fn section<'a>(elf: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    // e_ident: magic, ELFCLASS64, ELFDATA2LSB; see elf(5).
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(number::<8>(elf, 0x28)?).ok()?;
    let size = usize::try_from(number::<2>(elf, 0x3a)?).ok()?;
    let count = usize::try_from(number::<2>(elf, 0x3c)?).ok()?;
    let names = usize::try_from(number::<2>(elf, 0x3e)?).ok()?;
    let header = |index: usize| {
        let start = table.checked_add(index.checked_mul(size)?)?;
        elf.get(start..start.checked_add(size.max(0x40))?)
    };
    let content = |header: &[u8]| {
        let offset = usize::try_from(number::<8>(header, 0x18)?).ok()?;
        let length = usize::try_from(number::<8>(header, 0x20)?).ok()?;
        elf.get(offset..offset.checked_add(length)?)
    };
    let strings = content(header(names)?)?;
    (0..count).find_map(|index| {
        let header = header(index)?;
        let name = strings.get(usize::try_from(number::<4>(header, 0)?).ok()?..)?;
        let name = name.split(|b| *b == 0).next()?;
        if name == wanted {
            content(header)
        } else {
            None
        }
    })
}

/// A little-endian number of N (at most 8) bytes.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(N)?)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |value, byte| (value << 8) | u64::from(*byte)),
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The smallest object with a `.modinfo` section: header, the section, names, three section headers.
    pub fn object(info: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut elf = vec![0; 0x40];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let info_at = elf.len();
        elf.extend(info);
        let names_at = elf.len();
        elf.extend(names);
        let table = elf.len() as u64;
        elf[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        elf[0x3a] = 0x40;
        elf[0x3c] = 3;
        elf[0x3e] = 2;
        for (name, at, length) in [
            (0, 0, 0),
            (1, info_at, info.len()),
            (10, names_at, names.len()),
        ] {
            let mut header = [0; 0x40];
            header[0] = name;
            header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
            elf.extend(header);
        }
        elf
    }

    #[test]
    fn dependencies_are_read() {
        let info = modinfo(&object(
            b"license=GPL\0depends=a-b,c\0softdep=pre: d-e f post: g\0depends=\0",
        ))
        .unwrap();
        assert_eq!(info.depends, ["a_b", "c"]);
        assert_eq!(info.soft, ["d_e", "f"]);
    }

    #[test]
    fn an_appended_signature_is_taken_off() {
        let mut signed = b"module".to_vec();
        signed.extend(b"PKCS7");
        signed.extend([0, 0, 2, 0, 0, 0, 0, 0]);
        signed.extend(5u32.to_be_bytes());
        let damaged = [&signed[..], b"~"].concat();
        signed.extend(SIGNATURE_MAGIC);
        assert_eq!(unsigned(&signed), b"module");
        assert_eq!(unsigned(b"module"), b"module");
        assert_eq!(unsigned(&damaged), damaged);
        let absurd = [&[0xff; 12][..], SIGNATURE_MAGIC].concat();
        assert_eq!(unsigned(&absurd), absurd);
        assert_eq!(unsigned(SIGNATURE_MAGIC), SIGNATURE_MAGIC);
    }

    #[test]
    fn what_is_no_module_is_refused() {
        assert_eq!(modinfo(b""), None);
        assert_eq!(modinfo(b"\x7fELF\x01\x01 32-bit"), None);
        let whole = object(b"depends=a\0");
        for length in 0..whole.len() {
            // A cut file may still have its section; it must only never panic.
            let _ = modinfo(&whole[..length]);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = b"\x7fELF\x02\x01".to_vec();
            bytes.extend(tail);
            let _ = modinfo(&bytes);
        }
    }
}
