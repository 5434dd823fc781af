// SPDX-License-Identifier: Apache-2.0
//! What the guest binary in an image is: its architecture, whether it needs a loader, and its version.

use guest_kernel::Arch;
use serde::Serialize;

use super::source::{u16_at, u32_at, u64_at};

/// What stands before the version in our binary: the first words of its answer to `--version`.
const VERSION: &[u8] = b"keelson version ";

/// An executable file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Elf {
    /// What it runs on, as `uname -m` says it; none for what the guest does not run on.
    pub arch: Option<&'static str>,
    /// The program that loads it and its libraries; none for a static one.
    pub loader: Option<String>,
    /// The version of our guest binary, if it is that.
    pub version: Option<String>,
}

/// Looks at a program's bytes; none if it is no 64-bit little-endian ELF program.
pub fn read(bytes: &[u8]) -> Option<Elf> {
    let kind = u16_at(bytes, 16);
    if !bytes.starts_with(b"\x7fELF\x02\x01") || !matches!(kind, 2 | 3) {
        return None;
    }
    let arch = match u16_at(bytes, 18) {
        62 => Some(Arch::X86_64.name()),
        183 => Some(Arch::Aarch64.name()),
        _ => None,
    };
    let start = usize::try_from(u64_at(bytes, 32)).ok()?;
    let (size, count) = (usize::from(u16_at(bytes, 54)), u16_at(bytes, 56));
    let loader = (0..usize::from(count)).find_map(|index| {
        let header = bytes.get(start.checked_add(index * size)?..)?;
        // PT_INTERP names the loader.
        (u32_at(header, 0) == 3).then(|| text(bytes, u64_at(header, 8)))
    });
    Some(Elf {
        arch,
        loader,
        version: version(bytes),
    })
}

/// The text that begins somewhere and ends in a zero.
fn text(bytes: &[u8], at: u64) -> String {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    let rest = bytes.get(at..).unwrap_or_default();
    let text = rest.iter().take(4096).take_while(|byte| **byte != 0);
    String::from_utf8_lossy(&text.copied().collect::<Vec<u8>>()).into_owned()
}

fn version(bytes: &[u8]) -> Option<String> {
    let at = bytes
        .windows(VERSION.len())
        .position(|window| window == VERSION)?;
    let text = bytes[at + VERSION.len()..]
        .iter()
        .take(40)
        .take_while(|byte| byte.is_ascii_alphanumeric() || b".-+".contains(byte));
    let text: String = text.map(|byte| char::from(*byte)).collect();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_this_machine_are_known() {
        let own = std::fs::read("/bin/sh").unwrap();
        let elf = read(&own).unwrap();
        assert_eq!(elf.arch, Arch::host().map(Arch::name));
        let mut program = own[..64].to_vec();
        program.extend([1, 0, 0, 0]);
        program[32] = 64;
        program[56] = 1;
        program.resize(120, 0);
        program.extend(b"/ld.so\0 keelson version 1.2.3-rc (api version: 0.0.1");
        let elf = read(&program).unwrap();
        assert_eq!(
            (elf.loader, elf.version.as_deref()),
            (None, Some("1.2.3-rc"))
        );
        program[64] = 3;
        program[72] = 120;
        assert_eq!(read(&program).unwrap().loader.as_deref(), Some("/ld.so"));
        program[16] = 1;
        for bad in [&program[..], b"#!/bin/sh\n", b""] {
            assert!(read(bad).is_none());
        }
    }
}
