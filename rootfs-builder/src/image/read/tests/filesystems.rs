// SPDX-License-Identifier: Apache-2.0

use std::io::Write;

use super::*;

/// A directory with the example, and a listing of what a file system made of it holds.
fn source(place: &Place) -> (PathBuf, Listing) {
    let dir = place.path("root");
    unpack(&example(), &dir);
    fs::hard_link(dir.join("more"), dir.join("most")).unwrap();
    let mut sparse = fs::File::create(dir.join("sparse")).unwrap();
    sparse.write_all(&[1; 5000]).unwrap();
    sparse.set_len(3_000_000).unwrap();
    let listing = open(&dir).unwrap().listing;
    (dir, listing)
}

fn erofs(place: &Place, dir: &Path, options: &[&str]) -> PathBuf {
    let image = place.path("image.erofs");
    let words = ["-T0", image.to_str().unwrap(), dir.to_str().unwrap()];
    run("mkfs.erofs", &[options, &words[..]].concat(), dir, b"");
    image
}

fn ext4(place: &Place, dir: &Path, options: &[&str]) -> PathBuf {
    let image = place.path("image.ext4");
    let _ = fs::remove_file(&image);
    let words = ["-q", "-t", "ext4", "-d", dir.to_str().unwrap()];
    let place = [image.to_str().unwrap(), "16M"];
    run("mke2fs", &[&words[..], options, &place].concat(), dir, b"");
    image
}

#[test]
fn erofs_of_its_own_tool_is_read() {
    let place = Place::new();
    let (dir, expected) = source(&place);
    for (options, aligned) in [
        (&["-Enoinline_data", "-Usbe"][..0], false),
        (&["-Enoinline_data"], true),
        (&["-Eforce-inode-extended"], false),
        (&["-Eforce-inode-compact"], false),
    ] {
        let image = open(&erofs(&place, &dir, options)).unwrap();
        let filesystem = image.filesystem.as_ref().unwrap();
        assert_eq!((image.format, filesystem.kind), (Format::Erofs, "erofs"));
        assert_same(&image.listing, &expected);
        assert_eq!(filesystem.checksum, Some(true));
        assert_eq!(filesystem.unaligned.is_none(), aligned, "{options:?}");
        let needs = requirements::requirements(&image);
        assert_eq!(
            needs[1],
            ("BLOCK", "the root is on a block device".to_owned())
        );
        assert_eq!(needs[2].0, "EROFS_FS");
    }
}

#[test]
fn a_compressed_erofs_is_refused_by_name() {
    let place = Place::new();
    let (dir, _) = source(&place);
    let error = open(&erofs(&place, &dir, &["-zlz4hc"])).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("has a compressed erofs, which cannot be read here"),
        "{error}"
    );
    let error = open(&erofs(&place, &dir, &["--chunksize=4096"])).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("has an erofs of chunks, which cannot be read here"),
        "{error}"
    );
}

#[test]
fn ext4_of_its_own_tool_is_read() {
    let place = Place::new();
    let (dir, expected) = source(&place);
    for options in [
        &["-L", "a label"][..],
        &["-O", "^metadata_csum,^64bit,^has_journal"],
        &["-b", "1024", "-I", "128"],
    ] {
        let image = open(&ext4(&place, &dir, options)).unwrap();
        let filesystem = image.filesystem.as_ref().unwrap();
        assert_eq!((image.format, filesystem.size), (Format::Ext4, 16 << 20));
        assert_same(&image.listing, &expected);
        let labelled = options[0] == "-L";
        assert_eq!(filesystem.checksum, (options[0] != "-O").then_some(true));
        assert_eq!(filesystem.label, if labelled { "a label" } else { "" });
        assert_eq!(
            filesystem.features.contains(&"has_journal".to_owned()),
            options[0] != "-O"
        );
    }
}

#[test]
fn what_only_root_could_make_is_read_from_ext4() {
    let place = Place::new();
    let dir = place.path("root");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("f"), "x").unwrap();
    let image = ext4(&place, &dir, &[]);
    let long = "v".repeat(900);
    let script = format!(
        "mknod c c 5 1\nmknod b b 252 300\nmknod p p\nsymlink l {}\n\
         set_inode_field f uid 70000\nset_inode_field f mode 0104755\n\
         ea_set f user.long {long}\nea_set f user.short v\nea_set f security.capability abc\n",
        "t/".repeat(100)
    );
    run(
        "debugfs",
        &["-w", "-f", "-", image.to_str().unwrap()],
        &dir,
        script.as_bytes(),
    );
    let image = open(&image).unwrap();
    let entry = |name: &str| &image.listing.entries[name.as_bytes()];
    assert_eq!(
        (entry("c").kind, entry("c").device),
        (ItemKind::CharDevice, Some((5, 1)))
    );
    assert_eq!(
        (entry("b").kind, entry("b").device),
        (ItemKind::BlockDevice, Some((252, 300)))
    );
    assert_eq!(entry("p").kind, ItemKind::Fifo);
    assert_eq!(
        entry("l").target.as_deref(),
        Some("t/".repeat(100).as_bytes())
    );
    let file = entry("f");
    assert_eq!((file.uid, file.mode), (70_000, 0o4755));
    let names: Vec<_> = file.xattrs.keys().map(|name| show(name)).collect();
    assert_eq!(names, ["/security.capability", "/user.long", "/user.short"]);
    assert_eq!(file.xattrs[&b"user.long"[..]], long.as_bytes());
    let needs: Vec<_> = requirements::requirements(&image)
        .into_iter()
        .map(|(o, _)| o)
        .collect();
    assert_eq!(needs, ["BLOCK", "EXT4_FS", "EXT4_FS_SECURITY"]);
}

/// A file in pieces has a tree of extents, and a large directory an index.
#[test]
fn trees_inside_ext4_are_followed() {
    let place = Place::new();
    let dir = place.path("root");
    fs::create_dir_all(dir.join("d")).unwrap();
    for index in 0..2000 {
        fs::write(dir.join(format!("d/file-with-a-long-name-{index}")), "").unwrap();
    }
    let mut pieces = vec![0; 4 << 20];
    for piece in pieces.chunks_mut(4096).step_by(2) {
        piece.fill(3);
    }
    let mut file = fs::File::create(dir.join("pieces")).unwrap();
    for (index, piece) in pieces.chunks(4096).enumerate().step_by(2) {
        std::os::unix::fs::FileExt::write_all_at(&file, piece, index as u64 * 4096).unwrap();
    }
    file.set_len(pieces.len() as u64).unwrap();
    file.flush().unwrap();
    let expected = open(&dir).unwrap().listing;
    let image = ext4(&place, &dir, &["-N", "4096"]);
    run(
        "sh",
        &[
            "-c",
            &format!("e2fsck -fyD {} || [ $? -lt 4 ]", image.display()),
        ],
        &dir,
        b"",
    );
    let dump = run(
        "debugfs",
        &["-R", "stat /pieces", image.to_str().unwrap()],
        &dir,
        b"",
    );
    assert!(
        String::from_utf8_lossy(&dump).contains("ETB0"),
        "no tree of extents"
    );
    let read = open(&image).unwrap();
    assert_same(&read.listing, &expected);
    let place = read
        .places
        .iter()
        .find(|p| p.path == b"pieces" && p.role == Role::Content)
        .unwrap();
    let bytes = fs::read(&image).unwrap();
    assert_eq!(bytes[place.start as usize..][..4096], [3; 4096]);
}

/// Another reader of ext4 finds the same names and contents.
#[test]
fn ext4_view_agrees() {
    let place = Place::new();
    let (dir, _) = source(&place);
    let path = ext4(&place, &dir, &[]);
    let (own, other) = (
        open(&path).unwrap(),
        ext4_view::Ext4::load(Box::new(fs::read(&path).unwrap())).unwrap(),
    );
    for (path, item) in &own.listing.entries {
        let path = show(path);
        let metadata = other.symlink_metadata(&*path).unwrap();
        assert_eq!(u32::from(metadata.mode()), item.mode, "{path}");
        assert_eq!(
            (metadata.uid(), metadata.gid()),
            (item.uid, item.gid),
            "{path}"
        );
        if item.kind == ItemKind::File {
            assert_eq!(
                Some(Digest::of(&other.read(&*path).unwrap())),
                item.sha256,
                "{path}"
            );
        }
    }
}
