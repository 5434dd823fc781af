// SPDX-License-Identifier: Apache-2.0

use std::os::unix::fs::{PermissionsExt, symlink};

use guest_kernel::progress::Silent;
use guest_kernel::{Module, Source};

use super::*;
use crate::definition::{self, DirectoryEntry, Layer, Mode, Origin};

/// A directory with a cache, a guest binary and a base.
struct Place {
    dir: tempfile::TempDir,
    cache: Cache,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let place = Place { dir, cache };
        place.write("keelson", "guest");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn make(&self, layer: Layer, kernel: Option<&Kernel>) -> Result<Tree, AssembleError> {
        let layer = Layer {
            arch: layer.arch.or(Arch::host()),
            ..layer
        };
        let resolved = definition::resolve(vec![(Origin::Flag, layer)]).unwrap();
        let binary = self.path("keelson");
        let parts = Parts {
            binary: resolved.definition.format.is_root().then_some(&*binary),
            kernel,
        };
        root(&resolved.definition, parts, &self.cache, &Silent).map(|root| root.tree)
    }

    fn tree(&self, layer: Layer) -> Tree {
        self.make(layer, None).unwrap()
    }
}

fn of(format: Format) -> Layer {
    Layer {
        format: Some(format),
        ..Layer::default()
    }
}

fn kind<'a>(tree: &'a Tree, path: &str) -> &'a Kind {
    &tree.get(path).unwrap_or_else(|| panic!("no {path}")).kind
}

fn file(target: &str, what: FileContent) -> FileEntry {
    FileEntry {
        target: target.into(),
        what,
        mode: None,
        owner: None,
    }
}

#[test]
fn every_root_has_what_init_and_agent_expect() {
    let place = Place::new();
    for format in [
        Format::Initramfs,
        Format::Disk,
        Format::Ext4,
        Format::Erofs,
        Format::Tar,
        Format::Oci,
        Format::Directory,
    ] {
        let tree = place.tree(of(format));
        let (init, other) = match format {
            Format::Initramfs => ("init", "sbin/init"),
            _ => ("sbin/init", "init"),
        };
        assert_eq!(tree.get(init).unwrap().mode, 0o755, "{format}");
        assert!(tree.get(other).is_none(), "{format}");
        // The mount points of init's table, which must be there where the root is read-only.
        for path in ["dev", "proc", "sys", "run", "tmp", "etc", "var", "root"] {
            assert_eq!(kind(&tree, path), &Kind::Directory, "{format} {path}");
        }
        assert_eq!(kind(&tree, "var/run"), &Kind::Symlink("../run".into()));
        assert_eq!(tree.get("etc/resolv.conf"), Some(&Entry::bytes("", 0o644)));
        assert_eq!(tree.get("tmp").unwrap().mode, 0o1777);
        let console = tree.get("dev/console").map(|entry| &entry.kind);
        let expected = (format != Format::Directory).then_some(&Kind::CharDevice(5, 1));
        assert_eq!(console, expected, "{format}");
    }
}

#[test]
fn an_extension_has_nothing_but_what_is_added() {
    let place = Place::new();
    let tree = place.tree(Layer {
        extension: Some("x".into()),
        files: vec![file("/bin/x", FileContent::Text("x".into()))],
        ..of(Format::Extension)
    });
    let paths: Vec<&Path> = tree.entries().map(|(path, _)| path).collect();
    assert_eq!(paths, [Path::new("bin"), Path::new("bin/x")]);
}

#[test]
fn a_base_with_merged_directories_keeps_its_links() {
    let place = Place::new();
    place.write("base/usr/sbin/init", "systemd");
    place.write("base/usr/lib/x", "");
    for (target, link) in [
        ("usr/sbin", "sbin"),
        ("usr/lib", "lib"),
        ("../run/systemd/resolve/stub-resolv.conf", "etc/resolv.conf"),
        ("/run", "var/run"),
    ] {
        let path = place.path("base").join(link);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }
    let kernel = Kernel {
        image: "image".into(),
        vmlinux: None,
        config: "config".into(),
        release: "6.0".to_owned(),
        modules: vec![Module {
            path: place.write("a.ko", "module"),
            params: Vec::new(),
        }],
        source: Source::Fetched,
    };
    let layer = Layer {
        base: Some(BaseChoice::Path(place.path("base"))),
        ..of(Format::Disk)
    };
    let tree = place.make(layer, Some(&kernel)).unwrap();
    let binary = Entry::file(place.path("keelson"), 0o755);
    assert_eq!(tree.get("usr/sbin/init"), Some(&binary));
    assert_eq!(kind(&tree, "sbin"), &Kind::Symlink("usr/sbin".into()));
    assert!(tree.get("usr/lib/modules/6.0/a.ko").is_some());
    assert!(tree.get("usr/lib/keelson/modules.load").is_some());
    assert_eq!(tree.get("etc/resolv.conf"), Some(&Entry::bytes("", 0o644)));
    assert_eq!(kind(&tree, "var/run"), &Kind::Symlink("/run".into()));
}

#[test]
fn files_are_added_as_the_definition_says() {
    let place = Place::new();
    let script = place.write("script", "#!/bin/sh\n");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o775)).unwrap();
    let plain = place.write("plain", "text");
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o664)).unwrap();
    place.write("dir/sub/f", "f");
    symlink("f", place.path("dir/sub/link")).unwrap();
    let owner = Some(Owner { uid: 7, gid: 8 });
    let tree = place.tree(Layer {
        hostname: Some("guest".into()),
        directories: vec![DirectoryEntry {
            target: "/srv/data".into(),
            mode: Some(Mode(0o2750)),
            owner,
        }],
        files: vec![
            file("/usr/bin/script", FileContent::Source(script.clone())),
            file("/etc/plain", FileContent::Source(plain.clone())),
            FileEntry {
                mode: Some(Mode(0o4711)),
                owner,
                ..file("/etc/owned", FileContent::Text("t".into()))
            },
            file("/bin/sh", FileContent::Link("dash".into())),
            FileEntry {
                owner,
                ..file("/", FileContent::Source(place.path("dir")))
            },
        ],
        ..Layer::default()
    });
    let canonical = |path: &Path| path.canonicalize().unwrap();
    assert_eq!(
        tree.get("usr/bin/script"),
        Some(&Entry::file(canonical(&script), 0o755))
    );
    assert_eq!(
        tree.get("etc/plain"),
        Some(&Entry::file(canonical(&plain), 0o644))
    );
    let owned = tree.get("etc/owned").unwrap();
    assert_eq!((owned.mode, owned.uid, owned.gid), (0o4711, 7, 8));
    assert_eq!(kind(&tree, "bin/sh"), &Kind::Symlink("dash".into()));
    let data = tree.get("srv/data").unwrap();
    assert_eq!((data.mode, data.uid), (0o2750, 7));
    let inside = tree.get("sub/f").unwrap();
    assert_eq!((inside.mode, inside.uid), (0o644, 7));
    assert_eq!(tree.get("sub").unwrap().uid, 7);
    assert_eq!(kind(&tree, "sub/link"), &Kind::Symlink("f".into()));
    assert_eq!(
        tree.get("etc/hostname"),
        Some(&Entry::bytes("guest\n", 0o644))
    );
}

#[test]
fn what_cannot_be_added_is_named() {
    let place = Place::new();
    let fails = |entry: FileEntry| {
        let layer = Layer {
            files: vec![entry],
            ..Layer::default()
        };
        place.make(layer, None).unwrap_err().to_string()
    };
    let gone = fails(file("/x", FileContent::Source("/nonexistent/f".into())));
    assert!(
        gone.contains("/nonexistent/f") && gone.contains("/x"),
        "{gone}"
    );
    let special = fails(file("/x", FileContent::Source("/dev/null".into())));
    assert!(special.contains("/dev/null"), "{special}");
    fs::create_dir(place.path("dir")).unwrap();
    let mode = fails(FileEntry {
        mode: Some(Mode(0o644)),
        ..file("/x", FileContent::Source(place.path("dir")))
    });
    assert!(mode.contains("is a directory"), "{mode}");
    let below = fails(file("/init/x", FileContent::Text(String::new())));
    assert!(below.contains("init"), "{below}");
}

#[test]
fn a_shell_is_static_and_of_the_guests_machine() {
    let place = Place::new();
    let shell = |arch| Layer {
        shell: Some(true),
        arch: Some(arch),
        ..Layer::default()
    };
    let host = Arch::host().unwrap();
    let tree = place.tree(shell(host));
    assert!(
        matches!(kind(&tree, "bin/busybox"), Kind::File(_)),
        "busybox-static must be installed"
    );
    assert_eq!(kind(&tree, "bin/sh"), &Kind::Symlink("busybox".into()));
    let other = Arch::ALL.into_iter().find(|arch| *arch != host).unwrap();
    let error = place.make(shell(other), None).unwrap_err();
    assert!(matches!(
        error,
        AssembleError::Root(RootError::NoShell { .. })
    ));
    place.write("base/bin/sh", "own");
    let own = place.tree(Layer {
        base: Some(BaseChoice::Path(place.path("base"))),
        ..shell(other)
    });
    assert!(own.get("bin/busybox").is_none());
}

#[test]
fn a_guest_binary_for_another_machine_is_refused() {
    let place = Place::new();
    let own = std::env::current_exe().unwrap();
    fs::copy(own, place.path("keelson")).unwrap();
    let error = place.make(of(Format::Disk), None).unwrap_err();
    assert!(error.to_string().contains("not static"), "{error}");
}
