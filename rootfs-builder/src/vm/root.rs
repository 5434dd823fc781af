// SPDX-License-Identifier: Apache-2.0
//! A root on another device than the initramfs: the device that carries it and the kernel words that name it.
//!
//! Looks into the image for its partitions, and never changes it.

use std::iter;
use std::path::Path;

use super::{Disk, DiskKind, Root, RootDevice, RootVerity, Share, VmError};
use crate::image::disk;

/// The tag under which the guest finds a shared root.
pub const TAG: &str = "keelsonRoot";

impl Root {
    /// A read-only root without anything special.
    pub fn new(how: RootDevice, image: impl AsRef<Path>) -> Root {
        Root {
            how,
            image: image.as_ref().to_owned(),
            fstype: None,
            dax: false,
            verity: None,
            overlay: false,
        }
    }

    /// The disks that carry it, unless it is shared, and its hash tree where that is a file. The guest can never write to them.
    pub(super) fn disks(&self) -> Vec<Disk> {
        let disk = |path: &Path, kind| Disk {
            path: path.to_owned(),
            serial: String::new(),
            readonly: true,
            kind,
        };
        let kind = match self.how {
            RootDevice::Nvdimm => DiskKind::Pmem,
            RootDevice::VirtioPmem => DiskKind::VirtioPmem,
            RootDevice::VirtioBlk => DiskKind::VirtioBlk,
            RootDevice::VirtioFs => return Vec::new(),
        };
        let hashes = self.verity.as_ref().and_then(|v| v.hashes.as_deref());
        // A hash tree's size is no multiple of anything that pmem would take.
        let hashes = hashes.map(|path| disk(path, DiskKind::VirtioBlk));
        iter::once(disk(&self.image, kind)).chain(hashes).collect()
    }

    /// The share that carries it, if it is one.
    pub(super) fn share(&self) -> Option<Share> {
        (self.how == RootDevice::VirtioFs).then(|| Share {
            path: self.image.clone(),
            readonly: true,
            dax: self.dax,
        })
    }

    /// The kernel words for it. `by_init`: our binary in an initramfs mounts it, not the kernel.
    pub(super) fn words(&self, by_init: bool) -> Result<Vec<String>, VmError> {
        let mut words = Vec::new();
        let device = self.device()?;
        let shown = match &device {
            None => TAG.to_owned(),
            Some(device) => self.measured(*device, by_init, &mut words),
        };
        words.push(format!("root={shown}"));
        words.push("ro".to_owned());
        match (&device, &self.fstype) {
            (None, _) => words.push("rootfstype=virtiofs".to_owned()),
            (_, Some(fstype)) => words.push(format!("rootfstype={fstype}")),
            (_, None) => {}
        }
        if self.dax {
            words.push("rootflags=dax".to_owned());
        }
        if self.overlay {
            words.push("keelson.root_overlay".to_owned());
        }
        if !by_init {
            // Without the word the kernel goes on with the next program of a list of its own, such as a shell, where ours cannot be read.
            words.push("init=/sbin/init".to_owned());
        }
        Ok(words)
    }

    /// The device to mount where the root is on `device`; with the words that have it measured.
    fn measured(&self, device: Device, by_init: bool, words: &mut Vec<String>) -> String {
        let data = device.node();
        let Some(RootVerity { verity, hashes }) = &self.verity else {
            return data;
        };
        let own_hashes = hashes.is_some().then_some(match self.how {
            RootDevice::VirtioBlk => "/dev/vdb",
            _ => "/dev/vda",
        });
        if by_init {
            let place = own_hashes.map_or_else(String::new, |node| format!(",hash_device={node}"));
            words.push(format!("keelson.root_verity={}{place}", verity.params()));
            return data;
        }
        let hashes = own_hashes.map_or_else(|| device.next().node(), str::to_owned);
        let table = verity.dm_create("dm-verity", &data, &hashes);
        words.push(format!("dm-mod.create=\"{table}\""));
        "/dev/dm-0".to_owned()
    }

    /// The block device that the guest finds the root on: the first partition, or the whole device of an image without partitions.
    fn device(&self) -> Result<Option<Device>, VmError> {
        let disk = match self.how {
            RootDevice::Nvdimm | RootDevice::VirtioPmem => "/dev/pmem0",
            RootDevice::VirtioBlk => "/dev/vda",
            RootDevice::VirtioFs => return Ok(None),
        };
        let parts = disk::read(&self.image).map_err(|source| VmError::RootImage {
            path: self.image.clone(),
            source: Box::new(source),
        })?;
        Ok(Some(Device {
            disk,
            partition: (!parts.partitions.is_empty()).then_some(1),
        }))
    }
}

/// A disk or a partition, as the guest names it.
#[derive(Clone, Copy, Debug)]
struct Device {
    disk: &'static str,
    partition: Option<u32>,
}

impl Device {
    /// The kernel puts a `p` between a disk's name that ends with a digit and the partition's number.
    fn node(self) -> String {
        let between = if self.disk.ends_with(|c: char| c.is_ascii_digit()) {
            "p"
        } else {
            ""
        };
        match self.partition {
            Some(number) => format!("{}{between}{number}", self.disk),
            None => self.disk.to_owned(),
        }
    }

    /// The partition behind this one.
    fn next(self) -> Device {
        Device {
            partition: Some(self.partition.unwrap_or_default() + 1),
            ..self
        }
    }
}
