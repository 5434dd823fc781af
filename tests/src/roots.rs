// SPDX-License-Identifier: Apache-2.0
//! Root images for the stories: what the builder makes of the tests' root file system, once for each shape, in the cache.
//!
//! The kernel under them is our own: it has its drivers built in and finds such a root by itself, as under a Kata host.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use guest_kernel::Arch;
use rootfs_builder::build::{self, Built};
use rootfs_builder::cache::Cache;
use rootfs_builder::definition::{
    BaseChoice, FileContent, FileEntry, Filesystem, Format, KernelChoice, Layer, Origin, resolve,
};
use rootfs_builder::image::disk;
use rootfs_builder::image::verity::Verity;
use rootfs_builder::progress::{Progress, Silent};
use rootfs_builder::toolchain;
use rootfs_builder::vm::{Firmware, Root, RootDevice, RootVerity};
use tempfile::TempDir;

use crate::artifacts;

pub use crate::rootfs::PROBE;

/// The variable that names the static probe; without it the probe is built.
pub const PROBE_VARIABLE: &str = "KEELSON_TEST_PROBE";

/// The images that the stories boot. Each is made once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Kata's disk layout with ext4.
    Ext4,
    /// The same with EROFS.
    Erofs,
    /// The same with EROFS, measured.
    Measured,
    /// A directory to share.
    Directory,
}

impl Shape {
    /// All shapes.
    const ALL: [Shape; 4] = [Shape::Ext4, Shape::Erofs, Shape::Measured, Shape::Directory];

    fn layer(self) -> Layer {
        let (format, filesystem) = match self {
            Shape::Ext4 => (Format::Disk, Some(Filesystem::Ext4)),
            Shape::Erofs | Shape::Measured => (Format::Disk, Some(Filesystem::Erofs)),
            Shape::Directory => (Format::Directory, None),
        };
        Layer {
            format: Some(format),
            filesystem,
            verity: Some(self == Shape::Measured),
            ..Layer::default()
        }
    }

    /// The image, made now if it has not been before.
    fn make(self, parts: &Parts, progress: &dyn Progress) -> Result<Built> {
        let base = artifacts::base_of_roots(parts, progress)?;
        let layer = Layer {
            name: Some(format!("tests-{self:?}").to_lowercase()),
            arch: Some(parts.arch),
            base: Some(BaseChoice::Path(base)),
            kernel: Some(KernelChoice::Built),
            binary: Some(parts.agent.clone()),
            ..self.layer()
        };
        made(layer, progress)
    }

    /// The image for a story.
    pub async fn image(self) -> Built {
        let make = move || self.make(&Parts::of_environment()?, &Silent);
        let made = tokio::task::spawn_blocking(make).await;
        let made = made.unwrap_or_else(|e| panic!("The maker of {self:?} fell over: {e}"));
        made.unwrap_or_else(|e| panic!("{self:?} cannot be made: {e:#}"))
    }

    /// The image as a guest's root.
    pub async fn root(self, how: RootDevice) -> Root {
        root_of(&self.image().await, how)
    }
}

/// What was built as a guest's root, with the page cache passed by where the device allows it.
pub fn root_of(built: &Built, how: RootDevice) -> Root {
    let maps = matches!(how, RootDevice::Nvdimm | RootDevice::VirtioPmem);
    let verity = built.verity_params.as_deref().map(|params| {
        let verity = Verity::parse_params(params);
        RootVerity {
            verity: verity.unwrap_or_else(|e| panic!("{params} of a build: {e}")),
            hashes: built.hash_tree.clone(),
        }
    });
    Root {
        fstype: built.filesystem.clone(),
        dax: maps && verity.is_none(),
        verity,
        ..Root::new(how, &built.image)
    }
}

/// A guest extension named `name` with these files (place and text), and whether it is measured.
pub fn extension(name: &str, files: &[(&str, &str)], verity: bool) -> Result<Built> {
    let file = |(target, text): &(&str, &str)| FileEntry {
        target: target.into(),
        what: FileContent::Text((*text).to_owned()),
        mode: None,
        owner: None,
    };
    let layer = Layer {
        name: Some(format!("tests-extension-{name}")),
        arch: Some(artifacts::arch()),
        format: Some(Format::Extension),
        extension: Some(name.to_owned()),
        verity: Some(verity),
        files: files.iter().map(file).collect(),
        ..Layer::default()
    };
    made(layer, &Silent)
}

fn made(layer: Layer, progress: &dyn Progress) -> Result<Built> {
    let resolved = resolve(vec![(Origin::Flag, layer)])?;
    Ok(build::build(
        &resolved.definition,
        &Cache::open()?,
        progress,
    )?)
}

/// What the images are made of besides the tests' root file system.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The guests' architecture.
    pub arch: Arch,
    /// The agent's static binary.
    pub agent: PathBuf,
    /// The static program that reports what a container sees.
    pub probe: PathBuf,
}

impl Parts {
    /// For the architecture of the VMs: what the environment names, and what it does not is built.
    pub(crate) fn of_environment() -> Result<Parts> {
        Ok(Parts {
            arch: artifacts::arch(),
            agent: artifacts::static_agent()?,
            probe: artifacts::static_probe()?,
        })
    }

    /// Makes all images and the kernel that boots them, so that stories find them made.
    pub fn prepare(&self, progress: &dyn Progress) -> Result<()> {
        artifacts::built_kernel(self.arch, &Cache::open()?, progress)?;
        for shape in Shape::ALL {
            shape.make(self, progress)?;
        }
        Ok(())
    }
}

/// Builds the static program that reports what a container sees.
pub fn probe(arch: Arch, progress: &dyn Progress) -> Result<PathBuf> {
    let cache = Cache::open()?;
    Ok(toolchain::static_binary(
        "probe", "probe", arch, &cache, progress,
    )?)
}

/// A copy of an image to be spoilt, in a directory that goes when this is dropped.
#[derive(Debug)]
pub struct Copy {
    dir: TempDir,
}

impl Copy {
    /// Copies an image.
    pub fn of(image: &Path) -> Result<Copy> {
        let dir = TempDir::new().context("Cannot create a temporary directory")?;
        let copy = Copy { dir };
        fs::copy(image, copy.path()).with_context(|| format!("Cannot copy {}", image.display()))?;
        Ok(copy)
    }

    /// The copied file.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Flips a bit where `needle` first occurs.
    pub fn flip_bit_of(&self, needle: &[u8]) -> Result<()> {
        let bytes = fs::read(self.path())?;
        let at = bytes.windows(needle.len()).position(|part| part == needle);
        self.flip_bit_at(at.with_context(|| format!("The image does not hold {needle:?}"))?)
    }

    /// Flips a bit of the file system's superblock, which everybody reads first.
    pub fn flip_bit_of_superblock(&self) -> Result<()> {
        let parts = disk::read(&self.path())?;
        let start = parts.partitions.first().map_or(0, |part| part.start);
        self.flip_bit_at(usize::try_from(start)? + SUPERBLOCK)
    }

    fn flip_bit_at(&self, at: usize) -> Result<()> {
        let mut bytes = fs::read(self.path())?;
        bytes[at] ^= 1;
        fs::write(self.path(), bytes).context("Cannot write the spoilt image")
    }
}

/// Where EROFS and ext4 have their superblocks.
const SUPERBLOCK: usize = 1024;

/// The firmware under which the guest finds nvdimms: they are described in ACPI tables, which aarch64 has with UEFI only.
pub fn firmware_for_nvdimm() -> Firmware {
    match artifacts::arch() {
        Arch::X86_64 => Firmware::Direct,
        Arch::Aarch64 => Firmware::Uefi,
    }
}
