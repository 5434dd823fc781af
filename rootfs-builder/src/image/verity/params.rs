// SPDX-License-Identifier: Apache-2.0
//! The parameters as text: in documents, in the words of kernel command lines, in device-mapper tables.

use guest_kernel::cache::hex;
use serde::{Deserialize, Serialize};

use super::{MAX_SALT, Verity};

/// The block sizes that dm-verity takes anywhere: powers of two from 512 to the largest page.
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 512..=65536;
/// The unit in which device-mapper tables count.
const SECTOR: u64 = 512;

/// Why a text is no set of parameters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamsError {
    /// A part is not `key=value`.
    #[error("Verity parameters are key=value,…, which {0:?} is not")]
    NotAPair(String),
    /// A key is none of ours.
    #[error("Verity parameters have no {0:?}")]
    UnknownKey(String),
    /// A key comes twice.
    #[error("Verity parameters have {0} twice")]
    Twice(&'static str),
    /// A key is missing.
    #[error("Verity parameters lack {0}")]
    Missing(&'static str),
    /// A value is none that the key can have.
    #[error("Verity parameters cannot have {value:?} for {key}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
    },
}

const KEYS: [&str; 5] = [
    "root_hash",
    "salt",
    "data_blocks",
    "data_block_size",
    "hash_block_size",
];

/// The parameters as they are in documents.
#[derive(Serialize, Deserialize)]
pub struct Document {
    root_hash: String,
    salt: String,
    data_blocks: u64,
    data_block_size: u32,
    hash_block_size: u32,
}

impl From<Verity> for Document {
    fn from(verity: Verity) -> Document {
        Document {
            root_hash: hex(&verity.root_hash),
            salt: hex(&verity.salt),
            data_blocks: verity.data_blocks,
            data_block_size: verity.data_block_size,
            hash_block_size: verity.hash_block_size,
        }
    }
}

impl TryFrom<Document> for Verity {
    type Error = ParamsError;

    fn try_from(document: Document) -> Result<Verity, ParamsError> {
        let root_hash = unhex(&document.root_hash).and_then(|bytes| bytes.try_into().ok());
        let verity = Verity {
            root_hash: root_hash.ok_or_else(|| bad("root_hash", &document.root_hash))?,
            salt: unhex(&document.salt).ok_or_else(|| bad("salt", &document.salt))?,
            data_blocks: document.data_blocks,
            data_block_size: document.data_block_size,
            hash_block_size: document.hash_block_size,
        };
        verity.check()?;
        Ok(verity)
    }
}

impl Verity {
    /// The parameters as in the kernel words `kata.extension.<name>.verity_params=` and `keelson.root_verity=`.
    pub fn params(&self) -> String {
        format!(
            "root_hash={},salt={},data_blocks={},data_block_size={},hash_block_size={}",
            hex(&self.root_hash),
            hex(&self.salt),
            self.data_blocks,
            self.data_block_size,
            self.hash_block_size,
        )
    }

    /// Reads what [`Verity::params`] writes: each key once, in any order.
    pub fn parse_params(text: &str) -> Result<Verity, ParamsError> {
        let mut values: [Option<&str>; KEYS.len()] = [None; KEYS.len()];
        for part in text.split(',') {
            let pair = part.split_once('=');
            let (key, value) = pair.ok_or_else(|| ParamsError::NotAPair(part.to_owned()))?;
            let at = KEYS.iter().position(|known| *known == key);
            let at = at.ok_or_else(|| ParamsError::UnknownKey(key.to_owned()))?;
            if values[at].replace(value).is_some() {
                return Err(ParamsError::Twice(KEYS[at]));
            }
        }
        let value = |at: usize| values[at].ok_or(ParamsError::Missing(KEYS[at]));
        Document {
            root_hash: value(0)?.to_owned(),
            salt: value(1)?.to_owned(),
            data_blocks: number(KEYS[2], value(2)?)?,
            data_block_size: number(KEYS[3], value(3)?)?,
            hash_block_size: number(KEYS[4], value(4)?)?,
        }
        .try_into()
    }

    /// The value of the kernel word `dm-mod.create=`, which makes the device `/dev/dm-0` at boot. It has blanks in it, so the word
    /// needs quotes. The tree begins where its device does.
    pub fn dm_create(&self, name: &str, data_device: &str, hash_device: &str) -> String {
        let sectors = self.data_size() / SECTOR;
        let (data_size, hash_size) = (self.data_block_size, self.hash_block_size);
        let salt = match hex(&self.salt) {
            empty if empty.is_empty() => "-".to_owned(),
            salt => salt,
        };
        format!(
            "{name},,,ro,0 {sectors} verity 1 {data_device} {hash_device} {data_size} {hash_size} {} 0 sha256 {} {salt}",
            self.data_blocks,
            hex(&self.root_hash),
        )
    }

    /// Whether the parameters are such that a kernel could take them.
    pub fn check(&self) -> Result<(), ParamsError> {
        let sizes = [
            ("data_block_size", self.data_block_size),
            ("hash_block_size", self.hash_block_size),
        ];
        for (key, size) in sizes {
            if !BLOCK_SIZES.contains(&size) || !size.is_power_of_two() {
                return Err(bad(key, &size.to_string()));
            }
        }
        // File offsets are signed; a tree is smaller than its data's blocks are many.
        let most = i64::MAX as u64 / u64::from(*BLOCK_SIZES.end());
        if self.data_blocks == 0 || self.data_blocks > most {
            return Err(bad("data_blocks", &self.data_blocks.to_string()));
        }
        if self.salt.len() > MAX_SALT {
            return Err(bad("salt", &hex(&self.salt)));
        }
        Ok(())
    }
}

fn bad(key: &'static str, value: &str) -> ParamsError {
    ParamsError::Value {
        key,
        value: value.to_owned(),
    }
}

fn number<T: std::str::FromStr>(key: &'static str, value: &str) -> Result<T, ParamsError> {
    // Rust takes a plus sign, and the guest does not have to.
    let number = value.parse().ok();
    let number = number.filter(|_| value.bytes().all(|b| b.is_ascii_digit()));
    number.ok_or_else(|| bad(key, value))
}

/// The bytes of pairs of hexadecimal digits.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text
        .chars()
        .map(|c| c.to_digit(16).map(|digit| digit as u8));
    let digits = digits.collect::<Option<Vec<u8>>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty()
        .then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}
