// SPDX-License-Identifier: Apache-2.0
//! `bind`: a file or directory of the guest in another place.

use std::path::{Component, Path};

use nix::mount::MsFlags;

use super::mount::MountSpec;
use super::plan::{Action, Claim, Ready};
use super::undo::Undo;
use super::{Driver, Environment, StorageError};

pub(super) struct Bind;

impl Driver for Bind {
    fn name(&self) -> &'static str {
        "bind"
    }

    fn plan(&self, claim: &Claim<'_>) -> Result<Box<dyn Action>, StorageError> {
        let source = Path::new(claim.source());
        if !source.is_absolute() || source.components().any(|c| c == Component::ParentDir) {
            let reason = "it is not an absolute path without ..";
            return Err(claim.refuse("source", claim.source(), reason));
        }
        if !matches!(claim.fstype(), "" | "bind" | "none") {
            return Err(claim.refuse("fstype", claim.fstype(), "it is not bind"));
        }
        let mut options = claim.mount_options()?;
        options.flags |= MsFlags::MS_BIND;
        Ok(Box::new(Bound(MountSpec {
            source: claim.source().to_owned(),
            fstype: "bind".to_owned(),
            options,
        })))
    }
}

#[derive(Debug)]
struct Bound(MountSpec);

impl Action for Bound {
    fn run(
        &self,
        place: &Path,
        _: &Ready,
        _: &Environment,
        undo: &mut Undo,
    ) -> Result<(), StorageError> {
        self.0.mount(place, undo)
    }
}
