// SPDX-License-Identifier: Apache-2.0
//! Nothing in an image makes its reader panic, allocate on its word or run for ever.

use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;
use crate::image::compress;

/// A small image of each format, for all cases of a test.
struct Images {
    place: Place,
    names: Vec<&'static str>,
}

fn images() -> &'static Images {
    static IMAGES: OnceLock<Images> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let place = Place::new();
        let dir = place.path("root");
        let mut tree = example();
        tree.remove("many").unwrap();
        tree.insert("many/x", Entry::bytes(vec![1; 9000], 0o644))
            .unwrap();
        unpack(&tree, &dir);
        fs::hard_link(dir.join("more"), dir.join("most")).unwrap();
        let names = run("find", &[".", "-print0"], &dir, b"");
        let cpio = run("cpio", &["--quiet", "-0", "-o", "-H", "newc"], &dir, &names);
        for compression in Compression::ALL {
            let mut bytes = Vec::new();
            compress::write(compression, &mut bytes, |out| out.write_all(&cpio)).unwrap();
            place.write(compression.name(), &bytes);
        }
        let tar = run("tar", &["-c", "--format=posix", "."], &dir, b"");
        place.write("tar", &tar);
        place.write("tar.zst", &run("zstd", &["-q"], &dir, &tar));
        let (erofs, ext4) = (place.path("erofs"), place.path("ext4"));
        let (erofs, ext4) = (erofs.to_str().unwrap(), ext4.to_str().unwrap());
        run("mkfs.erofs", &[erofs, dir.to_str().unwrap()], &dir, b"");
        let words = [
            "-q",
            "-t",
            "ext4",
            "-O",
            "^has_journal,^metadata_csum",
            "-d",
            ".",
        ];
        run(
            "mke2fs",
            &[&words[..], &["-N", "64", ext4, "512k"]].concat(),
            &dir,
            b"",
        );
        let names = vec![
            "none", "gzip", "zstd", "lz4", "tar", "tar.zst", "erofs", "ext4",
        ];
        Images { place, names }
    })
}

#[test]
fn the_images_are_whole_before_they_are_broken() {
    let images = images();
    for name in &images.names {
        let image = open(&images.place.path(name)).unwrap();
        assert_eq!(image.listing.entries.len(), 18, "{name}");
    }
}

/// Where in an image of this length something is changed: mostly where metadata lies.
fn offset() -> impl Strategy<Value = (bool, u64)> {
    (any::<bool>(), any::<u64>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_bytes_are_read_or_refused(
        head in prop::sample::select(vec![
            &b""[..], b"070701", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18",
        ]),
        bytes in prop::collection::vec(any::<u8>(), 0..3000),
        magic in prop::sample::select(vec![(0, 0_u32), (1024, 0xe0f5_e1e2), (1080, 0xef53), (510, 0xaa55)]),
    ) {
        let place = Place::new();
        let mut all = [head, &bytes[..]].concat();
        if let Some(there) = all.get_mut(magic.0..magic.0 + 4) {
            there.copy_from_slice(&magic.1.to_le_bytes());
        }
        let _ = open(&place.write("image", &all));
    }

    #[test]
    fn changed_images_are_read_or_refused(
        changes in prop::collection::vec((offset(), any::<u8>()), 1..5),
        cut in prop::option::weighted(0.1, any::<u64>()),
    ) {
        let images = images();
        let place = Place::new();
        for name in &images.names {
            let path = place.path(name);
            fs::copy(images.place.path(name), &path).unwrap();
            let file = fs::File::options().write(true).open(&path).unwrap();
            let len = file.metadata().unwrap().len();
            for ((early, at), byte) in &changes {
                let range = if *early { len.min(40_000) } else { len };
                file.write_all_at(&[*byte], at % range).unwrap();
            }
            if let Some(cut) = cut {
                file.set_len(cut % len).unwrap();
            }
            let _ = open(&path);
        }
    }
}

/// Every byte of the structures that everything hangs on, each changed in several ways.
#[test]
fn superblocks_and_first_inodes_hold() {
    let images = images();
    let place = Place::new();
    for (name, range) in [
        ("erofs", 1024..1600),
        ("ext4", 1024..1400),
        ("ext4", 4096..4200),
        ("none", 0..300),
    ] {
        let path = place.path(name);
        fs::copy(images.place.path(name), &path).unwrap();
        let bytes = fs::read(&path).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        for at in range {
            for byte in [0xff, bytes[at] ^ 1] {
                file.write_all_at(&[byte], at as u64).unwrap();
                let _ = open(&path);
            }
            file.write_all_at(&bytes[at..at + 1], at as u64).unwrap();
        }
        assert!(open(&path).is_ok());
    }
}

#[test]
fn a_directory_that_holds_itself_is_found() {
    let place = Place::new();
    let dir = place.path("root");
    fs::create_dir_all(dir.join("a/b")).unwrap();
    let image = place.path("ext4");
    let words = ["-q", "-t", "ext4", "-d", ".", image.to_str().unwrap(), "1M"];
    run("mke2fs", &words, &dir, b"");
    run(
        "debugfs",
        &["-w", "-R", "link a a/b/c", image.to_str().unwrap()],
        &dir,
        b"",
    );
    let error = open(&image).unwrap_err();
    assert!(
        error.to_string().contains("a directory is in two places"),
        "{error}"
    );
}

#[test]
fn a_claim_of_4_gib_costs_nothing() {
    let place = Place::new();
    let header = |size: &str, name: &str| {
        let fields = ["1", "81a4", "0", "0", "1", "0", size, "0", "0", "0", "0"];
        let fields: String = fields.iter().map(|field| format!("{field:0>8}")).collect();
        format!("070701{fields}{:08x}00000000{name}\0\0\0", name.len() + 1)
    };
    let path = place.write("image", header("ffffffff", "f").as_bytes());
    let error = open(&path).unwrap_err().to_string();
    assert!(
        error.contains("holds more than 256 times its own size"),
        "{error}"
    );
    let path = place.write("image", header("3000000", "f").as_bytes());
    let error = open(&path).unwrap_err().to_string();
    assert!(
        error.contains("a file of 50331648 bytes goes beyond the end"),
        "{error}"
    );
    let long = header("0", "f").replace("00000002", "ffffffff");
    let error = open(&place.write("image", long.as_bytes()))
        .unwrap_err()
        .to_string();
    assert!(error.contains("a name is empty or too long"), "{error}");
    let up = header("0", "../../etc/passwd");
    let error = open(&place.write("image", up.as_bytes()))
        .unwrap_err()
        .to_string();
    assert!(error.contains("a name leads elsewhere"), "{error}");
}
