// SPDX-License-Identifier: Apache-2.0

use std::fs;

use super::*;
use crate::cli::output::{Report, document};
use crate::image::compress::Compression;
use crate::image::{cpio, disk, erofs};
use crate::tree::{Entry, Kind, Tree};

/// The beginning of a static program for this machine.
fn program() -> Vec<u8> {
    let mut bytes = fs::read("/bin/sh").unwrap();
    bytes.truncate(64);
    bytes[56..58].fill(0);
    bytes.resize(20_000, 0);
    bytes.extend(b"keelson version 0.1.0 (api");
    bytes
}

fn tree() -> Tree {
    let mut tree = Tree::default();
    let mut capable = Entry::bytes("program", 0o755);
    capable.xattrs.insert(CAPABILITY.to_vec(), vec![1, 0, 0, 2]);
    for (path, entry) in [
        ("init", Entry::bytes(program(), 0o755)),
        (
            "sbin/init",
            Entry::new(Kind::Symlink("../init".into()), 0o777),
        ),
        ("bin/su", Entry::bytes("su", 0o4755)),
        ("bin/ping", capable),
        ("dev/console", Entry::new(Kind::CharDevice(5, 1), 0o600)),
        (
            "lib/keelson/modules.load",
            Entry::bytes("# list\n/lib/m.ko x=1\n\n", 0o644),
        ),
    ] {
        tree.insert(path, entry).unwrap();
    }
    tree
}

#[test]
fn an_initramfs_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let mut bytes = Vec::new();
    crate::image::compress::write(Compression::Zstd, &mut bytes, |out| {
        cpio::write(&tree(), 0, out).map_err(std::io::Error::other)
    })
    .unwrap();
    fs::write(&path, bytes).unwrap();
    let found = inspect(&path, false).unwrap();
    assert_eq!((found.format, found.compression), ("cpio", "zstd"));
    let counts = &found.entries;
    assert_eq!(
        (
            counts.directories,
            counts.files,
            counts.symlinks,
            counts.devices
        ),
        (5, 4, 1, 1)
    );
    assert_eq!(found.largest[0].path, "/init");
    let program = found.init.as_ref().unwrap().program.clone().unwrap();
    assert_eq!(
        program.arch,
        guest_kernel::Arch::host().map(|arch| arch.name())
    );
    assert_eq!(
        (program.loader, program.version.as_deref()),
        (None, Some("0.1.0"))
    );
    assert_eq!(found.modules, ["/lib/m.ko x=1"]);
    assert_eq!(found.set_id[0].path, "/bin/su");
    let options: Vec<_> = found
        .requirements
        .iter()
        .map(|need| &need.option[..])
        .collect();
    let expected = [
        "CONFIG_BINFMT_ELF",
        "CONFIG_BLK_DEV_INITRD",
        "CONFIG_MODULES",
        "CONFIG_RD_ZSTD",
    ];
    assert_eq!(options, expected);
    assert_eq!(
        found.boot,
        [Boot {
            way: "initrd",
            words: vec![]
        }]
    );
    let text = found.text();
    assert!(
        text.contains("format        cpio, compressed with zstd\n"),
        "{text}"
    );
    assert!(
        text.contains("devices       crw-------      0     0       5, 1 /dev/console\n"),
        "{text}"
    );
}

#[test]
fn a_disk_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (root, image) = (dir.path().join("root"), dir.path().join("image"));
    let options = erofs::Options {
        label: "guest".to_owned(),
        ..erofs::Options::default()
    };
    erofs::write(&tree(), &options, &root).unwrap();
    disk::write(&root, None, &disk::Layout::dax(), &image).unwrap();
    let found = inspect(&image, false).unwrap();
    assert_eq!((found.format, found.partitions[0].start), ("disk", 3 << 20));
    let filesystem = found.filesystem.as_ref().unwrap();
    assert_eq!(
        (filesystem.offset, &filesystem.label[..]),
        (3 << 20, "guest")
    );
    assert_eq!(found.capabilities[0].path, "/bin/ping");
    assert_eq!(found.init.as_ref().unwrap().path, "/sbin/init");
    let ways: Vec<_> = found
        .boot
        .iter()
        .map(|boot| format!("{} {}", boot.way, boot.words.join(" ")))
        .collect();
    let expected = [
        "nvdimm root=/dev/pmem0p1 rootfstype=erofs rootflags=dax ro",
        "virtio-blk root=/dev/vda1 rootfstype=erofs ro",
    ];
    assert_eq!(ways, expected);
    let options: Vec<_> = found
        .requirements
        .iter()
        .map(|need| &need.option[..])
        .collect();
    for option in [
        "CONFIG_EROFS_FS_SECURITY",
        "CONFIG_NVDIMM_PFN",
        "CONFIG_MSDOS_PARTITION",
    ] {
        assert!(options.contains(&option), "{options:?}");
    }
}

#[test]
fn every_entry_is_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let mut bytes = Vec::new();
    cpio::write(&tree(), 0, &mut bytes).unwrap();
    fs::write(&path, bytes).unwrap();
    let found = inspect(&path, true).unwrap();
    let text = found.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 11);
    assert_eq!(lines[2], "-rwsr-xr-x      0     0          2 /bin/su");
    assert!(lines.contains(&"lrwxrwxrwx      0     0          0 /sbin/init -> ../init"));
    let json: serde_json::Value = serde_json::from_str(&document(&found).unwrap()).unwrap();
    assert_eq!(json["kind"], "inspection");
    assert_eq!(json["files"][2]["mode"], "4755");
}

#[test]
fn modes_are_shown_as_everywhere() {
    for (mode, expected) in [
        (0o7777, "-rwsrwsrwt"),
        (0o7000, "---S--S--T"),
        (0o640, "-rw-r-----"),
    ] {
        assert_eq!(text::permissions(ItemKind::File, mode), expected);
    }
}
