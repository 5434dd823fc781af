// SPDX-License-Identifier: Apache-2.0
//! `local`: a plain directory of the guest, such as a Kubernetes emptyDir on
//! disk. Belongs to the pod rather than to one container: a restarted
//! container must find what it left there.

use std::path::Path;

use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, fchown};

use super::mount::make_dir;
use super::plan::{Action, Claim, Ready, octal_mode};
use super::undo::Undo;
use super::{Driver, Environment, StorageError, open_dir};

pub(super) struct Local;

impl Driver for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn keeps(&self) -> bool {
        true
    }

    fn plan(&self, claim: &Claim<'_>) -> Result<Box<dyn Action>, StorageError> {
        let mut directory = Directory {
            gid: None,
            mode: None,
        };
        for word in &claim.options {
            if let Some(text) = word.strip_prefix("fsgid=") {
                directory.gid = Some(claim.gid(text)?);
            } else if let Some(text) = word.strip_prefix("mode=") {
                let mode = octal_mode(text);
                let mode = mode.ok_or_else(|| claim.refuse("options", text, "not an octal mode"));
                directory.mode = Some(mode?);
            }
        }
        Ok(Box::new(directory))
    }
}

#[derive(Debug)]
struct Directory {
    gid: Option<u32>,
    mode: Option<u32>,
}

impl Action for Directory {
    fn run(
        &self,
        place: &Path,
        _: &Ready,
        _: &Environment,
        undo: &mut Undo,
    ) -> Result<(), StorageError> {
        make_dir(place, undo)?;
        let adapt = || {
            let dir = open_dir(place)?;
            if let Some(gid) = self.gid {
                fchown(&dir, None, Some(Gid::from_raw(gid)))?;
            }
            let Some(mut mode) = self.mode else {
                return Ok(());
            };
            if self.gid.is_some() {
                mode |= 0o2000;
            }
            fchmod(&dir, Mode::from_bits_truncate(mode))
        };
        adapt().map_err(StorageError::at("adapt", place))
    }
}

#[cfg(test)]
mod tests {
    use super::super::StoragePlan;
    use super::*;
    use protocols::agent::Storage;
    use std::os::unix::fs::MetadataExt;

    fn make(place: &Path, options: &[&str]) -> Result<Undo, StorageError> {
        let storage = Storage {
            driver: "local".into(),
            source: "local".into(),
            fstype: "local".into(),
            mount_point: place.to_str().unwrap().into(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            ..Storage::default()
        };
        let plan = StoragePlan::from_wire(&storage, None)?;
        let mut undo = Undo::default();
        plan.run(&Ready::default(), &Environment::default(), &mut undo)?;
        Ok(undo)
    }

    #[test]
    fn a_directory_with_mode_and_group() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let gid = nix::unistd::getegid();
        let place = root.join("a/b");
        let undo = make(&place, &["mode=0777", &format!("fsgid={gid}")]).unwrap();
        assert_eq!(place.metadata().unwrap().mode() & 0o7777, 0o2777);
        assert_eq!(place.metadata().unwrap().gid(), gid.as_raw());
        // What users put there is not removed with the storage.
        std::fs::write(place.join("kept"), "").unwrap();
        assert!(undo.run().is_empty());
        assert!(place.join("kept").exists());
        let plain = root.join("c");
        make(&plain, &[&format!("fsgid={gid}")]).unwrap();
        assert_eq!(plain.metadata().unwrap().mode() & 0o7777, 0o755);
        assert!(
            make(&root.join("d"), &["mode=999"])
                .unwrap_err()
                .is_bad_input()
        );
    }
}
