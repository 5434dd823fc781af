// SPDX-License-Identifier: Apache-2.0
//! tar(1) lists, and the tar crate reads, what is written.

use std::process::{Command, Stdio};

use ::tar::Archive;
use proptest::prelude::*;

use super::*;

fn archive(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(tree, 1_000_000_000, &mut bytes).unwrap();
    bytes
}

fn example() -> Tree {
    let mut tree = Tree::default();
    let mut put = |path: &str, entry| tree.insert(path, entry).unwrap();
    put("dev/console", Entry::new(Kind::CharDevice(5, 1), 0o600));
    put("dev/vda", Entry::new(Kind::BlockDevice(254, 65_536), 0o660));
    put("dev/initctl", Entry::new(Kind::Fifo, 0o600));
    put("lib", Entry::new(Kind::Symlink("/usr/lib".into()), 0o777));
    put("tmp", Entry::directory(0o1777));
    let mut owned = Entry::bytes("root", 0o4750);
    (owned.uid, owned.gid) = (7, 3_000_000_000);
    put("etc/passwd", owned);
    tree
}

/// What GNU tar does with an archive.
fn gnu(args: &[&str], archive: &[u8]) -> String {
    let mut child = Command::new("tar")
        .env("TZ", "UTC")
        .env("LC_ALL", "C")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test needs tar");
    child.stdin.take().unwrap().write_all(archive).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn gnu_tar_lists_what_was_written() {
    let text = gnu(
        &["-tvf-", "--numeric-owner", "--full-time"],
        &archive(&example()),
    );
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let time = "2001-09-09 01:46:40";
    assert_eq!(
        lines,
        [
            format!("drwxr-xr-x 0/0 0 {time} dev/"),
            format!("crw------- 0/0 5,1 {time} dev/console"),
            format!("prw------- 0/0 0 {time} dev/initctl"),
            format!("brw-rw---- 0/0 254,65536 {time} dev/vda"),
            format!("drwxr-xr-x 0/0 0 {time} etc/"),
            format!("-rwsr-x--- 7/3000000000 4 {time} etc/passwd"),
            format!("lrwxrwxrwx 0/0 0 {time} lib -> /usr/lib"),
            format!("drwxrwxrwt 0/0 0 {time} tmp/"),
        ]
    );
}

#[test]
fn attributes_are_where_gnu_tar_finds_them() {
    let mut tree = Tree::default();
    let mut entry = Entry::bytes("x", 0o755);
    let mut attribute = |name: &str, value: &[u8]| entry.xattrs.insert(name.into(), value.into());
    attribute("security.capability", b"\x01\0\0\x02\0\x20\0\n=\0");
    attribute("user.a b", b"");
    tree.insert("ping", entry).unwrap();
    let text = gnu(
        &["-tvvf-", "--xattrs", "--xattrs-include=*"],
        &archive(&tree),
    );
    assert!(text.contains("x: 10 security.capability"), "{text}");
    assert!(text.contains("x: 0 user.a b"), "{text}");
}

#[test]
fn long_names_are_whole() {
    let deep = format!("{}/{}", "d".repeat(90), "ü".repeat(120));
    let target = "../".repeat(50);
    let mut tree = Tree::default();
    tree.insert(&deep, Entry::bytes("x", 0o644)).unwrap();
    tree.insert(
        "link",
        Entry::new(Kind::Symlink(target.clone().into()), 0o777),
    )
    .unwrap();
    tree.insert("n".repeat(99), Entry::directory(0o700))
        .unwrap();
    tree.insert("o".repeat(100), Entry::directory(0o700))
        .unwrap();
    let text = gnu(&["-tvf-", "--quoting-style=literal"], &archive(&tree));
    for name in [
        deep,
        format!("link -> {target}"),
        "n".repeat(99) + "/",
        "o".repeat(100) + "/",
    ] {
        assert!(text.contains(&format!(" {name}\n")), "{name}\n{text}");
    }
}

#[test]
fn entries_are_plain_posix_headers() {
    let mut tree = Tree::default();
    tree.insert("a", Entry::bytes("x", 0o644)).unwrap();
    let bytes = archive(&tree);
    assert_eq!(bytes.len(), 512 + 512 + 1024);
    assert_eq!(&bytes[257..265], b"ustar\x0000");
    assert_eq!(&bytes[136..148], b"07346545000\0");
    assert_eq!(bytes[265..329], [0; 64]);
}

#[test]
fn owners_that_do_not_fit_stand_in_an_extended_header() {
    let bytes = archive(&example());
    let record = b"18 gid=3000000000\n";
    assert!(bytes.windows(record.len()).any(|window| window == record));
}

#[test]
fn two_writings_are_equal() {
    assert_eq!(archive(&example()), archive(&example()));
}

#[test]
fn files_that_change_or_are_missing_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, "12345").unwrap();
    let file = Content::File(path.clone());
    for size in [4, 6] {
        let mut out = io::sink();
        let mut archive = Builder::new(&mut out as &mut dyn Write);
        let error = body(&mut archive, &Header::new_ustar(), &file, size).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("{} changed while it was read", path.display())
        );
    }
    let mut tree = Tree::default();
    tree.insert("f", Entry::file("/no/such/file", 0o644))
        .unwrap();
    let error = write(&tree, 0, &mut io::sink()).unwrap_err();
    assert!(error.to_string().ends_with(" /no/such/file"), "{error}");
    // A directory can be opened, and not read.
    let mut tree = Tree::default();
    tree.insert("f", Entry::file(dir.path(), 0o644)).unwrap();
    let error = write(&tree, 0, &mut io::sink()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("Cannot read {}", dir.path().display())
    );
}

#[test]
fn attributes_that_cannot_be_named_are_refused() {
    for name in [&b"user.a=b"[..], b"user.\xff", b""] {
        let mut tree = Tree::default();
        let mut entry = Entry::bytes("", 0o644);
        entry.xattrs.insert(name.to_vec(), Vec::new());
        tree.insert("dir/f", entry).unwrap();
        let error = write(&tree, 0, &mut io::sink()).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("dir/f has an extended attribute"),
            "{error}"
        );
    }
}

fn entries() -> impl Strategy<Value = (String, u32, u32, u32, usize)> {
    (
        "[a-zü]{1,60}(/[a-z ]{1,60}){0,4}",
        0..0o10000_u32,
        any::<u32>(),
        any::<u32>(),
        0..2000_usize,
    )
}

proptest! {
    #[test]
    fn the_tar_crate_reads_what_is_written(list in prop::collection::vec(entries(), 0..12)) {
        let mut tree = Tree::default();
        for (path, mode, uid, gid, size) in list {
            let mut entry = Entry::bytes(vec![b'x'; size], mode);
            (entry.uid, entry.gid) = (uid, gid);
            // A file where another entry needs a directory is not wanted.
            let _ = tree.insert(path, entry);
        }
        let bytes = archive(&tree);
        let mut read = Tree::default();
        for entry in Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let header = entry.header().clone();
            let path = entry.path().unwrap().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let kind = match header.entry_type() {
                EntryType::Directory => Kind::Directory,
                _ => Kind::File(Content::Bytes(content)),
            };
            let mut entry = Entry::new(kind, header.mode().unwrap());
            entry.uid = header.uid().unwrap() as u32;
            entry.gid = header.gid().unwrap() as u32;
            read.insert(path, entry).unwrap();
        }
        prop_assert_eq!(read, tree);
    }
}
