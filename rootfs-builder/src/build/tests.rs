// SPDX-License-Identifier: Apache-2.0

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use guest_kernel::progress::Silent;
use guest_kernel::{Arch, Kernel, Module, Source};

use super::*;
use crate::cli::output::{Report, document};
use crate::definition::{
    self, BaseChoice, FileContent, FileEntry, Filesystem, Format, Layer, Origin, Profile, Size,
};
use crate::image::compress::Compression;
use crate::image::verity;
use crate::image::{disk, read};
use crate::sbom;

/// A place to build in, with all that goes in.
struct Place {
    dir: tempfile::TempDir,
    cache: Cache,
    inputs: Inputs,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("base/usr/bin")).unwrap();
        for (name, content) in [
            ("keelson", "the guest binary"),
            ("image", "the kernel"),
            ("config", "CONFIG_X86_64=y\n"),
            ("a.ko", "a module"),
            ("base/usr/bin/tool", "a tool"),
        ] {
            fs::write(path(name), content).unwrap();
        }
        let kernel = Kernel {
            image: path("image"),
            vmlinux: None,
            config: path("config"),
            release: "6.0".to_owned(),
            modules: vec![Module {
                path: path("a.ko"),
                params: Vec::new(),
            }],
            source: Source::Fetched,
        };
        let inputs = Inputs {
            kernel: Some(kernel),
            binary: Some(path("keelson")),
        };
        let cache = Cache::at(path("cache")).unwrap();
        Place { dir, cache, inputs }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The definition of a layer over a base and a file of this place.
    fn define(&self, layer: Layer) -> Definition {
        let file = FileEntry {
            target: "/etc/motd".into(),
            what: FileContent::Text("hello\n".into()),
            mode: None,
            owner: None,
        };
        let layer = Layer {
            arch: Some(Arch::X86_64),
            base: Some(BaseChoice::Path(self.path("base"))),
            files: vec![file],
            ..layer
        };
        definition::resolve(vec![(Origin::Flag, layer)])
            .unwrap()
            .definition
    }

    fn build(&self, layer: Layer) -> Result<Built, BuildError> {
        let definition = self.define(layer);
        let root = definition.format.is_root();
        let inputs = if root {
            &self.inputs
        } else {
            &Inputs::default()
        };
        make(&definition, inputs, &self.cache, &Silent)
    }
}

fn of(format: Format) -> Layer {
    Layer {
        format: Some(format),
        extension: (format == Format::Extension).then(|| "devkit".to_owned()),
        ..Layer::default()
    }
}

/// One layer for each thing that can come out.
fn every() -> Vec<Layer> {
    let with = |format, change: fn(&mut Layer)| {
        let mut layer = of(format);
        change(&mut layer);
        layer
    };
    let mut every = vec![
        of(Format::Disk),
        with(Format::Disk, |l| l.verity = Some(true)),
        with(Format::Disk, |l| l.dax = Some(false)),
        with(Format::Disk, |l| l.filesystem = Some(Filesystem::Ext4)),
        with(Format::Disk, |l| {
            l.filesystem = Some(Filesystem::Ext4);
            l.verity = Some(true);
            l.free = Some(Size(1 << 20));
        }),
        of(Format::Ext4),
        of(Format::Erofs),
        with(Format::Erofs, |l| l.verity = Some(true)),
        of(Format::Oci),
        of(Format::Directory),
        of(Format::Extension),
        with(Format::Extension, |l| l.verity = Some(false)),
    ];
    for compression in Compression::ALL {
        for format in [Format::Initramfs, Format::Tar] {
            every.push(Layer {
                compression: Some(compression),
                ..of(format)
            });
        }
    }
    every
}

/// All bytes of a file, or of what is in a directory, with modes.
fn content(path: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut ahead = vec![path.to_owned()];
    while let Some(next) = ahead.pop() {
        let metadata = fs::symlink_metadata(&next).unwrap();
        let bytes = if metadata.is_dir() {
            let entries = fs::read_dir(&next).unwrap();
            ahead.extend(entries.map(|entry| entry.unwrap().path()));
            Vec::new()
        } else if metadata.is_symlink() {
            fs::read_link(&next)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes()
        } else {
            fs::read(&next).unwrap()
        };
        let inside = next.strip_prefix(path).unwrap().to_owned();
        all.insert(inside, (metadata.mode(), bytes));
    }
    all
}

#[test]
fn two_builds_in_two_places_are_equal_and_read_back() {
    let (one, two) = (Place::new(), Place::new());
    for layer in every() {
        let (first, second) = (one.build(layer.clone()), two.build(layer.clone()));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_ne!(first.image, second.image);
        assert_eq!(first.sha256, second.sha256, "{layer:?}");
        assert!(content(&first.image) == content(&second.image), "{layer:?}");
        for (a, b) in [
            (&first.manifest, &second.manifest),
            (&first.sbom, &second.sbom),
        ] {
            let (a, b) = (
                fs::read_to_string(a).unwrap(),
                fs::read_to_string(b).unwrap(),
            );
            assert_eq!(a, b, "{layer:?}");
            // Where it was made is nobody's business.
            let here = one.dir.path().to_str().unwrap();
            assert!(!a.contains(here), "{a}");
        }
        read_back(&layer, &first.image);
        assert_eq!(first.hash_tree.is_some(), second.hash_tree.is_some());
        if let (Some(a), Some(b)) = (&first.hash_tree, &second.hash_tree) {
            assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap());
        }
    }
}

/// The image is read as what it is, and all that went in is there.
fn read_back(layer: &Layer, image: &Path) {
    let image = read::open(image).unwrap_or_else(|error| panic!("{layer:?}: {error}"));
    let has = |name: &str| image.listing.entries.contains_key(name.as_bytes());
    let init = match layer.format.unwrap() {
        Format::Initramfs => "init",
        Format::Extension => "usr/bin/tool",
        _ => "sbin/init",
    };
    for name in [init, "etc/motd", "usr/bin/tool"] {
        assert!(has(name), "{layer:?}: {name} is not there");
    }
    let root = layer.format != Some(Format::Extension);
    assert_eq!(has("lib/modules/6.0/a.ko"), root, "{layer:?}");
    assert_eq!(has("var/run"), root, "{layer:?}");
}

#[test]
fn an_unchanged_definition_is_taken_from_the_cache_and_a_changed_one_is_not() {
    let place = Place::new();
    let layer = || Layer {
        verity: Some(true),
        ..of(Format::Disk)
    };
    let first = place.build(layer()).unwrap();
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let before = inode(&first.image);
    let again = place.build(layer()).unwrap();
    assert_eq!((&again.image, inode(&again.image)), (&first.image, before));
    assert_eq!(again.root_hash, first.root_hash);
    fs::write(place.path("keelson"), "another guest binary").unwrap();
    let changed = place.build(layer()).unwrap();
    assert_ne!(changed.root_hash, first.root_hash);
    assert_ne!(changed.sha256, first.sha256);
    let other = place.build(Layer {
        align: Some(Size(8 << 20)),
        ..layer()
    });
    assert_eq!(other.unwrap().size, 8 << 20);
}

#[test]
fn a_measured_disk_holds_against_its_tree() {
    let place = Place::new();
    for filesystem in [Filesystem::Erofs, Filesystem::Ext4] {
        let built = place.build(Layer {
            verity: Some(true),
            filesystem: Some(filesystem),
            ..of(Format::Disk)
        });
        let built = built.unwrap();
        let parts = disk::read(&built.image).unwrap().partitions;
        let params = verity::Verity::parse_params(built.verity_params.as_ref().unwrap()).unwrap();
        let at = |index: usize| (&*built.image, parts[index].start);
        verity::verify(at(0), at(1), &params).unwrap();
        let manifest = Manifest::read(&built.manifest).unwrap();
        assert_eq!(manifest.verity.as_ref(), Some(&params));
        let mut bytes = fs::read(&built.image).unwrap();
        bytes[parts[0].start as usize + 1030] ^= 1;
        let broken = place.path("broken");
        fs::write(&broken, bytes).unwrap();
        let result = verity::verify((&broken, parts[0].start), at(1), &params);
        assert!(matches!(result, Err(VerityError::Data { block: 0, .. })));
    }
}

#[test]
fn an_extension_of_one_small_file_can_be_measured() {
    let place = Place::new();
    fs::remove_dir_all(place.path("base/usr")).unwrap();
    let built = place.build(of(Format::Extension)).unwrap();
    let parts = disk::read(&built.image).unwrap().partitions;
    assert_eq!(parts.len(), 2);
    assert!(
        built.notes[0].contains("components.toml"),
        "{:?}",
        built.notes
    );
    let word = &built.boot[0].words[0];
    let params = built.verity_params.as_ref().unwrap();
    assert_eq!(
        *word,
        format!("kata.extension.devkit.verity_params={params}")
    );
    let bare = place.build(Layer {
        verity: Some(false),
        ..of(Format::Extension)
    });
    assert_eq!(
        bare.unwrap().boot[0].words,
        ["kata.extension.devkit.verity_params"]
    );
}

#[test]
fn the_words_are_those_of_the_device() {
    let place = Place::new();
    let boots = |layer: Layer| {
        let built = place.build(layer).unwrap();
        let line = |boot: &Boot| (boot.device, boot.line());
        built.boot.iter().map(line).collect::<Vec<_>>()
    };
    let own = |format| Layer {
        words: vec!["agent.log=debug".into()],
        ..of(format)
    };
    let expect = |layer, expected: &[(&'static str, &str)]| {
        let expected: Vec<_> = expected
            .iter()
            .map(|(d, w)| (*d, (*w).to_owned()))
            .collect();
        assert_eq!(boots(layer), expected);
    };
    expect(own(Format::Initramfs), &[("initramfs", "agent.log=debug")]);
    expect(
        own(Format::Disk),
        &[
            (
                "nvdimm",
                "root=/dev/pmem0p1 rootfstype=erofs rootflags=dax ro agent.log=debug",
            ),
            (
                "virtio-blk",
                "root=/dev/vda1 rootfstype=erofs ro agent.log=debug",
            ),
        ],
    );
    let ext4 = Layer {
        filesystem: Some(Filesystem::Ext4),
        ..of(Format::Disk)
    };
    expect(
        ext4,
        &[
            (
                "nvdimm",
                "root=/dev/pmem0p1 rootfstype=ext4 rootflags=dax,data=ordered,errors=remount-ro ro",
            ),
            (
                "virtio-blk",
                "root=/dev/vda1 rootfstype=ext4 rootflags=data=ordered,errors=remount-ro ro",
            ),
        ],
    );
    expect(
        of(Format::Erofs),
        &[("virtio-blk", "root=/dev/vda rootfstype=erofs ro")],
    );
    expect(
        of(Format::Directory),
        &[("virtio-fs", "root=keelsonRoot rootfstype=virtiofs ro")],
    );
    expect(of(Format::Tar), &[]);
    let measured = Layer {
        profile: Some(Profile::Coco),
        ..of(Format::Disk)
    };
    let [(device, line)] = &boots(measured)[..] else {
        panic!("one way to boot")
    };
    assert_eq!(*device, "virtio-blk");
    let table = "dm-mod.create=\"dm-verity,,,ro,0 ";
    assert!(line.starts_with(table), "{line}");
    assert!(
        line.contains(" verity 1 /dev/vda1 /dev/vda2 4096 4096 "),
        "{line}"
    );
    assert!(
        line.ends_with("\" root=/dev/dm-0 rootfstype=erofs ro init=/sbin/init"),
        "{line}"
    );
}

#[test]
fn an_image_is_delivered_with_what_lies_beside_it() {
    let place = Place::new();
    let output = place.path("out/guest.erofs");
    let layer = || Layer {
        verity: Some(true),
        output: Some(output.clone()),
        ..of(Format::Erofs)
    };
    let built = place.build(layer()).unwrap();
    assert_eq!(built.image, output);
    assert_eq!(built.manifest, place.path("out/guest.erofs.manifest.json"));
    assert_eq!(built.sbom, sbom::path_for(&output));
    let manifest = Manifest::read(&built.manifest).unwrap();
    assert_eq!(manifest.image.file, "guest.erofs");
    assert_eq!(manifest.image.sha256, built.sha256);
    assert_eq!(manifest.kernel_words, built.boot[0].words);
    let tree = built.hash_tree.as_ref().unwrap();
    let params = manifest.verity.as_ref().unwrap();
    verity::verify((&output, 0), (tree, 0), params).unwrap();
    let mode = fs::metadata(&output).unwrap().permissions().mode();
    assert_eq!(mode & 0o400, 0o400);
    // An older image in its place is replaced, and nothing is left of the way there.
    fs::write(&output, "old").unwrap();
    assert_eq!(place.build(layer()).unwrap().sha256, built.sha256);
    assert_eq!(fs::metadata(&output).unwrap().len(), built.size);
    let mut names: Vec<_> = fs::read_dir(place.path("out"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = ["", ".manifest.json", ".spdx.json", ".verity"];
    assert_eq!(names, expected.map(|end| format!("guest.erofs{end}")));
    // The hash tree of an image that is no longer there says nothing of the next one.
    let plain = Layer {
        verity: None,
        ..layer()
    };
    assert_eq!(place.build(plain).unwrap().hash_tree, None);
    assert!(!place.path("out/guest.erofs.verity").exists());
}

#[test]
fn a_directory_with_something_in_it_is_not_written_into() {
    let place = Place::new();
    for format in [Format::Directory, Format::Oci] {
        let output = place.path(&format!("out-{format}"));
        let layer = || Layer {
            output: Some(output.clone()),
            ..of(format)
        };
        let built = place.build(layer()).unwrap();
        assert_eq!(built.image, output);
        let error = place.build(layer()).unwrap_err();
        assert!(matches!(error, BuildError::NotEmpty { .. }), "{error}");
    }
}

#[test]
fn the_manifest_names_every_input() {
    let place = Place::new();
    let built = place.build(of(Format::Disk)).unwrap();
    let manifest = Manifest::read(&built.manifest).unwrap();
    let names: Vec<&str> = manifest.inputs.iter().map(|input| &*input.name).collect();
    assert_eq!(
        names,
        ["keelson", "directory", "kernel", "a.ko", "/etc/motd"]
    );
    assert_eq!(manifest.kernel.unwrap().release, "6.0");
    assert_eq!(
        (manifest.format.as_str(), manifest.arch.as_str()),
        ("disk", "x86_64")
    );
    assert_eq!(manifest.filesystem.as_deref(), Some("erofs"));
}

#[test]
fn a_build_is_told_in_words_and_as_a_document() {
    let place = Place::new();
    let layer = Layer {
        verity: Some(true),
        ..of(Format::Disk)
    };
    let built = place.build(layer).unwrap();
    let text = built.text();
    for line in [
        "image: /",
        "format: disk (erofs), x86_64",
        "root hash: ",
        "alignment: ",
        "boot from virtio-blk: ",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let json: serde_json::Value = serde_json::from_str(&document(&built).unwrap()).unwrap();
    assert_eq!(json["kind"], "build");
    assert_eq!(json["root_hash"].as_str().unwrap().len(), 64);
    assert_eq!(json["boot"][0]["device"], "virtio-blk");
}

#[test]
fn a_plan_says_what_would_be_done() {
    let place = Place::new();
    let definition = place.define(Layer {
        profile: Some(Profile::Coco),
        base: Some(BaseChoice::Debian),
        ..of(Format::Disk)
    });
    let coco = Definition {
        base: BaseChoice::Debian,
        packages: vec!["cryptsetup-bin".into()],
        ..definition
    };
    let text = plan(&coco).text();
    for part in [
        "build our kernel for x86_64 with the fragments confidential",
        "build the guest binary",
        "make a Debian",
        "cryptsetup-bin",
        "dm-verity hash tree",
        "the hash tree in the second",
        "output: in the cache",
        "multiple of",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let resolved = definition::resolve(vec![(Origin::Flag, of(Format::Tar))]).unwrap();
    let summary = summary(&resolved);
    assert!(summary.text().contains("default"), "{}", summary.text());
    let json: serde_json::Value = serde_json::from_str(&document(&summary).unwrap()).unwrap();
    assert_eq!(json["definition"]["format"], "tar");
}

#[test]
fn only_what_is_used_is_needed() {
    let place = Place::new();
    let names = |layer: Layer| -> Vec<&'static str> {
        let definition = place.define(layer);
        let needs = needs(&definition, &place.cache);
        needs.iter().map(|need| need.name()).collect()
    };
    let given = |format| Layer {
        binary: Some("bin".into()),
        kernel: Some(definition::KernelChoice::None),
        ..of(format)
    };
    assert!(names(given(Format::Initramfs)).is_empty());
    assert!(names(of(Format::Extension)).is_empty());
    assert!(names(given(Format::Ext4)).contains(&"mke2fs"));
    assert!(!names(given(Format::Erofs)).contains(&"mke2fs"));
}

#[test]
fn equal_trees_have_equal_identities_of_the_right_form() {
    let digest = |text: &str| Key::of("tree").field("", text).finish();
    let one = image::Identity::of(&digest("a"));
    assert_eq!(one, image::Identity::of(&digest("a")));
    let other = image::Identity::of(&digest("b"));
    assert!(one.uuid != other.uuid && one.salt != other.salt);
    assert_eq!((one.uuid[6] >> 4, one.uuid[8] >> 6), (8, 2));
}
