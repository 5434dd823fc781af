// SPDX-License-Identifier: Apache-2.0
//! The values of a definition: each a word or a number that can be written in a file, on the command line and in a report, and is
//! checked where it is read.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::image::compress::Compression;

/// A value that is none of those possible.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ValueError {
    /// No size.
    #[error("{0:?} is no size: a number of bytes, or a number with K, M or G (powers of 1024)")]
    Size(String),
    /// No permission bits.
    #[error("{0:?} is no mode: octal digits up to 7777, in quotes")]
    Mode(String),
    /// No owner.
    #[error("{0:?} is no owner: USER:GROUP as numbers")]
    Owner(String),
}

/// What comes out of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A cpio archive that the kernel unpacks into memory: Kata's `initrd`
    Initramfs,
    /// A partitioned disk: Kata's `image`, for nvdimm, virtio-pmem and virtio-blk
    Disk,
    /// An ext4 file system without partitions
    Ext4,
    /// An EROFS file system without partitions
    Erofs,
    /// An archive
    Tar,
    /// An OCI image layout: a directory
    Oci,
    /// A directory, to be shared as a virtio-fs root
    Directory,
    /// A guest extension image of Kata 4.1: EROFS on a partition, its hash tree on another
    Extension,
}

/// The file system on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    /// Writable
    Ext4,
    /// Read-only, and smaller
    #[default]
    Erofs,
}

/// Which kernel an image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KernelChoice {
    /// A distributor's, whose modules go in
    Fetched,
    /// Our own, with everything built in
    Built,
    /// Somebody else's with everything built in, such as Kata's
    None,
}

/// Where the files besides the guest binary come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BaseChoice {
    /// Nowhere.
    #[default]
    None,
    /// A small Debian.
    Debian,
    /// A directory, OCI image layout or archive.
    Path(PathBuf),
}

/// Gives a `ValueEnum` its words as `Display`.
macro_rules! displayed {
    ($($name:ty),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let word = self.to_possible_value();
                f.pad(word.as_ref().map_or("", |word| word.get_name()))
            }
        }
    )*};
}
displayed!(Format, Filesystem, KernelChoice);

impl Format {
    /// Whether the result boots as a root, and so has the guest binary in it.
    pub fn is_root(self) -> bool {
        self != Format::Extension
    }

    /// Whether there is a partition table around it.
    pub fn is_partitioned(self) -> bool {
        matches!(self, Format::Disk | Format::Extension)
    }

    /// Whether a hash tree can go with it.
    pub fn takes_verity(self) -> bool {
        self.is_partitioned() || matches!(self, Format::Ext4 | Format::Erofs)
    }

    /// Whether it can be compressed so, by who reads it: kernels, archivers, and those of OCI layers, who know no lz4.
    pub fn takes_compression(self, compression: Compression) -> bool {
        match self {
            Format::Initramfs | Format::Tar => true,
            Format::Oci => compression != Compression::Lz4,
            _ => compression == Compression::None,
        }
    }

    /// Whether the result is a directory instead of a file.
    pub fn is_directory(self) -> bool {
        matches!(self, Format::Oci | Format::Directory)
    }
}

impl fmt::Display for BaseChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BaseChoice::None => f.write_str("none"),
            BaseChoice::Debian => f.write_str("debian"),
            BaseChoice::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

impl From<&str> for BaseChoice {
    fn from(word: &str) -> BaseChoice {
        match word {
            "none" => BaseChoice::None,
            "debian" => BaseChoice::Debian,
            path => BaseChoice::Path(path.into()),
        }
    }
}

impl<'de> Deserialize<'de> for BaseChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(String::deserialize(deserializer)?.as_str().into())
    }
}

impl Serialize for BaseChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Size(pub u64);

const UNITS: [(&str, u32); 3] = [("G", 30), ("M", 20), ("K", 10)];

impl FromStr for Size {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Size, ValueError> {
        let bad = || ValueError::Size(text.to_owned());
        let short = text.trim_end_matches("iB");
        let (digits, shift) = UNITS
            .iter()
            .find_map(|(unit, shift)| Some((short.strip_suffix(unit)?, *shift)))
            .unwrap_or((text, 0));
        let number: u64 = digits.parse().map_err(|_| bad())?;
        number.checked_mul(1 << shift).map(Size).ok_or_else(bad)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |shift: u32| self.0 != 0 && self.0.is_multiple_of(1 << shift);
        match UNITS.iter().find(|(_, shift)| whole(*shift)) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrText;
        impl Visitor<'_> for NumberOrText {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or a text such as \"2M\"")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Size, E> {
                let number = u64::try_from(number);
                number
                    .map(Size)
                    .map_err(|_| E::custom("a size is not negative"))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Size, E> {
                Ok(Size(number))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(NumberOrText)
    }
}

/// Permission bits, with set-id and sticky bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub u32);

impl FromStr for Mode {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Mode, ValueError> {
        let digits = text.strip_prefix("0o").unwrap_or(text);
        let octal = digits.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
        match u32::from_str_radix(digits, 8) {
            Ok(mode) if octal && mode <= 0o7777 => Ok(Mode(mode)),
            _ => Err(ValueError::Mode(text.to_owned())),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// A user and a group, by number: names mean nothing outside the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl FromStr for Owner {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Owner, ValueError> {
        let bad = || ValueError::Owner(text.to_owned());
        let (uid, gid) = text.split_once(':').ok_or_else(bad)?;
        let number = |digits: &str| digits.parse().map_err(|_| bad());
        Ok(Owner {
            uid: number(uid)?,
            gid: number(gid)?,
        })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

/// Gives a type that parses from text and displays as text its place in files and reports.
macro_rules! textual {
    ($($name:ty),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}
textual!(Mode, Owner);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_in_every_notation() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4K", 4096),
            ("2M", 2 << 20),
            ("2MiB", 2 << 20),
            ("1G", 1 << 30),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for bad in ["", "M", "-1", "1.5M", "2MB", "2 M", "99999999999G", "0x10"] {
            assert_eq!(bad.parse::<Size>(), Err(ValueError::Size(bad.to_owned())));
        }
    }

    #[test]
    fn modes_and_owners_are_read_strictly() {
        assert_eq!("0644".parse(), Ok(Mode(0o644)));
        assert_eq!("0o4755".parse(), Ok(Mode(0o4755)));
        for bad in ["", "0o", "+755", "8", "17777", "rwx"] {
            assert!(bad.parse::<Mode>().is_err(), "{bad:?}");
        }
        assert_eq!("1:2".parse(), Ok(Owner { uid: 1, gid: 2 }));
        for bad in ["", "1", ":", "root:root", "1:2:3", "-1:0"] {
            assert!(bad.parse::<Owner>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_word_that_is_no_place_is_a_path() {
        assert_eq!(BaseChoice::from("none"), BaseChoice::None);
        assert_eq!(BaseChoice::from("debian"), BaseChoice::Debian);
        assert_eq!(
            BaseChoice::from("./debian"),
            BaseChoice::Path("./debian".into())
        );
    }

    proptest! {
        #[test]
        fn what_is_displayed_parses_back(bytes: u64, mode in 0u32..0o10000, uid: u32, gid: u32) {
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
            prop_assert_eq!(Mode(mode).to_string().parse(), Ok(Mode(mode)));
            prop_assert_eq!(Owner { uid, gid }.to_string().parse(), Ok(Owner { uid, gid }));
        }

        #[test]
        fn no_text_makes_a_parser_fall_over(text: String) {
            let _ = (text.parse::<Size>(), text.parse::<Mode>(), text.parse::<Owner>());
        }
    }
}
