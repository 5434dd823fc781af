// SPDX-License-Identifier: Apache-2.0
//! What comes out is what went in; as an ordinary user, what does not is said.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use guest_kernel::host::is_root;

use super::*;

const TIME: u32 = 1_000_000_000;

fn example() -> Tree {
    let mut tree = Tree::default();
    let mut put = |path: &str, entry| tree.insert(path, entry).unwrap();
    put("dev/null", Entry::new(Kind::CharDevice(1, 3), 0o666));
    put("dev/loop", Entry::new(Kind::BlockDevice(7, 0), 0o660));
    put("run/pipe", Entry::new(Kind::Fifo, 0o620));
    put("etc", Entry::directory(0o555));
    put("tmp", Entry::directory(0o1777));
    put(
        "link",
        Entry::new(Kind::Symlink("/etc/shadow".into()), 0o777),
    );
    let owned = |content: &str, mode| Entry {
        uid: 7,
        gid: 8,
        ..Entry::bytes(content, mode)
    };
    put("etc/shadow", owned("secret", 0o000));
    put("bin/su", owned("program", 0o4755));
    tree
}

/// Runs one of these tests again as an ordinary user. The program is given open, since its path may be closed to that user.
fn as_nobody(test: &str) {
    let program = File::open(std::env::current_exe().unwrap()).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["/proc/self/fd/0", "--exact", "--nocapture"])
        .arg(format!("image::directory::tests::{test}"))
        .current_dir("/")
        .stdin(program)
        .output()
        .expect("this test needs setpriv, of util-linux");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("1 passed"), "{text}");
}

fn lacks(unset: &[Unset]) -> Vec<String> {
    unset.iter().map(ToString::to_string).collect()
}

#[test]
fn roots_directory_is_the_tree() {
    if !is_root() {
        eprintln!("skipped: only root can make owners and devices");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = example();
    assert_eq!(write(&tree, TIME, dir.path()).unwrap(), []);
    let read = Tree::from_dir(dir.path(), true).unwrap();
    assert_eq!(read.entries().len(), tree.entries().len());
    for ((path, entry), (expected_path, expected)) in read.entries().zip(tree.entries()) {
        assert_eq!(path, expected_path);
        let numbers = |entry: &Entry| (entry.mode, entry.uid, entry.gid, entry.kind.type_bits());
        assert_eq!(numbers(entry), numbers(expected), "{}", path.display());
        let metadata = fs::symlink_metadata(dir.path().join(path)).unwrap();
        assert_eq!(metadata.mtime(), i64::from(TIME), "{}", path.display());
    }
    assert_eq!(read.get("dev/null").unwrap().kind, Kind::CharDevice(1, 3));
    assert_eq!(read.get("dev/loop").unwrap().kind, Kind::BlockDevice(7, 0));
    let root = fs::metadata(dir.path()).unwrap();
    assert_eq!(
        (root.mode() & 0o7777, root.mtime()),
        (0o755, i64::from(TIME))
    );
    assert_eq!(fs::read(dir.path().join("bin/su")).unwrap(), b"program");
}

#[test]
fn an_ordinary_users_directory_says_what_it_lacks() {
    if is_root() {
        return as_nobody("an_ordinary_users_directory_says_what_it_lacks");
    }
    let dir = tempfile::tempdir().unwrap();
    let unset = write(&example(), TIME, &dir.path().join("new")).unwrap();
    let expected = [
        ". does not belong to 0:0",
        "bin does not belong to 0:0",
        "bin/su does not belong to 7:8",
        "bin/su does not have the mode 4755",
        "dev does not belong to 0:0",
        "dev/loop is missing: it is a device",
        "dev/null is missing: it is a device",
        "etc does not belong to 0:0",
        "etc does not have the mode 0555",
        "etc/shadow does not belong to 7:8",
        "etc/shadow does not have the mode 0000",
        "link does not belong to 0:0",
        "run does not belong to 0:0",
        "run/pipe does not belong to 0:0",
        "tmp does not belong to 0:0",
    ];
    assert_eq!(lacks(&unset), expected);
    let mode = |name: &str| {
        let path = dir.path().join("new").join(name);
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    };
    assert_eq!(
        ["bin/su", "etc/shadow", "etc", "tmp"].map(mode),
        [0o755, 0o400, 0o755, 0o1777]
    );
    // It can be removed again by who made it.
    fs::remove_dir_all(dir.path().join("new")).unwrap();
}

#[test]
fn attributes_are_set_or_listed() {
    let dir = tempfile::tempdir().unwrap();
    let mut tree = Tree::default();
    for (path, name) in [
        ("file", "user.test"),
        ("dir", "user.test"),
        ("odd", "nonsense.test"),
    ] {
        let mut entry = match path {
            "dir" => Entry::directory(0o500),
            _ => Entry::bytes("x", 0o400),
        };
        entry.xattrs.insert(name.into(), b"value".to_vec());
        tree.insert(path, entry).unwrap();
    }
    let unset = write(&tree, TIME, dir.path()).unwrap();
    let lacking: Vec<_> = unset
        .iter()
        .filter(|unset| matches!(unset.what, What::Attribute { .. }))
        .map(|unset| unset.path.to_str().unwrap())
        .collect();
    assert!(lacking.contains(&"odd"), "{lacking:?}");
    for path in ["file", "dir"] {
        let mut value = [0; 16];
        let read = rustix::fs::getxattr(dir.path().join(path), "user.test", &mut value);
        // Some file systems for temporary files have no attributes; then the list says so.
        match lacking.contains(&path) {
            false => assert_eq!(&value[..read.unwrap()], b"value"),
            true => assert!(read.is_err()),
        }
    }
    fs::set_permissions(dir.path().join("dir"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn what_is_there_is_not_written_into() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("mine"), "").unwrap();
    let error = write(&example(), TIME, dir.path()).unwrap_err();
    assert!(matches!(error, DirectoryError::NotEmpty { .. }), "{error}");
    let file = dir.path().join("mine");
    let error = write(&example(), TIME, &file).unwrap_err();
    assert_eq!(error.to_string(), format!("Cannot read {}", file.display()));
}

#[test]
fn links_that_appear_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
    for dir in [&inside, &outside] {
        fs::create_dir(dir).unwrap();
    }
    fs::create_dir(outside.join("sub")).unwrap();
    std::os::unix::fs::symlink(&outside, inside.join("etc")).unwrap();
    std::os::unix::fs::symlink(outside.join("new"), inside.join("file")).unwrap();
    let time = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut writer = Writer {
        dir: &inside,
        root: File::open(&inside).unwrap().into(),
        times: Timestamps {
            last_access: time,
            last_modification: time,
        },
        unset: Vec::new(),
    };
    for path in ["etc/passwd", "etc/sub/passwd", "file"] {
        let error = writer.make(Path::new(path), &Entry::bytes("x", 0o644));
        assert!(error.is_err(), "{path}");
    }
    assert!(
        writer
            .finish(Path::new("etc"), &Entry::directory(0o777))
            .is_err()
    );
    assert_eq!(fs::read_dir(outside.join("sub")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn missing_contents_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut tree = Tree::default();
    tree.insert("f", Entry::file("/no/such/file", 0o644))
        .unwrap();
    let error = write(&tree, TIME, &dir.path().join("one")).unwrap_err();
    assert!(error.to_string().ends_with("/no/such/file"), "{error}");
    let mut tree = Tree::default();
    tree.insert("f", Entry::file(dir.path(), 0o644)).unwrap();
    let two = dir.path().join("two");
    let error = write(&tree, TIME, &two).unwrap_err();
    let text = format!(
        "Cannot copy {} to {}/f",
        dir.path().display(),
        two.display()
    );
    assert_eq!(error.to_string(), text);
}

#[test]
fn what_is_lacking_is_in_documents() {
    let unset = Unset {
        path: "etc/shadow".into(),
        what: What::Owner { uid: 0, gid: 42 },
    };
    let json = serde_json::json!({ "path": "etc/shadow", "lacks": "owner", "uid": 0, "gid": 42 });
    assert_eq!(serde_json::to_value(unset).unwrap(), json);
}
