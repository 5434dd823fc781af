// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::tree::Kind;
use guest_kernel::progress::Silent;
use guest_kernel::{Module, Source};

/// A cache, a binary and a kernel with two modules in a directory of their own.
struct Inputs {
    dir: tempfile::TempDir,
    cache: Cache,
    kernel: Kernel,
}

impl Inputs {
    fn new() -> Inputs {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["keelson", "b.ko", "a.ko"] {
            fs::write(path(name), name).unwrap();
        }
        let module = |name: &str, params: &[&str]| Module {
            path: path(name),
            params: params.iter().map(|&p| p.to_owned()).collect(),
        };
        let kernel = Kernel {
            image: path("image"),
            vmlinux: None,
            config: path("config"),
            release: "6.0".to_owned(),
            modules: vec![module("b.ko", &[]), module("a.ko", &["x=1", "y"])],
            source: Source::Fetched,
        };
        let cache = Cache::at(path("cache")).unwrap();
        Inputs { cache, kernel, dir }
    }

    fn build(&self, compression: Compression) -> PathBuf {
        let binary = self.dir.path().join("keelson");
        let what = Initramfs {
            arch: Arch::X86_64,
            binary: &binary,
            kernel: Some(&self.kernel),
            base: Base::None,
            compression,
        };
        initramfs(&what, &self.cache, &Silent).unwrap()
    }
}

#[test]
fn two_builds_in_two_places_are_equal() {
    for compression in Compression::ALL {
        let (one, two) = (Inputs::new(), Inputs::new());
        let (first, second) = (one.build(compression), two.build(compression));
        assert_ne!(first, second);
        assert_eq!(fs::read(first).unwrap(), fs::read(second).unwrap());
    }
}

#[test]
fn a_changed_binary_is_another_image_and_an_equal_one_is_not() {
    let inputs = Inputs::new();
    let first = inputs.build(Compression::None);
    assert_eq!(inputs.build(Compression::None), first);
    fs::write(inputs.dir.path().join("keelson"), "changed").unwrap();
    assert_ne!(inputs.build(Compression::None), first);
    assert_ne!(inputs.build(Compression::Gzip), first);
}

#[test]
fn modules_are_listed_in_load_order() {
    let inputs = Inputs::new();
    let mut tree = Tree::default();
    add_modules(&mut tree, &inputs.kernel).unwrap();
    let list = tree.get(MODULE_LIST).unwrap();
    let expected = "# Loaded by init in this order: path [parameters]\n\
        /lib/modules/6.0/b.ko\n/lib/modules/6.0/a.ko x=1 y\n";
    assert_eq!(list, &Entry::bytes(expected, 0o644));
    assert!(tree.get("lib/modules/6.0/a.ko").is_some());
}

#[test]
fn a_merged_usr_keeps_its_link() {
    let inputs = Inputs::new();
    let mut tree = Tree::default();
    tree.insert("lib", Entry::new(Kind::Symlink("usr/lib".into()), 0o777))
        .unwrap();
    add_modules(&mut tree, &inputs.kernel).unwrap();
    assert!(
        tree.get("usr/lib/modules/6.0/a.ko").is_some()
            && tree.get("usr/lib/keelson/modules.load").is_some()
    );
}

#[test]
fn the_epoch_is_a_number_or_refused() {
    assert_eq!(epoch(None).unwrap(), 0);
    assert_eq!(epoch(Some("1700000000".to_owned())).unwrap(), 1_700_000_000);
    for bad in ["", "-1", "now", "4294967296"] {
        assert!(epoch(Some(bad.to_owned())).is_err());
    }
}
