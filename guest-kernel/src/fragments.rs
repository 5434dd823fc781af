// SPDX-License-Identifier: Apache-2.0
//! The option fragments of this crate, compiled in, and their merge for one architecture.
//!
//! A concern has a fragment of its own, and a second one for what only one architecture has of it. Most are in every kernel; a
//! [`Concern`] is in those that ask for it.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::arch::Arch;
use crate::config::{BadLine, Config};

/// A fragment's file name and text.
type Fragment = (&'static str, &'static str);

macro_rules! fragment {
    ($name:literal) => {
        ($name, include_str!(concat!("../fragments/", $name)))
    };
}

/// What every guest kernel has, by concern. An option stands in one of them only.
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
    fragment!("vfio.config"),
    fragment!("crypto.config"),
];

const X86_64: &[Fragment] = &[
    fragment!("x86_64.config"),
    fragment!("nested-x86_64.config"),
    fragment!("vfio-x86_64.config"),
];
const AARCH64: &[Fragment] = &[
    fragment!("aarch64.config"),
    fragment!("vfio-aarch64.config"),
];

/// What a kernel has only if it is asked for. Its fragments come after those of every kernel, and may change their options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Concern {
    /// Hosts that are not trusted: TDX, SEV, pKVM, a TPM, attestation.
    Confidential,
    /// Looking into the kernel: tracing, symbols, complaints about what hangs. Slower.
    Debug,
}

/// A word that names no concern.
#[derive(Debug, thiserror::Error)]
#[error("Unknown concern {0:?}: {names} can be added", names = Concern::ALL.map(Concern::name).join(" and "))]
pub struct UnknownConcern(pub String);

impl Concern {
    /// Every concern that can be added.
    pub const ALL: [Concern; 2] = [Concern::Confidential, Concern::Debug];

    /// What it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Concern::Confidential => "confidential",
            Concern::Debug => "debug",
        }
    }

    /// Its fragments for an architecture.
    pub fn fragments(self, arch: Arch) -> &'static [Fragment] {
        match (self, arch) {
            (Concern::Confidential, Arch::X86_64) => &[
                fragment!("confidential.config"),
                fragment!("confidential-x86_64.config"),
            ],
            (Concern::Confidential, Arch::Aarch64) => &[
                fragment!("confidential.config"),
                fragment!("confidential-aarch64.config"),
            ],
            (Concern::Debug, _) => &[fragment!("debug.config")],
        }
    }
}

impl fmt::Display for Concern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Concern {
    type Err = UnknownConcern;

    fn from_str(word: &str) -> Result<Self, UnknownConcern> {
        let found = Concern::ALL.into_iter().find(|c| c.name() == word);
        found.ok_or_else(|| UnknownConcern(word.to_owned()))
    }
}

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

/// The fragments of every kernel for `arch` by name, in merge order: the shared ones, then the architecture's.
pub fn of(arch: Arch) -> impl Iterator<Item = Fragment> {
    let own = match arch {
        Arch::X86_64 => X86_64,
        Arch::Aarch64 => AARCH64,
    };
    SHARED.iter().chain(own).copied()
}

/// The fragment of every kernel that asks for an option.
pub fn asking(arch: Arch, option: &str) -> Result<Option<&'static str>, FragmentError> {
    for (name, text) in of(arch) {
        if parse(name, text)?.options().any(|(name, _)| name == option) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The merged request for `arch`: what every kernel has, the concerns in `with`, and the user's own fragment files last, so that
/// they win.
pub fn request(arch: Arch, with: &[Concern], extra: &[PathBuf]) -> Result<Config, FragmentError> {
    let mut merged = Config::default();
    // In their own order, so that the order of the words on a command line changes nothing.
    let concerns = Concern::ALL.iter().filter(|c| with.contains(c));
    for (name, text) in of(arch).chain(concerns.flat_map(|c| c.fragments(arch)).copied()) {
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
            // A concern may change an option, but not ask for one that every kernel has.
            let default = request(arch, &[], &[]).unwrap();
            for (name, text) in Concern::ALL.iter().flat_map(|c| c.fragments(arch)) {
                for (option, value) in parse(name, text).unwrap().options() {
                    assert_ne!(
                        default.value(option),
                        Some(value),
                        "CONFIG_{option} in {name}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_roots_need_is_built_in_by_default() {
        for arch in Arch::ALL {
            let request = request(arch, &[], &[]).unwrap();
            let own: &[&str] = match arch {
                Arch::X86_64 => &["PVH", "SERIAL_8250_CONSOLE"],
                Arch::Aarch64 => &["EFI_STUB", "SERIAL_AMBA_PL011_CONSOLE"],
            };
            let shared = [
                "VIRTIO_VSOCKETS",
                "VIRTIO_FS",
                "VIRTIO_BLK",
                "VIRTIO_PMEM",
                "VIRTIO_PCI",
                "VIRTIO_MMIO",
                "VIRTIO_MMIO_CMDLINE_DEVICES",
                "OVERLAY_FS",
                "TMPFS_XATTR",
                "EXT4_FS",
                "EROFS_FS",
                "FS_DAX",
                "FUSE_DAX",
                "ACPI_NFIT",
                "NVDIMM_PFN",
                "DM_INIT",
                "DM_VERITY",
                "CRYPTO_SHA256",
                "BLK_DEV_INITRD",
                "RD_GZIP",
                "RD_ZSTD",
                "RD_LZ4",
                "PCIEASPM",
            ];
            for option in shared.iter().chain(own) {
                assert_eq!(request.value(option), Some("y"), "{option} on {arch}");
            }
            assert_eq!(request.value("DUMMY"), None);
        }
    }

    #[test]
    fn concerns_are_added_and_may_change_what_every_kernel_has() {
        for arch in Arch::ALL {
            let plain = request(arch, &[], &[]).unwrap();
            assert_eq!(plain.value("DEBUG_FS"), None);
            assert_eq!(plain.value("TCG_TPM"), None);
            let with = [Concern::Debug, Concern::Confidential];
            let both = request(arch, &with, &[]).unwrap();
            assert_eq!(both.value("DEBUG_FS"), Some("y"));
            assert_eq!(both.value("TCG_TPM"), Some("y"));
            let turned = [Concern::Confidential, Concern::Debug, Concern::Debug];
            assert_eq!(request(arch, &turned, &[]).unwrap(), both);
        }
        let guest = [Concern::Confidential];
        let guest = request(Arch::X86_64, &guest, &[]).unwrap();
        for option in ["EFI", "INTEL_TDX_GUEST", "AMD_MEM_ENCRYPT", "SEV_GUEST"] {
            assert_eq!(guest.value(option), Some("y"), "{option}");
        }
    }

    #[test]
    fn a_concern_is_known_by_its_name() {
        for concern in Concern::ALL {
            assert_eq!(concern.to_string().parse::<Concern>().unwrap(), concern);
        }
        let error = "base".parse::<Concern>().unwrap_err().to_string();
        assert_eq!(
            error,
            "Unknown concern \"base\": confidential and debug can be added"
        );
    }

    #[test]
    fn the_users_fragment_wins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.config");
        fs::write(&path, "# CONFIG_XFS_FS is not set\nCONFIG_NFS_FS=y\n").unwrap();
        let request = request(Arch::X86_64, &[], std::slice::from_ref(&path)).unwrap();
        assert_eq!(
            (request.value("XFS_FS"), request.value("NFS_FS")),
            (None, Some("y"))
        );
        fs::write(&path, "NFS_FS=y\n").unwrap();
        let error = super::request(Arch::X86_64, &[], &[path]).unwrap_err();
        assert!(error.to_string().ends_with("mine.config cannot be read"));
    }
}
