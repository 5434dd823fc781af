// SPDX-License-Identifier: Apache-2.0
//! What an image given by the user is, and how it becomes a guest's root: told by its first bytes, and by the manifest that lies beside it.
//!
//! Reads a few bytes of the image. Whether its content is whole is the `verify` verb's business.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use guest_kernel::Arch;

use super::boot::BootArgs;
use crate::build::hash_file;
use crate::image::disk::{self, DiskError, Parts};
use crate::image::read::{self, ReadError};
use crate::manifest::{Manifest, ManifestError};
use crate::vm::{Firmware, Machine, Root, RootDevice, RootVerity};

/// How an initramfs begins: cpio in its two forms, gzip, zstd, lz4, xz.
const ARCHIVES: &[&[u8]] = &[
    b"070701",
    b"070702",
    &[0x1f, 0x8b],
    &[0x28, 0xb5, 0x2f, 0xfd],
    &[0x02, 0x21, 0x4c, 0x18],
    &[0xfd, b'7', b'z', b'X', b'Z'],
];

/// Kernel words that say where the root is and how it is mounted.
const ROOT_WORDS: &[&str] = &[
    "root",
    "rootfstype",
    "rootflags",
    "rootwait",
    "ro",
    "rw",
    "dm-mod.create",
    "keelson.root_verity",
];

/// Why an image cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum GuestImageError {
    /// The image cannot be read.
    #[error("Cannot read the image {path}", path = path.display())]
    Read {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its partition table makes no sense.
    #[error("Cannot tell the partitions of the image {path}", path = path.display())]
    Disk {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        source: DiskError,
    },
    /// There is no initramfs and no file system that could be a root in it.
    #[error("The image {path} is neither an initramfs, nor a disk with a file system on it, nor a root directory", path = path.display())]
    Unknown {
        /// The image.
        path: PathBuf,
    },
    /// What is inside cannot be read.
    #[error("Cannot look for a shell in the image {path}; --rootfs would bring one along", path = path.display())]
    Inside {
        /// The image.
        path: PathBuf,
        /// Why.
        source: Box<ReadError>,
    },
    /// The manifest beside it cannot be used.
    #[error("The image {path} has a manifest that cannot be used", path = path.display())]
    Manifest {
        /// The image.
        path: PathBuf,
        /// Why.
        source: ManifestError,
    },
    /// It is measured, and what it is measured by is missing.
    #[error("The image {path} is measured, but its hash tree {hashes} is not there", path = path.display(), hashes = hashes.display())]
    NoHashes {
        /// The image.
        path: PathBuf,
        /// Where the hash tree should be.
        hashes: PathBuf,
    },
    /// Options that make no sense for it.
    #[error("{option} is for roots on a device, and the image {path} is an initramfs", path = path.display())]
    NoDevice {
        /// The option.
        option: &'static str,
        /// The image.
        path: PathBuf,
    },
    /// A directory cannot be a disk, and a file cannot be shared.
    #[error("The image {path} is {what}, which --root-device {device} cannot offer", path = path.display(), what = if path.is_dir() { "a directory" } else { "a file" }, device = word(*device))]
    WrongDevice {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        device: RootDevice,
    },
}

/// An image, looked at.
#[derive(Clone, Debug)]
pub enum GuestImage {
    /// An initramfs.
    Initramfs(PathBuf),
    /// A disk, or a file system without one.
    Disk(DiskImage),
    /// A directory.
    Directory(PathBuf),
}

/// A disk, looked at.
#[derive(Clone, Debug)]
pub struct DiskImage {
    path: PathBuf,
    /// It says itself how an nvdimm's pages can be mapped.
    dax_header: bool,
    fstype: &'static str,
    /// The file system's pages can be mapped.
    mappable: bool,
    verity: Option<RootVerity>,
}

impl GuestImage {
    /// Looks at an image.
    pub fn look(path: &Path) -> Result<GuestImage, GuestImageError> {
        let unreadable = |source| GuestImageError::Read {
            path: path.to_owned(),
            source,
        };
        let path = &path.canonicalize().map_err(unreadable)?;
        if path.join("oci-layout").is_file() {
            return Err(GuestImageError::Unknown { path: path.clone() });
        }
        if path.is_dir() {
            return Ok(GuestImage::Directory(path.clone()));
        }
        let file = File::open(path).map_err(unreadable)?;
        let first = bytes::<8>(&file, 0).map_err(unreadable)?;
        if ARCHIVES.iter().any(|magic| first.starts_with(magic)) {
            return Ok(GuestImage::Initramfs(path.clone()));
        }
        let parts = disk::read(path).map_err(|source| GuestImageError::Disk {
            path: path.clone(),
            source,
        })?;
        let start = parts.partitions.first().map_or(0, |part| part.start);
        let found = file_system(&file, start).map_err(unreadable)?;
        let manifest = manifest(path)?;
        let (fstype, mappable) =
            found.ok_or_else(|| GuestImageError::Unknown { path: path.clone() })?;
        Ok(GuestImage::Disk(DiskImage {
            path: path.clone(),
            dax_header: parts.dax.is_some(),
            fstype,
            mappable,
            verity: verity(path, manifest.as_ref(), &parts)?,
        }))
    }

    /// The kernel words that the image's definition asks for, besides those that say where the root is.
    pub fn words(&self) -> Result<Vec<String>, GuestImageError> {
        let words = manifest(self.path())?.map_or_else(Vec::new, |m| m.kernel_words);
        Ok(words
            .into_iter()
            .filter(|word| !is_about_root(word))
            .collect())
    }

    fn path(&self) -> &Path {
        match self {
            GuestImage::Initramfs(path) | GuestImage::Directory(path) => path,
            GuestImage::Disk(disk) => &disk.path,
        }
    }

    /// Whether it has a shell.
    pub fn has_shell(&self) -> Result<bool, GuestImageError> {
        let image = read::open(self.path()).map_err(|source| GuestImageError::Inside {
            path: self.path().to_owned(),
            source: Box::new(source),
        })?;
        Ok(image.listing.find(b"bin/sh").is_some())
    }

    /// The root that it becomes, as the user wants it; none for an initramfs.
    pub fn root(&self, args: &BootArgs, arch: Arch) -> Result<Option<Root>, GuestImageError> {
        let wanted = args.root_device.map(RootDevice::from);
        match self {
            GuestImage::Initramfs(path) => {
                let options = [
                    ("--root-device", wanted.is_some()),
                    ("--overlay", args.overlay),
                ];
                match options.into_iter().find(|(_, given)| *given) {
                    Some((option, _)) => Err(GuestImageError::NoDevice {
                        option,
                        path: path.clone(),
                    }),
                    None => Ok(None),
                }
            }
            GuestImage::Directory(path) => match wanted {
                None | Some(RootDevice::VirtioFs) => Ok(Some(Root {
                    dax: args.dax,
                    overlay: args.overlay,
                    ..Root::new(RootDevice::VirtioFs, path)
                })),
                Some(device) => Err(wrong(path, device)),
            },
            GuestImage::Disk(disk) => {
                let how = wanted.unwrap_or_else(|| disk.best(args, arch));
                if how == RootDevice::VirtioFs {
                    return Err(wrong(&disk.path, how));
                }
                Ok(Some(Root {
                    how,
                    image: disk.path.clone(),
                    fstype: Some(disk.fstype.to_owned()),
                    dax: disk.can_map(how),
                    verity: disk.verity.clone(),
                    overlay: args.overlay,
                }))
            }
        }
    }
}

impl DiskImage {
    /// An nvdimm for an image made for one, on a machine that has them.
    fn best(&self, args: &BootArgs, arch: Arch) -> RootDevice {
        let has_acpi = arch == Arch::X86_64 || Firmware::from(args.firmware) == Firmware::Uefi;
        let has_slots = Machine::from(args.machine) == Machine::Default;
        if self.dax_header && has_acpi && has_slots {
            RootDevice::Nvdimm
        } else {
            RootDevice::VirtioBlk
        }
    }

    /// A kernel that mounts the root itself gives up where it cannot map, so nothing is asked for in vain. What dm-verity reads is not
    /// what is mapped.
    fn can_map(&self, how: RootDevice) -> bool {
        let device = match how {
            RootDevice::Nvdimm => self.dax_header,
            RootDevice::VirtioPmem => true,
            RootDevice::VirtioBlk | RootDevice::VirtioFs => false,
        };
        device && self.mappable && self.verity.is_none()
    }
}

/// What the image is measured by: the manifest has the parameters, the second partition or a file beside the image the hashes.
fn verity(
    path: &Path,
    manifest: Option<&Manifest>,
    parts: &Parts,
) -> Result<Option<RootVerity>, GuestImageError> {
    let Some(verity) = manifest.and_then(|manifest| manifest.verity.clone()) else {
        return Ok(None);
    };
    let hashes = parts.partitions.is_empty().then(|| hash_file(path));
    if let Some(hashes) = hashes.as_ref().filter(|hashes| !hashes.exists()) {
        return Err(GuestImageError::NoHashes {
            path: path.to_owned(),
            hashes: hashes.clone(),
        });
    }
    Ok(Some(RootVerity { verity, hashes }))
}

/// The manifest beside an image, if there is one.
fn manifest(image: &Path) -> Result<Option<Manifest>, GuestImageError> {
    let path = Manifest::path_for(image);
    if !path.exists() {
        return Ok(None);
    }
    let manifest = Manifest::read(&path).map_err(|source| GuestImageError::Manifest {
        path: image.to_owned(),
        source,
    })?;
    Ok(Some(manifest))
}

/// Whether a kernel word says where the root is, which is decided here anew.
fn is_about_root(word: &str) -> bool {
    let key = word.split('=').next().unwrap_or_default();
    ROOT_WORDS.contains(&key)
}

fn wrong(path: &Path, device: RootDevice) -> GuestImageError {
    GuestImageError::WrongDevice {
        path: path.to_owned(),
        device,
    }
}

fn word(device: RootDevice) -> &'static str {
    match device {
        RootDevice::Nvdimm => "nvdimm",
        RootDevice::VirtioPmem => "virtio-pmem",
        RootDevice::VirtioBlk => "virtio-blk",
        RootDevice::VirtioFs => "virtio-fs",
    }
}

/// The file system at an offset, and whether its pages can be mapped (DAX): those of an ext4 of 4 KiB blocks, of XFS, of erofs.
fn file_system(file: &File, start: u64) -> io::Result<Option<(&'static str, bool)>> {
    if bytes::<4>(file, start)? == *b"XFSB" {
        return Ok(Some(("xfs", true)));
    }
    // Both superblocks begin 1 KiB behind the start.
    let superblock = bytes::<64>(file, start + 1024)?;
    if superblock[..4] == [0xe2, 0xe1, 0xf5, 0xe0] {
        return Ok(Some(("erofs", true)));
    }
    if superblock[56..58] == [0x53, 0xef] {
        // s_log_block_size counts from 1 KiB.
        return Ok(Some(("ext4", superblock[24] == 2)));
    }
    Ok(None)
}

/// Bytes at an offset, with zeros for what lies behind the end.
fn bytes<const N: usize>(file: &File, offset: u64) -> io::Result<[u8; N]> {
    let mut buffer = [0; N];
    let mut filled = 0;
    while filled < N {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(buffer)
}
