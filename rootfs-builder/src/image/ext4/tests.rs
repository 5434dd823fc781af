// SPDX-License-Identifier: Apache-2.0
//! Whole images: checked by e2fsck, read back with the ext4-view crate and with debugfs.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use ext4_view::{Ext4, FileType};
use guest_kernel::cache::Cache;
use guest_kernel::host::find_program;

use super::{Ext4Error, Options, write};
use crate::tree::{Entry, Kind, Tree};

mod random;

const MTIME: u32 = 1_000_000_007;

fn options() -> Options {
    Options {
        uuid: *b"\x01\x23\x45\x67\x89\xab\x4d\xef\x80\x01\x02\x03\x04\x05\x06\x07",
        mtime: MTIME,
        label: "a root".to_owned(),
        ..Options::default()
    }
}

/// Runs a program of e2fsprogs; stdout.
fn tool(name: &str, args: &[&str], image: &Path) -> String {
    let dir = tempfile::tempdir().unwrap();
    let program = find_program(name, &Cache::at(dir.path()).unwrap());
    let program = program.unwrap_or_else(|| panic!("the tests need {name} of e2fsprogs"));
    let output = Command::new(program)
        .args(args)
        .arg(image)
        .env("TZ", "UTC")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{name}: {text}");
    text
}

/// Writes an image and has it checked.
fn image(tree: &Tree, options: &Options, path: &Path) -> u64 {
    let size = write(tree, options, path).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(size, fs::metadata(path).unwrap().len());
    assert_eq!(size % 4096, 0);
    tool("e2fsck", &["-fn"], path);
    size
}

fn header(path: &Path) -> BTreeMap<String, String> {
    tool("dumpe2fs", &["-h"], path)
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
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

/// One of everything.
fn example() -> Tree {
    let mut tree = Tree::default();
    let mut put = |path: &str, entry| tree.insert(path, entry).unwrap();
    put("dev/console", Entry::new(Kind::CharDevice(5, 1), 0o600));
    put("dev/sda", Entry::new(Kind::BlockDevice(259, 60_000), 0o660));
    put("run/pipe", Entry::new(Kind::Fifo, 0o622));
    put("tmp", Entry::directory(0o1777));
    put("lib", Entry::new(Kind::Symlink("usr/lib".into()), 0o777));
    for size in [59, 60, 4000] {
        // The reader takes no parts of more than 255 bytes.
        let target = Kind::Symlink("t/u".repeat(2000)[..size].into());
        put(&format!("links/{size}"), Entry::new(target, 0o777));
    }
    for size in [0, 1, 4095, 4096, 4097, 300_000] {
        let path = format!("usr/lib/{size}");
        put(&path, Entry::bytes(noise(size, 1), 0o644));
    }
    put("usr/bin/su", Entry::file("/bin/sh", 0o4755));
    let holes = [vec![0; 50_000], b"middle".to_vec(), vec![0; 50_000]].concat();
    put("holes", Entry::bytes(holes, 0o600));
    for name in [
        "-f",
        "<2>",
        "#",
        " ",
        "\t",
        "a \"b\" \\",
        "\u{e4}",
        "\u{1b}[31m",
        "'",
        "~",
        "$HOME",
        "*",
    ] {
        put(&format!("odd/{name}/{name}"), Entry::bytes(name, 0o400));
        put(
            &format!("odd/{name}/link"),
            Entry::new(Kind::Symlink(name.into()), 0o777),
        );
    }
    put(
        &format!("odd/{}", "n".repeat(255)),
        Entry::bytes("long", 0o444),
    );
    for number in 0..500 {
        let path = format!("many/a-file-with-some-name-{number:04}");
        put(&path, Entry::bytes(number.to_string(), 0o644));
    }
    let mut owned = Entry::bytes("owned", 0o640);
    (owned.uid, owned.gid) = (70_000, u32::MAX - 1);
    owned.xattrs = BTreeMap::from([
        (b"user.comment".to_vec(), b"hello".to_vec()),
        (
            b"security.capability".to_vec(),
            vec![1, 0, 0, 2, 0, 4, 0, 0],
        ),
        (b"trusted.big".to_vec(), noise(3_000, 3)),
    ]);
    put("etc/owned", owned);
    let mut labelled = Entry::directory(0o750);
    labelled.gid = 5;
    labelled.xattrs = BTreeMap::from([(b"user.comment".to_vec(), b"hello".to_vec())]);
    put("etc", labelled);
    tree
}

/// Everything the tree says is in the image, and nothing else.
fn assert_holds(path: &Path, tree: &Tree) {
    let image = Ext4::load(Box::new(fs::read(path).unwrap())).unwrap();
    let inside = |path: &Path| [b"/", path.as_os_str().as_bytes()].concat();
    for (path, entry) in tree.entries() {
        let place = inside(path);
        let place = ext4_view::PathBuf::new(&place);
        let metadata = image.symlink_metadata(&place).unwrap();
        assert_eq!(u32::from(metadata.mode() & 0o7777), entry.mode, "{path:?}");
        let file_type = match entry.kind {
            Kind::Directory => FileType::Directory,
            Kind::File(_) => FileType::Regular,
            Kind::Symlink(_) => FileType::Symlink,
            Kind::CharDevice(..) => FileType::CharacterDevice,
            Kind::BlockDevice(..) => FileType::BlockDevice,
            Kind::Fifo => FileType::Fifo,
        };
        assert_eq!(metadata.file_type(), file_type, "{path:?}");
        assert_eq!(
            (metadata.uid(), metadata.gid()),
            (entry.uid, entry.gid),
            "{path:?}"
        );
        assert_eq!(metadata.modified().seconds(), i64::from(MTIME), "{path:?}");
        match &entry.kind {
            Kind::File(content) => {
                let mut expected = Vec::new();
                content.open().unwrap().read_to_end(&mut expected).unwrap();
                assert!(image.read(&place).unwrap() == expected, "{path:?}");
            }
            Kind::Symlink(target) => {
                let found = image.read_link(&place).unwrap();
                assert_eq!(found.as_ref(), target.as_os_str().as_bytes(), "{path:?}");
            }
            _ => {}
        }
    }
    let entries = tree
        .entries()
        .filter(|(_, entry)| entry.kind == Kind::Directory);
    let directories = entries.map(|(path, _)| path).chain([Path::new("")]);
    let found: usize = directories
        .map(|path| {
            let names = image
                .read_dir(&ext4_view::PathBuf::new(&inside(path)))
                .unwrap();
            names.count() - 2
        })
        .sum();
    let own = usize::from(tree.get("lost+found").is_none());
    assert_eq!(found, tree.entries().len() + own);
}

#[test]
fn everything_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    image(&example(), &options(), &path);
    assert_holds(&path, &example());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "left over");
}

#[test]
fn devices_attributes_and_all_times_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    image(&example(), &options(), &path);
    let stat = |file: &str| tool("debugfs", &["-R", &format!("stat {file}")], &path);
    assert!(stat("/dev/console").contains("Device major/minor number: 05:01"));
    assert!(stat("/dev/sda").contains("Device major/minor number: 259:60000"));
    for file in [
        "/",
        "/lost+found",
        "/etc",
        "/etc/owned",
        "/lib",
        "/dev/sda",
        "/run/pipe",
    ] {
        let text = stat(file);
        let times = text.matches("Sun Sep  9 01:46:47 2001").count();
        assert_eq!(
            (times, text.contains("Generation: 0 ")),
            (4, true),
            "{text}"
        );
    }
    for (name, value) in &example().get("etc/owned").unwrap().xattrs {
        let out = dir.path().join("value");
        let name = String::from_utf8_lossy(name);
        let get = format!("ea_get -f {} /etc/owned {name}", out.display());
        tool("debugfs", &["-R", &get], &path);
        assert_eq!(fs::read(out).unwrap(), *value, "{name}");
    }
    let list = tool("debugfs", &["-R", "ea_list /etc"], &path);
    assert!(list.contains("user.comment (5) = \"hello\""), "{list}");
}

#[test]
fn the_superblock_says_what_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    image(&example(), &options(), &path);
    let fields = header(&path);
    assert_eq!(
        fields["Filesystem UUID"],
        "01234567-89ab-4def-8001-020304050607"
    );
    assert_eq!(
        fields["Directory Hash Seed"],
        "01234567-89ab-4def-8001-020304050607"
    );
    assert_eq!(fields["Filesystem volume name"], "a root");
    assert_eq!(fields["Block size"], "4096");
    assert_eq!(fields["Reserved block count"], "0");
    assert_eq!(fields["Total journal blocks"], "1024");
    for time in ["Filesystem created", "Last write time", "Last checked"] {
        assert_eq!(fields[time], "Sun Sep  9 01:46:47 2001");
    }
    let features = "has_journal ext_attr dir_index filetype extent flex_bg sparse_super large_file dir_nlink extra_isize metadata_csum";
    assert_eq!(fields["Filesystem features"], features);
    let bare = Options {
        journal: false,
        label: String::new(),
        uuid: [0; 16],
        mtime: 0,
        ..options()
    };
    image(&Tree::default(), &bare, &path);
    let fields = header(&path);
    assert_eq!(
        fields["Filesystem features"],
        features.strip_prefix("has_journal ").unwrap()
    );
    assert_eq!(fields["Filesystem created"], "Thu Jan  1 00:00:01 1970");
}

#[test]
fn two_builds_in_two_places_are_equal() {
    let dir = tempfile::tempdir().unwrap();
    // The host's modes, holes and times must not show either.
    let build = |place: &str, mode: u32, holes: bool| {
        let place = dir.path().join(place);
        fs::create_dir_all(&place).unwrap();
        let host = place.join("file");
        let file = fs::File::create(&host).unwrap();
        let bytes = vec![0; if holes { 0 } else { 200_000 }];
        std::io::Write::write_all(&mut &file, &bytes).unwrap();
        file.set_len(200_000).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"end", 199_997).unwrap();
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(&host, permissions).unwrap();
        let mut tree = example();
        tree.insert("from-host", Entry::file(&host, 0o644)).unwrap();
        image(&tree, &options(), &place.join("image"));
        fs::read(place.join("image")).unwrap()
    };
    let one = build("one", 0o600, true);
    let two = build("a much longer name/of a \"place\"\n", 0o4755, false);
    assert!(one == two);
}

#[test]
fn an_image_is_as_small_as_its_content_allows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let bare = Options {
        journal: false,
        ..options()
    };
    assert!(image(&Tree::default(), &bare, &path) <= 256 << 10);
    assert!(image(&Tree::default(), &options(), &path) <= 9 << 20);
    let mut tree = Tree::default();
    tree.insert("big", Entry::bytes(noise(20 << 20, 5), 0o644))
        .unwrap();
    let size = image(&tree, &bare, &path);
    assert!(size < (20 << 20) + (300 << 10), "{size}");
    assert_holds(&path, &tree);
}

#[test]
fn free_space_and_a_fixed_size_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let free = Options {
        free: 10 << 20,
        ..options()
    };
    image(&example(), &free, &path);
    let fields = header(&path);
    assert!(fields["Free blocks"].parse::<u64>().unwrap() >= 2560);
    assert!(fields["Free inodes"].parse::<u64>().unwrap() >= 640);
    for size in [64 << 20, (128 << 20) + 4096, 300 << 20] {
        let fixed = Options {
            size: Some(size),
            ..options()
        };
        assert_eq!(image(&example(), &fixed, &path), size);
        assert_holds(&path, &example());
    }
    let small = Options {
        size: Some(1 << 20),
        ..options()
    };
    let error = write(&example(), &small, &path).unwrap_err();
    let Ext4Error::TooSmall { needed, .. } = error else {
        panic!("{error}");
    };
    let enough = Options {
        size: Some(needed),
        ..options()
    };
    assert_eq!(image(&example(), &enough, &path), needed);
}

#[test]
fn a_directory_at_lost_and_found_is_the_one_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let mut tree = Tree::default();
    tree.insert("lost+found/x", Entry::bytes("x", 0o600))
        .unwrap();
    image(&tree, &options(), &path);
    assert_holds(&path, &tree);
    tree.insert("lost+found", Entry::bytes("", 0o600)).unwrap();
    let error = write(&tree, &options(), &path).unwrap_err();
    assert!(matches!(error, Ext4Error::Reserved { .. }), "{error}");
}

#[test]
fn what_ext4_cannot_hold_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |path: &str, entry: Entry| {
        let mut tree = Tree::default();
        tree.insert(path, entry).unwrap();
        let result = write(&tree, &options(), &dir.path().join("image"));
        result.unwrap_err().to_string()
    };
    let link = |target: &str| Entry::new(Kind::Symlink(target.into()), 0o777);
    let with = |name: &[u8], value: &[u8]| {
        let mut entry = Entry::bytes("", 0o644);
        entry.xattrs.insert(name.to_vec(), value.to_vec());
        entry
    };
    for (path, entry) in [
        ("l", link("")),
        ("l", link(&"t".repeat(4096))),
        ("d", Entry::new(Kind::CharDevice(4096, 0), 0o600)),
        ("d", Entry::new(Kind::BlockDevice(0, 1 << 16), 0o600)),
        (&"n".repeat(256), Entry::directory(0o755)),
        ("f", Entry::file("/no/such/file", 0o644)),
        ("x", with(b"odd.name", b"")),
        ("x", with(b"user.", b"")),
        ("x", with(b"user.big", &[0; 5000])),
        ("line\nbreak", Entry::bytes("", 0o644)),
    ] {
        let message = refused(path, entry);
        let named =
            message.contains(path) || message.contains("/no/such/file") || message.contains("\\n");
        assert!(named, "{message}");
    }
    let late = Options {
        mtime: 1 << 31,
        ..options()
    };
    let error = write(&Tree::default(), &late, Path::new("x")).unwrap_err();
    assert!(matches!(error, Ext4Error::TooLate { .. }), "{error}");
}

/// What debugfs says is an error, although it ends as if there had been none.
#[test]
fn a_failing_command_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let staging = dir.path().join("staging");
    fs::create_dir(&staging).unwrap();
    let tools = super::Tools::find(&staging, &options()).unwrap();
    let geometry = super::Geometry::of(&Tree::default(), &options()).unwrap();
    tools.format(&options(), &geometry, &path).unwrap();
    fs::write(staging.join(super::script::SCRIPT), "mkdir a\nmkdir a\n").unwrap();
    let error = tools.fill(&path).unwrap_err().to_string();
    assert!(error.contains("\n    ") && error.contains("a"), "{error}");
}
