// SPDX-License-Identifier: Apache-2.0

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::cli::output::{Report, document};
use crate::image::compress::Compression;
use crate::image::{compress, cpio, erofs, ext4, tar};
use crate::tree::{Entry, Kind, Tree};

fn tree() -> Tree {
    let mut tree = Tree::default();
    for (path, entry) in [
        ("etc/passwd", Entry::bytes("root", 0o644)),
        ("bin", Entry::new(Kind::Symlink("usr/bin".into()), 0o777)),
        ("usr/bin/tool", Entry::bytes(vec![1; 9000], 0o755)),
        ("dev/null", Entry::new(Kind::CharDevice(1, 3), 0o666)),
    ] {
        tree.insert(path, entry).unwrap();
    }
    tree
}

struct Images(tempfile::TempDir);

impl Images {
    fn new() -> Images {
        Images(tempfile::tempdir().unwrap())
    }

    fn cpio(&self, name: &str, tree: &Tree, compression: Compression, mtime: u32) -> PathBuf {
        let path = self.0.path().join(name);
        let mut bytes = Vec::new();
        compress::write(compression, &mut bytes, |out| {
            cpio::write(tree, mtime, out).map_err(io::Error::other)
        })
        .unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }
}

fn compare(a: &Path, b: &Path) -> Comparison {
    diff(a, b, Options::default()).unwrap()
}

#[test]
fn equal_images_are_said_to_be() {
    let images = Images::new();
    let one = images.cpio("one", &tree(), Compression::Gzip, 0);
    let two = images.cpio("two", &tree(), Compression::Gzip, 0);
    let found = compare(&one, &two);
    assert!(found.identical && found.same_entries && !found.differs());
    assert!(found.text().ends_with("\nThe images are identical."));
}

#[test]
fn every_format_holds_the_same() {
    let images = Images::new();
    let path = |name: &str| images.0.path().join(name);
    let one = images.cpio("cpio", &tree(), Compression::Zstd, 0);
    let mut archive = Vec::new();
    tar::write(&tree(), 0, &mut archive).unwrap();
    fs::write(path("tar"), archive).unwrap();
    erofs::write(&tree(), &erofs::Options::default(), &path("erofs")).unwrap();
    let options = ext4::Options {
        free: 1 << 20,
        ..ext4::Options::default()
    };
    ext4::write(&tree(), &options, &path("ext4")).unwrap();
    for name in ["tar", "erofs", "ext4"] {
        let found = compare(&one, &path(name));
        assert!(
            !found.differs() && !found.identical,
            "{name}: {}",
            found.text()
        );
        assert!(found.text().ends_with("\nThe images hold the same."));
    }
}

#[test]
fn every_kind_of_change_is_named() {
    let images = Images::new();
    let mut other = tree();
    let mut passwd = Entry::bytes("roots", 0o600);
    passwd.uid = 5;
    other.insert("etc/passwd", passwd).unwrap();
    other
        .insert("bin", Entry::new(Kind::Symlink("bin".into()), 0o755))
        .unwrap();
    other
        .insert("dev/null", Entry::new(Kind::CharDevice(1, 5), 0o666))
        .unwrap();
    other.insert("new", Entry::new(Kind::Fifo, 0o600)).unwrap();
    other.remove("usr/bin/tool").unwrap();
    other.insert("usr/bin", Entry::bytes("", 0o755)).unwrap();
    let one = images.cpio("one", &tree(), Compression::None, 0);
    let two = images.cpio("two", &other, Compression::Lz4, 0);
    let found = compare(&one, &two);
    let lines: Vec<String> = found.text().lines().skip(2).map(str::to_owned).collect();
    let expected = [
        "~  /bin",
        "     target: usr/bin -> bin",
        "~  /dev/null",
        "     device: 1:3 -> 1:5",
        "~  /etc/passwd",
        "     mode: 0644 -> 0600",
        "     owner: 0:0 -> 5:0",
        "     size: 4 -> 5",
        "     content: 4813494d137e -> 7ecd5d811dc1",
        "+  /new (pipe)",
        "~  /usr/bin",
        "     kind: directory -> file",
        "-  /usr/bin/tool (file)",
        "1 added, 1 removed, 4 changed.",
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        // The digests are told by other programs.
        let start = expected.split("content:").next().unwrap();
        assert!(line.starts_with(start), "{line}, not {expected}");
    }
    assert!(found.differs() && !found.identical && found.first_byte.is_none());
    let json: serde_json::Value = serde_json::from_str(&document(&found).unwrap()).unwrap();
    assert_eq!(json["differences"][3]["change"], "added");
    assert_eq!(json["differences"][2]["details"][1]["b"], "5:0");
    let options = Options {
        ignore_owners: true,
    };
    let found = diff(&one, &two, options).unwrap();
    assert!(!found.text().contains("owner"));
}

#[test]
fn attributes_are_compared() {
    let images = Images::new();
    let mut other = tree();
    let mut tool = Entry::bytes(vec![1; 9000], 0o755);
    tool.xattrs
        .insert(b"security.capability".to_vec(), vec![1, 0]);
    other.insert("usr/bin/tool", tool).unwrap();
    let (one, two) = (images.0.path().join("one"), images.0.path().join("two"));
    erofs::write(&tree(), &erofs::Options::default(), &one).unwrap();
    erofs::write(&other, &erofs::Options::default(), &two).unwrap();
    let found = compare(&one, &two);
    assert_eq!(found.differences.len(), 1);
    let detail = &found.differences[0].details[0];
    assert_eq!(
        (&detail.what[..], &detail.b[..]),
        ("xattr:security.capability", "\\x01\\x00")
    );
}

#[test]
fn equal_entries_in_other_bytes_are_a_difference() {
    let images = Images::new();
    let one = images.cpio("one", &tree(), Compression::None, 0);
    let two = images.cpio("two", &tree(), Compression::None, 1);
    let found = compare(&one, &two);
    assert!(found.same_entries && found.differs());
    // The last digit of the first entry's time.
    assert_eq!(found.first_byte.as_ref().unwrap().offset, 6 + 5 * 8 + 7);
    let bytes = fs::read(&one).unwrap();
    let at = bytes
        .windows(4)
        .position(|window| window == [1; 4])
        .unwrap();
    let mut changed = bytes.clone();
    changed[at + 10] = 9;
    fs::write(&two, changed).unwrap();
    let found = compare(&one, &two);
    assert_eq!(
        found.first_byte.unwrap().holds,
        ["the content of /usr/bin/tool"]
    );
    assert_eq!(found.differences[0].details[0].what, "content");
}
