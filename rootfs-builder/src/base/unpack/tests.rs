// SPDX-License-Identifier: Apache-2.0
//! Layers as they should be, and archives made to reach outside.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;
use proptest::prelude::*;
use tar::Header;

mod owners;

/// An archive made entry by entry. Names are written as they are, which the tar crate's own builder would refuse.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Tar {
        Tar(tar::Builder::new(Vec::new()))
    }

    fn add(mut self, kind: EntryType, name: &str, link: &str, mode: u32, data: &str) -> Tar {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        let me = fs::metadata("/proc/self").unwrap();
        header.set_uid(me.uid().into());
        header.set_gid(me.gid().into());
        header.set_mtime(1000);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.append(&header, data.as_bytes()).unwrap();
        self
    }

    fn dir(self, name: &str) -> Tar {
        self.add(EntryType::Directory, name, "", 0o750, "")
    }

    fn file(self, name: &str, data: &str) -> Tar {
        self.add(EntryType::Regular, name, "", 0o640, data)
    }

    fn symlink(self, name: &str, target: &str) -> Tar {
        self.add(EntryType::Symlink, name, target, 0o777, "")
    }

    fn hard_link(self, name: &str, target: &str) -> Tar {
        self.add(EntryType::Link, name, target, 0o640, "")
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A directory with `root`, which is unpacked into, and `secret`, which nothing may touch.
struct Sandbox {
    dir: tempfile::TempDir,
}

impl Sandbox {
    fn new() -> Sandbox {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("secret")).unwrap();
        fs::write(dir.path().join("secret/key"), "secret").unwrap();
        Sandbox { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn unpack(&self, tar: Tar) -> Result<(), UnpackError> {
        let (bytes, mut ledger) = (tar.bytes(), Ledger::default());
        whiteouts(&bytes[..], &self.root(), &mut ledger)?;
        layer(&bytes[..], &self.root(), &mut ledger)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap()
    }

    /// Everything in the root, sorted.
    fn list(&self) -> Vec<String> {
        fn walk(dir: &Path, root: &Path, names: &mut Vec<String>) {
            for item in fs::read_dir(dir).unwrap() {
                let path = item.unwrap().path();
                names.push(
                    path.strip_prefix(root)
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .to_owned(),
                );
                if path.symlink_metadata().unwrap().is_dir() {
                    walk(&path, root, names);
                }
            }
        }
        let mut names = Vec::new();
        walk(&self.root(), &self.root(), &mut names);
        names.sort();
        names
    }

    fn assert_untouched(&self) {
        let names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        let inside: Vec<_> = fs::read_dir(self.dir.path().join("secret"))
            .unwrap()
            .collect();
        assert_eq!(inside.len(), 1);
        let key = self.dir.path().join("secret/key");
        assert_eq!(fs::read_to_string(&key).unwrap(), "secret");
        assert_eq!(key.metadata().unwrap().nlink(), 1);
    }
}

#[test]
fn a_layer_comes_out_as_it_went_in() {
    let place = Sandbox::new();
    let tar = Tar::new()
        .dir("d/")
        .file("d/f", "text")
        .symlink("d/l", "f")
        .hard_link("d/h", "d/f")
        .file("/abs", "x");
    place.unpack(tar.file("./made/parents/f", "deep")).unwrap();
    assert_eq!(place.read("d/l"), "text");
    assert_eq!(place.read("abs"), "x");
    assert_eq!(place.read("made/parents/f"), "deep");
    let file = place.root().join("d/f").metadata().unwrap();
    assert_eq!(
        (
            file.permissions().mode() & 0o7777,
            file.mtime(),
            file.nlink()
        ),
        (0o640, 1000, 2)
    );
    let dir = place.root().join("d").metadata().unwrap();
    assert_eq!(
        (dir.permissions().mode() & 0o7777, dir.mtime()),
        (0o750, 1000)
    );
}

#[test]
fn a_later_layer_replaces_and_keeps() {
    let place = Sandbox::new();
    place
        .unpack(
            Tar::new()
                .dir("d")
                .file("d/old", "1")
                .file("d/f", "1")
                .file("was-file", "1")
                .symlink("link", "d"),
        )
        .unwrap();
    let second = Tar::new()
        .dir("d")
        .file("d/f", "2")
        .dir("was-file")
        .file("link", "now a file");
    place.unpack(second).unwrap();
    assert_eq!(place.list(), ["d", "d/f", "d/old", "link", "was-file"]);
    assert_eq!(place.read("d/f"), "2");
    assert_eq!(place.read("link"), "now a file");
}

#[test]
fn files_go_through_links_of_lower_layers_inside_the_root() {
    let place = Sandbox::new();
    place
        .unpack(Tar::new().dir("usr/lib").symlink("lib", "/usr/lib"))
        .unwrap();
    place.unpack(Tar::new().file("lib/new", "x")).unwrap();
    assert_eq!(place.read("usr/lib/new"), "x");
}

#[test]
fn whiteouts_remove_lower_entries_only() {
    let place = Sandbox::new();
    place
        .unpack(
            Tar::new()
                .dir("d")
                .file("d/a", "1")
                .file("d/b", "1")
                .dir("e")
                .file("e/x", "1")
                .file("keep", "1"),
        )
        .unwrap();
    // The opaque mark comes after the entry of its own layer, and must not remove it.
    let second = Tar::new()
        .file("d/.wh.a", "")
        .file("e/new", "2")
        .file("e/.wh..wh..opq", "")
        .file(".wh.gone", "")
        .file("no/.wh.x", "");
    place.unpack(second).unwrap();
    assert_eq!(place.list(), ["d", "d/b", "e", "e/new", "keep"]);
}

#[test]
fn whiteouts_of_dots_remove_nothing() {
    let place = Sandbox::new();
    place.unpack(Tar::new().dir("d").file("d/a", "1")).unwrap();
    for name in [".wh.", ".wh..", "d/.wh..", "d/.wh...", ".wh..."] {
        let _ = place.unpack(Tar::new().file(name, ""));
    }
    assert_eq!(place.list(), ["d", "d/a"]);
    place.assert_untouched();
}

#[test]
fn dots_are_refused() {
    for name in [
        "../secret/new",
        "d/../../secret/key",
        "..",
        "/../secret/key",
    ] {
        for kind in [
            EntryType::Regular,
            EntryType::Directory,
            EntryType::Symlink,
            EntryType::Fifo,
        ] {
            let place = Sandbox::new();
            let error = place
                .unpack(Tar::new().add(kind, name, "x", 0o644, ""))
                .unwrap_err();
            assert!(
                matches!(error, UnpackError::Escape { .. }),
                "{name}: {error}"
            );
            place.assert_untouched();
        }
    }
}

#[test]
fn links_out_of_the_root_end_at_the_root() {
    for target in ["../secret", "/secret", "../../../../secret", "/../secret"] {
        let place = Sandbox::new();
        let outside = place.dir.path().join("secret");
        let targets = [target.to_owned(), outside.to_str().unwrap().to_owned()];
        for target in targets {
            let _ = place.unpack(
                Tar::new()
                    .symlink("way", &target)
                    .file("way/key", "overwritten")
                    .file("way/new", "x"),
            );
            let _ = place.unpack(Tar::new().symlink("way", &target).dir("way/dir"));
            let _ = place.unpack(Tar::new().symlink("way", &target).file("way/.wh.key", ""));
            let _ = place.unpack(
                Tar::new()
                    .symlink("way", &target)
                    .file("way/.wh..wh..opq", ""),
            );
            place.assert_untouched();
        }
    }
}

#[test]
fn a_link_is_replaced_and_never_written_through() {
    let place = Sandbox::new();
    symlink(place.dir.path().join("secret/key"), place.root().join("f")).unwrap();
    place.unpack(Tar::new().file("f", "mine")).unwrap();
    assert_eq!(place.read("f"), "mine");
    symlink(place.dir.path().join("secret"), place.root().join("d")).unwrap();
    place
        .unpack(Tar::new().dir("d").file("d/key", "mine"))
        .unwrap();
    assert_eq!(place.read("d/key"), "mine");
    place.assert_untouched();
}

#[test]
fn removing_a_directory_does_not_follow_links_in_it() {
    let place = Sandbox::new();
    fs::create_dir(place.root().join("d")).unwrap();
    symlink(place.dir.path().join("secret"), place.root().join("d/way")).unwrap();
    place.unpack(Tar::new().file(".wh.d", "")).unwrap();
    assert!(place.list().is_empty());
    place.assert_untouched();
}

#[test]
fn hard_links_cannot_reach_outside() {
    for target in ["../secret/key", "/secret/key", "way/key", "missing"] {
        let place = Sandbox::new();
        let way = place.dir.path().join("secret");
        let tar = Tar::new()
            .symlink("way", way.to_str().unwrap())
            .hard_link("mine", target);
        assert!(place.unpack(tar).is_err(), "{target}");
        place.assert_untouched();
    }
}

#[test]
fn a_broken_archive_is_an_error() {
    let place = Sandbox::new();
    let mut bytes = Tar::new().file("f", &"x".repeat(2000)).bytes();
    bytes.truncate(1000);
    assert!(layer(&bytes[..], &place.root(), &mut Ledger::default()).is_err());
    assert!(matches!(
        layer(&[7; 512][..], &place.root(), &mut Ledger::default()),
        Err(UnpackError::Archive(_))
    ));
}

#[test]
fn the_root_itself_can_be_an_entry() {
    let place = Sandbox::new();
    place.unpack(Tar::new().dir("./").file("./f", "x")).unwrap();
    assert_eq!(place.list(), ["f"]);
    assert_eq!(
        place.root().metadata().unwrap().permissions().mode() & 0o777,
        0o750
    );
}

fn name() -> impl Strategy<Value = String> {
    proptest::collection::vec(
        prop_oneof![
            "\\.\\.",
            "a",
            "b",
            "\\.wh\\.a",
            "\\.wh\\.\\.wh\\.\\.opq",
            ""
        ],
        1..5,
    )
    .prop_map(|parts| parts.join("/"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_archive_reaches_outside(entries in proptest::collection::vec((name(), prop_oneof![name(), Just("../secret".to_owned())], 0..4u8), 1..12)) {
        let place = Sandbox::new();
        let mut tar = Tar::new();
        for (name, link, kind) in entries {
            tar = match kind {
                0 => tar.file(&name, "data"),
                1 => tar.dir(&name),
                2 => tar.symlink(&name, &link),
                _ => tar.hard_link(&name, &link),
            };
        }
        let _ = place.unpack(tar);
        place.assert_untouched();
    }
}
