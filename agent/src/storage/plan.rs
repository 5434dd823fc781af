// SPDX-License-Identifier: Apache-2.0
//! The door for storages: what a host claims becomes a checked plan here, and
//! nothing behind this file sees the message. Never touches the guest.

use std::fmt::Debug;
use std::path::{Component, Path, PathBuf};

use async_trait::async_trait;
use protocols::agent::Storage;
use protocols::types::FSGroupChangePolicy;

use super::encrypted::Encrypted;
use super::fs_group::FsGroup;
use super::layers::{self, Layers};
use super::mount::MountSpec;
use super::undo::Undo;
use super::{Environment, StorageError, driver};
use crate::device::BlockDevice;
use crate::mount_options::MountOptions;

/// Words with this beginning are notes between snapshotters and runtimes; the
/// kernel knows none of them.
const KATA_WORDS: &str = "io.katacontainers.";
/// The same for multi-layer file systems.
const LAYER_WORDS: &str = "X-kata.";

/// What has to be there before a storage can be brought about.
#[derive(Debug, Default)]
pub(super) struct Ready {
    /// The disks it needs, in the driver's own order.
    pub disks: Vec<BlockDevice>,
}

/// What a driver does for one storage, checked and ready to be done.
#[async_trait]
pub(super) trait Action: Send + Sync + Debug {
    /// Waits for what it needs, on the event loop: a device that is still being
    /// plugged in holds no thread. Changes nothing in the guest.
    async fn prepare(&self, _: &Path, _: &Environment) -> Result<Ready, StorageError> {
        Ok(Ready::default())
    }

    /// Asks another program of the guest to do its part, on the event loop;
    /// every effect that this may have is recorded in `undo` before.
    async fn ask(
        &self,
        _: &Path,
        _: &Ready,
        _: &Environment,
        _: &mut Undo,
    ) -> Result<(), StorageError> {
        Ok(())
    }

    /// Brings the storage about at `place`; every effect is recorded in `undo`
    /// as soon as it is there. Blocks.
    fn run(
        &self,
        place: &Path,
        ready: &Ready,
        environment: &Environment,
        undo: &mut Undo,
    ) -> Result<(), StorageError>;
}

/// One storage to bring about.
#[derive(Debug)]
pub struct StoragePlan {
    pub(super) mount_point: PathBuf,
    pub(super) action: Box<dyn Action>,
    pub(super) fs_group: Option<FsGroup>,
    /// Kept when its last user leaves, until the sandbox ends.
    pub(super) keep: bool,
    /// What it lies in.
    pub(super) needs: Option<Box<StoragePlan>>,
}

impl StoragePlan {
    /// Checks a storage of a request. `bundle` is the directory of the
    /// container it is for, none for a storage of the sandbox.
    ///
    /// # Errors
    /// Bad input for everything that cannot be used, and
    /// [`StorageError::NotImplemented`] for what the protocol has and this
    /// agent does not.
    pub fn from_wire(storage: &Storage, bundle: Option<&Path>) -> Result<Self, StorageError> {
        let driver = driver(&storage.driver)?;
        let claim = Claim::new(storage, bundle)?;
        if let [word, ..] = claim.layer_words[..] {
            return Err(claim.refuse("options", word, "it is for layers only"));
        }
        let action = driver.plan(&claim)?;
        let needs = driver.needs(&claim).map(Box::new);
        let keep = (storage.shared && driver.may_be_shared()) || driver.keeps();
        Ok(Self {
            action,
            mount_point: driver.place(&claim),
            fs_group: claim.fs_group()?,
            // Not without what it lies in.
            keep: keep && needs.is_none(),
            needs,
        })
    }

    /// Checks all storages of a request. Those that are layers of one file
    /// system make one storage, in the place of the first of them.
    ///
    /// # Errors
    /// As [`Self::from_wire`].
    pub fn all_from_wire(
        storages: &[Storage],
        bundle: Option<&Path>,
    ) -> Result<Vec<Self>, StorageError> {
        let (mut plans, mut layers, mut at) = (Vec::new(), Vec::new(), 0);
        for storage in storages {
            if !is_layer(storage) {
                plans.push(Self::from_wire(storage, bundle)?);
                continue;
            }
            if layers.is_empty() {
                at = plans.len();
            }
            layers.push(Claim::new(storage, bundle)?);
        }
        if !layers.is_empty() {
            let (mount_point, action) = Layers::plan(&layers, bundle)?;
            let groups = layers
                .iter()
                .filter_map(|claim| claim.fs_group().transpose());
            let fs_group = groups.collect::<Result<Vec<_>, _>>()?.into_iter().next();
            let whole = Self {
                mount_point,
                action: Box::new(action),
                fs_group,
                needs: None,
                keep: storages.iter().any(|s| is_layer(s) && s.shared),
            };
            plans.insert(at, whole);
        }
        Ok(plans)
    }

    /// The store that images pulled in the guest are unpacked to: the disk of
    /// this number, encrypted with a key that only the guest has. It stays until
    /// the sandbox ends: other containers' roots lie in it.
    pub fn trusted_store(major: u32, minor: u32) -> Self {
        let (mount_point, action) = Encrypted::trusted_store(major, minor);
        Self {
            mount_point,
            action: Box::new(action),
            fs_group: None,
            needs: None,
            keep: true,
        }
    }

    /// Where the storage will be.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    pub(super) async fn prepare(&self, environment: &Environment) -> Result<Ready, StorageError> {
        self.action.prepare(&self.mount_point, environment).await
    }

    pub(super) async fn ask(
        &self,
        ready: &Ready,
        environment: &Environment,
        undo: &mut Undo,
    ) -> Result<(), StorageError> {
        let place = &self.mount_point;
        self.action.ask(place, ready, environment, undo).await
    }

    pub(super) fn run(
        &self,
        ready: &Ready,
        environment: &Environment,
        undo: &mut Undo,
    ) -> Result<(), StorageError> {
        self.action
            .run(&self.mount_point, ready, environment, undo)?;
        match &self.fs_group {
            Some(fs_group) => fs_group.apply(&self.mount_point),
            None => Ok(()),
        }
    }
}

/// A storage as a host describes it, with what is common to all drivers checked.
#[derive(Clone)]
pub(super) struct Claim<'a> {
    storage: &'a Storage,
    pub mount_point: PathBuf,
    /// Mount options without the notes of [`KATA_WORDS`].
    pub options: Vec<&'a str>,
    /// The notes themselves, among mount and driver options.
    pub notes: Vec<&'a str>,
    /// What makes it a layer among others.
    pub layer_words: Vec<&'a str>,
    pub bundle: Option<&'a Path>,
}

impl<'a> Claim<'a> {
    pub(super) fn new(
        storage: &'a Storage,
        bundle: Option<&'a Path>,
    ) -> Result<Self, StorageError> {
        let mut claim = Self {
            storage,
            layer_words: Vec::new(),
            mount_point: PathBuf::new(),
            options: Vec::new(),
            notes: Vec::new(),
            bundle,
        };
        for (field, value) in [("source", &storage.source), ("fstype", &storage.fstype)] {
            if value.contains('\0') || value.len() > 4095 {
                return Err(claim.refuse(field, value, "it is too long or has a NUL byte"));
            }
        }
        claim.mount_point = claim.check_mount_point(&storage.mount_point)?;
        for word in storage.options.iter().flat_map(|o| o.split(',')) {
            if word.starts_with(LAYER_WORDS) {
                claim.layer_words.push(word);
            } else if word.starts_with(KATA_WORDS) {
                claim.notes.push(word);
            } else {
                claim.options.push(word);
            }
        }
        let driver_options = storage.driver_options.iter().map(String::as_str);
        claim.notes.extend(driver_options);
        Ok(claim)
    }

    pub(super) fn driver(&self) -> &'a str {
        &self.storage.driver
    }

    pub(super) fn source(&self) -> &'a str {
        &self.storage.source
    }

    pub(super) fn fstype(&self) -> &'a str {
        &self.storage.fstype
    }

    /// The value of `key=value` among the driver options and notes.
    pub(super) fn note(&self, key: &str) -> Option<&'a str> {
        let mut notes = self.notes.iter();
        notes.find_map(|note| note.strip_prefix(key)?.strip_prefix('='))
    }

    pub(super) fn has_note(&self, word: &str) -> bool {
        self.notes.contains(&word)
    }

    /// Removes `key=value` from the mount options and gives the value.
    pub(super) fn take_option(&mut self, key: &str) -> Option<&'a str> {
        let value = |word: &&'a str| word.strip_prefix(key)?.strip_prefix('=');
        let found = self.options.iter().find_map(value);
        self.options.retain(|word| value(word).is_none());
        found
    }

    /// The mount options as flags and data.
    pub(super) fn mount_options(&self) -> Result<MountOptions, StorageError> {
        let failed = |source| StorageError::Options {
            mount_point: self.storage.mount_point.clone(),
            source,
        };
        let options = MountOptions::parse(&self.options).map_err(failed)?;
        if !options.recursive.is_empty() {
            let words = self.options.join(",");
            return Err(self.refuse("options", &words, "recursive attributes are for containers"));
        }
        Ok(options)
    }

    /// The mount that the fields describe, as most drivers make it.
    pub(super) fn mount_spec(&self) -> Result<MountSpec, StorageError> {
        for (field, value) in [("source", self.source()), ("fstype", self.fstype())] {
            if value.is_empty() {
                return Err(self.refuse(field, "", "it is needed"));
            }
        }
        Ok(MountSpec {
            source: self.source().to_owned(),
            fstype: self.fstype().to_owned(),
            options: self.mount_options()?,
        })
    }

    pub(super) fn refuse(
        &self,
        field: &'static str,
        value: &str,
        reason: &'static str,
    ) -> StorageError {
        StorageError::Field {
            driver: self.storage.driver.clone(),
            field,
            value: value.chars().take(200).collect(),
            reason,
        }
    }

    /// A group id from a `fsgid=` option.
    pub(super) fn gid(&self, text: &str) -> Result<u32, StorageError> {
        let gid = text.parse().ok().filter(|&gid| gid != u32::MAX);
        gid.ok_or_else(|| self.refuse("options", text, "fsgid is not a group id"))
    }

    /// An absolute path without `..`, below the root, made plain.
    pub(super) fn check_mount_point(&self, text: &str) -> Result<PathBuf, StorageError> {
        let refuse = |reason| Err(self.refuse("mount_point", text, reason));
        if !text.starts_with('/') {
            return refuse("it is not absolute");
        }
        if text.contains('\0') || text.len() > 4095 {
            return refuse("it is too long or has a NUL byte");
        }
        let path = Path::new(text);
        if path.components().any(|c| c == Component::ParentDir) {
            return refuse("it has a .. component");
        }
        let plain: PathBuf = path.components().collect();
        match plain.parent() {
            Some(_) => Ok(plain),
            None => refuse("it is the root"),
        }
    }

    fn fs_group(&self) -> Result<Option<FsGroup>, StorageError> {
        let Some(fs_group) = self.storage.fs_group.as_ref() else {
            return Ok(None);
        };
        let only_on_mismatch = match fs_group.group_change_policy.enum_value() {
            Ok(FSGroupChangePolicy::Always) => false,
            Ok(FSGroupChangePolicy::OnRootMismatch) => true,
            Err(number) => {
                let number = number.to_string();
                return Err(self.refuse("fs_group policy", &number, "it is unknown"));
            }
        };
        let gid = fs_group.group_id;
        if gid == u32::MAX {
            return Err(self.refuse("fs_group", "4294967295", "it is not a group id"));
        }
        Ok(Some(FsGroup {
            gid,
            only_on_mismatch,
            read_only: self.options.contains(&"ro"),
        }))
    }
}

fn is_layer(storage: &Storage) -> bool {
    let mut words = storage.options.iter().flat_map(|o| o.split(','));
    storage.driver == layers::DRIVER || words.any(|word| word == layers::MARK)
}

/// An octal mode, as `mode=0777` writes it.
pub(super) fn octal_mode(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let mode = digits.then(|| u32::from_str_radix(text, 8).ok())?;
    mode.filter(|&mode| mode <= 0o7777)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocols::agent::FSGroup;

    fn storage(driver: &str, mount_point: &str) -> Storage {
        Storage {
            driver: driver.into(),
            source: "shm".into(),
            fstype: "tmpfs".into(),
            mount_point: mount_point.into(),
            ..Storage::default()
        }
    }

    fn refused(storage: &Storage) -> StorageError {
        let error = StoragePlan::from_wire(storage, None).unwrap_err();
        assert!(
            error.is_bad_input() || error.is_not_implemented(),
            "{error}"
        );
        error
    }

    #[test]
    fn mount_points_are_plain_and_absolute() {
        for bad in [
            "",
            "run/x",
            "/",
            "//",
            "/.",
            "/run/../etc",
            "/run/..",
            "/a\0b",
        ] {
            assert!(
                refused(&storage("ephemeral", bad)).is_bad_input(),
                "{bad:?}"
            );
        }
        assert!(refused(&storage("ephemeral", &"/x".repeat(3000))).is_bad_input());
        let plan = StoragePlan::from_wire(&storage("ephemeral", "/run//a..b/./c/"), None).unwrap();
        assert_eq!(plan.mount_point(), Path::new("/run/a..b/c"));
    }

    #[test]
    fn unknown_and_missing_drivers_differ() {
        let unknown = refused(&storage("floppy", "/run/x"));
        assert!(unknown.is_bad_input());
        assert_eq!(
            unknown.to_string(),
            "Failed to find the storage handler floppy"
        );
        assert!(refused(&storage("blk-ccw", "/run/x")).is_not_implemented());
    }

    #[test]
    fn notes_are_not_mount_options() {
        let mut storage = storage("overlayfs", "/run/x");
        storage.options = vec!["lowerdir=/a,io.katacontainers.fs-opt.is-layer".into()];
        storage.driver_options = vec!["io.katacontainers.volume.x=/y".into()];
        let claim = Claim::new(&storage, None).unwrap();
        assert_eq!(claim.options, ["lowerdir=/a"]);
        assert_eq!(claim.note("io.katacontainers.volume.x"), Some("/y"));
        assert!(claim.has_note("io.katacontainers.fs-opt.is-layer"));
    }

    #[test]
    fn groups_and_policies() {
        let mut storage = storage("ephemeral", "/run/x");
        let mut group = FSGroup {
            group_id: 12,
            ..FSGroup::default()
        };
        group.group_change_policy = FSGroupChangePolicy::OnRootMismatch.into();
        storage.fs_group = protobuf::MessageField::some(group.clone());
        let plan = StoragePlan::from_wire(&storage, None).unwrap();
        let fs_group = plan.fs_group.unwrap();
        assert!(fs_group.only_on_mismatch && fs_group.gid == 12 && !fs_group.read_only);
        group.group_change_policy = protobuf::EnumOrUnknown::from_i32(7);
        storage.fs_group = protobuf::MessageField::some(group);
        assert!(refused(&storage).is_bad_input());
    }

    #[test]
    fn bad_options_are_bad_input() {
        for word in ["loop", "rro", &"x".repeat(5000)] {
            let mut storage = storage("ephemeral", "/run/x");
            storage.options = vec![word.to_owned()];
            assert!(refused(&storage).is_bad_input());
        }
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(octal_mode("0777"), Some(0o777));
        assert_eq!(octal_mode("2770"), Some(0o2770));
        for bad in ["", "8", "+7", "0o7", "77777", "-1"] {
            assert_eq!(octal_mode(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_claim_panics(driver in 0usize..9, source: String, fstype: String, place: String, options: Vec<String>) {
            let names = ["virtio-fs", "blk", "ephemeral", "local", "bind", "overlayfs", "image_guest_pull", "9p", "x"];
            let storage = Storage {
                driver: names[driver].into(),
                source,
                fstype,
                mount_point: format!("/{place}"),
                driver_options: options.clone(),
                options,
                ..Storage::default()
            };
            if let Err(error) = StoragePlan::from_wire(&storage, Some(Path::new("/run/b"))) {
                proptest::prop_assert!(error.is_bad_input() || error.is_not_implemented());
            }
        }
    }
}
