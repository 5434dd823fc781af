// SPDX-License-Identifier: Apache-2.0

use std::fs;

use guest_kernel::progress::Silent;
use guest_kernel::{Arch, Cache};

use super::*;
use crate::build;
use crate::cli::output::document;
use crate::definition::{self, KernelChoice, Layer, Origin};

/// Builds an image in a directory and asks for Kata's configuration.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("keelson"), "the guest binary").unwrap();
        Place { dir }
    }

    fn image(&self, layer: Layer) -> PathBuf {
        let extension = layer.format == Some(Format::Extension);
        let layer = Layer {
            arch: Some(Arch::X86_64),
            kernel: Some(KernelChoice::None),
            binary: (!extension).then(|| self.dir.path().join("keelson")),
            output: Some(self.dir.path().join("guest.img")),
            ..layer
        };
        let resolved = definition::resolve(vec![(Origin::Flag, layer)]).unwrap();
        let cache = Cache::at(self.dir.path().join("cache")).unwrap();
        build::build(&resolved.definition, &cache, &Silent)
            .unwrap()
            .image
    }
}

fn request(image: &Path) -> Request {
    Request {
        image: image.to_owned(),
        kernel: Some("/boot/vmlinux".into()),
        hypervisor: "qemu".to_owned(),
        ..Request::default()
    }
}

/// The drop-in, parsed.
fn drop_in(request: &Request) -> toml::Table {
    let text = config(request).unwrap().drop_in.content;
    toml::from_str(&text).unwrap_or_else(|error| panic!("{text}\n{error}"))
}

fn of(format: Format) -> Layer {
    Layer {
        format: Some(format),
        ..Layer::default()
    }
}

fn text<'a>(table: &'a toml::Value, key: &str) -> &'a str {
    table
        .get(key)
        .unwrap_or_else(|| panic!("no {key} in {table:?}"))
        .as_str()
        .unwrap()
}

#[test]
fn an_initramfs_takes_the_place_of_an_image() {
    let place = Place::new();
    let image = place.image(Layer {
        words: vec!["agent.log=debug".into(), "x=\"a b\"".into()],
        ..of(Format::Initramfs)
    });
    let table = drop_in(&request(&image));
    let qemu = &table["hypervisor"]["qemu"];
    assert_eq!(text(qemu, "initrd"), image.to_str().unwrap());
    assert_eq!(text(qemu, "image"), "");
    assert_eq!(text(qemu, "kernel"), "/boot/vmlinux");
    assert_eq!(text(qemu, "kernel_params"), "agent.log=debug x=\"a b\"");
    // Kata's own configuration decides about seccomp profiles.
    assert!(table.get("runtime").is_none());
}

#[test]
fn a_disk_is_mapped_where_it_can_be() {
    let place = Place::new();
    let image = place.image(of(Format::Disk));
    let table = drop_in(&request(&image));
    let qemu = &table["hypervisor"]["qemu"];
    assert_eq!(text(qemu, "image"), image.to_str().unwrap());
    assert_eq!(text(qemu, "initrd"), "");
    assert_eq!(text(qemu, "rootfs_type"), "erofs");
    assert_eq!(qemu["disable_image_nvdimm"].as_bool(), Some(false));
    // What Kata says itself is not said twice.
    assert!(qemu.get("kernel_params").is_none());
    let rust = Request {
        runtime_rs: true,
        ..request(&image)
    };
    let table = drop_in(&rust);
    assert_eq!(
        text(&table["hypervisor"]["qemu"], "vm_rootfs_driver"),
        "virtio-pmem"
    );
    let plain = place.image(Layer {
        dax: Some(false),
        filesystem: Some(Filesystem::Ext4),
        ..of(Format::Disk)
    });
    let table = drop_in(&request(&plain));
    let qemu = &table["hypervisor"]["qemu"];
    assert_eq!(qemu["disable_image_nvdimm"].as_bool(), Some(true));
    assert_eq!(text(qemu, "rootfs_type"), "ext4");
}

#[test]
fn a_measured_disk_comes_with_what_it_is_measured_by() {
    let place = Place::new();
    let image = place.image(Layer {
        verity: Some(true),
        ..of(Format::Disk)
    });
    let table = drop_in(&request(&image));
    let qemu = &table["hypervisor"]["qemu"];
    let manifest = Manifest::read(&Manifest::path_for(&image)).unwrap();
    let params = manifest.verity.unwrap().params();
    assert_eq!(text(qemu, "kernel_verity_params"), params);
    assert_eq!(qemu["disable_image_nvdimm"].as_bool(), Some(true));
    // A kernel that cannot read its init must not go on with another program of the image's.
    assert_eq!(text(qemu, "kernel_params"), "init=/sbin/init");
    fs::remove_file(Manifest::path_for(&image)).unwrap();
    let error = config(&request(&image)).unwrap_err();
    assert!(matches!(error, KataError::NoManifest { .. }), "{error}");
}

#[test]
fn an_extension_is_added() {
    let place = Place::new();
    let image = place.image(Layer {
        extension: Some("devkit".into()),
        files: vec![definition::FileEntry {
            target: "/etc/kata-extensions/components.toml".into(),
            what: definition::FileContent::Text("schema_version = 1\n".into()),
            mode: None,
            owner: None,
        }],
        ..of(Format::Extension)
    });
    let table = drop_in(&request(&image));
    let added = &table["hypervisor"]["qemu"]["guest_extension_images"][0];
    assert_eq!(text(added, "name"), "devkit");
    assert!(text(added, "verity_params").starts_with("root_hash="));
    assert_eq!(text(added, "path"), image.to_str().unwrap());
    assert!(table.get("runtime").is_none());
}

#[test]
fn an_image_without_a_manifest_is_looked_at() {
    let place = Place::new();
    for format in [Format::Initramfs, Format::Disk] {
        let image = place.image(of(format));
        let with = config(&request(&image)).unwrap();
        fs::remove_file(Manifest::path_for(&image)).unwrap();
        assert_eq!(config(&request(&image)).unwrap(), with, "{format}");
    }
    let tar = place.image(of(Format::Tar));
    for _ in 0..2 {
        let error = config(&request(&tar)).unwrap_err();
        assert!(matches!(error, KataError::Format { .. }), "{error}");
        let _ = fs::remove_file(Manifest::path_for(&tar));
    }
}

#[test]
fn a_handler_has_a_configuration_of_its_own() {
    let place = Place::new();
    let image = place.image(of(Format::Initramfs));
    let all = config(&request(&image)).unwrap();
    let path = Path::new("/etc/kata-containers/config.d/50-keelson.toml");
    assert_eq!(all.drop_in.path, path);
    assert!(all.runtime_class.is_none() && all.containerd.is_none());
    let own = Request {
        handler: Some("guest".to_owned()),
        kernel: None,
        ..request(&image)
    };
    let own = config(&own).unwrap();
    let path = Path::new("/etc/kata-containers/guest/config.d/50-keelson.toml");
    assert_eq!(own.drop_in.path, path);
    let class = own.runtime_class.as_ref().unwrap();
    assert!(class.contains("name: guest\nhandler: guest"), "{class}");
    let containerd: toml::Table = toml::from_str(own.containerd.as_ref().unwrap()).unwrap();
    let runtimes = &containerd["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"];
    assert_eq!(
        text(&runtimes["guest"]["options"], "ConfigPath"),
        "/etc/kata-containers/guest/configuration.toml"
    );
    assert!(own.text().contains("kind: RuntimeClass"));
    let json: serde_json::Value = serde_json::from_str(&document(&own).unwrap()).unwrap();
    assert_eq!(json["kind"], "kata-config");
    assert!(
        json["drop_in"]["content"]
            .as_str()
            .unwrap()
            .contains("initrd")
    );
    assert!(!own.drop_in.content.contains("kernel ="));
}
