// SPDX-License-Identifier: Apache-2.0

use std::collections::BTreeMap;

use super::*;

fn import_of(variables: &[(&str, &str)]) -> Result<Imported, OsbuilderError> {
    let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
    import(&|name| variables.get(name).map(|&value| value.to_owned()))
}

fn layer_of(variables: &[(&str, &str)]) -> Layer {
    import_of(variables).unwrap().layer
}

/// The settings besides those the test is about are untouched.
fn with(change: impl FnOnce(&mut Layer)) -> Layer {
    let mut layer = Layer::default();
    change(&mut layer);
    layer
}

#[test]
fn without_variables_nothing_is_said() {
    assert_eq!(import_of(&[]).unwrap(), Imported::default());
    assert_eq!(
        import_of(&[("DISTRO", ""), ("SELINUX", "")]).unwrap(),
        Imported::default()
    );
}

#[test]
fn the_base_follows_distro_version_and_directory() {
    let debian = with(|l| {
        l.base = Some(BaseChoice::Debian);
        l.suite = Some("bookworm".into());
    });
    let said = [("DISTRO", "debian"), ("OS_VERSION", "12")];
    assert_eq!(layer_of(&said), debian);
    let said = [("distro", "debian"), ("OS_VERSION", "bookworm")];
    assert_eq!(layer_of(&said), debian);
    let directory = with(|l| l.base = Some(BaseChoice::Path("/r".into())));
    assert_eq!(layer_of(&[("ROOTFS_DIR", "/r")]), directory);
    let both = import_of(&[("ROOTFS_DIR", "/r"), ("DISTRO", "debian")]).unwrap();
    assert_eq!(both.layer.base, Some(BaseChoice::Debian));
    assert!(both.notes[0].starts_with("ROOTFS_DIR is not needed"));
    let packages = layer_of(&[("EXTRA_PKGS", " vim  kmod\n")]).packages;
    assert_eq!(packages, ["vim", "kmod"]);
}

#[test]
fn other_distributions_are_refused_by_name() {
    for distro in ["ubuntu", "alpine", "centos", "cbl-mariner", "gentoo"] {
        let error = import_of(&[("DISTRO", distro)]).unwrap_err();
        assert!(error.to_string().contains(distro), "{error}");
        assert!(error.hint().unwrap().contains("DISTRO=debian"));
    }
}

#[test]
fn a_disks_variables_make_a_disk() {
    let disk = |change: fn(&mut Layer)| {
        with(|l| {
            l.format = Some(Format::Disk);
            l.filesystem = Some(Filesystem::Ext4);
            change(l);
        })
    };
    assert_eq!(
        layer_of(&[("IMAGE", "x.img")]),
        disk(|l| l.output = Some("x.img".into()))
    );
    assert_eq!(
        layer_of(&[("ROOT_FREE_SPACE", "64")]),
        disk(|l| l.free = Some(Size(64 << 20)))
    );
    assert_eq!(
        layer_of(&[("MEASURED_ROOTFS", "yes"), ("SKIP_DAX_HEADER", "yes")]),
        disk(|l| {
            l.verity = Some(true);
            l.dax = Some(false);
        })
    );
    assert_eq!(
        layer_of(&[("FS_TYPE", "erofs")]),
        disk(|l| l.filesystem = Some(Filesystem::Erofs))
    );
    let both = import_of(&[("FS_TYPE", "erofs"), ("ROOT_FREE_SPACE", "8")]).unwrap();
    assert_eq!(both.layer.free, None);
    assert!(both.notes[0].contains("read-only"));
}

#[test]
fn an_initrds_variable_makes_an_initramfs_of_gzip() {
    let expected = with(|l| {
        l.format = Some(Format::Initramfs);
        l.compression = Some(Compression::Gzip);
        l.output = Some("x.img".into());
    });
    assert_eq!(layer_of(&[("INITRD_IMAGE", "x.img")]), expected);
    let both = import_of(&[("INITRD_IMAGE", "x.img"), ("IMAGE", "y.img")]).unwrap();
    assert_eq!(both.layer, expected);
    assert!(both.notes[0].starts_with("IMAGE is left out"));
}

#[test]
fn architecture_and_binary_are_taken() {
    assert_eq!(layer_of(&[("ARCH", "aarch64")]).arch, Some(Arch::Aarch64));
    let both = [("TARGET_ARCH", "arm64"), ("ARCH", "x86_64")];
    assert_eq!(layer_of(&both).arch, Some(Arch::Aarch64));
    for variable in ["ARCH", "TARGET_ARCH"] {
        assert!(import_of(&[(variable, "s390x")]).is_err());
    }
    let binary = layer_of(&[("AGENT_SOURCE_BIN", "/b")]).binary;
    assert_eq!(binary, Some("/b".into()));
}

#[test]
fn a_directory_of_modules_goes_below_lib() {
    let imported = import_of(&[("KERNEL_MODULES_DIR", "/m/6.1.0")]).unwrap();
    let file = &imported.layer.files[0];
    assert_eq!(file.target, PathBuf::from("/lib/modules/6.1.0"));
    assert_eq!(file.what, FileContent::Source("/m/6.1.0".into()));
    assert!(imported.notes[0].contains("modules.load"));
}

#[test]
fn what_is_done_anyway_is_accepted() {
    for (variable, value) in [
        ("AGENT_INIT", "yes"),
        ("AGENT_INIT", "1"),
        ("SELINUX", "no"),
        ("AGENT_POLICY", "no"),
        ("BLOCK_SIZE", "4096"),
        ("BUILD_METHOD", "distro"),
        ("PULL_TYPE", "default"),
    ] {
        let imported = import_of(&[(variable, value)]);
        assert_eq!(imported.unwrap(), Imported::default(), "{variable}={value}");
    }
}

#[test]
fn what_would_change_the_result_is_refused_with_a_hint() {
    for (variable, value) in [
        ("AGENT_INIT", "no"),
        ("SELINUX", "yes"),
        ("AGENT_POLICY", "yes"),
        ("AGENT_POLICY_FILE", "/p.rego"),
        ("BLOCK_SIZE", "1024"),
        ("BUILD_METHOD", "dracut"),
        ("PULL_TYPE", "guest-pull"),
        ("FS_TYPE", "xfs"),
        ("AGENT_TARBALL", "/a.tar.zst"),
        ("COCO_GUEST_COMPONENTS_TARBALL", "/a.tar.zst"),
        ("PAUSE_IMAGE_TARBALL", "/a.tar.zst"),
        ("NVIDIA_GPU_STACK", "driver=550"),
        ("VARIANT", "nvidia-gpu"),
    ] {
        let error = import_of(&[(variable, value)]).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with(&format!("{variable}={value}")), "{text}");
        assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "{text}");
    }
}

#[test]
fn what_means_nothing_is_an_error() {
    for (variable, value) in [
        ("MEASURED_ROOTFS", "maybe"),
        ("SKIP_DAX_HEADER", "x"),
        ("ROOT_FREE_SPACE", "64M"),
    ] {
        let error = import_of(&[(variable, value)]).unwrap_err();
        assert!(matches!(error, OsbuilderError::Value { .. }), "{error}");
    }
}

#[test]
fn what_is_not_needed_is_told_once_each() {
    for (variable, why) in NOT_NEEDED {
        let imported = import_of(&[(variable, "true")]).unwrap();
        assert_eq!(imported.layer, Layer::default());
        assert_eq!(imported.notes, [format!("{variable} is not needed: {why}")]);
    }
}
