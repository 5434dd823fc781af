// SPDX-License-Identifier: Apache-2.0
//! What is written is what the other half of this program reads, and what the specification asks for.

use std::process::Command;

use guest_kernel::Cache;
use guest_kernel::progress::Silent;

use super::*;
use crate::base::oci::root_of_layout;
use crate::tree::{Entry, Kind};

fn example() -> Tree {
    let mut tree = Tree::default();
    tree.insert("etc/name", Entry::bytes("keelson", 0o640))
        .unwrap();
    tree.insert("lib", Entry::new(Kind::Symlink("usr/lib".into()), 0o777))
        .unwrap();
    tree.insert("usr/lib", Entry::directory(0o755)).unwrap();
    tree
}

fn options(compression: Compression) -> Options {
    let config = Config {
        entrypoint: vec!["/bin/init".to_owned()],
        env: vec!["PATH=/bin".to_owned()],
        ..Config::default()
    };
    Options {
        compression,
        config,
        ..Options::new(Arch::Aarch64, 1_000_000_000)
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn blob(dir: &Path, descriptor: &Value) -> PathBuf {
    let path = blob_path(
        &dir.join("blobs/sha256"),
        descriptor["digest"].as_str().unwrap(),
    );
    let bytes = fs::read(&path).unwrap();
    assert_eq!(descriptor["size"], bytes.len());
    let digest = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
    assert_eq!(descriptor["digest"], digest);
    path
}

#[test]
fn an_image_is_unpacked_as_it_was() {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let dir = tempfile::tempdir().unwrap();
        let (layout, cache) = (dir.path().join("layout"), dir.path().join("cache"));
        write(&example(), &options(compression), &layout).unwrap();
        let cache = Cache::at(cache).unwrap();
        let root = root_of_layout(&layout, Arch::Aarch64, &cache, &Silent).unwrap();
        let tree = Tree::from_dir(&root.dir, false).unwrap();
        let names: Vec<_> = tree.entries().map(|(path, _)| path.to_owned()).collect();
        assert_eq!(
            names,
            ["etc", "etc/name", "lib", "usr", "usr/lib"].map(PathBuf::from)
        );
        assert_eq!(fs::read(root.dir.join("etc/name")).unwrap(), b"keelson");
        let config = root.image_config.unwrap();
        assert_eq!(
            (config.entrypoint, config.env),
            (vec!["/bin/init".to_owned()], vec!["PATH=/bin".to_owned()])
        );
        assert!(root_of_layout(&layout, Arch::X86_64, &cache, &Silent).is_err());
    }
}

#[test]
fn documents_are_what_the_specification_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let digest = write(&example(), &options(Compression::Gzip), dir.path()).unwrap();
    assert_eq!(
        json(&dir.path().join("oci-layout")),
        json!({ "imageLayoutVersion": "1.0.0" })
    );
    let index = json(&dir.path().join("index.json"));
    let entry = &index["manifests"][0];
    assert_eq!(entry["digest"], digest);
    assert_eq!(entry["annotations"][REF_NAME], "latest");
    assert_eq!(
        entry["platform"],
        json!({ "architecture": "arm64", "os": "linux" })
    );
    let manifest = json(&blob(dir.path(), entry));
    assert_eq!(
        manifest["layers"][0]["mediaType"],
        "application/vnd.oci.image.layer.v1.tar+gzip"
    );
    let layer = blob(dir.path(), &manifest["layers"][0]);
    let config = json(&blob(dir.path(), &manifest["config"]));
    assert_eq!(config["created"], "2001-09-09T01:46:40Z");
    assert_eq!(
        config["config"],
        json!({ "Entrypoint": ["/bin/init"], "Env": ["PATH=/bin"] })
    );
    let output = Command::new("gzip")
        .arg("-dc")
        .stdin(File::open(layer).unwrap())
        .output();
    let plain = output.expect("this test needs gzip").stdout;
    let digest = format!("sha256:{}", hex(&Sha256::digest(plain)));
    assert_eq!(config["rootfs"]["diff_ids"], json!([digest]));
    // Nothing else is left there: a layer, a configuration and a manifest.
    assert_eq!(
        fs::read_dir(dir.path().join("blobs/sha256"))
            .unwrap()
            .count(),
        3
    );
}

#[test]
fn two_writings_are_equal() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let write = |dir: &Path| write(&example(), &options(Compression::Zstd), dir).unwrap();
    assert_eq!(write(one.path()), write(two.path()));
    let index = |dir: &Path| fs::read(dir.join("index.json")).unwrap();
    assert_eq!(index(one.path()), index(two.path()));
}

#[test]
fn what_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = write(&example(), &options(Compression::Lz4), dir.path()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "An OCI layer cannot be compressed by lz4, only by gzip, zstd or none"
    );
    let mut tree = Tree::default();
    tree.insert("f", Entry::file("/no/such/file", 0o644))
        .unwrap();
    let error = write(&tree, &options(Compression::Gzip), dir.path()).unwrap_err();
    assert!(
        error.to_string().starts_with("Cannot write the layer"),
        "{error}"
    );
    let blobs = dir.path().join("blobs/sha256");
    assert_eq!(fs::read_dir(blobs).unwrap().count(), 0);
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = write(&tree, &options(Compression::Gzip), &file).unwrap_err();
    assert!(error.to_string().contains("file/blobs"), "{error}");
}

#[test]
fn times_are_written_as_documents_have_them() {
    let cases = [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_399, "2000-02-28T23:59:59Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (951_868_800, "2000-03-01T00:00:00Z"),
        (4_107_542_400, "2100-03-01T00:00:00Z"),
        (1_735_689_599, "2024-12-31T23:59:59Z"),
        (u32::MAX.into(), "2106-02-07T06:28:15Z"),
    ];
    for (seconds, text) in cases {
        assert_eq!(rfc3339(seconds), text);
    }
}
