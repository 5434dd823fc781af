// SPDX-License-Identifier: Apache-2.0
//! Drivers that mount, each in a mount namespace of the test's own. They need
//! root; without, each says so and passes.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use protocols::agent::Storage;

use super::plan::Ready;
use super::undo::Undo;
use super::{Environment, StorageError, StoragePlan};

/// Runs a test on a thread with private mounts and a tmpfs to work on.
fn with_mounts(test: impl FnOnce(&Path) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: mounting needs root");
        return;
    }
    let none = None::<&str>;
    let body = move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
            eprintln!("SKIPPED: no mount namespace of its own: {error}");
            return;
        }
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        mount(Some("t"), &root, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        test(&root);
        nix::mount::umount2(&root, nix::mount::MntFlags::MNT_DETACH).unwrap();
    };
    std::thread::spawn(body).join().unwrap();
}

fn storage(driver: &str, source: &str, fstype: &str, place: &Path, options: &[&str]) -> Storage {
    Storage {
        driver: driver.into(),
        source: source.into(),
        fstype: fstype.into(),
        mount_point: place.to_str().unwrap().into(),
        options: options.iter().map(|o| (*o).to_owned()).collect(),
        ..Storage::default()
    }
}

fn make(storage: &Storage, bundle: Option<&Path>) -> Result<Undo, StorageError> {
    let plan = StoragePlan::from_wire(storage, bundle)?;
    let mut undo = Undo::default();
    match plan.run(&Ready::default(), &Environment::default(), &mut undo) {
        Ok(()) => Ok(undo),
        Err(error) => {
            assert!(undo.run().is_empty());
            Err(error)
        }
    }
}

/// The options of the topmost mount at a path, per mount and per file system.
fn options_at(place: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let at = |line: &&str| line.split(' ').nth(4) == place.to_str();
    let line = table.lines().rev().find(at)?;
    let mut fields = line.split(' ');
    let own = fields.nth(5).unwrap();
    Some(format!("{own},{}", fields.next_back().unwrap()))
}

#[test]
fn bug_ephemeral_options_are_kept() {
    with_mounts(|root| {
        let place = root.join("sandbox/shm");
        let words = ["noexec", "nosuid", "nodev", "mode=1777", "size=65536"];
        let undo = make(&storage("ephemeral", "shm", "tmpfs", &place, &words), None).unwrap();
        let options = options_at(&place).unwrap();
        for word in ["noexec", "nosuid", "nodev", "size=64k"] {
            assert!(options.contains(word), "{word} in {options}");
        }
        assert_eq!(place.metadata().unwrap().mode() & 0o7777, 0o1777);
        assert!(undo.run().is_empty());
        assert!(options_at(&place).is_none() && !place.exists());
    });
}

#[test]
fn ephemeral_goes_to_its_group() {
    with_mounts(|root| {
        let place = root.join("e");
        let words = ["fsgid=4711"];
        make(
            &storage("ephemeral", "tmpfs", "tmpfs", &place, &words),
            None,
        )
        .unwrap();
        let metadata = place.metadata().unwrap();
        assert_eq!(metadata.gid(), 4711);
        assert_eq!(metadata.mode() & 0o7777, 0o3777);
    });
}

#[test]
fn binds_of_files_and_directories() {
    with_mounts(|root| {
        fs::create_dir(root.join("dir")).unwrap();
        fs::write(root.join("file"), "content").unwrap();
        let (dir, file) = (root.join("x/dir"), root.join("x/file"));
        let source = |name: &str| root.join(name).to_str().unwrap().to_owned();
        let words = ["rbind", "ro", "nosuid", "rprivate"];
        let first = make(&storage("bind", &source("dir"), "bind", &dir, &words), None).unwrap();
        let second = make(&storage("bind", &source("file"), "bind", &file, &[]), None).unwrap();
        assert!(fs::write(dir.join("new"), "").is_err());
        assert!(options_at(&dir).unwrap().starts_with("ro,nosuid"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "content");
        assert!(first.run().is_empty() && second.run().is_empty());
        assert!(!dir.exists() && !file.exists());
        assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "content");
        let absent = make(&storage("bind", "/absent/x", "bind", &dir, &[]), None);
        assert!(!absent.unwrap_err().is_bad_input());
        assert!(!dir.exists());
    });
}

#[test]
fn overlay_with_an_upper_layer_of_its_own() {
    with_mounts(|root| {
        let bundle = root.join("bundle");
        fs::create_dir_all(root.join("lower")).unwrap();
        fs::write(root.join("lower/a"), "lower").unwrap();
        let lower = format!("lowerdir={}", root.join("lower").display());
        let words = [
            lower.as_str(),
            "io.katacontainers.fs-opt.layer=x",
            "io.katacontainers.fs-opt.overlay-rw",
        ];
        let place = bundle.join("rootfs");
        let storage = storage("overlayfs", "none", "fuse3.kataoverlay", &place, &words);
        assert!(make(&storage, None).unwrap_err().is_bad_input());
        let undo = match make(&storage, Some(&bundle)) {
            Err(error) => {
                eprintln!("SKIPPED: no overlayfs here: {error:?}");
                return;
            }
            Ok(undo) => undo,
        };
        fs::write(place.join("a"), "upper").unwrap();
        assert_eq!(fs::read_to_string(bundle.join("upper/a")).unwrap(), "upper");
        assert_eq!(fs::read_to_string(root.join("lower/a")).unwrap(), "lower");
        assert!(undo.run().is_empty());
        assert!(options_at(&place).is_none());
    });
}

#[test]
fn what_is_mounted_already_is_used_and_left() {
    with_mounts(|root| {
        let place = root.join("m");
        let request = storage("ephemeral", "tmpfs", "tmpfs", &place, &[]);
        let first = make(&request, None).unwrap();
        fs::write(place.join("kept"), "").unwrap();
        let second = make(&request, None).unwrap();
        assert!(place.join("kept").exists());
        assert!(second.run().is_empty());
        assert!(place.join("kept").exists());
        assert!(first.run().is_empty());
        assert!(!place.exists());
    });
}

#[test]
fn a_share_mounted_by_the_image_is_used() {
    with_mounts(|root| {
        let place = root.join("containers");
        fs::create_dir(&place).unwrap();
        let none = None::<&str>;
        mount(Some("x"), &place, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let request = storage("virtio-fs", "kataShared", "virtiofs", &place, &["dax"]);
        let undo = make(&request, None).unwrap();
        assert!(undo.run().is_empty());
        assert!(options_at(&place).is_some());
        let other = storage("virtio-fs", "absent", "virtiofs", &root.join("o"), &[]);
        let error = make(&other, None).unwrap_err();
        assert!(matches!(error, StorageError::Mount { .. }), "{error}");
        assert!(!root.join("o").exists());
    });
}

#[test]
fn cve_mount_points_through_links_are_refused() {
    with_mounts(|root| {
        fs::create_dir(root.join("outside")).unwrap();
        symlink(root.join("outside"), root.join("link")).unwrap();
        for place in ["link", "link/x"] {
            let place: PathBuf = root.join(place);
            let request = storage("ephemeral", "tmpfs", "tmpfs", &place, &[]);
            assert!(make(&request, None).is_err());
        }
        assert!(options_at(&root.join("outside")).is_none());
        assert_eq!(fs::read_dir(root.join("outside")).unwrap().count(), 0);
    });
}

#[test]
fn a_busy_mount_is_taken_out_of_sight() {
    with_mounts(|root| {
        let place = root.join("busy");
        let undo = make(&storage("ephemeral", "t", "tmpfs", &place, &[]), None).unwrap();
        let held = fs::File::create(place.join("open")).unwrap();
        assert!(undo.run().is_empty());
        assert!(options_at(&place).is_none());
        drop(held);
    });
}
