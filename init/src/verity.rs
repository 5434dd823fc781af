// SPDX-License-Identifier: Apache-2.0
//! dm-verity: parameters, and the table line that they make.
//!
//! Owns the grammar of `kata.extension.<name>.verity_params=` (protocol section
//! 7.5) and `keelson.root_verity=`, which is the same and may also say where
//! the hashes are. Strict: what is not known, not there or said twice is an
//! error, since a word that is misread here is data that nobody verified. The
//! line has none of the target's options: a block that does not match is an
//! I/O error, never a restart and never let pass.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::dm::{Target, word::number};

/// Hexadecimal digits of a SHA-256, the only algorithm.
const HASH_DIGITS: usize = 64;

/// Hexadecimal digits of the longest salt that veritysetup(8) takes.
const MAX_SALT_DIGITS: usize = 512;

/// Sizes of blocks; the kernel takes none smaller than a sector.
const BLOCK_SIZES: std::ops::RangeInclusive<u64> = 512..=65536;

/// What veritysetup(8) makes when not told otherwise.
const BLOCK_SIZE: u64 = 4096;

const SECTOR: u64 = 512;

/// The parameters are not what a verified device can be made of.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum VerityError {
    /// A key that is not known here, or an item without `=`.
    #[error("The verity parameter {item} is not known")]
    Unknown {
        /// The item.
        item: String,
    },
    /// A key twice.
    #[error("The verity parameter {key} is given twice")]
    Twice {
        /// The key.
        key: String,
    },
    /// A key that must be there.
    #[error("The verity parameter {key} is missing")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A value out of its bounds.
    #[error("The verity parameter {key}={value} is not valid")]
    Value {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
}

/// Where the hashes are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Hashes {
    /// On the partition after that of the data.
    #[default]
    NextPartition,
    /// At the start of another device.
    Device(PathBuf),
    /// On the data's own device, from this byte on.
    Offset(u64),
}

/// What makes a device a verified one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verity {
    root_hash: String,
    salt: String,
    data_blocks: u64,
    data_block_size: u64,
    hash_block_size: u64,
    /// Where the hashes are.
    pub hashes: Hashes,
}

impl Verity {
    /// Reads `root_hash=…,salt=…,data_blocks=…[,data_block_size=…]
    /// [,hash_block_size=…]`. With `anywhere` also one of `hash_device=` and
    /// `hash_offset=`.
    pub fn parse(text: &str, anywhere: bool) -> Result<Self, VerityError> {
        let mut found = Items::default();
        for item in text.split(',') {
            let slot = item.split_once('=').and_then(|(key, value)| {
                let at = KEYS.iter().position(|&known| known == key)?;
                (anywhere || at < DEVICE).then_some((at, value))
            });
            let Some((at, value)) = slot else {
                let item = item.to_owned();
                return Err(VerityError::Unknown { item });
            };
            if found.0[at].replace(value).is_some() {
                let key = KEYS[at].to_owned();
                return Err(VerityError::Twice { key });
            }
        }
        found.check()
    }

    /// The line of the table that maps `data`, verified by `hashes`.
    pub fn target(&self, data: &Path, hashes: &Path) -> Target {
        let start = match self.hashes {
            Hashes::Offset(bytes) => bytes / self.hash_block_size,
            _ => 0,
        };
        let (data, hashes) = (data.display(), hashes.display());
        let Self {
            root_hash,
            salt,
            data_blocks,
            data_block_size,
            hash_block_size,
            ..
        } = self;
        Target {
            start: 0,
            length: data_blocks * (data_block_size / SECTOR),
            kind: "verity".to_owned(),
            arguments: format!(
                "1 {data} {hashes} {data_block_size} {hash_block_size} {data_blocks} {start} \
                 sha256 {root_hash} {salt}"
            ),
        }
    }
}

/// The keys; those from `DEVICE` on say where the hashes are.
const KEYS: [&str; 7] = [
    "root_hash",
    "salt",
    "data_blocks",
    "data_block_size",
    "hash_block_size",
    "hash_device",
    "hash_offset",
];
const ROOT_HASH: usize = 0;
const SALT: usize = 1;
const DATA_BLOCKS: usize = 2;
const DATA_BLOCK_SIZE: usize = 3;
const HASH_BLOCK_SIZE: usize = 4;
const DEVICE: usize = 5;
const OFFSET: usize = 6;

/// The values by key, as found.
#[derive(Default)]
struct Items<'a>([Option<&'a str>; KEYS.len()]);

impl<'a> Items<'a> {
    fn check(&self) -> Result<Verity, VerityError> {
        let is_hash = |value: &str| value.len() == HASH_DIGITS && is_hex(value);
        let is_salt = |value: &str| {
            let length = value.len();
            value == "-" || length.is_multiple_of(2) && length <= MAX_SALT_DIGITS && is_hex(value)
        };
        let root_hash = self.needed(ROOT_HASH, is_hash)?.to_owned();
        // The kernel's word for none.
        let salt = match self.needed(SALT, is_salt)? {
            "" => "-",
            salt => salt,
        };
        let data_block_size = self.block_size(DATA_BLOCK_SIZE)?;
        let hash_block_size = self.block_size(HASH_BLOCK_SIZE)?;
        let fits = |count: &u64| *count > 0 && count.checked_mul(data_block_size).is_some();
        let data_blocks = number(self.needed(DATA_BLOCKS, |_| true)?).filter(fits);
        Ok(Verity {
            root_hash,
            salt: salt.to_owned(),
            data_blocks: data_blocks.ok_or_else(|| self.bad(DATA_BLOCKS))?,
            data_block_size,
            hash_block_size,
            hashes: self.hashes(hash_block_size)?,
        })
    }

    fn needed(&self, at: usize, is_valid: impl Fn(&str) -> bool) -> Result<&'a str, VerityError> {
        let value = self.0[at].ok_or(VerityError::Missing { key: KEYS[at] })?;
        is_valid(value).then_some(value).ok_or_else(|| self.bad(at))
    }

    fn block_size(&self, at: usize) -> Result<u64, VerityError> {
        let Some(digits) = self.0[at] else {
            return Ok(BLOCK_SIZE);
        };
        number(digits)
            .filter(|size| size.is_power_of_two() && BLOCK_SIZES.contains(size))
            .ok_or_else(|| self.bad(at))
    }

    fn hashes(&self, block_size: u64) -> Result<Hashes, VerityError> {
        match (self.0[DEVICE], self.0[OFFSET]) {
            (None, None) => Ok(Hashes::NextPartition),
            (Some(path), None) if is_device(path) => Ok(Hashes::Device(path.into())),
            (None, Some(digits)) => number(digits)
                .filter(|offset| *offset > 0 && offset.is_multiple_of(block_size))
                .map(Hashes::Offset)
                .ok_or_else(|| self.bad(OFFSET)),
            _ => Err(self.bad(DEVICE)),
        }
    }

    fn bad(&self, at: usize) -> VerityError {
        VerityError::Value {
            key: KEYS[at].to_owned(),
            value: self.0[at].unwrap_or_default().to_owned(),
        }
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a path can stand in a table: below `/dev`, without blanks, which
/// would part it, and without steps up.
pub(crate) fn is_device(path: &str) -> bool {
    let Some(name) = path.strip_prefix("/dev/") else {
        return false;
    };
    let plain = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._:+-".contains(&b))
    };
    name.split('/').all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: &str = "ac87db56303c9c1da433d7209b5a6ef3e4779df141200cbd7c157dcb8dd89c42";

    fn params() -> String {
        format!(
            "root_hash={HASH},salt=5ebf,data_blocks=204800,data_block_size=4096,hash_block_size=4096"
        )
    }

    fn line(text: &str) -> Target {
        let verity = Verity::parse(text, true).unwrap();
        verity.target(Path::new("/dev/vda1"), Path::new("/dev/vda2"))
    }

    #[test]
    fn the_table_line_is_veritysetups() {
        let target = line(&params());
        assert_eq!((target.start, target.length), (0, 204_800 * 8));
        assert_eq!(target.kind, "verity");
        assert_eq!(
            target.arguments,
            format!("1 /dev/vda1 /dev/vda2 4096 4096 204800 0 sha256 {HASH} 5ebf")
        );
    }

    #[test]
    fn block_sizes_have_defaults_and_no_salt_has_a_sign() {
        for salt in ["", "-"] {
            let target = line(&format!("data_blocks=2,salt={salt},root_hash={HASH}"));
            assert_eq!(
                target.arguments,
                format!("1 /dev/vda1 /dev/vda2 4096 4096 2 0 sha256 {HASH} -")
            );
        }
        let sized = params().replace("data_block_size=4096", "data_block_size=1024");
        assert_eq!(line(&sized).length, 204_800 * 2);
    }

    #[test]
    fn hashes_behind_the_data_start_at_their_block() {
        let target = line(&format!("{},hash_offset=8388608", params()));
        assert!(target.arguments.contains(" 204800 2048 sha256 "));
        let verity = Verity::parse(&format!("{},hash_device=/dev/vdb", params()), true).unwrap();
        assert_eq!(verity.hashes, Hashes::Device("/dev/vdb".into()));
    }

    #[test]
    fn bug_whatever_is_not_exactly_right_is_refused() {
        let with = |from: &str, to: &str| params().replace(from, to);
        for text in [
            String::new(),
            with(HASH, &HASH[1..]),
            with(HASH, &format!("{HASH}00")),
            with(HASH, &"g".repeat(64)),
            with("salt=5ebf", "salt=5eb"),
            with("salt=5ebf", "salt=5ebg"),
            with("salt=5ebf", &format!("salt={}", "a".repeat(514))),
            with("salt=5ebf,", ""),
            with("=204800", "=0"),
            with("=204800", "=+1"),
            with("=204800", "=0x10"),
            with("=204800", "=18446744073709551615"),
            with("data_block_size=4096", "data_block_size=4095"),
            with("data_block_size=4096", "data_block_size=256"),
            with("hash_block_size=4096", "hash_block_size=131072"),
            with("hash_block_size=4096", "hash_block_size="),
            with("salt", "Salt"),
            format!("{},", params()),
            format!("{},salt=00", params()),
            format!("{},ignore_corruption", params()),
            format!("{},hash_offset=1", params()),
            format!("{},hash_offset=0", params()),
            format!("{},hash_device=vdb", params()),
            format!("{},hash_device=/dev/vdb ignore_corruption", params()),
            format!("{},hash_device=/dev/../etc", params()),
            format!("{},hash_device=/dev/vdb,hash_offset=4096", params()),
        ] {
            assert!(Verity::parse(&text, true).is_err(), "{text}");
        }
        let placed = format!("{},hash_offset=4096", params());
        assert!(Verity::parse(&placed, true).is_ok());
        let error = Verity::parse(&placed, false).unwrap_err();
        assert!(matches!(error, VerityError::Unknown { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn any_text(text in ".{0,120}") {
            let _ = Verity::parse(&text, true);
        }

        #[test]
        fn what_is_taken_makes_a_line_of_ten_fields(
            hash in "[0-9a-fA-F]{64}", salt in "([0-9a-f]{2}){0,40}|-", blocks in 0..u64::MAX,
            size in prop::sample::select(vec!["1", "512", "4096", "65536", "0", "4097"]),
            order in Just((0..4).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let items = [
                format!("root_hash={hash}"), format!("salt={salt}"),
                format!("data_blocks={blocks}"), format!("data_block_size={size}"),
            ];
            let text: Vec<_> = order.iter().map(|&at| items[at].clone()).collect();
            if let Ok(verity) = Verity::parse(&text.join(","), false) {
                let target = verity.target(Path::new("/dev/a"), Path::new("/dev/b"));
                prop_assert_eq!(target.arguments.split(' ').count(), 10);
                prop_assert!(target.length > 0);
            } else {
                prop_assert!(blocks == 0 || blocks > u64::MAX / 65536 || ["1", "0", "4097"].contains(&size));
            }
        }
    }
}
