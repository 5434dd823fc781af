// SPDX-License-Identifier: Apache-2.0
//! `blk`: a file system on a virtio disk, named by its PCI path or its node.
//! A disk that is still being plugged in is waited for.

use std::path::Path;

use async_trait::async_trait;

use super::encrypted::Encrypted;
use super::mount::MountSpec;
use super::plan::{Action, Claim, Ready};
use super::undo::Undo;
use super::{Driver, Environment, StorageError};
use crate::device::pci::PciPath;
use crate::device::{DeviceError, DiskAddress};

pub(super) struct Block;

impl Driver for Block {
    fn name(&self) -> &'static str {
        "blk"
    }

    fn plan(&self, claim: &Claim<'_>) -> Result<Box<dyn Action>, StorageError> {
        if let Some(key) = claim.note("encryption_key") {
            return Encrypted::plan(claim, key, address(claim)?);
        }
        if claim.has_note("create_filesystem") {
            return Err(StorageError::NotImplemented {
                what: "option create_filesystem".to_owned(),
            });
        }
        let spec = claim.mount_spec()?;
        if spec.options.is_bind() {
            return Err(claim.refuse("options", "bind", "a disk cannot be bound"));
        }
        let disk = address(claim)?;
        Ok(Box::new(Volume { disk, spec }))
    }
}

fn address(claim: &Claim<'_>) -> Result<DiskAddress, StorageError> {
    if claim.source().starts_with('/') {
        return Ok(DiskAddress::node(claim.source())?);
    }
    let path = PciPath::parse(claim.source()).map_err(DeviceError::from)?;
    Ok(DiskAddress::Pci(path))
}

#[derive(Debug)]
struct Volume {
    disk: DiskAddress,
    spec: MountSpec,
}

#[async_trait]
impl Action for Volume {
    async fn prepare(&self, _: &Path, environment: &Environment) -> Result<Ready, StorageError> {
        let disk = environment.devices.disk(&self.disk).await?;
        Ok(Ready { disks: vec![disk] })
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

    fn plan(source: &str) -> Result<StoragePlan, StorageError> {
        let storage = Storage {
            driver: "blk".into(),
            source: source.into(),
            fstype: "ext4".into(),
            mount_point: "/run/keelson-test-absent".into(),
            ..Storage::default()
        };
        StoragePlan::from_wire(&storage, None)
    }

    #[test]
    fn sources_are_checked_at_the_door() {
        for bad in [
            "",
            "vda",
            "/dev/../etc/passwd",
            "/etc/passwd",
            "/devil",
            "02.9",
        ] {
            assert!(plan(bad).unwrap_err().is_bad_input(), "{bad}");
        }
        assert!(plan("/dev/vda").is_ok() && plan("02/01.0").is_ok());
    }

    #[test]
    fn a_file_system_to_be_made_is_not_implemented_yet() {
        let mut storage = Storage {
            driver: "blk".into(),
            source: "/dev/vda".into(),
            fstype: "ext4".into(),
            mount_point: "/run/x".into(),
            ..Storage::default()
        };
        storage.driver_options = vec!["create_filesystem".into()];
        let error = StoragePlan::from_wire(&storage, None).unwrap_err();
        assert!(error.is_not_implemented());
    }
}
