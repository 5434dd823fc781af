// SPDX-License-Identifier: Apache-2.0
//! Whole images: read back by a strict reader that shares nothing with the writer, and judged by the tools of erofs-utils.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use guest_kernel::host::is_root;

use super::{ErofsError, Options, write};
use crate::tree::{Content, Entry, Kind, Tree};

mod random;
mod reader;
use reader::Image;

const MTIME: u32 = 1_000_000_007;

fn options() -> Options {
    Options {
        uuid: *b"\x01\x23\x45\x67\x89\xab\x4d\xef\x80\x01\x02\x03\x04\x05\x06\x07",
        mtime: MTIME,
        label: "a root".to_owned(),
    }
}

fn image(tree: &Tree, path: &Path) -> u64 {
    let size = write(tree, &options(), path).unwrap();
    assert_eq!(size, fs::metadata(path).unwrap().len());
    assert_eq!(size % 4096, 0);
    size
}

fn bytes(tree: &Tree) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    image(tree, file.path());
    fs::read(file.path()).unwrap()
}

/// Runs a tool of erofs-utils; its text if it is content.
fn tool(name: &str, args: &[&str], image: &Path) -> String {
    let output = Command::new(name)
        .args(args)
        .arg(image)
        .output()
        .unwrap_or_else(|error| panic!("the tests need {name} of erofs-utils: {error}"));
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    // Some errors are only shown.
    let fine = output.status.success() && !text.contains("<E>");
    assert!(fine, "{name}: {text}");
    text
}

fn noise(size: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    std::iter::repeat_with(next).take(size).collect()
}

/// One of everything, and sizes around the ends of blocks.
fn example() -> Tree {
    let mut tree = Tree::default();
    let mut put = |path: &str, entry| tree.insert(path, entry).unwrap();
    put("dev/console", Entry::new(Kind::CharDevice(5, 1), 0o600));
    put(
        "dev/sda300",
        Entry::new(Kind::BlockDevice(259, 70_000), 0o660),
    );
    put("run/pipe", Entry::new(Kind::Fifo, 0o622));
    put("tmp", Entry::directory(0o1777));
    put("lib", Entry::new(Kind::Symlink("usr/lib".into()), 0o777));
    let far = "x/".repeat(2047) + "y";
    put("far", Entry::new(Kind::Symlink(far.into()), 0o777));
    for size in [0, 1, 4095, 4096, 4097, 300_000] {
        put(
            &format!("usr/lib/{size}"),
            Entry::bytes(noise(size, 1), 0o644),
        );
    }
    put("usr/lib/same", Entry::bytes(noise(4097, 1), 0o4755));
    put("usr/lib/other", Entry::bytes(noise(4097, 2), 0o600));
    for name in ["-", "!", ".hidden", "..", "\u{e4}", "a b\n\"\\"] {
        put(
            &format!("odd/{}", name.replace("..", "..."))[..],
            Entry::bytes("x", 0o400),
        );
    }
    put(
        &format!("odd/{}", "n".repeat(255)),
        Entry::bytes("long", 0o444),
    );
    for number in 0..700 {
        put(
            &format!("many/file-{number:04}"),
            Entry::bytes(number.to_string(), 0o644),
        );
    }
    let mut owned = Entry::bytes("owned", 0o640);
    (owned.uid, owned.gid) = (70_000, u32::MAX - 1);
    owned.xattrs = BTreeMap::from([
        (b"user.comment".to_vec(), b"hello".to_vec()),
        (
            b"security.capability".to_vec(),
            vec![1, 0, 0, 2, 0, 4, 0, 0],
        ),
        (b"trusted.big".to_vec(), noise(9_000, 3)),
        (b"system.posix_acl_access".to_vec(), b"\x02\0\0\0".to_vec()),
    ]);
    put("etc/owned", owned);
    let mut directory = Entry::directory(0o750);
    directory.xattrs = BTreeMap::from([(b"user.empty".to_vec(), Vec::new())]);
    put("etc", directory);
    tree
}

/// Everything the tree says is in the image, and nothing else.
fn assert_holds(image: &Image, tree: &Tree) {
    let found = image.walk();
    assert_eq!(found.len(), tree.entries().len() + 1);
    assert_eq!(
        (found[0].path.as_slice(), found[0].mode),
        (&b""[..], 0o040_755)
    );
    for (item, (path, entry)) in found[1..].iter().zip(tree.entries()) {
        assert_eq!(item.path, path.as_os_str().as_bytes());
        assert_eq!(item.mode, entry.kind.type_bits() | entry.mode, "{path:?}");
        assert_eq!(
            (item.uid, item.gid, item.mtime),
            (entry.uid, entry.gid, u64::from(MTIME))
        );
        assert_eq!(item.xattrs, entry.xattrs, "{path:?}");
        let below = tree
            .entries()
            .filter(|(other, below)| other.parent() == Some(path) && below.kind == Kind::Directory);
        match &entry.kind {
            Kind::Directory => assert_eq!(item.links as usize, 2 + below.count(), "{path:?}"),
            _ => assert_eq!(item.links, 1),
        }
        match &entry.kind {
            Kind::File(Content::Bytes(bytes)) => assert_eq!(&item.content, bytes, "{path:?}"),
            Kind::File(Content::File(source)) => {
                assert_eq!(item.content, fs::read(source).unwrap(), "{path:?}");
            }
            Kind::Symlink(target) => assert_eq!(item.content, target.as_os_str().as_bytes()),
            Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
                assert_eq!(item.device, (*major, *minor), "{path:?}");
            }
            Kind::Directory | Kind::Fifo => {}
        }
    }
}

#[test]
fn everything_is_found_again() {
    assert_holds(&Image::new(bytes(&example())), &example());
}

#[test]
fn two_writings_are_equal_and_an_old_image_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    image(&example(), &one);
    fs::write(&two, noise(3_000_000, 9)).unwrap();
    image(&example(), &two);
    assert!(fs::read(one).unwrap() == fs::read(two).unwrap());
}

#[test]
fn equal_files_share_their_blocks_and_no_file_is_inline() {
    let image = Image::new(bytes(&example()));
    let items = image.walk();
    let address = |path: &str| {
        let item = items.iter().find(|item| item.path == path.as_bytes());
        item.unwrap().address
    };
    assert_eq!(address("usr/lib/same"), address("usr/lib/4097"));
    assert_ne!(address("usr/lib/other"), address("usr/lib/4097"));
    for item in items
        .iter()
        .filter(|item| item.mode & 0o170_000 == 0o100_000)
    {
        assert!(!item.inline, "{:?}", item.path);
    }
}

#[test]
fn a_duplicate_costs_an_inode_and_leaves_nothing() {
    let mut tree = Tree::default();
    let mut with = |path: &str, content: Vec<u8>| {
        tree.insert(path, Entry::bytes(content, 0o644)).unwrap();
        assert_holds(&Image::new(bytes(&tree)), &tree);
        bytes(&tree).len()
    };
    let before = with("a", noise(100_000, 1));
    assert_eq!(with("b", noise(100_000, 1)), before);
    // This one is written where the second one was for a moment; the reader looks at what is behind it in its block.
    assert_eq!(with("c", noise(3, 1)), before + 4096);
}

#[test]
fn an_empty_tree_is_one_block() {
    let bytes = bytes(&Tree::default());
    assert_eq!(bytes.len(), 4096);
    assert_holds(&Image::new(bytes), &Tree::default());
}

#[test]
fn what_the_format_cannot_hold_is_refused_by_name() {
    let refused = |path: &str, entry: Entry| {
        let mut tree = Tree::default();
        tree.insert(path, entry).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        write(&tree, &options(), file.path())
            .unwrap_err()
            .to_string()
    };
    let link = |target: &str| Entry::new(Kind::Symlink(target.into()), 0o777);
    let mut labelled = Entry::bytes("", 0o644);
    labelled.xattrs.insert(b"odd.name".to_vec(), Vec::new());
    for (path, entry) in [
        ("l", link("")),
        ("l", link(&"t".repeat(4096))),
        ("d", Entry::new(Kind::CharDevice(4096, 0), 0o600)),
        ("d", Entry::new(Kind::BlockDevice(0, 1 << 20), 0o600)),
        (&"n".repeat(256), Entry::directory(0o755)),
        ("f", Entry::file("/no/such/file", 0o644)),
        ("x", labelled),
    ] {
        let message = refused(path, entry);
        assert!(
            message.contains(path) || message.contains("/no/such/file"),
            "{message}"
        );
    }
}

#[test]
fn a_file_that_changes_is_refused() {
    let mut tree = Tree::default();
    // Its size is said to be 0, yet there is something in it: as if it grew after it was looked at.
    tree.insert("f", Entry::file("/proc/self/status", 0o644))
        .unwrap();
    tree.insert("g", Entry::bytes("", 0o644)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let result = write(&tree, &options(), &dir.path().join("i"));
    assert!(
        matches!(result, Err(ErofsError::Changed { .. })),
        "{result:?}"
    );
    let result = write(&Tree::default(), &options(), dir.path());
    assert!(
        matches!(result, Err(ErofsError::Write { .. })),
        "{result:?}"
    );
}

#[test]
fn dump_erofs_shows_what_was_written() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let size = image(&example(), file.path());
    let text = tool("dump.erofs", &["-s"], file.path());
    let fields: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim(), value.trim()))
        .collect();
    assert_eq!(fields["Filesystem blocks"], (size / 4096).to_string());
    assert_eq!(fields["Filesystem root nid"], "36");
    let inodes = example().entries().len() + 1;
    assert_eq!(fields["Filesystem inode count"], inodes.to_string());
    assert_eq!(
        fields["Filesystem UUID"],
        "01234567-89ab-4def-8001-020304050607"
    );
    assert!(
        fields["Filesystem features"].contains("sb_csum mtime"),
        "{text}"
    );
    let text = tool("dump.erofs", &["--path=/etc/owned"], file.path());
    assert!(
        text.contains("Uid: 70000   Gid: 4294967294  Access: 0640/rw-r-----"),
        "{text}"
    );
    assert!(
        text.contains("Size: 5") && text.contains("Links: 1"),
        "{text}"
    );
    let text = tool("dump.erofs", &["--ls", "--path=/many"], file.path());
    assert_eq!(text.matches("file-").count(), 700);
}

/// fsck.erofs reads everything; as root it can also put it into a directory with owners and devices.
#[test]
fn fsck_erofs_finds_no_error_and_the_same_tree() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    image(&example(), &path);
    if !is_root() {
        tool("fsck.erofs", &[], &path);
        return;
    }
    let out = dir.path().join("out");
    tool(
        "fsck.erofs",
        &[&format!("--extract={}", out.display())],
        &path,
    );
    for (path, entry) in example().entries() {
        let host = out.join(path);
        let metadata = fs::symlink_metadata(&host).unwrap();
        // It changes the mode before the owner, which takes the set-id bits away.
        let mode = (entry.kind.type_bits() | entry.mode) & !0o6000;
        assert_eq!(metadata.mode() & !0o6000, mode, "{path:?}");
        assert_eq!(
            (metadata.uid(), metadata.gid()),
            (entry.uid, entry.gid),
            "{path:?}"
        );
        assert_eq!(metadata.mtime(), i64::from(MTIME), "{path:?}");
        match &entry.kind {
            Kind::File(Content::Bytes(bytes)) => assert!(fs::read(host).unwrap() == *bytes),
            Kind::Symlink(target) => assert_eq!(fs::read_link(host).unwrap(), *target),
            Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
                let device = (metadata.rdev() >> 8 & 0xfff, metadata.rdev() & 0xff);
                let minor = u64::from(minor & 0xff);
                assert_eq!(device, (u64::from(*major), minor), "{path:?}");
            }
            Kind::Fifo => assert!(metadata.file_type().is_fifo()),
            _ => {}
        }
    }
}

#[test]
#[should_panic(expected = "failed to verify superblock checksum")]
fn fsck_erofs_notices_a_changed_first_block() {
    let file = tempfile::NamedTempFile::new().unwrap();
    image(&example(), file.path());
    let mut bytes = fs::read(file.path()).unwrap();
    bytes[1024 + 0x30] ^= 1;
    fs::write(file.path(), bytes).unwrap();
    tool("fsck.erofs", &[], file.path());
}
