// SPDX-License-Identifier: Apache-2.0
//! The option fragments of this crate, compiled in, and their merge for one architecture.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::arch::Arch;
use crate::config::{BadLine, Config};

/// A fragment's file name and text.
type Fragment = (&'static str, &'static str);

macro_rules! fragment {
    ($name:literal) => {
        ($name, include_str!(concat!("../fragments/", $name)))
    };
}

/// What every guest kernel has, by concern. An option stands in one fragment only.
const SHARED: &[Fragment] = &[
    fragment!("base.config"),
    fragment!("namespaces-cgroups.config"),
    fragment!("security.config"),
    fragment!("memory.config"),
    fragment!("hotplug.config"),
    fragment!("virtio.config"),
    fragment!("block.config"),
    fragment!("dax.config"),
    fragment!("filesystems.config"),
    fragment!("network.config"),
    fragment!("netfilter.config"),
    fragment!("devices.config"),
    fragment!("nested.config"),
    fragment!("crypto.config"),
];

const X86_64: Fragment = fragment!("x86_64.config");
const AARCH64: Fragment = fragment!("aarch64.config");

/// Why fragments could not be merged.
#[derive(Debug, thiserror::Error)]
pub enum FragmentError {
    /// A fragment has a line that is no option.
    #[error("Fragment {name} cannot be read")]
    Line {
        /// The fragment's file name or path.
        name: String,
        /// The line.
        source: BadLine,
    },
    /// A fragment of the user's could not be read.
    #[error("Cannot read fragment {path}", path = path.display())]
    Io {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The fragments for `arch` by name, in merge order: the shared ones, then the architecture's.
pub fn of(arch: Arch) -> impl Iterator<Item = Fragment> {
    let own = match arch {
        Arch::X86_64 => X86_64,
        Arch::Aarch64 => AARCH64,
    };
    SHARED.iter().copied().chain([own])
}

/// The merged request for `arch`, with the user's own fragment files last, so that they win.
pub fn request(arch: Arch, extra: &[PathBuf]) -> Result<Config, FragmentError> {
    let mut merged = Config::default();
    for (name, text) in of(arch) {
        merged.merge(parse(name, text)?);
    }
    merged.merge(merge(extra)?);
    Ok(merged)
}

/// The merge of fragment files; the later one wins.
pub fn merge(files: &[PathBuf]) -> Result<Config, FragmentError> {
    let mut merged = Config::default();
    for path in files {
        let text = fs::read_to_string(path).map_err(|source| FragmentError::Io {
            path: path.clone(),
            source,
        })?;
        merged.merge(parse(&name_of(path), &text)?);
    }
    Ok(merged)
}

fn name_of(path: &Path) -> String {
    path.display().to_string()
}

fn parse(name: &str, text: &str) -> Result<Config, FragmentError> {
    Config::parse(text).map_err(|source| FragmentError::Line {
        name: name.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn no_option_stands_in_two_fragments() {
        for arch in Arch::ALL {
            let mut seen = BTreeMap::new();
            for (name, text) in of(arch) {
                for (option, _) in parse(name, text).unwrap().options() {
                    let before = seen.insert(option.to_owned(), name);
                    assert_eq!(before, None, "CONFIG_{option} is in {name} too");
                }
            }
            assert!(seen.len() > 300);
        }
    }

    #[test]
    fn what_the_boot_depends_on_is_asked_for() {
        for arch in Arch::ALL {
            let request = request(arch, &[]).unwrap();
            for option in [
                "VIRTIO_VSOCKETS",
                "VIRTIO_FS",
                "OVERLAY_FS",
                "EXT4_FS",
                "BLK_DEV_INITRD",
                "PCIEASPM",
            ] {
                assert_eq!(request.value(option), Some("y"), "{option} on {arch}");
            }
            assert_eq!(request.value("DUMMY"), None);
        }
    }

    #[test]
    fn the_users_fragment_wins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.config");
        fs::write(&path, "# CONFIG_XFS_FS is not set\nCONFIG_NFS_FS=y\n").unwrap();
        let request = request(Arch::X86_64, std::slice::from_ref(&path)).unwrap();
        assert_eq!(
            (request.value("XFS_FS"), request.value("NFS_FS")),
            (None, Some("y"))
        );
        fs::write(&path, "NFS_FS=y\n").unwrap();
        let error = super::request(Arch::X86_64, &[path]).unwrap_err();
        assert!(error.to_string().ends_with("mine.config cannot be read"));
    }
}
