// SPDX-License-Identifier: Apache-2.0
//! Kernels as the builder's verbs see them: what a given kernel lacks for the guest and for a given image.
//!
//! Finds the configuration and reads the image; what is needed and how it is judged is in [`guest_kernel::lint`].

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use guest_kernel::config::{BadLine, Config, check_config};
use guest_kernel::fragments::{self, FragmentError};
use guest_kernel::lint::{self, Lack, Lint};
use guest_kernel::store::StoreError;
use serde::Serialize;

use crate::image::read::{self, Format, ReadError, requirements::requirements};

pub use guest_kernel::{
    Arch, BuildOptions, Concern, Kernel, Module, Source, build, fetch, fetch_newest,
};

/// No configuration is larger when unpacked.
const MAX_CONFIG: u64 = 16 << 20;

/// What a kernel with `CONFIG_IKCONFIG` has before its gzipped configuration.
const EMBEDDED: &[u8] = b"IKCFG_ST";

/// Why a kernel could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The configuration cannot be read.
    #[error("Cannot read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration is none.
    #[error("{path} is no kernel configuration", path = path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The line that is no option.
        source: BadLine,
    },
    /// The file is no text.
    #[error("{path} is no kernel configuration, nor an uncompressed kernel with one inside", path = path.display())]
    Binary {
        /// The file.
        path: PathBuf,
    },
    /// A directory holds none.
    #[error("{path} has neither kernel.json nor .config nor config", path = path.display())]
    NoConfig {
        /// The directory.
        path: PathBuf,
    },
    /// A directory of the cache's is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It does not say which architecture it is for.
    #[error("{path} is for neither x86_64 nor aarch64; say with --arch which it should be checked for", path = path.display())]
    Arch {
        /// The file.
        path: PathBuf,
    },
    /// The fragments asked for cannot be read.
    #[error(transparent)]
    Fragment(#[from] FragmentError),
    /// The image cannot be read.
    #[error("Cannot tell what the image needs of its kernel")]
    Image(#[from] ReadError),
}

/// What to check a kernel against.
#[derive(Clone, Debug, Default)]
pub struct Against {
    /// The architecture; the one the configuration says it is for if not given.
    pub arch: Option<Arch>,
    /// An image it is to boot, besides what every guest needs.
    pub image: Option<PathBuf>,
    /// These fragments instead of what the guest needs; every option in them is required.
    pub fragments: Vec<PathBuf>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// The configuration that was checked.
    pub config: PathBuf,
    /// The architecture's name.
    pub arch: &'static str,
    /// The image it was checked for.
    pub image: Option<PathBuf>,
    /// What is lacking.
    #[serde(flatten)]
    pub lint: Lint,
}

/// Checks the kernel at `path`: a configuration as text or gzipped, an uncompressed kernel with one inside, or a directory that holds
/// one.
pub fn check(path: &Path, against: &Against) -> Result<Checked, CheckError> {
    let config = find(path)?;
    let actual = config_of(&config)?;
    let lint = if against.fragments.is_empty() {
        None
    } else {
        Some(against_fragments(&actual, &against.fragments)?)
    };
    let arch = match against.arch.or_else(|| actual.arch()) {
        Some(arch) => arch,
        None if lint.is_some() => Arch::host().unwrap_or(Arch::X86_64),
        None => return Err(CheckError::Arch { path: config }),
    };
    let lint = match lint {
        Some(lint) => lint,
        None => {
            let image = against.image.as_deref().map(needs_of).transpose()?;
            lint::lint(&actual, arch, image.as_ref())?
        }
    };
    Ok(Checked {
        config,
        arch: arch.name(),
        image: against.image.clone(),
        lint,
    })
}

fn against_fragments(actual: &Config, files: &[PathBuf]) -> Result<Lint, CheckError> {
    let missing = check_config(&fragments::merge(files)?, actual).into_iter();
    let lack = |m: guest_kernel::config::Missing| Lack {
        option: m.option,
        wanted: m.requested,
        has: m.actual,
        concern: None,
        reason: None,
    };
    Ok(Lint {
        required: missing.map(lack).collect(),
        ..Lint::default()
    })
}

/// The configuration's file: the path itself, or the one in a directory of the cache's or of a kernel build.
fn find(path: &Path) -> Result<PathBuf, CheckError> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    if path.join("kernel.json").is_file() {
        return Ok(Kernel::load(path)?.config);
    }
    let places = [".config", "config"].map(|name| path.join(name));
    let found = places.into_iter().find(|place| place.is_file());
    found.ok_or_else(|| CheckError::NoConfig {
        path: path.to_owned(),
    })
}

fn config_of(path: &Path) -> Result<Config, CheckError> {
    let failed = |source| CheckError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = fs::read(path).map_err(failed)?;
    let gzip = [0x1f, 0x8b];
    let embedded = bytes
        .windows(EMBEDDED.len() + gzip.len())
        .position(|window| window.starts_with(EMBEDDED) && window.ends_with(&gzip));
    let binary = || CheckError::Binary {
        path: path.to_owned(),
    };
    if let Some(at) = embedded {
        // In a compressed kernel the mark may be readable, but not what follows it.
        bytes = unpacked(&bytes[at + EMBEDDED.len()..]).map_err(|_| binary())?;
    } else if bytes.starts_with(&gzip) {
        bytes = unpacked(&bytes).map_err(failed)?;
    }
    let text = String::from_utf8(bytes).map_err(|_| binary())?;
    Config::parse(&text).map_err(|source| CheckError::Config {
        path: path.to_owned(),
        source,
    })
}

fn unpacked(gzipped: &[u8]) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut unpacker = GzDecoder::new(gzipped).take(MAX_CONFIG);
    unpacker.read_to_end(&mut text).map(|_| text)
}

/// What an image needs of its kernel.
fn needs_of(path: &Path) -> Result<lint::Image, ReadError> {
    let image = read::open(path)?;
    let requirements = requirements(&image).into_iter();
    let name = |line: &String| {
        let path = line.split_whitespace().next()?;
        let stem = Path::new(path).file_name()?.to_str()?.split(".ko").next()?;
        Some(stem.replace('-', "_"))
    };
    Ok(lint::Image {
        requirements: requirements
            .map(|(option, reason)| (option.to_owned(), reason))
            .collect(),
        // What is no archive and no directory, the kernel mounts itself.
        is_root: matches!(image.format, Format::Disk | Format::Ext4 | Format::Erofs),
        modules: image
            .modules()
            .iter()
            .filter_map(name)
            .collect::<BTreeSet<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    use crate::image::cpio;
    use crate::tree::{Entry, Tree};

    fn ours(arch: Arch) -> String {
        let own = match arch {
            Arch::X86_64 => "CONFIG_X86_64=y\n",
            Arch::Aarch64 => "CONFIG_ARM64=y\n",
        };
        fragments::request(arch, &[], &[]).unwrap().to_text() + own
    }

    fn options(lacks: &[Lack]) -> Vec<&str> {
        lacks.iter().map(|lack| lack.option.as_str()).collect()
    }

    #[test]
    fn a_configuration_is_found_in_every_shape() {
        let dir = tempfile::tempdir().unwrap();
        let text = ours(Arch::Aarch64);
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(text.as_bytes()).unwrap();
        let packed = packed.finish().unwrap();
        let kernel = [b"MZ IKCFG_ST no IKCFG_ST", &packed[..], b"IKCFG_ED \xff"].concat();
        for (name, bytes) in [
            ("config", text.as_bytes()),
            ("config.gz", &packed),
            ("Image", &kernel),
        ] {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            let found = check(&path, &Against::default()).unwrap();
            assert_eq!(
                (found.arch, found.lint),
                ("aarch64", Lint::default()),
                "{name}"
            );
        }
        let found = check(dir.path(), &Against::default()).unwrap();
        assert_eq!(found.config, dir.path().join("config"));
        fs::rename(dir.path().join("config"), dir.path().join(".config")).unwrap();
        let found = check(dir.path(), &Against::default()).unwrap();
        assert_eq!(found.config, dir.path().join(".config"));
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            check(&path, &Against::default()).unwrap_err()
        };
        assert!(matches!(
            refused(b"not a kernel's\n"),
            CheckError::Config { .. }
        ));
        assert!(matches!(refused(b"\x7fELF\xff"), CheckError::Binary { .. }));
        assert!(matches!(refused(b"\x1f\x8bcut"), CheckError::Read { .. }));
        assert!(matches!(
            refused(b"MZ IKCFG_ST\x1f\x8bcut"),
            CheckError::Binary { .. }
        ));
        assert!(matches!(refused(b"CONFIG_A=y\n"), CheckError::Arch { .. }));
        let nothing = check(dir.path(), &Against::default()).unwrap_err();
        assert!(matches!(nothing, CheckError::NoConfig { .. }));
    }

    #[test]
    fn own_fragments_take_the_place_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        let (config, fragment) = (dir.path().join("config"), dir.path().join("fragment"));
        fs::write(&config, "CONFIG_A=y\n# CONFIG_B is not set\n").unwrap();
        fs::write(&fragment, "CONFIG_A=y\nCONFIG_B=y\n").unwrap();
        let against = Against {
            fragments: vec![fragment],
            ..Against::default()
        };
        let found = check(&config, &against).unwrap();
        assert_eq!(options(&found.lint.required), ["B"]);
        assert!(found.lint.wished.is_empty());
    }

    #[test]
    fn an_image_says_what_it_needs() {
        let dir = tempfile::tempdir().unwrap();
        let (config, image) = (dir.path().join("config"), dir.path().join("image"));
        let text = ours(Arch::X86_64)
            .replace("CONFIG_BLK_DEV_INITRD=y\n", "")
            .replace("CONFIG_OVERLAY_FS=y\n", "CONFIG_OVERLAY_FS=m\n");
        fs::write(&config, text).unwrap();
        let found = check(&config, &Against::default()).unwrap();
        assert_eq!(options(&found.lint.wished), ["BLK_DEV_INITRD"]);
        assert_eq!(found.lint.modules["OVERLAY_FS"], "overlay");
        let against = Against {
            image: Some(image.clone()),
            ..Against::default()
        };
        let mut tree = Tree::default();
        tree.insert("init", Entry::bytes("#!/bin/sh\n", 0o755))
            .unwrap();
        let write = |tree: &Tree| {
            let mut file = fs::File::create(&image).unwrap();
            cpio::write(tree, 0, &mut file).unwrap();
        };
        write(&tree);
        let found = check(&config, &against).unwrap();
        assert_eq!(
            options(&found.lint.required),
            ["BLK_DEV_INITRD", "OVERLAY_FS"]
        );
        let list = "/lib/modules/6.0/overlay.ko x=y\n";
        tree.insert("lib/keelson/modules.load", Entry::bytes(list, 0o644))
            .unwrap();
        write(&tree);
        let found = check(&config, &against).unwrap();
        assert!(options(&found.lint.required).starts_with(&["BLK_DEV_INITRD"]));
        assert_eq!(found.lint.modules["OVERLAY_FS"], "overlay");
    }
}
