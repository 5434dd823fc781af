// SPDX-License-Identifier: Apache-2.0
//! Storages: what has to be mounted in the guest before containers can use it
//! (protocol section 5). Owns the registry of what is there and for whom, and
//! the drivers. Never decides who may use a storage, never looks at containers.
//!
//! A storage is known by its mount point. The first to ask for it brings it
//! about, others that ask meanwhile wait for that, later ones share it, and the
//! last one to leave has it taken away again; unless it belongs to the pod.

mod bind;
mod block;
mod encrypted;
mod ephemeral;
mod error;
mod fs_group;
mod guest_pull;
mod hub_mount;
mod layers;
mod local;
mod make;
mod mirror;
mod mount;
mod overlayfs;
mod plan;
mod plan9;
mod refresh;
mod registry;
mod undo;
mod virtiofs;
mod watchable;
mod watcher;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::children::Children;
use crate::confidential::Hub;
use crate::device::Devices;
pub use error::StorageError;
pub use guest_pull::NAME as GUEST_PULL;
pub(crate) use mount::unescape;
pub use plan::StoragePlan;
use plan::{Action, Claim};
pub use refresh::{Remount, look_at_shares, remount_all};
pub use registry::Storages;

/// One kind of storage.
trait Driver: Sync {
    /// Its name on the wire.
    fn name(&self) -> &'static str;

    /// Checks a claim and says what to do for it; does nothing yet.
    fn plan(&self, claim: &Claim<'_>) -> Result<Box<dyn Action>, StorageError>;

    /// Where it is: where the host says, as a rule.
    fn place(&self, claim: &Claim<'_>) -> PathBuf {
        claim.mount_point.clone()
    }

    /// Whether the host may say that it is the pod's.
    fn may_be_shared(&self) -> bool {
        true
    }

    /// What it has to lie in, to be there before and to go after it.
    fn needs(&self, _: &Claim<'_>) -> Option<StoragePlan> {
        None
    }

    /// Whether what is in it must outlive its last user. Container runtimes
    /// remove a container before they start it anew, and a pod's emptyDir must
    /// still hold its files then.
    fn keeps(&self) -> bool {
        false
    }
}

/// Every driver there is.
static DRIVERS: [&dyn Driver; 12] = [
    &virtiofs::VirtioFs,
    &block::BLK,
    &block::MMIO_BLK,
    &block::SCSI,
    &block::NVDIMM,
    &plan9::Plan9,
    &ephemeral::Ephemeral,
    &local::Local,
    &bind::Bind,
    &overlayfs::Overlay,
    &guest_pull::GuestPull,
    &watchable::Watchable,
];

/// A driver for channel I/O, which only s390x has.
const FOREIGN: &str = "blk-ccw";

fn driver(name: &str) -> Result<&'static dyn Driver, StorageError> {
    if let Some(driver) = DRIVERS.iter().find(|driver| driver.name() == name) {
        return Ok(*driver);
    }
    if name == FOREIGN {
        return Err(StorageError::NotImplemented {
            what: format!("driver {name}"),
        });
    }
    Err(StorageError::UnknownDriver {
        driver: name.chars().take(200).collect(),
    })
}

/// The names of the drivers, for `GetGuestDetails`.
pub fn drivers() -> impl Iterator<Item = &'static str> {
    let layers = std::iter::once(layers::DRIVER);
    DRIVERS.iter().map(|driver| driver.name()).chain(layers)
}

/// What of the guest the drivers look at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    pub devices: Devices,
    pub hub: Hub,
    pub children: Children,
    pub made: make::Made,
    pub late: hub_mount::Late,
    watcher: watcher::Watcher,
}

/// Opens a directory for changing it, without following links.
fn open_dir(place: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(nix::fcntl::AT_FDCWD, place, how)
}

#[cfg(test)]
mod tests;
