// SPDX-License-Identifier: Apache-2.0

use clap::ValueEnum;
use guest_kernel::Concern;

use super::*;

fn resolved(layers: &[(Origin, Layer)]) -> Result<Resolved, DefinitionError> {
    resolve(layers.to_vec())
}

/// A definition from one source of flags.
fn flags(change: impl FnOnce(&mut Layer)) -> Result<Definition, DefinitionError> {
    let mut layer = Layer::default();
    change(&mut layer);
    resolved(&[(Origin::Flag, layer)]).map(|resolved| resolved.definition)
}

#[test]
fn every_profile_makes_a_sound_definition() {
    for profile in Profile::value_variants() {
        let definition = flags(|l| l.profile = Some(*profile)).unwrap();
        assert_eq!(definition.profile, Some(*profile));
        assert_eq!(definition.name, profile.to_string());
        for arch in Arch::ALL {
            let made = flags(|l| {
                l.profile = Some(*profile);
                l.arch = Some(arch);
            });
            assert_eq!(made.unwrap().arch, arch);
        }
    }
}

#[test]
fn profiles_are_what_they_promise() {
    let of = |profile| flags(|l| l.profile = Some(profile)).unwrap();
    let minimal = flags(|_| {}).unwrap();
    assert_eq!(minimal.format, Format::Initramfs);
    assert_eq!(minimal.kernel, KernelChoice::Fetched);
    assert_eq!(minimal.base, BaseChoice::None);
    let coco = of(Profile::Coco);
    assert!(coco.verity && !coco.dax);
    assert_eq!(coco.root_filesystem(), Some(Filesystem::Erofs));
    assert_eq!(coco.concerns(), [Concern::Confidential]);
    assert_eq!(coco.fragment_files(), Vec::<PathBuf>::new());
    let stock = of(Profile::KataStock);
    assert_eq!(stock.compression, Compression::Gzip);
    assert_eq!(stock.kernel, KernelChoice::None);
    let debug = of(Profile::Debug);
    assert!(debug.shell && debug.words.contains(&"agent.log=debug".to_owned()));
    let vaccel = of(Profile::Vaccel);
    assert_eq!(vaccel.base, BaseChoice::None);
    let gpu = of(Profile::Gpu);
    assert_eq!(gpu.kernel, KernelChoice::Built);
    assert_eq!(gpu.packages, ["kmod", "pciutils"]);
}

#[test]
fn the_stronger_source_wins_and_lists_add_up() {
    let layer = |hostname: &str, word: &str| Layer {
        hostname: Some(hostname.into()),
        words: vec![word.into(), "quiet".into()],
        ..Layer::default()
    };
    let all = [
        (Origin::Flag, layer("flag", "a=1")),
        (Origin::Environment, layer("environment", "b=1")),
        (
            Origin::File,
            Layer {
                profile: Some(Profile::Debug),
                shell: Some(false),
                format: Some(Format::Tar),
                ..layer("file", "c=1")
            },
        ),
    ];
    for strongest in 0..all.len() {
        let made = resolved(&all[strongest..]).unwrap();
        let (origin, expected) = &all[strongest];
        assert_eq!(made.definition.hostname, expected.hostname);
        let setting = made.settings.iter().find(|s| s.key == "hostname").unwrap();
        assert_eq!(setting.origin, *origin);
    }
    let made = resolved(&all).unwrap();
    let words = ["agent.log=debug", "c=1", "quiet", "b=1", "a=1"];
    assert_eq!(made.definition.words, words);
    // The file over the profile, and the profile over the default.
    assert!(!made.definition.shell);
    assert_eq!(made.definition.format, Format::Tar);
    let origin = |key| {
        let setting = made.settings.iter().find(|s| s.key == key);
        setting.unwrap().origin
    };
    assert_eq!(origin("shell"), Origin::File);
    assert_eq!(origin("base"), Origin::Profile);
    assert_eq!(origin("compression"), Origin::Default);
}

#[test]
fn defaults_follow_the_format() {
    let of = |format| flags(|l| l.format = Some(format)).unwrap();
    let disk = of(Format::Disk);
    assert!(disk.dax && !disk.verity);
    assert_eq!(disk.kernel, KernelChoice::None);
    let extension = flags(|l| {
        l.format = Some(Format::Extension);
        l.extension = Some("devkit".into());
    })
    .unwrap();
    assert!(extension.verity && !extension.dax);
    assert_eq!(of(Format::Ext4).root_filesystem(), Some(Filesystem::Ext4));
    assert_eq!(of(Format::Tar).root_filesystem(), None);
}

#[test]
fn a_profiles_packages_and_compression_go_where_they_can() {
    let made = resolved(&[(
        Origin::Flag,
        Layer {
            profile: Some(Profile::Debian),
            base: Some(BaseChoice::Path("/r".into())),
            ..Layer::default()
        },
    )])
    .unwrap();
    assert!(made.definition.packages.is_empty());
    assert!(made.notes[0].contains("kmod"));
    let disk = flags(|l| {
        l.profile = Some(Profile::KataStock);
        l.format = Some(Format::Disk);
    });
    assert_eq!(disk.unwrap().compression, Compression::None);
}

#[test]
fn settings_without_an_effect_are_refused() {
    let refused = |key: &str, change: fn(&mut Layer)| {
        let text = flags(change).unwrap_err().to_string();
        assert!(text.starts_with(&format!("{key} = ")), "{text}");
        assert!(text.contains("(flag)"), "{text}");
    };
    refused("packages", |l| l.packages = vec!["kmod".into()]);
    refused("suite", |l| l.suite = Some("trixie".into()));
    refused("verity", |l| l.verity = Some(true));
    refused("dax", |l| l.dax = Some(true));
    refused("align", |l| l.align = Some(Size(4096)));
    refused("extension", |l| l.extension = Some("x".into()));
    refused("free", |l| l.free = Some(Size(1)));
    refused("compression", |l| {
        l.format = Some(Format::Disk);
        l.compression = Some(Compression::Zstd);
    });
    for change in [
        (|l| l.hostname = Some("x".into())) as fn(&mut Layer),
        |l| l.binary = Some("x".into()),
        |l| l.shell = Some(true),
        |l| l.filesystem = Some(Filesystem::Ext4),
    ] {
        let error = flags(|l| {
            l.format = Some(Format::Extension);
            l.extension = Some("x".into());
            change(l);
        });
        assert!(matches!(error, Err(DefinitionError::Without { .. })));
    }
}

#[test]
fn a_profile_that_does_not_fit_says_so() {
    let error = flags(|l| {
        l.profile = Some(Profile::Coco);
        l.format = Some(Format::Initramfs);
    })
    .unwrap_err();
    assert!(
        error.to_string().contains("verity = true (profile)"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("measured"));
}

#[test]
fn impossible_values_are_refused() {
    let disk = |change: fn(&mut Layer)| {
        flags(|l| {
            l.format = Some(Format::Disk);
            change(l);
        })
    };
    for align in [0, 512, 4097] {
        let error = flags(|l| {
            l.format = Some(Format::Disk);
            l.align = Some(Size(align));
        });
        assert!(error.is_err(), "{align}");
    }
    assert!(disk(|l| l.align = Some(Size(128 << 20))).is_ok());
    for change in [
        (|l| l.name = Some("a/b".into())) as fn(&mut Layer),
        |l| l.name = Some(".hidden".into()),
        |l| l.name = Some(String::new()),
        |l| l.hostname = Some("a_b".into()),
        |l| l.hostname = Some("a".repeat(65)),
        |l| l.words = vec!["two words".into()],
        |l| l.words = vec!["line\nbreak".into()],
        |l| l.words = vec![String::new()],
        |l| l.fragments = vec!["vfio2".into()],
    ] {
        let error = disk(change).unwrap_err();
        assert!(matches!(error, DefinitionError::Value { .. }), "{error}");
    }
    assert!(disk(|l| l.words = vec!["x=\"a b\"".into()]).is_ok());
    let own = disk(|l| l.fragments = vec!["./own".into(), "debug".into()]).unwrap();
    assert_eq!(own.concerns(), [Concern::Debug]);
    assert_eq!(own.fragment_files(), [PathBuf::from("./own")]);
}

#[test]
fn an_extension_has_a_name_that_fits_a_serial_number() {
    let of = |name: Option<&str>| {
        flags(|l| {
            l.format = Some(Format::Extension);
            l.extension = name.map(str::to_owned);
        })
    };
    assert!(matches!(of(None), Err(DefinitionError::Needs { .. })));
    assert!(of(Some("tenletters")).is_ok());
    for bad in ["elevenlette", "a.b", "-a", ""] {
        assert!(of(Some(bad)).is_err(), "{bad:?}");
    }
}

#[test]
fn places_outside_an_image_are_refused() {
    let at = |target: &str, what: FileContent| {
        flags(|l| {
            l.files = vec![FileEntry {
                target: target.into(),
                what,
                mode: None,
                owner: None,
            }];
        })
    };
    let text = || FileContent::Text(String::new());
    assert!(at("/etc/x", text()).is_ok());
    for bad in ["etc/x", "/", "", "/etc/../x"] {
        assert!(at(bad, text()).is_err(), "{bad:?}");
    }
    assert!(at("/", FileContent::Source("dir".into())).is_ok());
}

#[test]
fn a_definition_is_reported_with_its_words() {
    let definition = flags(|l| {
        l.arch = Some(Arch::Aarch64);
        l.profile = Some(Profile::KataStock);
        l.files = vec![FileEntry {
            target: "/x".into(),
            what: FileContent::Text("t".into()),
            mode: Some(Mode(0o600)),
            owner: None,
        }];
    });
    let json = serde_json::to_value(definition.unwrap()).unwrap();
    assert_eq!(json["arch"], "aarch64");
    assert_eq!(json["profile"], "kata-stock");
    assert_eq!(json["base"], "none");
    let file = serde_json::json!({ "target": "/x", "text": "t", "mode": "0600" });
    assert_eq!(json["files"][0], file);
}
