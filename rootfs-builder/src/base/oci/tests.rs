// SPDX-License-Identifier: Apache-2.0
//! Images made here, whole and broken.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use guest_kernel::progress::Silent;
use serde_json::{Value, json};

use super::*;
use crate::base::RootSource;

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o6604);
        header.set_uid(4321);
        header.set_gid(1234);
        builder
            .append_data(&mut header, name, data.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layout with an image of two layers, gzipped and plain, for each of the architectures.
struct Layout {
    dir: tempfile::TempDir,
    cache: Cache,
}

impl Layout {
    fn new(archs: &[&str]) -> Layout {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let layout = Layout { dir, cache };
        fs::create_dir_all(layout.path().join("blobs/sha256")).unwrap();
        fs::write(
            layout.path().join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
        let manifests: Vec<Value> = archs.iter().map(|arch| layout.image(arch)).collect();
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        fs::write(layout.path().join("index.json"), index.to_string()).unwrap();
        layout
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("layout")
    }

    fn blob(&self, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        fs::write(self.path().join("blobs/sha256").join(&digest), bytes).unwrap();
        format!("sha256:{digest}")
    }

    fn image(&self, arch: &str) -> Value {
        let lower = tar_of(&[("etc/name", arch), ("gone", "x")]);
        let upper = tar_of(&[(".wh.gone", ""), ("new", "y")]);
        let config = config(arch, &[&lower, &upper]);
        let manifest = json!({
            "config": { "digest": self.blob(config.to_string().as_bytes()) },
            "layers": [{ "digest": self.blob(&gzip(&lower)) }, { "digest": self.blob(&upper) }],
        });
        let digest = self.blob(manifest.to_string().as_bytes());
        json!({ "digest": digest, "platform": { "os": "linux", "architecture": arch } })
    }

    fn root(&self, arch: Arch) -> Result<ContainerRoot, OciError> {
        root_of_layout(&self.path(), arch, &self.cache, &Silent)
    }
}

fn config(arch: &str, layers: &[&[u8]]) -> Value {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| format!("sha256:{}", sha256(layer)))
        .collect();
    json!({
        "architecture": arch, "os": "linux",
        "config": { "Env": ["A=b"], "Cmd": ["sh"], "Entrypoint": null, "WorkingDir": "/w", "User": "u:g", "Other": 1 },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
}

#[test]
fn the_architectures_image_is_unpacked() {
    let layout = Layout::new(&["arm64", "amd64"]);
    let root = layout.root(Arch::X86_64).unwrap();
    assert_eq!(
        fs::read_to_string(root.dir.join("etc/name")).unwrap(),
        "amd64"
    );
    assert_eq!(fs::read_to_string(root.dir.join("new")).unwrap(), "y");
    assert!(!root.dir.join("gone").exists());
    let config = root.image_config.clone().unwrap();
    assert_eq!(
        (config.cmd, config.entrypoint),
        (vec!["sh".to_owned()], vec![])
    );
    assert_eq!(
        (config.working_dir.as_str(), config.user.as_str()),
        ("/w", "u:g")
    );
    assert_eq!(layout.root(Arch::X86_64).unwrap(), root);
    let other = layout.root(Arch::Aarch64).unwrap();
    assert_eq!(
        fs::read_to_string(other.dir.join("etc/name")).unwrap(),
        "arm64"
    );
}

#[test]
fn an_image_for_another_machine_is_refused_by_name() {
    let error = Layout::new(&["arm64"]).root(Arch::X86_64).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("has no image for x86_64, only for: linux/arm64"),
        "{error}"
    );
}

#[test]
fn every_flipped_blob_is_noticed_and_nothing_is_left() {
    let blobs = |layout: &Layout| -> Vec<PathBuf> {
        let mut paths: Vec<_> = fs::read_dir(layout.path().join("blobs/sha256"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        paths.sort();
        paths
    };
    for index in 0..blobs(&Layout::new(&["amd64"])).len() {
        let layout = Layout::new(&["amd64"]);
        let path = &blobs(&layout)[index];
        let mut bytes = fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path, bytes).unwrap();
        let error = layout.root(Arch::X86_64).unwrap_err();
        assert!(matches!(error, OciError::Digest { .. }), "{error}");
        let left = fs::read_dir(layout.cache.root().join("root"))
            .map(|dir| dir.count())
            .unwrap_or(0);
        assert_eq!(left, 0);
    }
}

#[test]
fn digests_that_are_paths_are_refused() {
    for digest in [
        "sha256:../../../etc/passwd",
        "sha256:",
        "md5:00",
        "",
        "sha256:ABCD",
    ] {
        let layout = Layout::new(&[]);
        let index = json!({ "manifests": [{ "digest": digest }] });
        fs::write(layout.path().join("index.json"), index.to_string()).unwrap();
        assert!(
            matches!(layout.root(Arch::X86_64), Err(OciError::BadDigest { .. })),
            "{digest}"
        );
    }
}

fn docker_archive(dir: &Path, config_name: &str, layer_name: &str) -> PathBuf {
    let layer = tar_of(&[("f", "from docker")]);
    let config = config("amd64", &[&layer]).to_string();
    let manifest =
        json!([{ "Config": config_name, "RepoTags": ["x:latest"], "Layers": [layer_name] }])
            .to_string();
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in [
        ("c.json", config.as_bytes()),
        ("l/layer.tar", &layer),
        ("manifest.json", manifest.as_bytes()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_uid(fs::metadata("/proc/self").unwrap().uid().into());
        header.set_gid(fs::metadata("/proc/self").unwrap().gid().into());
        builder.append_data(&mut header, name, data).unwrap();
    }
    let path = dir.join("image.tar.gz");
    fs::write(&path, gzip(&builder.into_inner().unwrap())).unwrap();
    path
}

#[test]
fn the_tree_of_an_image_is_as_its_layers_say_whoever_unpacks_them() {
    let layout = Layout::new(&["amd64"]);
    let source = RootSource::OciLayout(layout.path());
    let tree = crate::base::tree(&source, Arch::X86_64, &layout.cache, &Silent).unwrap();
    let paths: Vec<_> = tree.entries().map(|(path, _)| path).collect();
    assert_eq!(paths, ["etc", "etc/name", "new"].map(Path::new));
    for path in ["etc/name", "new"] {
        let entry = tree.get(path).unwrap();
        assert_eq!((entry.mode, entry.uid, entry.gid), (0o6604, 4321, 1234));
    }
    assert_eq!(source.name(Arch::X86_64), "oci");
}

#[test]
fn a_docker_archive_is_unpacked_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path().join("cache")).unwrap();
    let file = docker_archive(dir.path(), "c.json", "l/layer.tar");
    let root = root_of_archive(&file, Arch::X86_64, &cache, &Silent).unwrap();
    assert_eq!(
        fs::read_to_string(root.dir.join("f")).unwrap(),
        "from docker"
    );
    assert_eq!(
        root_of_archive(&file, Arch::X86_64, &cache, &Silent).unwrap(),
        root
    );
    let error = root_of_archive(&file, Arch::Aarch64, &cache, &Silent).unwrap_err();
    assert!(matches!(error, OciError::NoImage { .. }));
    assert_eq!(fs::read_dir(cache.root().join("work")).unwrap().count(), 0);
}

#[test]
fn a_docker_archive_cannot_name_files_of_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path().join("cache")).unwrap();
    for (config, layer) in [
        ("/etc/passwd", "l/layer.tar"),
        ("../c.json", "l/layer.tar"),
        ("c.json", "/etc/passwd"),
    ] {
        let file = docker_archive(dir.path(), config, layer);
        let error = root_of_archive(&file, Arch::X86_64, &cache, &Silent).unwrap_err();
        assert!(matches!(error, OciError::Outside { .. }), "{error}");
    }
}

#[test]
fn an_archive_of_something_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path().join("cache")).unwrap();
    let file = dir.path().join("x.tar");
    fs::write(&file, tar_of(&[("a", "b")])).unwrap();
    let error = root_of_archive(&file, Arch::X86_64, &cache, &Silent).unwrap_err();
    assert!(matches!(error, OciError::NoArchive { .. }), "{error}");
}

#[test]
fn a_zstd_layer_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.zst");
    let numbers: String = (0..100_000).map(|n| format!("{n} ")).collect();
    let mut packed = Vec::new();
    compress::write(compress::Compression::Zstd, &mut packed, |out| {
        out.write_all(numbers.as_bytes())
    })
    .unwrap();
    fs::write(&path, &packed).unwrap();
    let mut read = Vec::new();
    decompressed(&path).unwrap().read_to_end(&mut read).unwrap();
    assert_eq!(read, numbers.as_bytes());
    fs::write(&path, &packed[..packed.len() / 2]).unwrap();
    let mut cut = decompressed(&path).unwrap();
    assert!(cut.read_to_end(&mut Vec::new()).is_err());
}
