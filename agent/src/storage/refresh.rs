// SPDX-License-Identifier: Apache-2.0
//! What hosts ask of mounts that are there already: another size for memory
//! (protocol 5.6), and a look at what they share, by which a host's virtio-fs
//! daemon learns what has gone. Never mounts or unmounts anything.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use log::{debug, info, warn};
use protocols::agent::Storage;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use tokio::sync::Semaphore;

use super::StorageError;
use super::mount::{MountSpec, unescape};
use super::plan::Claim;
use crate::pool::at_host_pace;

/// Below this is what the host shares for containers.
const SHARED_MOUNTS: &str = "/run/kata-containers/shared/containers/";

/// One look at a time: a host that does not answer holds one thread by it.
static LOOKS: Semaphore = Semaphore::const_new(1);

/// A change to memory that is mounted, checked.
#[derive(Debug)]
pub struct Remount {
    place: PathBuf,
    spec: MountSpec,
}

impl Remount {
    /// Checks a storage of a request; none if it asks for no change.
    ///
    /// # Errors
    /// Bad input.
    pub fn from_wire(storage: &Storage) -> Result<Option<Self>, StorageError> {
        let mut claim = Claim::new(storage, None)?;
        if storage.driver != "ephemeral" {
            let reason = "Unsupported storage type for syncing mounts";
            return Err(claim.refuse("driver", &storage.driver, reason));
        }
        // For the first mount only.
        claim.take_option("fsgid");
        if claim.options.iter().all(|word| word.is_empty()) {
            return Ok(None);
        }
        Ok(Some(Self {
            spec: claim.mount_spec()?,
            place: claim.mount_point,
        }))
    }
}

/// Changes mounts, in order.
///
/// # Errors
/// Of the first that could not be changed; those before it stay changed.
pub async fn remount_all(all: Vec<Remount>) -> Result<(), StorageError> {
    let Some(first) = all.first() else {
        return Ok(());
    };
    let interrupted = StorageError::Interrupted {
        mount_point: first.place.clone(),
    };
    // Its mount point may lie in what a host shares.
    let work = move || all.iter().try_for_each(|one| one.spec.remount(&one.place));
    at_host_pace(work).await.unwrap_or(Err(interrupted))
}

/// Asks the host for every mount below [`SHARED_MOUNTS`] anew.
pub async fn look_at_shares() {
    // Never closed: there always is a turn.
    let turn = LOOKS.acquire().await;
    let looked = at_host_pace(move || {
        let _turn = turn;
        match std::fs::read("/proc/thread-self/mountinfo") {
            Ok(table) => look_at_all(&table),
            Err(error) => warn!("Mounts could not be listed: {error}"),
        }
    });
    drop(looked.await);
}

fn look_at_all(table: &[u8]) {
    let (mut found, mut lost) = (0, 0);
    for place in shares(table) {
        // What is in a cache is not what the host says.
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
        match statx(CWD, &place, flags, StatxFlags::BASIC_STATS) {
            Ok(_) => found += 1,
            Err(error) => {
                lost += 1;
                debug!("Share {}: {error}", place.display());
            }
        }
    }
    info!("Shared mounts: {found} are there, {lost} do not answer");
}

/// The mount points of a mountinfo text that are a host's.
fn shares(table: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    table.split(|&byte| byte == b'\n').filter_map(|line| {
        let place = unescape(line.split(|&byte| byte == b' ').nth(4)?);
        is_share(&place).then_some(place)
    })
}

fn is_share(place: &Path) -> bool {
    place
        .as_os_str()
        .as_bytes()
        .starts_with(SHARED_MOUNTS.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_found_by_their_beginning() {
        let table = b"22 1 0:20 / /run/kata-containers/shared/containers rw - virtiofs x rw\n\
            23 22 0:21 /a /run/kata-containers/shared/containers/a\\040b rw - virtiofs x rw\n\
            24 22 0:21 / /run/kata-containers/shared/containersx rw - tmpfs x rw\n\
            broken\n\n";
        let found: Vec<PathBuf> = shares(table).collect();
        assert_eq!(
            found,
            [Path::new("/run/kata-containers/shared/containers/a b")]
        );
    }

    #[test]
    fn only_memory_is_changed() {
        let storage = |driver: &str, options: &[&str]| Storage {
            driver: driver.into(),
            source: "tmpfs".into(),
            fstype: "tmpfs".into(),
            mount_point: "/run/x".into(),
            options: options.iter().map(|word| (*word).to_owned()).collect(),
            ..Storage::default()
        };
        let plan = |driver, options: &[&str]| Remount::from_wire(&storage(driver, options));
        let error = plan("local", &["remount", "size=1m"]).unwrap_err();
        assert!(error.is_bad_input(), "{error}");
        assert!(plan("ephemeral", &[]).unwrap().is_none());
        assert!(plan("ephemeral", &["fsgid=12"]).unwrap().is_none());
        let some = plan("ephemeral", &["remount", "size=1m,fsgid=1"]).unwrap();
        assert_eq!(some.unwrap().spec.options.data, "size=1m");
    }
}
