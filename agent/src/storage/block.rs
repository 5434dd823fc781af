// SPDX-License-Identifier: Apache-2.0
//! `blk`: a file system on a virtio disk, named by its PCI path or its node.
//! The disk must be there already; one that is still being plugged in is
//! reported as absent.

use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use super::mount::{MountSpec, errno};
use super::plan::{Action, Claim};
use super::undo::Undo;
use super::{Driver, Environment, StorageError};
use crate::device::pci::PciPath;

pub(super) struct Block;

impl Driver for Block {
    fn name(&self) -> &'static str {
        "blk"
    }

    fn plan(&self, claim: &Claim<'_>) -> Result<Box<dyn Action>, StorageError> {
        for option in ["create_filesystem", "encryption_key"] {
            if claim.has_note(option) || claim.note(option).is_some() {
                return Err(StorageError::NotImplemented {
                    what: format!("option {option}"),
                });
            }
        }
        let spec = claim.mount_spec()?;
        if spec.options.is_bind() {
            return Err(claim.refuse("options", "bind", "a disk cannot be bound"));
        }
        let source = Path::new(claim.source());
        let disk = if source.starts_with("/dev") {
            if source.components().any(|c| c == Component::ParentDir) {
                return Err(claim.refuse("source", claim.source(), "it has a .. component"));
            }
            Disk::Node(source.to_owned())
        } else {
            Disk::Pci(PciPath::parse(claim.source())?)
        };
        Ok(Box::new(Volume { disk, spec }))
    }
}

#[derive(Debug)]
enum Disk {
    Node(PathBuf),
    Pci(PciPath),
}

#[derive(Debug)]
struct Volume {
    disk: Disk,
    spec: MountSpec,
}

impl Action for Volume {
    fn run(
        &self,
        place: &Path,
        environment: &Environment,
        undo: &mut Undo,
    ) -> Result<(), StorageError> {
        let node = match &self.disk {
            Disk::Node(node) => node.clone(),
            Disk::Pci(path) => {
                let name = path.block_device_at(&environment.sysfs)?;
                Path::new("/dev").join(name)
            }
        };
        let kind = std::fs::metadata(&node).map(|m| m.file_type());
        let kind = kind.map_err(|e| StorageError::at("find", &node)(errno(&e)))?;
        if !kind.is_block_device() {
            return Err(StorageError::NotBlock { path: node });
        }
        let mut spec = self.spec.clone();
        spec.source = node.to_string_lossy().into_owned();
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

    fn run(source: &str) -> StorageError {
        let environment = Environment {
            sysfs: PathBuf::from("/absent"),
        };
        let mut undo = Undo::default();
        plan(source)
            .unwrap()
            .run(&environment, &mut undo)
            .unwrap_err()
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
    fn only_a_disk_will_do() {
        assert!(matches!(run("/dev/null"), StorageError::NotBlock { .. }));
        assert!(matches!(
            run("/dev/keelson-absent"),
            StorageError::Path { .. }
        ));
        let absent = run("1e/1d");
        assert!(!absent.is_bad_input());
        let source = std::error::Error::source(&absent).unwrap();
        assert!(source.to_string().contains("1e.0/1d.0"), "{source}");
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
        for option in ["create_filesystem", "encryption_key=ephemeral"] {
            storage.driver_options = vec![option.into()];
            let error = StoragePlan::from_wire(&storage, None).unwrap_err();
            assert!(error.is_not_implemented());
        }
    }
}
