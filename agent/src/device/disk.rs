// SPDX-License-Identifier: Apache-2.0
//! Disks by the addresses that hosts give them.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, major, minor};

use super::DeviceError;
use super::pci::PciPath;
use super::scsi::ScsiAddress;
use super::wait::Bus;

/// What the kernel counts disks in, whatever theirs are.
const SECTOR: u64 = 512;

/// Where a host says that a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskAddress {
    /// A virtio disk by its PCI path.
    Pci(PciPath),
    /// A node of the guest: virtio-mmio disks, persistent memory, partitions.
    Node(PathBuf),
    /// A disk of a SCSI controller.
    Scsi(ScsiAddress),
}

impl DiskAddress {
    /// A node below `/dev`, without `..`.
    ///
    /// # Errors
    /// [`DeviceError::Address`].
    pub fn node(text: &str) -> Result<Self, DeviceError> {
        let refuse = |reason| DeviceError::Address {
            text: text.chars().take(200).collect(),
            reason,
        };
        let path = Path::new(text);
        if !path.starts_with("/dev") || path.components().count() < 3 {
            return Err(refuse("it is not below /dev"));
        }
        if path.components().any(|c| c == Component::ParentDir) {
            return Err(refuse("it has a .. component"));
        }
        if text.contains('\0') || text.len() > 255 {
            return Err(refuse("it is too long or has a NUL byte"));
        }
        Ok(Self::Node(path.to_owned()))
    }

    /// What may have to be asked to look for new devices.
    pub(super) fn bus(&self) -> Bus {
        match self {
            Self::Pci(_) => Bus::Pci,
            Self::Scsi(address) => Bus::Scsi(*address),
            Self::Node(_) => Bus::None,
        }
    }
}

impl fmt::Display for DiskAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(path) => path.fmt(f),
            Self::Node(path) => path.display().fmt(f),
            Self::Scsi(address) => address.fmt(f),
        }
    }
}

/// A block device of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// Its node.
    pub node: PathBuf,
    /// Its number.
    pub major: u32,
    /// Its number.
    pub minor: u32,
}

/// The disk, if it is there with its node.
pub(super) fn look(
    sysfs: &Path,
    dev: &Path,
    address: &DiskAddress,
) -> Result<BlockDevice, DeviceError> {
    let node = match address {
        DiskAddress::Pci(path) => dev.join(path.block_device_at(sysfs)?),
        DiskAddress::Scsi(address) => dev.join(address.block_device_at(sysfs)?),
        DiskAddress::Node(node) => node.clone(),
    };
    let metadata = match fs::metadata(&node) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(DeviceError::Absent { path: node });
        }
        other => other.map_err(DeviceError::file("look at", &node))?,
    };
    if !metadata.file_type().is_block_device() {
        return Err(DeviceError::NotBlock { path: node });
    }
    let number = metadata.rdev();
    // The kernel has 12 bits for the one and 20 for the other.
    let (major, minor) = (major(number) as u32, minor(number) as u32);
    Ok(BlockDevice { node, major, minor })
}

/// Whether a disk can be opened already, unless the kernel knows of none with its
/// number; what else may be wrong with it is for whoever uses it. Blocks.
pub(super) fn is_live(sysfs: &Path, disk: &BlockDevice) -> bool {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let opened = open(&disk.node, flags, Mode::empty());
    let number = format!("dev/block/{}:{}", disk.major, disk.minor);
    !matches!(opened, Err(Errno::ENXIO)) || !sysfs.join(number).exists()
}

/// The size in bytes by a disk's `size` file in sysfs, if it is as large as it should be.
pub(super) fn look_at_size(file: &Path, wanted: u64) -> Result<u64, DeviceError> {
    let text = fs::read_to_string(file).map_err(DeviceError::file("read", file))?;
    let sectors: u64 = text.trim().parse().unwrap_or(0);
    match sectors.saturating_mul(SECTOR) {
        bytes if bytes >= wanted => Ok(bytes),
        bytes => Err(DeviceError::Small { bytes }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_as_large_as_its_sectors() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "8\n").unwrap();
        assert_eq!(look_at_size(file.path(), 4096).unwrap(), 4096);
        assert_eq!(look_at_size(file.path(), 0).unwrap(), 4096);
        assert!(look_at_size(file.path(), 4097).unwrap_err().is_absence());
        assert!(
            !look_at_size(Path::new("/absent"), 0)
                .unwrap_err()
                .is_absence()
        );
    }

    #[test]
    fn nodes_are_below_dev() {
        assert!(DiskAddress::node("/dev/vda").is_ok());
        let long = format!("/dev/{}", "x".repeat(300));
        for bad in [
            "",
            "/dev",
            "/dev/",
            "/devil/x",
            "vda",
            "/dev/../etc/passwd",
            "/dev/a\0",
            &long,
        ] {
            assert!(
                DiskAddress::node(bad).unwrap_err().is_bad_input(),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn only_a_block_device_will_do() {
        let look = |node: &str| {
            let address = DiskAddress::node(node).unwrap();
            look(Path::new("/absent"), Path::new("/absent"), &address).unwrap_err()
        };
        assert!(matches!(look("/dev/null"), DeviceError::NotBlock { .. }));
        assert!(look("/dev/keelson-absent").is_absence());
    }
}
