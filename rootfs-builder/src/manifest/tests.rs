// SPDX-License-Identifier: Apache-2.0
//! Manifests written and read again, and what their digests follow.

use super::*;

fn tree() -> Tree {
    let mut tree = Tree::default();
    tree.insert("etc/name", Entry::bytes("abc", 0o644)).unwrap();
    tree.insert("link", Entry::new(Kind::Symlink("etc".into()), 0o777))
        .unwrap();
    tree.insert("dev/null", Entry::new(Kind::CharDevice(1, 3), 0o666))
        .unwrap();
    tree.insert("pipe", Entry::new(Kind::Fifo, 0o600)).unwrap();
    tree
}

/// A manifest with all that one can have.
pub(crate) fn manifest() -> Manifest {
    Manifest {
        schema: SCHEMA,
        name: "guest".to_owned(),
        tool: Tool::this(),
        arch: "x86_64".to_owned(),
        profile: Some("debian".to_owned()),
        format: "disk".to_owned(),
        filesystem: Some("erofs".to_owned()),
        epoch: 1_700_000_000,
        image: ImageFile {
            file: "guest.img".to_owned(),
            size: 4096,
            sha256: "ab".repeat(32),
        },
        verity: Some(Verity {
            root_hash: [7; 32],
            salt: vec![1, 2],
            data_blocks: 9,
            data_block_size: 4096,
            hash_block_size: 4096,
        }),
        kernel_words: vec!["ro".to_owned()],
        kernel: Some(Kernel {
            release: "6.12.1".to_owned(),
            source: Source::Built,
            config_sha256: "cd".repeat(32),
        }),
        inputs: vec![
            Input::bytes(InputKind::Binary, "keelson", b"binary").version("0.1.0"),
            Input::bytes(InputKind::PackageList, "packages", b"curl\n"),
        ],
        tree: Contents::of(&tree()).unwrap(),
        packages: Vec::new(),
    }
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = Manifest::path_for(&dir.path().join("a.img"));
    assert!(path.ends_with("a.img.manifest.json"));
    manifest().write(&path).unwrap();
    assert_eq!(Manifest::read(&path).unwrap(), manifest());
    let text = fs::read_to_string(&path).unwrap();
    for part in [
        "\"kind\": \"package-list\"",
        "\"source\": \"built\"",
        "\"schema\": 1",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(text.ends_with("}\n"));
    assert!(!text.contains(dir.path().to_str().unwrap()));
}

#[test]
fn another_form_is_refused_by_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.json");
    fs::write(&path, r#"{"schema": 2, "image": "not as it was"}"#).unwrap();
    let error = Manifest::read(&path).unwrap_err();
    assert!(
        matches!(error, ManifestError::Schema { schema: 2, .. }),
        "{error}"
    );
    fs::write(&path, r#"{"schema": 1}"#).unwrap();
    assert!(matches!(
        Manifest::read(&path),
        Err(ManifestError::Json { .. })
    ));
    assert!(Manifest::read(&dir.path().join("gone")).is_err());
}

#[test]
fn a_file_has_its_name_size_and_digest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, "abc").unwrap();
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let image = ImageFile::of(&path).unwrap();
    assert_eq!(
        (&image.file[..], image.size, &image.sha256[..]),
        ("f", 3, abc)
    );
    let input = Input::file(InputKind::File, "etc/f", &path).unwrap();
    assert_eq!((&input.name[..], &input.sha256[..]), ("etc/f", abc));
    assert_eq!(Input::bytes(InputKind::File, "etc/f", b"abc"), input);
}

#[test]
fn contents_are_counted() {
    let contents = Contents::of(&tree()).unwrap();
    let Contents {
        directories,
        files,
        symlinks,
        devices,
        pipes,
        bytes,
        ..
    } = contents;
    assert_eq!(
        (directories, files, symlinks, devices, pipes, bytes),
        (2, 1, 1, 1, 1, 3)
    );
}

#[test]
fn the_digest_does_not_ask_where_a_content_lies_but_sees_every_change() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, "abc").unwrap();
    let digest = |tree: &Tree| Contents::of(tree).unwrap().sha256;
    let first = digest(&tree());
    let mut same = tree();
    same.insert("etc/name", Entry::file(&path, 0o644)).unwrap();
    assert_eq!(digest(&same), first);
    let changed = |path: &str, change: &dyn Fn(&mut Entry)| {
        let mut tree = tree();
        let mut entry = tree.get(path).unwrap().clone();
        change(&mut entry);
        tree.insert(path, entry).unwrap();
        digest(&tree)
    };
    let mut digests = vec![
        first,
        changed("etc/name", &|entry| entry.mode = 0o600),
        changed("etc/name", &|entry| entry.uid = 1),
        changed("etc/name", &|entry| entry.gid = 1),
        changed("etc/name", &|entry| {
            entry.kind = Entry::bytes("abd", 0).kind
        }),
        changed("etc/name", &|entry| {
            entry.xattrs.insert(b"user.a".into(), b"".into());
        }),
        changed("dev/null", &|entry| entry.kind = Kind::CharDevice(1, 5)),
        changed("dev/null", &|entry| entry.kind = Kind::BlockDevice(1, 3)),
        changed("link", &|entry| entry.kind = Kind::Symlink("etd".into())),
    ];
    let count = digests.len();
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), count);
}
