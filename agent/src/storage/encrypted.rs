// SPDX-License-Identifier: Apache-2.0
//! Disks that the confidential-data-hub encrypts, makes a file system on, and
//! mounts: volumes with a key that nobody keeps, and the store of pulled images
//! (protocol 5.5, 13.7). Only the plan and the check are here.

use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::hub_mount::{claim_place, expect_mounted};
use super::plan::{Action, Claim, Ready};
use super::undo::Undo;
use super::{Environment, StorageError};
use crate::device::DiskAddress;

/// For volumes of some GiB that end with the pod: no journal, nothing reserved.
const VOLUME: &str = "-O ^has_journal -m 0 -i 163840 -I 128";

/// For the store of images.
const STORE: &str = "-E lazy_journal_init";
const STORE_PLACE: &str = "/run/kata-containers/image/";

#[derive(Debug)]
enum Disk {
    At(DiskAddress),
    Numbered(u32, u32),
}

/// One disk to be encrypted anew.
#[derive(Debug)]
pub(super) struct Encrypted {
    disk: Disk,
    /// Options of `mkfs.ext4`.
    mkfs: &'static str,
    /// As the hub is told; the same place as the storage's.
    place: String,
}

impl Encrypted {
    /// Checks a block storage with an `encryption_key`.
    pub(super) fn plan(
        claim: &Claim<'_>,
        key: &str,
        disk: DiskAddress,
    ) -> Result<Box<dyn Action>, StorageError> {
        let refuse = |value, reason| Err(claim.refuse("driver_options", value, reason));
        if key != "ephemeral" {
            return refuse(key, "encryption_key can only be ephemeral");
        }
        if !claim.has_note("create_filesystem") {
            return refuse(key, "encryption_key needs create_filesystem");
        }
        if !matches!(claim.fstype(), "" | "ext4") {
            let reason = "an encrypted volume is ext4";
            return Err(claim.refuse("fstype", claim.fstype(), reason));
        }
        let place = claim.mount_point.to_str().unwrap_or_default().to_owned();
        Ok(Box::new(Self {
            disk: Disk::At(disk),
            mkfs: VOLUME,
            place,
        }))
    }

    /// The store of images, with its mount point.
    pub(super) fn trusted_store(major: u32, minor: u32) -> (PathBuf, Self) {
        let store = Self {
            disk: Disk::Numbered(major, minor),
            mkfs: STORE,
            place: STORE_PLACE.to_owned(),
        };
        (Path::new(STORE_PLACE).components().collect(), store)
    }
}

#[async_trait]
impl Action for Encrypted {
    async fn prepare(&self, _: &Path, environment: &Environment) -> Result<Ready, StorageError> {
        let Disk::At(address) = &self.disk else {
            return Ok(Ready::default());
        };
        let disk = environment.devices.disk(address).await?;
        Ok(Ready { disks: vec![disk] })
    }

    async fn ask(
        &self,
        place: &Path,
        ready: &Ready,
        environment: &Environment,
        undo: &mut Undo,
    ) -> Result<(), StorageError> {
        let number = match (&self.disk, ready.disks.first()) {
            (Disk::Numbered(major, minor), _) => (*major, *minor),
            (Disk::At(_), Some(disk)) => (disk.major, disk.minor),
            // There is one for each address that was prepared.
            (Disk::At(_), None) => return Ok(()),
        };
        let Environment { hub, late, .. } = environment;
        claim_place(place, place, late, undo).await?;
        let asked = hub.mount_encrypted(number, self.mkfs, &self.place);
        late.expect(place, asked, undo.clone()).await
    }

    fn run(
        &self,
        place: &Path,
        _: &Ready,
        _: &Environment,
        _: &mut Undo,
    ) -> Result<(), StorageError> {
        expect_mounted(place)
    }
}

#[cfg(test)]
mod tests {
    use super::super::StoragePlan;
    use super::*;
    use protocols::agent::Storage;

    fn refused(options: &[&str], fstype: &str) -> bool {
        let storage = Storage {
            driver: "blk".into(),
            source: "/dev/vda".into(),
            fstype: fstype.into(),
            mount_point: "/run/x".into(),
            driver_options: options.iter().map(|&o| o.to_owned()).collect(),
            ..Storage::default()
        };
        match StoragePlan::from_wire(&storage, None) {
            Ok(_) => false,
            Err(error) => {
                assert!(error.is_bad_input(), "{error}");
                true
            }
        }
    }

    #[test]
    fn a_key_is_ephemeral_and_comes_with_a_file_system() {
        let (make, key) = ("create_filesystem", "encryption_key=ephemeral");
        assert!(!refused(&[make, key], "ext4") && !refused(&[key, make], ""));
        assert!(refused(&[key], "ext4"));
        assert!(refused(&[make, "encryption_key=mine"], "ext4"));
        assert!(refused(&[make, key], "xfs"));
    }

    /// The mount point's spelling is the hub's business, its place is ours.
    #[test]
    fn the_store_lies_where_the_hub_unpacks_images() {
        let (place, store) = Encrypted::trusted_store(254, 16);
        assert_eq!(place.as_os_str(), "/run/kata-containers/image");
        assert_eq!(store.place, "/run/kata-containers/image/");
    }
}
