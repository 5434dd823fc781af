// SPDX-License-Identifier: Apache-2.0
//! What a definition must not say: settings that contradict each other or would be silently without effect.

use std::path::{Component, Path, PathBuf};

use guest_kernel::Concern;

use super::resolve::{Origin, Resolved};
use super::value::{BaseChoice, Filesystem, Format};
use super::{Definition, FileContent};

/// The serial number of a virtio-blk device has 20 bytes, `extension-` takes ten of them, and the guest finds the device by it.
const EXTENSION_NAME_MAX: usize = 10;

/// What partitions begin at multiples of, and the least that a disk's size is a multiple of.
const SMALLEST_ALIGN: u64 = 4096;

/// Why a definition makes no image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DefinitionError {
    /// No architecture is given and this machine's is none of ours.
    #[error("This machine's architecture is none the guest runs on, and the definition names none")]
    Arch,
    /// A setting is there that the rest of the definition has no use for.
    #[error("{key} = {value} ({origin}) goes with {with} only; this is {instead}")]
    Without {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// Who said so.
        origin: Origin,
        /// What it goes with.
        with: &'static str,
        /// What there is.
        instead: String,
    },
    /// A setting is missing.
    #[error("{format} needs {key}")]
    Needs {
        /// What comes out.
        format: Format,
        /// The setting.
        key: &'static str,
    },
    /// A value is not possible.
    #[error("{key} = {value:?} is not possible: {why}")]
    Value {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is.
        why: &'static str,
    },
    /// Nothing can be put there.
    #[error("{target} is no place inside an image: an absolute path without .. is", target = target.display())]
    Target {
        /// The place.
        target: PathBuf,
    },
}

impl DefinitionError {
    /// What the user can do about it, where that is not plain from the text.
    pub fn hint(&self) -> Option<String> {
        match self {
            DefinitionError::Arch => Some("say which with --arch".to_owned()),
            DefinitionError::Without {
                key: "verity",
                origin: Origin::Profile,
                ..
            } => Some("--verity=false gives up that the root is measured".to_owned()),
            DefinitionError::Without {
                key: "packages", ..
            } => Some("add --base debian, or take a base that has them".to_owned()),
            DefinitionError::Needs { key, .. } => Some(format!("give it with --{key}")),
            _ => None,
        }
    }
}

/// Refuses what contradicts itself.
pub fn check(resolved: &Resolved) -> Result<(), DefinitionError> {
    let definition = &resolved.definition;
    use_of_settings(resolved)?;
    names(definition)?;
    targets(definition)?;
    let align = definition.align.map_or(SMALLEST_ALIGN, |size| size.0);
    if align == 0 || !align.is_multiple_of(SMALLEST_ALIGN) {
        return Err(DefinitionError::Value {
            key: "align",
            value: align.to_string(),
            why: "a multiple of 4096 is, since file systems are read in pages",
        });
    }
    Ok(())
}

/// Every setting that somebody made must have an effect.
fn use_of_settings(resolved: &Resolved) -> Result<(), DefinitionError> {
    let definition = &resolved.definition;
    let format = definition.format;
    let instead = format!("format = {format}");
    let need = |key: &'static str, fits: bool, with: &'static str, instead: &str| {
        let said = resolved
            .settings
            .iter()
            .find(|s| s.key == key && s.origin != Origin::Default);
        match said {
            Some(setting) if !fits => Err(DefinitionError::Without {
                key,
                value: setting.value.clone(),
                origin: setting.origin,
                with,
                instead: instead.to_owned(),
            }),
            _ => Ok(()),
        }
    };
    let debian = definition.base == BaseChoice::Debian;
    let base = format!("base = {}", definition.base);
    need("packages", debian, "base = debian", &base)?;
    need("suite", debian, "base = debian", &base)?;
    let verity = !definition.verity || format.takes_verity();
    need(
        "verity",
        verity,
        "a disk, ext4, erofs or extension",
        &instead,
    )?;
    let dax = !definition.dax || format == Format::Disk;
    need("dax", dax, "a disk", &instead)?;
    need(
        "align",
        format.is_partitioned(),
        "a disk or extension",
        &instead,
    )?;
    let compression = format.takes_compression(definition.compression);
    need(
        "compression",
        compression,
        "an initramfs or tar, or but for lz4 an oci layout",
        &instead,
    )?;
    let extension = format == Format::Extension;
    need("extension", extension, "format = extension", &instead)?;
    let erofs = definition.filesystem == Filesystem::Erofs;
    need("filesystem", !extension || erofs, "a disk", &instead)?;
    let ext4 = definition.root_filesystem() == Some(Filesystem::Ext4);
    let filesystem = format!("format = {format}, filesystem = {}", definition.filesystem);
    need("free", ext4 || definition.free.0 == 0, "ext4", &filesystem)?;
    need("hostname", format.is_root(), "a root", &instead)?;
    need("binary", format.is_root(), "a root", &instead)?;
    need(
        "shell",
        format.is_root() || !definition.shell,
        "a root",
        &instead,
    )
}

fn names(definition: &Definition) -> Result<(), DefinitionError> {
    let refuse = |key, value: &str, why| {
        let value = value.to_owned();
        Err(DefinitionError::Value { key, value, why })
    };
    let plain = |text: &str, also: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || also.contains(c))
    };
    if !plain(&definition.name, "._-") {
        return refuse(
            "name",
            &definition.name,
            "letters, digits, '.', '_' and '-' are",
        );
    }
    if let Some(hostname) = &definition.hostname
        && (!plain(hostname, ".-") || hostname.len() > 64)
    {
        let why = "at most 64 letters, digits, '.' and '-' are";
        return refuse("hostname", hostname, why);
    }
    match &definition.extension {
        None if definition.format == Format::Extension => Err(DefinitionError::Needs {
            format: Format::Extension,
            key: "extension",
        }),
        Some(name) if !plain(name, "-") || name.len() > EXTENSION_NAME_MAX => refuse(
            "extension",
            name,
            "at most ten letters, digits and '-' are, since the disk's serial number is extension-NAME in 20 bytes",
        ),
        _ => words(definition).and_then(|()| fragments(definition)),
    }
}

fn fragments(definition: &Definition) -> Result<(), DefinitionError> {
    let known = |name: &str| name.contains('/') || name.parse::<Concern>().is_ok();
    match definition.fragments.iter().find(|name| !known(name)) {
        Some(name) => Err(DefinitionError::Value {
            key: "fragments",
            value: name.clone(),
            why: "confidential, debug and the path of a file, with a '/' in it, are",
        }),
        None => Ok(()),
    }
}

fn words(definition: &Definition) -> Result<(), DefinitionError> {
    let broken = |word: &&String| {
        word.is_empty()
            || word.contains(|c: char| c.is_control() || (c == ' ' && !word.contains('"')))
    };
    match definition.words.iter().find(broken) {
        Some(word) => Err(DefinitionError::Value {
            key: "words",
            value: word.clone(),
            why: "one word each is, with blanks inside double quotes only",
        }),
        None => Ok(()),
    }
}

fn targets(definition: &Definition) -> Result<(), DefinitionError> {
    // Only a directory of the host can be laid over the root itself.
    let files = definition.files.iter().map(|file| {
        let root = matches!(file.what, FileContent::Source(_));
        (&file.target, root)
    });
    let directories = definition.directories.iter().map(|d| (&d.target, false));
    for (target, root) in files.chain(directories) {
        if !is_place(target, root) {
            return Err(DefinitionError::Target {
                target: target.clone(),
            });
        }
    }
    Ok(())
}

fn is_place(target: &Path, root: bool) -> bool {
    let plain = target
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    target.is_absolute() && plain && (root || target != Path::new("/"))
}
