// SPDX-License-Identifier: Apache-2.0
//! ResizeVolume: a file system grows into the disk below it, which the host has
//! made larger, while containers use it.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sys::stat::{fstat, major, minor, stat};
use nix::sys::statfs::fstatfs;

use super::{VolumeError, VolumePath, kernel};
use crate::device::Devices;
use crate::pool::at_host_pace;

/// What statfs(2) says of them (linux/magic.h).
const EXT4_MAGIC: i64 = 0xef53;
const XFS_MAGIC: i64 = 0x5846_5342;

/// What can grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ext4,
    Xfs,
}

/// A volume that can grow.
struct Volume {
    path: VolumePath,
    file: OwnedFd,
    kind: Kind,
    /// In bytes, of the file system.
    block_size: u64,
    /// The number of its disk.
    disk: (u32, u32),
}

/// Grows a volume to `size` bytes, or to all of its disk where that is 0. Waits
/// until the kernel has heard that the disk is large enough.
///
/// # Errors
/// [`VolumeError::FileSystem`] and [`VolumeError::NotOnDisk`] for what does not
/// grow, [`VolumeError::Shrink`], [`VolumeError::Disk`] when the disk stays too
/// small.
pub async fn resize(devices: &Devices, path: VolumePath, size: u64) -> Result<(), VolumeError> {
    let place = path.0.clone();
    let interrupted = || VolumeError::Interrupted {
        path: place.clone(),
    };
    let sysfs = devices.sysfs().to_owned();
    let found = at_host_pace(move || find(path, &sysfs)).await;
    let volume = found.map_err(|_| interrupted())??;
    let room = devices.disk_of_size(volume.disk, size).await?;
    let size = if size == 0 { room } else { size };
    let grown = at_host_pace(move || volume.grow(size)).await;
    grown.map_err(|_| interrupted())?
}

fn find(path: VolumePath, sysfs: &Path) -> Result<Volume, VolumeError> {
    let file = path.open()?;
    let system = fstatfs(&file).map_err(path.failed("look at"))?;
    #[allow(clippy::unnecessary_cast, reason = "the type differs between targets")]
    let kind = match system.filesystem_type().0 as i64 {
        EXT4_MAGIC => Kind::Ext4,
        XFS_MAGIC => Kind::Xfs,
        magic => {
            let path = path.0;
            return Err(VolumeError::FileSystem { path, magic });
        }
    };
    let number = fstat(&file).map_err(path.failed("look at"))?.st_dev;
    let refuse = |reason| VolumeError::NotOnDisk {
        path: path.0.clone(),
        reason,
    };
    if stat("/").is_ok_and(|root| root.st_dev == number) {
        return Err(refuse("it is the guest's own root"));
    }
    // The kernel has 12 bits for the one and 20 for the other.
    let disk = (major(number) as u32, minor(number) as u32);
    let place = disk_dir(sysfs, disk);
    for (mark, reason) in [
        (
            "partition",
            "it is on a partition, which would have to grow first",
        ),
        (
            "dm",
            "it is on a mapped device, which would have to grow first",
        ),
    ] {
        if place.join(mark).exists() {
            return Err(refuse(reason));
        }
    }
    rescan(&place);
    let block_size = u64::try_from(system.block_size()).unwrap_or(0);
    Ok(Volume {
        path,
        file,
        kind,
        block_size,
        disk,
    })
}

fn disk_dir(sysfs: &Path, (major, minor): (u32, u32)) -> PathBuf {
    sysfs.join(format!("dev/block/{major}:{minor}"))
}

/// SCSI disks are asked for their size; virtio disks tell it, and have no such file.
fn rescan(disk: &Path) {
    let file = disk.join("device/rescan");
    if file.exists()
        && let Err(error) = fs::write(&file, "1")
    {
        log::warn!(
            "No look at the size of a disk by {}: {error}",
            file.display()
        );
    }
}

impl Volume {
    /// Blocks, for as long as it takes to write the new parts.
    fn grow(&self, size: u64) -> Result<(), VolumeError> {
        let shrink = || VolumeError::Shrink {
            path: self.path.0.clone(),
            size,
        };
        let grown = match self.kind {
            Kind::Ext4 => {
                let blocks = size.checked_div(self.block_size).unwrap_or(0);
                kernel::grow_ext4(&self.file, blocks)
            }
            Kind::Xfs => kernel::xfs_geometry(&self.file).and_then(|geometry| {
                let blocks = size
                    .checked_div(u64::from(geometry.block_size))
                    .unwrap_or(0);
                match blocks.cmp(&geometry.data_blocks) {
                    std::cmp::Ordering::Less => Err(nix::Error::EINVAL),
                    std::cmp::Ordering::Equal => Ok(()),
                    std::cmp::Ordering::Greater => kernel::grow_xfs(&self.file, &geometry, blocks),
                }
            }),
        };
        match grown {
            // What ext4 says of fewer blocks than it has.
            Err(nix::Error::EINVAL) => Err(shrink()),
            other => other.map_err(self.path.failed("grow")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_grow_is_named() {
        let proc = VolumePath::new("/proc").unwrap();
        let error = find(proc, Path::new("/sys")).err().unwrap();
        assert!(matches!(error, VolumeError::FileSystem { .. }), "{error}");
        assert!(error.to_string().contains("0x9fa0"), "{error}");
        let absent = VolumePath::new("/keelson-absent").unwrap();
        assert!(find(absent, Path::new("/sys")).is_err());
    }
}
