// SPDX-License-Identifier: Apache-2.0
//! File systems on disks: `blk` (a virtio disk by its PCI path or its node),
//! `mmioblk` (by its node), `scsi` (by target and unit) and `nvdimm` (persistent
//! memory by its node, with or without DAX). They differ in how a host says
//! which disk it means. A disk that is still being plugged in is waited for.

use std::path::Path;

use async_trait::async_trait;

use super::encrypted::Encrypted;
use super::mount::MountSpec;
use super::plan::{Action, Claim, Ready};
use super::undo::Undo;
use super::{Driver, Environment, StorageError};
use crate::device::pci::PciPath;
use crate::device::scsi::ScsiAddress;
use crate::device::{DeviceError, DiskAddress};

/// Reads the source of a storage.
type Read = fn(&str) -> Result<DiskAddress, DeviceError>;

/// A driver: its name, and how its sources are written.
pub(super) struct Block {
    name: &'static str,
    read: Read,
}

/// A disk by PCI path or node.
pub(super) static BLK: Block = Block {
    name: "blk",
    read: pci_or_node,
};
/// A virtio disk without a bus, by its node.
pub(super) static MMIO_BLK: Block = Block {
    name: "mmioblk",
    read: DiskAddress::node,
};
/// A disk of a SCSI controller.
pub(super) static SCSI: Block = Block {
    name: "scsi",
    read: |text| Ok(DiskAddress::Scsi(ScsiAddress::parse(text)?)),
};
/// Persistent memory.
pub(super) static NVDIMM: Block = Block {
    name: "nvdimm",
    read: pmem,
};

fn pci_or_node(text: &str) -> Result<DiskAddress, DeviceError> {
    match text.starts_with('/') {
        true => DiskAddress::node(text),
        false => Ok(DiskAddress::Pci(PciPath::parse(text)?)),
    }
}

/// Anything else under this driver's name would be mounted as the host's mistake.
fn pmem(text: &str) -> Result<DiskAddress, DeviceError> {
    match text.starts_with("/dev/pmem") {
        true => DiskAddress::node(text),
        false => Err(DeviceError::Address {
            text: text.chars().take(200).collect(),
            reason: "it is not /dev/pmemN",
        }),
    }
}

impl Block {
    /// The disk that a source names.
    pub(super) fn read(&self, source: &str) -> Result<DiskAddress, DeviceError> {
        (self.read)(source)
    }
}

impl Driver for Block {
    fn name(&self) -> &'static str {
        self.name
    }

    fn plan(&self, claim: &Claim<'_>) -> Result<Box<dyn Action>, StorageError> {
        let disk = self.read(claim.source())?;
        if let Some(key) = claim.note("encryption_key") {
            return Encrypted::plan(claim, key, disk);
        }
        let fresh = claim.has_note("create_filesystem");
        if fresh && claim.fstype() != "ext4" {
            let reason = "only ext4 is made on fresh disks";
            return Err(claim.refuse("fstype", claim.fstype(), reason));
        }
        let spec = claim.mount_spec()?;
        if spec.options.is_bind() {
            return Err(claim.refuse("options", "bind", "a disk cannot be bound"));
        }
        Ok(Box::new(Volume { disk, spec, fresh }))
    }
}

#[derive(Debug)]
struct Volume {
    disk: DiskAddress,
    spec: MountSpec,
    /// A file system is to be made on it first.
    fresh: bool,
}

#[async_trait]
impl Action for Volume {
    async fn prepare(&self, _: &Path, environment: &Environment) -> Result<Ready, StorageError> {
        let disk = environment.devices.disk(&self.disk).await?;
        Ok(Ready { disks: vec![disk] })
    }

    async fn ask(
        &self,
        _: &Path,
        ready: &Ready,
        environment: &Environment,
        _: &mut Undo,
    ) -> Result<(), StorageError> {
        let Environment {
            devices,
            children,
            made,
            ..
        } = environment;
        for disk in ready.disks.iter().filter(|_| self.fresh) {
            made.ext4(children, devices.sysfs(), disk).await?;
        }
        Ok(())
    }

    fn run(
        &self,
        place: &Path,
        ready: &Ready,
        _: &Environment,
        undo: &mut Undo,
    ) -> Result<(), StorageError> {
        let mut spec = self.spec.clone();
        // There is one for each address that was prepared.
        if let Some(disk) = ready.disks.first() {
            spec.source = disk.node.to_string_lossy().into_owned();
        }
        spec.mount(place, undo)
    }
}

#[cfg(test)]
mod tests {
    use super::super::StoragePlan;
    use super::*;
    use protocols::agent::Storage;

    fn claim(driver: &str, source: &str) -> Storage {
        Storage {
            driver: driver.into(),
            source: source.into(),
            fstype: "ext4".into(),
            mount_point: "/run/keelson-test-absent".into(),
            ..Storage::default()
        }
    }

    fn plan(driver: &str, source: &str) -> Result<StoragePlan, StorageError> {
        StoragePlan::from_wire(&claim(driver, source), None)
    }

    #[test]
    fn sources_are_checked_at_the_door() {
        let everywhere = [
            "",
            "vda",
            "/dev/../etc/passwd",
            "/etc/passwd",
            "/devil",
            "/dev",
        ];
        for driver in ["blk", "mmioblk", "scsi", "nvdimm"] {
            for bad in everywhere {
                let error = plan(driver, bad).unwrap_err();
                assert!(error.is_bad_input(), "{driver} {bad}");
            }
        }
        for (driver, good, bad) in [
            ("blk", "/dev/vda", "0:1"),
            ("blk", "02/01.0", "02.9"),
            ("mmioblk", "/dev/vdb", "02/01"),
            ("scsi", "0:1", "/dev/sda"),
            ("nvdimm", "/dev/pmem1", "/dev/vda"),
        ] {
            assert!(plan(driver, good).is_ok(), "{driver} {good}");
            assert!(
                plan(driver, bad).unwrap_err().is_bad_input(),
                "{driver} {bad}"
            );
        }
    }

    #[test]
    fn only_ext4_is_made_on_fresh_disks() {
        let mut storage = claim("blk", "/dev/vda");
        storage.driver_options = vec!["create_filesystem".into()];
        assert!(StoragePlan::from_wire(&storage, None).is_ok());
        storage.fstype = "xfs".into();
        let error = StoragePlan::from_wire(&storage, None).unwrap_err();
        assert!(error.is_bad_input());
    }
}
