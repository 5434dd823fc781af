// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::image::compress;
use crate::image::cpio as writer;

fn archive(tree: &Tree, compression: Compression) -> Vec<u8> {
    let mut bytes = Vec::new();
    compress::write(compression, &mut bytes, |out| {
        writer::write(tree, 0, out).map_err(std::io::Error::other)
    })
    .unwrap();
    bytes
}

#[test]
fn an_initramfs_is_read_as_it_was_written() {
    let place = Place::new();
    let tree = example();
    for compression in Compression::ALL {
        let path = place.write("image", &archive(&tree, compression));
        let image = open(&path).unwrap();
        assert_eq!(
            (image.format, image.compression),
            (Format::Cpio, compression)
        );
        assert_same(&image.listing, &Listing::of(&tree).unwrap());
        assert_eq!(image.findings, Vec::<String>::new());
        assert_eq!(image.size, fs::metadata(&path).unwrap().len());
        let (name, path, elf) = image.init().unwrap();
        assert_eq!((name, &path[..], elf), ("/init", &b"init"[..], None));
        let options: Vec<_> = requirements::requirements(&image)
            .into_iter()
            .map(|(o, _)| o)
            .collect();
        let expected = ["BINFMT_SCRIPT", "BLK_DEV_INITRD"]
            .into_iter()
            .chain(compression.kernel_option());
        assert_eq!(options, expected.collect::<Vec<_>>());
    }
}

#[test]
fn where_content_lies_is_known_unless_it_is_compressed() {
    let place = Place::new();
    let bytes = archive(&example(), Compression::None);
    let at = bytes.windows(4).position(|w| w == [8; 4]).unwrap() as u64;
    let image = open(&place.write("image", &bytes)).unwrap();
    let places = image.places(at + 100, 1);
    assert_eq!(places.len(), 1);
    assert_eq!(
        (places[0].start, places[0].len, &places[0].path[..]),
        (at, 50_000, &b"more"[..])
    );
    let image = open(&place.write("image", &archive(&example(), Compression::Gzip))).unwrap();
    assert!(image.places(0, u64::MAX).is_empty());
}

#[test]
fn archives_in_a_row_are_read_as_the_kernel_does() {
    let place = Place::new();
    let (mut first, mut second) = (Tree::default(), Tree::default());
    first.insert("a", Entry::bytes("old", 0o644)).unwrap();
    first.insert("b", Entry::bytes("b", 0o600)).unwrap();
    second.insert("a", Entry::bytes("new", 0o755)).unwrap();
    for (one, two) in [
        (Compression::None, Compression::Zstd),
        (Compression::Gzip, Compression::None),
        (Compression::Lz4, Compression::Gzip),
        (Compression::Zstd, Compression::Lz4),
        (Compression::Lz4, Compression::Lz4),
    ] {
        let mut bytes = archive(&first, one);
        // Zeros may stand between them, and bring an uncompressed one to where it can begin.
        bytes.resize(bytes.len().next_multiple_of(4) + 8, 0);
        bytes.extend(archive(&second, two));
        bytes.extend([0; 16]);
        let image = open(&place.write("image", &bytes)).unwrap();
        let entries = &image.listing.entries;
        assert_eq!(entries.len(), 2, "{one} {two}");
        assert_eq!(entries[&b"a"[..]].sha256, Some(Digest::of(b"new")));
        assert_eq!(entries[&b"a"[..]].mode, 0o755);
        assert_eq!(image.compression, two);
    }
}

#[test]
fn what_other_tools_wrote_is_read() {
    let place = Place::new();
    let dir = place.path("root");
    unpack(&example(), &dir);
    fs::hard_link(dir.join("more"), dir.join("most")).unwrap();
    fs::hard_link(dir.join("more"), dir.join("a-link")).unwrap();
    let names: Vec<u8> = run("find", &[".", "-print0"], &dir, b"");
    let cpio = run("cpio", &["--quiet", "-0", "-o", "-H", "newc"], &dir, &names);
    let expected = open(&dir).unwrap();
    assert_eq!(expected.format, Format::Directory);
    for (name, bytes) in [
        ("cpio", cpio.clone()),
        ("gz", run("gzip", &["-9"], &dir, &cpio)),
        ("zst", run("zstd", &["-19", "-T0"], &dir, &cpio)),
        ("lz4", run("lz4", &["-l", "-9", "-"], &dir, &cpio)),
        ("tar", run("tar", &["-c", "--format=gnu", "."], &dir, b"")),
        (
            "tar.pax",
            run("tar", &["-c", "--format=posix", "."], &dir, b""),
        ),
        ("tar.gz", run("tar", &["-cz", "."], &dir, b"")),
        ("tar.zst", run("tar", &["-c", "--zstd", "."], &dir, b"")),
    ] {
        let image = open(&place.write(name, &bytes)).unwrap();
        assert_same(&image.listing, &expected.listing);
        assert!(image.listing.root.is_some(), "{name}");
        assert!(image.findings.is_empty(), "{name}: {:?}", image.findings);
        let most = &image.listing.entries[&b"most"[..]];
        assert_eq!(
            (most.size, most.sha256),
            (50_000, Some(Digest::of(&[8; 50_000])))
        );
    }
}

#[test]
fn entries_that_the_kernel_would_leave_out_are_told() {
    let place = Place::new();
    let bytes = archive(&example(), Compression::None);
    // The header of the directory `dev`, its name and what fills it up to a multiple of four.
    let dev = bytes.windows(4).position(|w| w == b"dev\0").unwrap() - 110;
    let without = [&bytes[..dev], &bytes[dev + 116..]].concat();
    let image = open(&place.write("image", &without)).unwrap();
    let expected = ["/dev/console", "/dev/vda300"]
        .map(|path| format!("{path} has no directory before it: the kernel leaves it out"));
    assert_eq!(image.findings, expected);
    let trailer = bytes.windows(10).position(|w| w == b"TRAILER!!!").unwrap() - 110;
    let image = open(&place.write("image", &bytes[..trailer])).unwrap();
    assert_eq!(
        image.findings,
        [format!("the archive has no trailer at byte {trailer}")]
    );
    let error = open(&place.write("image", &bytes[..trailer + 50])).unwrap_err();
    assert!(
        error.to_string().contains("ends in the middle of an entry"),
        "{error}"
    );
}

/// A tar archive with one file and these PAX records before it.
fn with_records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions(records.iter().copied())
        .unwrap();
    let mut header = ::tar::Header::new_ustar();
    header.set_size(1);
    header.set_mode(0o755);
    builder
        .append_data(&mut header, "short", &b"x"[..])
        .unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn pax_records_are_heeded() {
    let place = Place::new();
    let records: [(&str, &[u8]); 4] = [
        ("path", b"long/name"),
        ("uid", b"3000000"),
        ("SCHILY.xattr.security.capability", b"\x01\0\n=\x02"),
        ("comment", b"nothing"),
    ];
    let image = open(&place.write("image", &with_records(&records))).unwrap();
    let item = &image.listing.entries[&b"long/name"[..]];
    assert_eq!((item.uid, item.size), (3_000_000, 1));
    assert_eq!(item.xattrs[&b"security.capability"[..]], b"\x01\0\n=\x02");
    let error = open(&place.write("image", &with_records(&[("size", b"5")]))).unwrap_err();
    assert!(error.to_string().contains("a PAX record alone"), "{error}");
    let error = open(&place.write("image", &with_records(&[("path", b"../x")]))).unwrap_err();
    assert!(error.to_string().contains("leads elsewhere"), "{error}");
}

/// An image layout of these layers.
fn layout(dir: &Path, layers: &[Vec<u8>]) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes).to_string();
        fs::write(blobs.join(&digest), bytes).unwrap();
        serde_json::json!({"digest": format!("sha256:{digest}"), "size": bytes.len(), "mediaType": "x"})
    };
    let layers: Vec<_> = layers.iter().map(|layer| put(layer)).collect();
    let manifest = put(serde_json::json!({"layers": layers, "config": put(b"{}")})
        .to_string()
        .as_bytes());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn tar_of(files: &[&str]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for name in files {
        let mut header = ::tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(name.len() as u64);
        builder
            .append_data(&mut header, name, name.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn layers_lie_over_one_another() {
    let place = Place::new();
    let dir = place.path("layout");
    let upper = tar_of(&["d/new", "d/.wh..wh..opq", ".wh.gone", "e/.wh.f", "kept"]);
    let upper = run("gzip", &["-n"], &std::env::temp_dir(), &upper);
    layout(
        &dir,
        &[tar_of(&["d/old", "gone", "e/f", "e/g", "kept"]), upper],
    );
    let image = open(&dir).unwrap();
    assert_eq!(image.format, Format::Oci);
    let paths: Vec<_> = image
        .listing
        .entries
        .keys()
        .map(|path| show(path))
        .collect();
    assert_eq!(paths, ["/d/new", "/e/g", "/kept"]);
    for blob in fs::read_dir(dir.join("blobs/sha256")).unwrap() {
        let path = blob.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        bytes[0] ^= 1;
        fs::write(&path, &bytes).unwrap();
        bytes[0] ^= 1;
        // The configuration says nothing about what is inside.
        if bytes != b"{}" {
            let error = open(&dir).unwrap_err().to_string();
            assert!(error.contains("its digest is"), "{error}");
        }
        fs::write(&path, &bytes).unwrap();
    }
}
