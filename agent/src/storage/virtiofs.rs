// SPDX-License-Identifier: Apache-2.0
//! `virtio-fs`: a directory of the host, by its tag.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use log::warn;
use nix::errno::Errno;

use super::mount::{MountSpec, mounted_fstype, open_target};
use super::plan::{Action, Claim, Ready};
use super::undo::Undo;
use super::{Driver, Environment, StorageError};

/// The tag of the directory that holds the containers. An image may have
/// mounted it before the agent started.
const SHARED_TAG: &str = "kataShared";
/// What the virtio device has room for (virtio specification, file system device).
const TAG_LENGTH: usize = 36;

pub(super) struct VirtioFs;

impl Driver for VirtioFs {
    fn name(&self) -> &'static str {
        "virtio-fs"
    }

    fn plan(&self, claim: &Claim<'_>) -> Result<Box<dyn Action>, StorageError> {
        let spec = claim.mount_spec()?;
        if spec.source.len() > TAG_LENGTH {
            return Err(claim.refuse("source", &spec.source, "a tag has at most 36 bytes"));
        }
        if spec.fstype != "virtiofs" {
            return Err(claim.refuse("fstype", &spec.fstype, "it is not virtiofs"));
        }
        Ok(Box::new(Share(spec)))
    }
}

#[derive(Debug)]
struct Share(MountSpec);

impl Action for Share {
    fn run(
        &self,
        place: &Path,
        _: &Ready,
        _: &Environment,
        undo: &mut Undo,
    ) -> Result<(), StorageError> {
        if self.0.source == SHARED_TAG
            && open_target(place).is_ok_and(|fd| mounted_fstype(&fd, place).is_some())
        {
            return Ok(());
        }
        match (self.0.mount(place, undo), without_dax(&self.0)) {
            // A device without a DAX window, or a kernel that has no DAX.
            (
                Err(StorageError::Mount {
                    source: Errno::EINVAL | Errno::EOPNOTSUPP,
                    ..
                }),
                Some(plain),
            ) => {
                plain.mount(place, undo)?;
                warn_once(&self.0.source);
                Ok(())
            }
            (result, _) => result,
        }
    }
}

/// The same mount without the words that ask for DAX; none when none does.
fn without_dax(spec: &MountSpec) -> Option<MountSpec> {
    let words: Vec<_> = spec.options.data.split(',').collect();
    let is_dax = |word: &&str| *word == "dax" || word.starts_with("dax=");
    let rest: Vec<_> = words.iter().copied().filter(|w| !is_dax(w)).collect();
    if rest.len() == words.len() {
        return None;
    }
    let mut plain = spec.clone();
    plain.options.data = rest.join(",");
    Some(plain)
}

fn warn_once(tag: &str) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.swap(true, Ordering::Relaxed) {
        warn!("Virtio-fs {tag} is mounted without dax, which the device or the kernel lacks");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount_options::MountOptions;

    #[test]
    fn only_dax_is_given_up() {
        let spec = |words: &[&str]| MountSpec {
            source: "t".into(),
            fstype: "virtiofs".into(),
            options: MountOptions::parse(words).unwrap(),
        };
        let plain = without_dax(&spec(&["nodev", "a", "dax", "b", "dax=always"])).unwrap();
        assert_eq!(plain.options.data, "a,b");
        assert_eq!(plain.options.flags, nix::mount::MsFlags::MS_NODEV);
        assert!(without_dax(&spec(&["nodax", "daxx"])).is_none());
    }
}
