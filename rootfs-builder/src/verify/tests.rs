// SPDX-License-Identifier: Apache-2.0

use std::fs;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;
use crate::cli::output::document;
use crate::image::compress::Compression;
use crate::image::disk::Layout;
use crate::image::{compress, cpio, erofs, ext4, oci, verity};
use crate::manifest::{Contents, ImageFile, SCHEMA, Tool};
use crate::tree::{Entry, Kind, Tree};

fn tree() -> Tree {
    let mut tree = Tree::default();
    for name in ["dev", "etc", "proc", "run", "sys", "tmp", "var"] {
        tree.insert(name, Entry::directory(0o755)).unwrap();
    }
    // The beginning of a static program.
    let mut program = fs::read("/bin/sh").unwrap();
    program.truncate(64);
    program[56..58].fill(0);
    program.resize(30_000, 7);
    tree.insert("init", Entry::bytes(program, 0o755)).unwrap();
    let link = Entry::new(Kind::Symlink("../init".into()), 0o777);
    tree.insert("sbin/init", link).unwrap();
    tree.insert("usr/share/data", Entry::bytes(vec![5; 100_000], 0o644))
        .unwrap();
    tree
}

/// A directory with an image in it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Puts a manifest beside an image.
    fn manifest(&self, image: &Path, verity: Option<Verity>) {
        let tree = Contents::of(&tree()).unwrap();
        let file = if image.is_dir() {
            ImageFile::directory("layout", &tree)
        } else {
            ImageFile::of(image).unwrap()
        };
        let manifest = Manifest {
            schema: SCHEMA,
            name: "test".to_owned(),
            tool: Tool::this(),
            arch: Arch::host().unwrap().to_string(),
            profile: None,
            format: "disk".to_owned(),
            filesystem: None,
            epoch: 0,
            image: file,
            verity,
            kernel_words: Vec::new(),
            kernel: None,
            inputs: Vec::new(),
            tree,
            packages: Vec::new(),
        };
        manifest.write(&Manifest::path_for(image)).unwrap();
    }

    /// A measured disk with DAX, and how it is measured.
    fn disk(&self) -> (PathBuf, Verity) {
        let (root, hashes, image) = (self.path("root"), self.path("hashes"), self.path("disk"));
        erofs::write(&tree(), &erofs::Options::default(), &root).unwrap();
        let verity = verity::format(&root, b"salt", &hashes).unwrap();
        crate::image::disk::write(&root, Some(&hashes), &Layout::dax(), &image).unwrap();
        (image, verity)
    }

    fn cpio(&self, compression: Compression) -> PathBuf {
        let mut bytes = Vec::new();
        compress::write(compression, &mut bytes, |out| {
            cpio::write(&tree(), 0, out).map_err(std::io::Error::other)
        })
        .unwrap();
        let path = self.path("initramfs");
        fs::write(&path, bytes).unwrap();
        path
    }
}

fn check(path: &Path) -> Verification {
    verify(path, &Options::default()).unwrap()
}

fn measured(path: &Path, verity: &Verity) -> Verification {
    let options = Options {
        verity: Some(verity.clone()),
        ..Options::default()
    };
    verify(path, &options).unwrap()
}

fn names(verification: &Verification, outcome: Outcome) -> Vec<&'static str> {
    let checks = verification.checks.iter();
    checks
        .filter(|check| check.outcome == outcome)
        .map(|check| check.name)
        .collect()
}

fn flip(path: &Path, at: u64) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn a_whole_disk_passes_everything() {
    let place = Place::new();
    let (image, verity) = place.disk();
    place.manifest(&image, Some(verity));
    let found = check(&image);
    assert!(found.ok && found.failed() == 0, "{}", found.text());
    let expected = [
        "format",
        "size",
        "digest",
        "disk",
        "unused",
        "superblock",
        "verity",
        "init",
        "directories",
    ];
    assert_eq!(names(&found, Outcome::Ok), expected, "{}", found.text());
    let json: serde_json::Value = serde_json::from_str(&document(&found).unwrap()).unwrap();
    assert_eq!(
        (&json["kind"], &json["ok"]),
        (&"verification".into(), &true.into())
    );
    assert_eq!(json["checks"][0]["outcome"], "ok");
}

#[test]
fn a_flipped_bit_in_a_file_is_found_with_its_place() {
    let place = Place::new();
    let (image, verity) = place.disk();
    let bytes = fs::read(&image).unwrap();
    let at = bytes
        .windows(8)
        .position(|window| window == [5; 8])
        .unwrap() as u64
        + 50_000;
    flip(&image, at);
    let found = measured(&image, &verity);
    assert_eq!(
        names(&found, Outcome::Failed),
        ["verity"],
        "{}",
        found.text()
    );
    let detail = &found
        .checks
        .iter()
        .find(|check| check.name == "verity")
        .unwrap()
        .detail;
    let block = (at - (3 << 20)) / 4096;
    let expected = format!("block {block}, at byte {}, differs", at / 4096 * 4096);
    assert!(detail.contains(&expected), "{detail}");
    assert!(
        detail.ends_with("; there lies the content of /usr/share/data"),
        "{detail}"
    );
    let options = Options {
        root_hash: Some([1; 32]),
        ..Options::default()
    };
    assert!(matches!(
        verify(&image, &options),
        Err(VerifyError::Salt { .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Not a bit can change unnoticed, with a manifest and without one.
    #[test]
    fn any_flipped_bit_is_found(anywhere: u64, region in 0..3) {
        let place = Place::new();
        let (image, verity) = place.disk();
        let size = fs::metadata(&image).unwrap().len();
        let at = match region {
            0 => (3 << 20) + anywhere % (verity.data_size() + verity.hash_size()),
            1 => anywhere % size,
            _ => [0, 4096, 2 << 20][anywhere as usize % 3] + anywhere / 3 % 512,
        };
        place.manifest(&image, Some(verity.clone()));
        flip(&image, at);
        prop_assert!(names(&check(&image), Outcome::Failed).contains(&"digest"));
        fs::remove_file(Manifest::path_for(&image)).unwrap();
        let found = measured(&image, &verity);
        prop_assert!(!found.ok, "{at}: {}", found.text());
    }
}

/// Every bit of both tables, read by anybody or not.
#[test]
fn the_tables_vouch_for_one_another() {
    let place = Place::new();
    let (image, _) = place.disk();
    let parts = crate::image::disk::read(&image).unwrap();
    assert!(disk::exact(&image, &parts).is_none());
    for at in (0..512).chain(2 << 20..(2 << 20) + 512) {
        flip(&image, at);
        // What is no table at all is no disk either, and so no image.
        let found = crate::image::disk::read(&image)
            .map(|parts| parts.partitions.is_empty() || disk::exact(&image, &parts).is_some());
        assert!(found.unwrap_or(true), "{at}");
        flip(&image, at);
    }
}

#[test]
fn what_hides_outside_the_partitions_is_found() {
    let place = Place::new();
    let (image, verity) = place.disk();
    let size = fs::metadata(&image).unwrap().len();
    for at in [513, 9000, (2 << 20) + 600, (3 << 20) - 1, size - 1] {
        flip(&image, at);
        let found = measured(&image, &verity);
        let unused = found
            .checks
            .iter()
            .find(|check| check.name == "unused")
            .unwrap();
        assert_eq!(
            unused.detail,
            format!("byte {at} is not zero, and belongs to nothing")
        );
        flip(&image, at);
    }
    assert!(measured(&image, &verity).ok);
    let found = check(&image);
    assert_eq!(names(&found, Outcome::Failed), ["verity"]);
    assert!(found.text().contains("no root hash is known"));
}

#[test]
fn broken_tables_and_blocks_are_named() {
    let place = Place::new();
    let (image, verity) = place.disk();
    for at in [446 + 8, 4096 + 20, 4096 + 4090, (2 << 20) + 446 + 12] {
        flip(&image, at);
        let found = measured(&image, &verity);
        assert!(
            names(&found, Outcome::Failed).contains(&"disk"),
            "{at}: {}",
            found.text()
        );
        flip(&image, at);
    }
}

#[test]
fn a_file_system_has_its_tree_beside_it() {
    let place = Place::new();
    let root = place.path("root.erofs");
    erofs::write(&tree(), &erofs::Options::default(), &root).unwrap();
    let verity = verity::format(&root, b"", &place.path("root.erofs.verity")).unwrap();
    assert!(
        measured(&root, &verity).ok,
        "{}",
        measured(&root, &verity).text()
    );
    flip(&place.path("root.erofs.verity"), 3);
    let found = measured(&root, &verity);
    assert!(
        found.text().contains("block 0 of level 0"),
        "{}",
        found.text()
    );
    fs::remove_file(place.path("root.erofs.verity")).unwrap();
    assert!(
        measured(&root, &verity)
            .text()
            .contains("there is no hash tree")
    );
}

#[test]
fn metadata_of_ext4_is_checked() {
    let place = Place::new();
    let image = place.path("root.ext4");
    let options = ext4::Options {
        free: 1 << 20,
        ..ext4::Options::default()
    };
    ext4::write(&tree(), &options, &image).unwrap();
    let found = check(&image);
    assert!(found.ok, "{}", found.text());
    assert!(
        names(&found, Outcome::Ok).contains(&"metadata"),
        "{}",
        found.text()
    );
    // The superblock's label, and the time of the root directory's inode.
    flip(&image, 1024 + 0x78);
    assert_eq!(names(&check(&image), Outcome::Failed)[0], "superblock");
    flip(&image, 1024 + 0x78);
    let read = read::open(&image).unwrap();
    let place = read
        .places(0, u64::MAX)
        .into_iter()
        .find(|place| place.path == b"etc")
        .unwrap();
    let inode = place.start;
    flip(&image, inode + 0x10);
    let found = check(&image);
    assert_eq!(names(&found, Outcome::Failed), ["metadata"]);
    assert!(found.text().contains("/etc: "), "{}", found.text());
}

#[test]
fn an_initramfs_is_checked() {
    let place = Place::new();
    for compression in Compression::ALL {
        let image = place.cpio(compression);
        place.manifest(&image, None);
        let found = check(&image);
        assert!(found.ok, "{}", found.text());
        let expected = ["format", "size", "digest", "archive", "init", "directories"];
        assert_eq!(names(&found, Outcome::Ok), expected);
        let size = fs::metadata(&image).unwrap().len();
        flip(&image, size / 2);
        assert!(names(&check(&image), Outcome::Failed).contains(&"digest"));
        flip(&image, size / 2);
        let file = fs::File::options().write(true).open(&image).unwrap();
        file.set_len(size - 100).unwrap();
        let found = check(&image);
        let failed = names(&found, Outcome::Failed);
        assert!(
            failed.contains(&"size") && failed.contains(&"digest"),
            "{}",
            found.text()
        );
    }
}

#[test]
fn what_no_guest_can_start_from_is_told() {
    let place = Place::new();
    let image = place.path("root");
    let failed = |tree: &Tree, arch| {
        erofs::write(tree, &erofs::Options::default(), &image).unwrap();
        let options = Options {
            arch,
            ..Options::default()
        };
        verify(&image, &options).unwrap().text()
    };
    let other = Arch::ALL
        .into_iter()
        .find(|arch| Some(*arch) != Arch::host());
    assert!(failed(&tree(), other).contains(&format!("not for {}", other.unwrap())));
    let mut tree = tree();
    tree.remove("proc").unwrap();
    assert!(failed(&tree, None).contains("missing: /proc"));
    let shell = Entry::bytes(fs::read("/bin/sh").unwrap(), 0o755);
    tree.insert("init", shell).unwrap();
    assert!(failed(&tree, None).contains("which is not there"));
    tree.insert("init", Entry::bytes("#!/bin/sh\n", 0o755))
        .unwrap();
    assert!(failed(&tree, None).contains("/sbin/init is no program"));
    tree.remove("sbin").unwrap();
    assert!(failed(&tree, None).contains("neither /init nor /sbin/init"));
    tree.insert("etc/kata-extensions", Entry::directory(0o755))
        .unwrap();
    assert!(failed(&tree, None).contains("has no /etc/kata-extensions/components.toml"));
    let list = Entry::bytes("schema_version = 1\n", 0o644);
    tree.insert("etc/kata-extensions/components.toml", list)
        .unwrap();
    assert!(!failed(&tree, None).contains("FAILED"));
}

#[test]
fn a_layout_is_compared_with_the_manifest_entry_by_entry() {
    let place = Place::new();
    let dir = place.path("layout");
    let options = oci::Options::new(Arch::host().unwrap(), 0);
    oci::write(&tree(), &options, &dir).unwrap();
    place.manifest(&dir, None);
    let found = check(&dir);
    assert!(found.ok, "{}", found.text());
    assert!(names(&found, Outcome::Ok).contains(&"contents"));
    let mut other = tree();
    other.insert("more", Entry::bytes("", 0o644)).unwrap();
    fs::remove_dir_all(&dir).unwrap();
    oci::write(&other, &options, &dir).unwrap();
    assert_eq!(names(&check(&dir), Outcome::Failed), ["contents"]);
    assert!(matches!(
        verify(&place.path("nothing"), &Options::default()),
        Err(VerifyError::Missing { .. })
    ));
}
