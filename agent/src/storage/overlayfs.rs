// SPDX-License-Identifier: Apache-2.0
//! `overlayfs`: layers on top of each other, usually a container's root.

use std::path::{Path, PathBuf};

use super::mount::{MountSpec, make_dir};
use super::plan::{Action, Claim, Ready};
use super::undo::Undo;
use super::{Driver, Environment, StorageError};
use crate::mount_options::MountOptions;

/// Asks for an upper layer of the container's own.
const WRITABLE: &str = "io.katacontainers.fs-opt.overlay-rw";
/// Names a directory that one of the layers needs.
const CREATE: &str = "io.katacontainers.volume.overlayfs.create_directory";

pub(super) struct Overlay;

impl Driver for Overlay {
    fn name(&self) -> &'static str {
        "overlayfs"
    }

    fn plan(&self, claim: &Claim<'_>) -> Result<Box<dyn Action>, StorageError> {
        let directory = claim.note(CREATE);
        let directory = directory.map(|dir| claim.check_mount_point(dir));
        let mut directories: Vec<_> = directory.transpose()?.into_iter().collect();
        let mut spec = claim.mount_spec()?;
        if claim.has_note(WRITABLE) {
            let Some(bundle) = claim.bundle else {
                let reason = "only a container has a place for an upper layer";
                return Err(claim.refuse("options", WRITABLE, reason));
            };
            let (upper, work) = (bundle.join("upper"), bundle.join("work"));
            spec.fstype = "overlay".to_owned();
            spec.options = with_upper(claim, &upper, &work)?;
            directories.extend([upper, work]);
        }
        Ok(Box::new(Layers { directories, spec }))
    }
}

/// The claim's options and the two directories, checked for their length again.
fn with_upper(claim: &Claim<'_>, upper: &Path, work: &Path) -> Result<MountOptions, StorageError> {
    let words = [
        format!("upperdir={}", upper.display()),
        format!("workdir={}", work.display()),
    ];
    let mut claim = claim.clone();
    claim.options.extend(words.iter().map(String::as_str));
    claim.mount_options()
}

#[derive(Debug)]
struct Layers {
    /// Made before the mount, mode 0755.
    directories: Vec<PathBuf>,
    spec: MountSpec,
}

impl Action for Layers {
    fn run(
        &self,
        place: &Path,
        _: &Ready,
        _: &Environment,
        undo: &mut Undo,
    ) -> Result<(), StorageError> {
        for directory in &self.directories {
            make_dir(directory, undo)?;
        }
        self.spec.mount(place, undo)
    }
}
