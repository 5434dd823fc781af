// SPDX-License-Identifier: Apache-2.0
//! The `X-kata.` words of a layer (protocol 5.7), checked. Knows nothing of the
//! other layers.

use std::path::{Component, Path, PathBuf};

use super::verity::LayerVerity;
use crate::storage::StorageError;
use crate::storage::plan::Claim;

/// GPT has room for this many (UEFI specification, table header).
const MOST_PARTITIONS: u32 = 128;
/// Directories that one request may have made.
const MOST_DIRECTORIES: usize = 64;

/// Which side of the overlay a layer is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Upper,
    Lower,
}

/// What a layer's words say.
#[derive(Debug, Default)]
pub(super) struct Words {
    pub side: Option<Side>,
    /// The layer is a partition of its disk.
    pub partition: Option<u32>,
    pub directories: Vec<Directory>,
    pub verity: Option<LayerVerity>,
}

/// A directory to be made in a layer before they are put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Directory {
    pub side: Side,
    /// Below the layer's root, plain.
    pub path: PathBuf,
}

impl Words {
    pub(super) fn read(claim: &Claim<'_>) -> Result<Self, StorageError> {
        let mut words = Self::default();
        let (mut partitioned, mut number) = (false, None);
        let mut verity = LayerVerity::default();
        let mut verified = false;
        for &word in &claim.layer_words {
            let refuse = |reason| claim.refuse("options", word, reason);
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key.strip_prefix("X-kata.").unwrap_or_default() {
                "multi-layer" => {}
                "overlay-upper" => words.take_side(Side::Upper).map_err(refuse)?,
                "overlay-lower" => words.take_side(Side::Lower).map_err(refuse)?,
                "gpt-partitioned" => partitioned = value == "true",
                "partition-number" => {
                    number = Some(
                        partition(value).ok_or_else(|| refuse("it is no partition's number"))?,
                    )
                }
                "mkdir.path" => words
                    .directories
                    .extend(directories(value).map_err(refuse)?),
                "dmverity-enabled" => verified = value == "true",
                other => match other.strip_prefix("dmverity.") {
                    Some(key) => verity.take(key, value).map_err(refuse)?,
                    None => return Err(refuse("it is unknown")),
                },
            }
        }
        if partitioned != number.is_some() {
            let reason = "a partitioned disk and a partition's number need each other";
            return Err(claim.refuse("options", "X-kata.gpt-partitioned", reason));
        }
        words.partition = number;
        if verified {
            let checked = verity.check();
            words.verity = Some(verity);
            checked.map_err(StorageError::Verity)?;
        }
        if words.directories.len() > MOST_DIRECTORIES {
            return Err(claim.refuse("options", "X-kata.mkdir.path", "too many directories"));
        }
        Ok(words)
    }

    fn take_side(&mut self, side: Side) -> Result<(), &'static str> {
        match self.side.replace(side) {
            Some(other) if other != side => Err("a layer cannot be upper and lower"),
            _ => Ok(()),
        }
    }
}

fn partition(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = digits.then(|| text.parse().ok()).flatten();
    number.filter(|number| (1..=MOST_PARTITIONS).contains(number))
}

/// `{{ mount 0 }}/path:{{ mount 1 }}/path`: mount 0 is the upper layer, mount 1 the
/// first lower one.
fn directories(text: &str) -> Result<Vec<Directory>, &'static str> {
    text.split(':').map(directory).collect()
}

fn directory(text: &str) -> Result<Directory, &'static str> {
    let inner = text
        .strip_prefix("{{")
        .and_then(|rest| rest.split_once("}}"));
    let (mount, path) = inner.ok_or("it does not begin with {{ mount N }}")?;
    let number = mount.trim().strip_prefix("mount").map(str::trim);
    let side = match number {
        Some("0") => Side::Upper,
        Some("1") => Side::Lower,
        _ => return Err("only mounts 0 and 1 can be named"),
    };
    let components = Path::new(path).components();
    let plain: PathBuf = components.filter(|c| *c != Component::RootDir).collect();
    let names = plain
        .components()
        .all(|c| matches!(c, Component::Normal(_)));
    match names && plain.components().next().is_some() && !path.contains('\0') {
        true => Ok(Directory { side, path: plain }),
        false => Err("it is not a path below the layer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_stay_in_their_layer() {
        let made = directories("{{ mount 0 }}/upper:{{mount 1}}/a/./b").unwrap();
        let expected = [(Side::Upper, "upper"), (Side::Lower, "a/b")];
        let expected = expected.map(|(side, path)| Directory {
            side,
            path: path.into(),
        });
        assert_eq!(made, expected);
        for bad in [
            "",
            "/upper",
            "{{ mount 0 }}",
            "{{ mount 0 }}/",
            "{{ mount 2 }}/x",
            "{{ mount 0 }}/../x",
            "{{ mount 0 }}/a/..",
            "{{ mount }}/x",
            "{{ mount 0 /x",
            "{{ mount 0 }}/x:",
        ] {
            assert!(directories(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn partitions_are_numbered_from_one() {
        assert_eq!(partition("128"), Some(128));
        for bad in ["", "0", "129", "-1", "+1", "x", "99999999999"] {
            assert_eq!(partition(bad), None, "{bad}");
        }
    }
}
