// SPDX-License-Identifier: Apache-2.0
//! Extended attributes, as they follow an inode: a header, then each attribute with a number for the start of its name.

use std::collections::BTreeMap;

/// The header's size. It would name attributes that are shared between inodes, which are not used, and a filter that may stay zero.
const HEADER: usize = 12;
/// Each attribute begins at a multiple of this; the inode counts in it, too.
const UNIT: usize = 4;

/// Starts of names with their numbers in the format. The access control lists' names are there as a whole.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Why attributes cannot be written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The format has no number for this name's start.
    Unknown(Vec<u8>),
    /// One of them, or all together, are too large.
    TooLarge,
}

/// The bytes of these attributes; none for none.
pub(super) fn encode(attributes: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Vec<u8>, Refused> {
    if attributes.is_empty() {
        return Ok(Vec::new());
    }
    let mut out = vec![0; HEADER];
    for (name, value) in attributes {
        let (index, rest) = split(name).ok_or_else(|| Refused::Unknown(name.clone()))?;
        out.push(u8::try_from(rest.len()).map_err(|_| Refused::TooLarge)?);
        out.push(index);
        let size = u16::try_from(value.len()).map_err(|_| Refused::TooLarge)?;
        out.extend(size.to_le_bytes());
        out.extend(rest);
        out.extend(value);
        out.resize(out.len().next_multiple_of(UNIT), 0);
    }
    count(&out).map(|_| out)
}

/// The size of encoded attributes as the inode says it: units after the header, and one for the header.
pub(super) fn count(encoded: &[u8]) -> Result<u16, Refused> {
    match encoded.len() {
        0 => Ok(0),
        len => u16::try_from((len - HEADER) / UNIT + 1).map_err(|_| Refused::TooLarge),
    }
}

/// A name as the number of its start and the rest.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(prefix, index)| {
        let rest = name.strip_prefix(*prefix)?;
        // A namespace needs a name in it, and a whole name ends there.
        (prefix.ends_with(b".") != rest.is_empty()).then_some((*index, rest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &[u8]) -> Result<Vec<u8>, Refused> {
        encode(&BTreeMap::from([(name.into(), value.into())]))
    }

    #[test]
    fn an_attribute_is_as_the_format_says() {
        let bytes = one("user.ab", b"xyz").unwrap();
        assert_eq!(bytes[HEADER..], *b"\x02\x01\x03\0abxyz\0\0\0");
        assert_eq!(count(&bytes), Ok(4));
        let bytes = one("system.posix_acl_access", b"x").unwrap();
        assert_eq!(bytes[HEADER..], *b"\x00\x02\x01\0x\0\0\0");
    }

    #[test]
    fn none_need_no_room() {
        assert_eq!(encode(&BTreeMap::new()), Ok(Vec::new()));
        assert_eq!(count(&[]), Ok(0));
    }

    #[test]
    fn what_has_no_place_is_refused() {
        for name in [
            "user.",
            "system.nfs4_acl",
            "system.posix_acl_access2",
            "x",
            "",
        ] {
            assert_eq!(one(name, b""), Err(Refused::Unknown(name.into())));
        }
        assert_eq!(one("user.a", &[0; 65536]), Err(Refused::TooLarge));
        let long = format!("user.{}", "n".repeat(256));
        assert_eq!(one(&long, b""), Err(Refused::TooLarge));
        let many = (0..5).map(|n| (format!("user.{n}").into_bytes(), vec![0; 60_000]));
        assert_eq!(encode(&many.collect()), Err(Refused::TooLarge));
    }
}
