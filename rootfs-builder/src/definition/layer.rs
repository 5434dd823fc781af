// SPDX-License-Identifier: Apache-2.0
//! One source of settings: a definition file, the command line, osbuilder's variables or a profile. Each says what it wants and leaves
//! the rest open.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use guest_kernel::Arch;
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

use super::profile::Profile;
use super::value::{BaseChoice, Filesystem, Format, KernelChoice, Mode, Owner, Size};
use crate::image::compress::Compression;

/// The version of the definition file's format that this program reads.
pub const SCHEMA: u32 = 1;

/// Why a definition file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read at all.
    #[error("Cannot read the definition {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what a definition may say.
    #[error("The definition {path} is wrong", path = path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        source: Box<toml::de::Error>,
    },
    /// It was written for another version.
    #[error("The definition {path} says schema = {schema}; this program reads schema = {SCHEMA}", path = path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// What it says.
        schema: u32,
    },
}

/// What one source says. Everything is optional but in a file the schema.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    /// See [`super::Definition::name`], and so on for all of them.
    pub name: Option<String>,
    /// The guest's architecture.
    pub arch: Option<Arch>,
    /// The profile whose settings are taken where nobody says otherwise.
    pub profile: Option<Profile>,
    /// Where the files come from.
    pub base: Option<BaseChoice>,
    /// Debian's release.
    pub suite: Option<String>,
    /// Debian's packages, besides those of the other sources.
    pub packages: Vec<String>,
    /// Files, besides those of the other sources.
    pub files: Vec<FileEntry>,
    /// Directories, besides those of the other sources.
    pub directories: Vec<DirectoryEntry>,
    /// Which kernel it is for.
    pub kernel: Option<KernelChoice>,
    /// Fragments of kernel options besides ours.
    pub fragments: Vec<String>,
    /// What comes out.
    pub format: Option<Format>,
    /// The file system on a disk.
    pub filesystem: Option<Filesystem>,
    /// How an initramfs or archive is compressed.
    pub compression: Option<Compression>,
    /// Whether a hash tree goes with it.
    pub verity: Option<bool>,
    /// Whether a disk has the header for DAX.
    pub dax: Option<bool>,
    /// What a disk's size is a multiple of.
    pub align: Option<Size>,
    /// Free space in an ext4 file system.
    pub free: Option<Size>,
    /// The VM's host name.
    pub hostname: Option<String>,
    /// Kernel words that belong to the image, besides those of the other sources.
    pub words: Vec<String>,
    /// The name of a guest extension.
    pub extension: Option<String>,
    /// Whether a shell goes in.
    pub shell: Option<bool>,
    /// The guest binary, instead of one built here.
    pub binary: Option<PathBuf>,
    /// Where the image goes.
    pub output: Option<PathBuf>,
}

/// A file, link or directory tree that is added.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "RawEntry")]
pub struct FileEntry {
    /// Where it goes.
    pub target: PathBuf,
    /// What it is.
    #[serde(flatten)]
    pub what: FileContent,
    /// Its permission bits; from the source's execute bit if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Its owner; root if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
}

/// What a [`FileEntry`] is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileContent {
    /// A file of the host, or a directory with all that is in it.
    Source(PathBuf),
    /// The text given.
    Text(String),
    /// A symbolic link to there.
    Link(PathBuf),
}

/// A directory that is made.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DirectoryEntry {
    /// Where.
    pub target: PathBuf,
    /// Its permission bits; 0755 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Its owner; root if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
}

/// A `[[files]]` table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    target: PathBuf,
    source: Option<PathBuf>,
    text: Option<String>,
    link: Option<PathBuf>,
    mode: Option<Mode>,
    owner: Option<Owner>,
}

impl TryFrom<RawEntry> for FileEntry {
    type Error = &'static str;

    fn try_from(raw: RawEntry) -> Result<FileEntry, &'static str> {
        let what = match (raw.source, raw.text, raw.link) {
            (Some(source), None, None) => FileContent::Source(source),
            (None, Some(text), None) => FileContent::Text(text),
            (None, None, Some(link)) => FileContent::Link(link),
            _ => return Err("a file has one of source, text and link"),
        };
        if matches!(what, FileContent::Link(_)) && raw.mode.is_some() {
            return Err("a link has no mode");
        }
        Ok(FileEntry {
            target: raw.target,
            what,
            mode: raw.mode,
            owner: raw.owner,
        })
    }
}

/// A definition file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    schema: u32,
    name: Option<String>,
    #[serde(default, deserialize_with = "arch")]
    arch: Option<Arch>,
    profile: Option<Profile>,
    base: Option<BaseChoice>,
    suite: Option<String>,
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    files: Vec<FileEntry>,
    #[serde(default)]
    directories: Vec<DirectoryEntry>,
    kernel: Option<KernelChoice>,
    #[serde(default)]
    fragments: Vec<String>,
    format: Option<Format>,
    filesystem: Option<Filesystem>,
    compression: Option<Compression>,
    verity: Option<bool>,
    dax: Option<bool>,
    align: Option<Size>,
    free: Option<Size>,
    hostname: Option<String>,
    #[serde(default)]
    words: Vec<String>,
    extension: Option<String>,
    shell: Option<bool>,
    binary: Option<PathBuf>,
    output: Option<PathBuf>,
}

fn arch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Arch>, D::Error> {
    let word = String::deserialize(deserializer)?;
    word.parse().map(Some).map_err(de::Error::custom)
}

impl From<RawFile> for Layer {
    fn from(raw: RawFile) -> Layer {
        Layer {
            name: raw.name,
            arch: raw.arch,
            profile: raw.profile,
            base: raw.base,
            suite: raw.suite,
            packages: raw.packages,
            files: raw.files,
            directories: raw.directories,
            kernel: raw.kernel,
            fragments: raw.fragments,
            format: raw.format,
            filesystem: raw.filesystem,
            compression: raw.compression,
            verity: raw.verity,
            dax: raw.dax,
            align: raw.align,
            free: raw.free,
            hostname: raw.hostname,
            words: raw.words,
            extension: raw.extension,
            shell: raw.shell,
            binary: raw.binary,
            output: raw.output,
        }
    }
}

impl Layer {
    /// Reads a definition file. Its relative paths are relative to the directory it lies in.
    pub fn read(path: &Path) -> Result<Layer, FileError> {
        let text = fs::read_to_string(path).map_err(|source| FileError::Read {
            path: path.to_owned(),
            source,
        })?;
        let raw = parse(&text).map_err(|source| FileError::Wrong {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        if raw.schema != SCHEMA {
            let path = path.to_owned();
            let schema = raw.schema;
            return Err(FileError::Schema { path, schema });
        }
        let mut layer = Layer::from(raw);
        layer.place(path.parent().unwrap_or(Path::new("")));
        Ok(layer)
    }

    /// Makes the host's paths in it relative to `dir`.
    fn place(&mut self, dir: &Path) {
        let place = |path: &mut PathBuf| *path = dir.join(&path);
        if let Some(BaseChoice::Path(path)) = &mut self.base {
            place(path);
        }
        for file in &mut self.files {
            if let FileContent::Source(path) = &mut file.what {
                place(path);
            }
        }
        self.binary.iter_mut().for_each(place);
        self.output.iter_mut().for_each(place);
        // A fragment is a concern by its name, or a file by its path.
        for fragment in &mut self.fragments {
            if fragment.contains('/') {
                *fragment = dir.join(&fragment).to_string_lossy().into_owned();
            }
        }
    }
}

fn parse(text: &str) -> Result<RawFile, toml::de::Error> {
    toml::from_str(text)
}

#[cfg(test)]
mod tests;
