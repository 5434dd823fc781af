// SPDX-License-Identifier: Apache-2.0
//! `watchable-bind`: config maps and secrets of a host, copied into memory so
//! that programs which wait for changes hear of them: no file system of a host
//! tells (protocol 13.2). Owns the places such storages may have, and what is
//! done at first and in the end; [`super::watcher`] does what comes between.

use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode, mkdirat};

use super::mirror::{Change, Copy, Seen, first_look, open_source};
use super::mount::{MountSpec, proc_path};
use super::plan::{Action, Claim, Ready};
use super::undo::{Step, Undo};
use super::watcher::{Watched, discard, temporary};
use super::{Driver, Environment, StorageError, StoragePlan, open_dir};
use crate::mount_options::MountOptions;

/// Where these storages may be, each directly below one of these.
const PARENTS: [&str; 2] = [
    "/run/kata-containers/shared/containers/watchable",
    "/run/kata-containers/shared/containers/passthrough/watchable",
];

pub(super) struct Watchable;

impl Driver for Watchable {
    fn name(&self) -> &'static str {
        "watchable-bind"
    }

    fn plan(&self, claim: &Claim<'_>) -> Result<Box<dyn Action>, StorageError> {
        let source = Path::new(claim.source());
        if !source.is_absolute() || source.components().any(|c| c == Component::ParentDir) {
            let reason = "it is not an absolute path without ..";
            return Err(claim.refuse("source", claim.source(), reason));
        }
        if !is_place(&claim.mount_point) {
            let place = claim.mount_point.to_string_lossy();
            let reason = "it is not directly below a directory for watched storages";
            return Err(claim.refuse("mount_point", &place, reason));
        }
        // A sandbox has no use for one: what nobody reads needs no watching.
        if claim.bundle.is_none() {
            return Ok(Box::new(Ignored));
        }
        Ok(Box::new(Copied(source.components().collect())))
    }

    fn needs(&self, claim: &Claim<'_>) -> Option<StoragePlan> {
        let parent = claim.mount_point.parent()?;
        claim.bundle.is_some().then(|| StoragePlan {
            mount_point: parent.to_owned(),
            action: Box::new(Memory),
            fs_group: None,
            keep: false,
            needs: None,
        })
    }
}

fn is_place(place: &Path) -> bool {
    let Some(parent) = place.parent().and_then(Path::to_str) else {
        return false;
    };
    let rootless = || {
        let (uid, rest) = parent.strip_prefix("/run/user/")?.split_once('/')?;
        let canonical = uid.parse::<u32>().ok()?.to_string() == uid && uid != "0";
        canonical.then(|| &parent[parent.len() - rest.len() - 1..])
    };
    PARENTS.contains(&rootless().unwrap_or(parent))
}

#[derive(Debug)]
struct Ignored;

impl Action for Ignored {
    fn run(&self, _: &Path, _: &Ready, _: &Environment, _: &mut Undo) -> Result<(), StorageError> {
        Ok(())
    }
}

/// The memory that all of them are in.
#[derive(Debug)]
struct Memory;

impl Action for Memory {
    fn run(
        &self,
        place: &Path,
        _: &Ready,
        environment: &Environment,
        undo: &mut Undo,
    ) -> Result<(), StorageError> {
        environment.watcher.settle(place)?;
        undo.push(Step::Unsettle(environment.watcher.clone()));
        let spec = spec("tmpfs", "tmpfs", &["nosuid", "nodev", "mode=0755"], place)?;
        spec.mount(place, undo)
    }
}

/// A source to be copied and watched.
#[derive(Debug)]
struct Copied(PathBuf);

impl Action for Copied {
    fn run(
        &self,
        place: &Path,
        _: &Ready,
        environment: &Environment,
        undo: &mut Undo,
    ) -> Result<(), StorageError> {
        let seen = first_look(&self.0).map_err(StorageError::at("copy", &self.0))?;
        let Seen::Changed(change) = seen else {
            return self.bind(place, undo);
        };
        let watcher = &environment.watcher;
        let id = watcher.number();
        let made = make_target(place, id, &change);
        let mut copy = made.map_err(StorageError::at("create", place))?;
        undo.push(Step::Unwatch(watcher.clone(), id, place.to_owned()));
        copy.apply(change)
            .map_err(StorageError::at("copy to", place))?;
        let watched = Watched::new(self.0.clone(), place.to_owned(), copy);
        watcher.add(id, Box::new(watched));
        Ok(())
    }
}

impl Copied {
    fn bind(&self, place: &Path, undo: &mut Undo) -> Result<(), StorageError> {
        log::info!(
            "Storage at {} is too large to be watched: bound",
            place.display()
        );
        let source = open_source(&self.0).map_err(StorageError::at("find", &self.0))?;
        let spec = spec(&proc_path(&source), "bind", &["bind"], place)?;
        spec.mount(place, undo)
    }
}

fn spec(
    source: &str,
    fstype: &str,
    words: &[&str],
    place: &Path,
) -> Result<MountSpec, StorageError> {
    let options = MountOptions::parse(words);
    Ok(MountSpec {
        source: source.to_owned(),
        fstype: fstype.to_owned(),
        options: options.map_err(|source| StorageError::Options {
            mount_point: place.to_string_lossy().into_owned(),
            source,
        })?,
    })
}

fn make_target(place: &Path, id: u64, change: &Change) -> nix::Result<Copy> {
    let einval = nix::errno::Errno::EINVAL;
    let (parent, name) = place.parent().zip(place.file_name()).ok_or(einval)?;
    let workshop = open_dir(parent)?;
    let target = if change.is_dir() {
        mkdirat(&workshop, name, Mode::from_bits_truncate(0o700))?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        openat(&workshop, name, flags | OFlag::O_CLOEXEC, Mode::empty())?
    } else {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        openat(&workshop, name, flags, Mode::from_bits_truncate(0o600))?
    };
    Ok(Copy::new(workshop, temporary("new", id), target))
}

/// Takes a copy away, for the undoing. A look at its source may be under way
/// and still write: so it gets a name that nobody else will ever have.
pub(super) fn remove(place: &Path, id: u64) -> nix::Result<()> {
    let einval = nix::errno::Errno::EINVAL;
    let (parent, name) = place.parent().zip(place.file_name()).ok_or(einval)?;
    // Of a source that has become too large; else nothing is mounted there.
    let _ = umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    let dir = open_dir(parent)?;
    match nix::fcntl::renameat(&dir, name, &dir, temporary("old", id).as_str()) {
        Ok(()) => discard(parent, id),
        Err(nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocols::agent::Storage;

    fn plan(place: &str, source: &str) -> Result<StoragePlan, StorageError> {
        let storage = Storage {
            driver: "watchable-bind".into(),
            source: source.into(),
            fstype: "bind".into(),
            mount_point: place.into(),
            ..Storage::default()
        };
        StoragePlan::from_wire(&storage, Some(Path::new("/run/b")))
    }

    #[test]
    fn places_are_directly_below_the_directories_for_them() {
        let base = "/run/kata-containers/shared/containers";
        for good in [
            format!("{base}/watchable/x"),
            format!("{base}/passthrough/watchable/x"),
            format!("/run/user/1000{base}/watchable/x"),
        ] {
            let plan = plan(&good, "/run/src").unwrap();
            let parent = plan.needs.unwrap().mount_point;
            assert_eq!(Some(parent.as_path()), Path::new(&good).parent());
        }
        for bad in [
            format!("{base}/watchable"),
            format!("{base}/watchable/x/y"),
            format!("{base}/x"),
            format!("/run/user/0{base}/watchable/x"),
            format!("/run/user/01000{base}/watchable/x"),
            format!("/run/user/+1{base}/watchable/x"),
            format!("/run/user/{base}/watchable/x"),
            format!("/x{base}/watchable/x"),
        ] {
            assert!(plan(&bad, "/run/src").unwrap_err().is_bad_input(), "{bad}");
        }
        let place = format!("{base}/watchable/x");
        for bad in ["", "x", "/run/../etc"] {
            assert!(plan(&place, bad).unwrap_err().is_bad_input(), "{bad}");
        }
    }

    #[test]
    fn a_sandbox_watches_nothing() {
        let storage = Storage {
            driver: "watchable-bind".into(),
            source: "/run/src".into(),
            mount_point: format!("{}/x", PARENTS[0]),
            ..Storage::default()
        };
        let plan = StoragePlan::from_wire(&storage, None).unwrap();
        assert!(plan.needs.is_none());
    }
}
