// SPDX-License-Identifier: Apache-2.0
//! Images made by the host's own tools are read, and images that are broken on purpose.

mod archives;
mod filesystems;
mod hostile;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::*;
use crate::tree::{Entry, Kind, Tree};

/// A directory for one test's images.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// Runs a program of the host and returns what it wrote.
pub fn run(program: &str, args: &[&str], dir: &Path, input: &[u8]) -> Vec<u8> {
    use std::io::Write;

    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let mut child = Command::new(program)
        .args(args)
        .env("PATH", path)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} is needed by this test: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    output.stdout
}

/// A tree with all that an image can hold.
pub fn example() -> Tree {
    let mut tree = Tree::default();
    let owned = |entry| Entry {
        uid: 70_000,
        gid: 8,
        ..entry
    };
    let link = |target: String| Entry::new(Kind::Symlink(target.into()), 0o777);
    for (path, entry) in [
        ("init", Entry::bytes("#!/bin/sh\n", 0o755)),
        ("dev/console", Entry::new(Kind::CharDevice(5, 1), 0o600)),
        ("dev/vda300", Entry::new(Kind::BlockDevice(252, 300), 0o660)),
        ("run/pipe", Entry::new(Kind::Fifo, 0o622)),
        ("sbin", link("usr/sbin".into())),
        ("usr/sbin/init", link("../../init".into())),
        ("long", link("x/".repeat(200))),
        ("tmp", Entry::directory(0o1777)),
        ("empty", Entry::bytes("", 0o600)),
        ("etc/passwd", owned(Entry::bytes("root", 0o4640))),
        ("block", Entry::bytes(vec![7; 4096], 0o644)),
        // One whole block and a tail.
        ("odd", Entry::bytes(vec![9; 5000], 0o644)),
        ("more", Entry::bytes(vec![8; 50_000], 0o444)),
    ] {
        tree.insert(path, entry).unwrap();
    }
    for index in 0..300 {
        let name = format!("many/a-name-of-some-length-{index}");
        tree.insert(name, Entry::bytes(index.to_string(), 0o644))
            .unwrap();
    }
    tree
}

/// Puts the files, directories and links of a tree below a directory, as whoever runs this can.
pub fn unpack(tree: &Tree, dir: &Path) {
    use std::os::unix::fs::{PermissionsExt, symlink};

    fs::create_dir_all(dir).unwrap();
    for (path, entry) in tree.entries() {
        let path = dir.join(path);
        match &entry.kind {
            Kind::Directory => fs::create_dir_all(&path).unwrap(),
            Kind::Symlink(target) => symlink(target, &path).unwrap(),
            Kind::File(content) => {
                let mut bytes = Vec::new();
                content.open().unwrap().read_to_end(&mut bytes).unwrap();
                fs::write(&path, bytes).unwrap();
                // What is not readable could not be read again by an ordinary user.
                let mode = entry.mode | 0o400;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            }
            _ => {}
        }
    }
}

/// Fails with the entries that differ.
pub fn assert_same(found: &Listing, expected: &Listing) {
    let paths = found.entries.keys().chain(expected.entries.keys());
    let mut different = Vec::new();
    for path in paths {
        let (a, b) = (found.entries.get(path), expected.entries.get(path));
        if a != b {
            different.push(format!("{}: {a:?}, not {b:?}", show(path)));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn paths_are_shown_without_tricks() {
    assert_eq!(show(b"a b/\xc3\xa9"), "/a b/\u{e9}");
    assert_eq!(show(b"a\n\x1b[1m\xff\\"), "/a\\n\\u{1b}[1m\\xff\\\\");
}

#[test]
fn what_is_no_image_is_said() {
    let place = Place::new();
    let open_error = |name: &str, bytes: &[u8]| {
        let path = place.write(name, bytes);
        open(&path)
            .unwrap_err()
            .to_string()
            .replace(path.to_str().unwrap(), "X")
    };
    assert_eq!(open_error("a", b""), "X is of no known image format");
    assert_eq!(open_error("b", &[1; 5000]), "X is of no known image format");
    for (bytes, name) in [
        (&b"\xfd7zXZ\0"[..], "xz compression"),
        (b"BZh9", "bzip2 compression"),
        (b"\x04\x22\x4d\x18", "an LZ4 frame of the new format"),
        (b"XFSB", "xfs"),
        (b"hsqs", "squashfs"),
    ] {
        let expected = format!("X has {name}, which cannot be read here");
        assert_eq!(open_error("c", bytes), expected);
    }
    run("mkfifo", &["pipe"], &place.path("."), b"");
    assert!(matches!(
        open(&place.path("pipe")),
        Err(ReadError::UnknownFormat { .. })
    ));
    assert!(
        open(&place.path("nothing"))
            .unwrap_err()
            .to_string()
            .starts_with("Cannot open")
    );
}
