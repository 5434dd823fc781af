// SPDX-License-Identifier: Apache-2.0
//! The verb `build`, and the options that say what an image is to be.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Result;
use clap::Args;
use guest_kernel::Arch;

use super::Context;
use crate::assemble::AssembleError;
use crate::build::BuildError;
use crate::definition::{
    self, BaseChoice, DirectoryEntry, FileContent, FileEntry, Filesystem, Format, KernelChoice,
    Layer, Mode, Origin, Owner, Profile, Resolved, Size, osbuilder,
};
use crate::image::compress::Compression;
use crate::{build as pipeline, setup};

/// Build an image: an initramfs, a disk, a file system, an archive or a guest extension
///
/// What it is to be is said by a definition file, a profile, and the options here, which are the strongest. Without any it is the
/// guest binary alone, as an initramfs for a distributor's kernel.
#[derive(Debug, Args)]
pub struct BuildArgs {
    #[command(flatten)]
    definition: DefinitionArgs,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Install what is missing on the host first
    #[arg(long)]
    setup: bool,
}

/// What an image is to be.
#[derive(Clone, Debug, Default, Args)]
pub struct DefinitionArgs {
    /// The definition file (TOML)
    #[arg(short = 'f', long = "definition", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Follow the environment variables of Kata's osbuilder
    #[arg(long)]
    from_env: bool,
    /// Begin with the settings of a profile
    #[arg(long, value_enum)]
    profile: Option<Profile>,
    /// What the image is called in its manifest
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Write the image here instead of leaving it in the cache
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// The guest's architecture: x86_64 or aarch64; this machine's if not given
    #[arg(long, value_name = "ARCH")]
    arch: Option<Arch>,
    /// What comes out; an initramfs if not given
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// The file system on a disk; erofs if not given
    #[arg(long, value_enum)]
    filesystem: Option<Filesystem>,
    /// How an initramfs, archive or OCI layer is compressed
    #[arg(long, visible_alias = "compression", value_enum)]
    compress: Option<Compression>,
    /// Add a dm-verity hash tree
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    verity: Option<bool>,
    /// Give a disk the header that lets an nvdimm be mapped; done if not said otherwise, unless the disk is measured
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    dax: Option<bool>,
    /// Make a disk's size a multiple of this, such as 2M or 128M
    #[arg(long, value_name = "SIZE")]
    align: Option<Size>,
    /// Leave this much free in an ext4 file system
    #[arg(long, value_name = "SIZE")]
    free: Option<Size>,
    /// What goes in besides the guest binary: `none`, `debian`, or the path of a directory, an OCI image layout or archive
    #[arg(long, value_name = "none|debian|PATH")]
    base: Option<String>,
    /// The release of a Debian base
    #[arg(long, value_name = "NAME")]
    suite: Option<String>,
    /// Packages of a Debian base besides the essential ones
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    packages: Vec<String>,
    /// Add a file of the host, or a directory with all that is in it
    #[arg(long, value_name = "SOURCE:TARGET[:MODE[:UID:GID]]")]
    add: Vec<Addition>,
    /// Make a directory in the image
    #[arg(long, value_name = "TARGET[:MODE[:UID:GID]]")]
    mkdir: Vec<NewDirectory>,
    /// Add a static shell
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    shell: Option<bool>,
    /// The VM's host name until the host gives one
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// The kernel the image is for, whose modules go in; without it fetched for an initramfs, none for all else
    #[arg(long, value_enum)]
    kernel: Option<KernelChoice>,
    /// Build our kernel with these options too: confidential, debug, or the path of a fragment
    #[arg(long, value_name = "NAME|PATH")]
    fragment: Vec<String>,
    /// Record a kernel word that belongs to the image
    #[arg(long, value_name = "WORD")]
    word: Vec<String>,
    /// Build the guest extension of this name
    #[arg(long, value_name = "NAME")]
    extension: Option<String>,
    /// Take this guest binary instead of building it
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// `SOURCE:TARGET[:MODE[:UID:GID]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Addition(FileEntry);

/// `TARGET[:MODE[:UID:GID]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NewDirectory(DirectoryEntry);

impl FromStr for Addition {
    type Err = String;

    fn from_str(text: &str) -> Result<Addition, String> {
        let (source, rest) = text
            .split_once(':')
            .filter(|(source, target)| !source.is_empty() && !target.is_empty())
            .ok_or("a source and a target with a colon between them are needed")?;
        let NewDirectory(place) = rest.parse()?;
        Ok(Addition(FileEntry {
            target: place.target,
            what: FileContent::Source(source.into()),
            mode: place.mode,
            owner: place.owner,
        }))
    }
}

impl FromStr for NewDirectory {
    type Err = String;

    fn from_str(text: &str) -> Result<NewDirectory, String> {
        let mut parts = text.splitn(3, ':');
        let target = parts.next().unwrap_or_default();
        let mode = parts.next().map(str::parse::<Mode>).transpose();
        let owner = parts.next().map(str::parse::<Owner>).transpose();
        Ok(NewDirectory(DirectoryEntry {
            target: target.into(),
            mode: mode.map_err(|error| error.to_string())?,
            owner: owner.map_err(|error| error.to_string())?,
        }))
    }
}

impl DefinitionArgs {
    /// Puts all sources together.
    pub fn resolve(&self) -> Result<Resolved> {
        let mut sources = vec![(Origin::Flag, self.layer())];
        let mut notes = Vec::new();
        if self.from_env {
            let imported = osbuilder::from_env()?;
            sources.push((Origin::Environment, imported.layer));
            notes = imported.notes;
        }
        if let Some(file) = &self.file {
            sources.push((Origin::File, Layer::read(file)?));
        }
        let mut resolved = definition::resolve(sources)?;
        resolved.notes.extend(notes);
        Ok(resolved)
    }

    /// What the options say.
    fn layer(&self) -> Layer {
        let extension = self.extension.as_ref().map(|_| Format::Extension);
        Layer {
            name: self.name.clone(),
            arch: self.arch,
            profile: self.profile,
            base: self.base.as_deref().map(BaseChoice::from),
            suite: self.suite.clone(),
            packages: self.packages.clone(),
            files: self.add.iter().map(|added| added.0.clone()).collect(),
            directories: self.mkdir.iter().map(|made| made.0.clone()).collect(),
            kernel: self.kernel,
            fragments: self.fragment.clone(),
            // Nothing else has a name of an extension.
            format: self.format.or(extension),
            filesystem: self.filesystem,
            compression: self.compress,
            verity: self.verity,
            dax: self.dax,
            align: self.align,
            free: self.free,
            hostname: self.hostname.clone(),
            words: self.word.clone(),
            extension: self.extension.clone(),
            shell: self.shell,
            binary: self.binary.clone(),
            output: self.output.clone(),
        }
    }
}

/// Builds an image and prints what it is, or with `--dry-run` what would be done.
pub fn build(args: &BuildArgs, context: &Context<'_>) -> Result<()> {
    let Resolved {
        definition, notes, ..
    } = args.definition.resolve()?;
    for note in &notes {
        context.progress.note(&format!("note: {note}"));
    }
    if args.dry_run {
        return context.report(&pipeline::plan(&definition));
    }
    let needs = pipeline::needs(&definition, context.cache);
    setup::ensure(&needs, args.setup, context.cache, context.progress)?;
    let built = pipeline::build(&definition, context.cache, context.progress).map_err(opened)?;
    context.report(&built)
}

/// The error inside one that only passes it on: hints are found by an error's type, and such a one would hide it.
fn opened(error: BuildError) -> anyhow::Error {
    match error {
        BuildError::Assemble(AssembleError::Root(error)) => error.into(),
        BuildError::Assemble(error) => error.into(),
        BuildError::Toolchain(error) => error.into(),
        error => error.into(),
    }
}

#[cfg(test)]
mod tests;
