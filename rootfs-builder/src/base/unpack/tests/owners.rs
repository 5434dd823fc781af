// SPDX-License-Identifier: Apache-2.0
//! Whoever unpacks an archive, with the ledger it gives the same tree.

use super::*;
use crate::tree::{Entry, Kind, Tree};
use std::collections::BTreeMap;

/// The archive under work; each entry's owner follows from its place, so that none is like another.
struct Layers {
    tar: tar::Builder<Vec<u8>>,
    next: u32,
}

impl Layers {
    fn new(next: u32) -> Layers {
        Layers {
            tar: tar::Builder::new(Vec::new()),
            next,
        }
    }

    fn header(&mut self, kind: EntryType, mode: u32, size: usize) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(self.next.into());
        header.set_gid((self.next + 100_000).into());
        header.set_size(size as u64);
        self.next += 1;
        header
    }

    fn add(mut self, kind: EntryType, path: &str, mode: u32, data: &str) -> Layers {
        let mut header = self.header(kind, mode, data.len());
        self.tar
            .append_data(&mut header, path, data.as_bytes())
            .unwrap();
        self
    }

    fn link(mut self, kind: EntryType, path: &str, target: &str) -> Layers {
        let mut header = self.header(kind, 0o755, 0);
        self.tar.append_link(&mut header, path, target).unwrap();
        self
    }

    fn device(mut self, kind: EntryType, path: &str, major: u32, minor: u32) -> Layers {
        let mut header = self.header(kind, 0o620, 0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.tar.append_data(&mut header, path, &[][..]).unwrap();
        self
    }

    fn attribute(mut self, name: &str, value: &[u8]) -> Layers {
        self.tar.append_pax_extensions([(name, value)]).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.tar.into_inner().unwrap()
    }
}

/// Two layers with all that an ordinary user's directory cannot show.
fn layers() -> [Vec<u8>; 2] {
    use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
    let lower = Layers::new(1)
        .add(Directory, "usr", 0o755, "")
        .add(Directory, "usr/bin", 0o2710, "")
        .attribute(
            "SCHILY.xattr.security.capability",
            b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        )
        .add(Regular, "usr/bin/ping", 0o4755, "ping")
        .link(Symlink, "bin", "/usr/bin")
        .add(Regular, "bin/through", 0o000, "unreadable")
        .link(Link, "usr/bin/second", "bin/ping")
        .device(Char, "dev/null", 1, 3)
        .link(Link, "dev/zero", "dev/null")
        .device(Block, "dev/sda", 8, 0)
        .device(Char, "dev/gone", 1, 5)
        .add(Fifo, "pipe", 0o640, "")
        .add(Directory, "locked", 0o500, "")
        .add(Directory, "emptied", 0o711, "")
        .add(Regular, "emptied/old", 0o600, "old")
        .add(Directory, "replaced/by", 0o700, "")
        .add(Regular, "replaced/by/file", 0o600, "x")
        .add(Regular, "again", 0o600, "first")
        .add(Directory, "emptied/deep", 0o700, "")
        .bytes();
    let upper = Layers::new(50)
        .add(Regular, "dev/.wh.gone", 0o644, "")
        .add(Regular, "dev/gone/below", 0o604, "made")
        .add(Regular, "emptied/.wh..wh..opq", 0o644, "")
        .add(Regular, "emptied/new", 0o606, "new")
        .add(Regular, "replaced", 0o640, "a file now")
        .device(Char, "again", 5, 1)
        .add(Directory, "usr/bin", 0o751, "")
        .add(Directory, "turns/by", 0o700, "")
        .add(Regular, "turns", 0o600, "")
        .add(Directory, "turns", 0o710, "")
        .add(Regular, "turns/by/file", 0o600, "")
        .add(Regular, "emptied/deep/file", 0o600, "")
        .bytes();
    [lower, upper]
}

fn unpacked(place: &Sandbox, layers: &[Vec<u8>], privileged: bool) -> Result<Tree, UnpackError> {
    let mut ledger = Ledger::default();
    for layer in layers {
        whiteouts(&layer[..], &place.root(), &mut ledger)?;
        layer_as(&layer[..], &place.root(), &mut ledger, privileged)?;
    }
    ledger.write(&place.root()).unwrap();
    let ledger = Ledger::read(&place.root()).unwrap();
    Ok(ledger.tree(&place.root()).unwrap())
}

/// One line for each entry, with its content in place of the file that has it.
fn lines(tree: &Tree) -> Vec<String> {
    let line = |(path, entry): (&Path, &Entry)| {
        let what = match &entry.kind {
            Kind::File(content) => {
                let mut text = String::new();
                content.open().unwrap().read_to_string(&mut text).unwrap();
                format!("{text:?}")
            }
            other => format!("{other:?}"),
        };
        let attributes: Vec<_> = entry
            .xattrs
            .keys()
            .map(|name| String::from_utf8_lossy(name))
            .collect();
        let Entry { mode, uid, gid, .. } = entry;
        format!(
            "{} {mode:o} {uid}:{gid} {what} {}",
            path.display(),
            attributes.join(",")
        )
        .trim_end()
        .to_owned()
    };
    tree.entries().map(line).collect()
}

const EXPECTED: &[&str] = &[
    "again 620 55:100055 CharDevice(5, 1)",
    "bin 777 4:100004 Symlink(\"/usr/bin\")",
    "dev 755 0:0 Directory",
    "dev/gone 755 0:0 Directory",
    "dev/gone/below 604 51:100051 \"made\"",
    "dev/null 620 7:100007 CharDevice(1, 3)",
    "dev/sda 620 9:100009 BlockDevice(8, 0)",
    "dev/zero 620 7:100007 CharDevice(1, 3)",
    "emptied 711 13:100013 Directory",
    "emptied/deep 755 0:0 Directory",
    "emptied/deep/file 600 61:100061 \"\"",
    "emptied/new 606 53:100053 \"new\"",
    "locked 500 12:100012 Directory",
    "pipe 640 11:100011 Fifo",
    "replaced 640 54:100054 \"a file now\"",
    "turns 710 59:100059 Directory",
    "turns/by 755 0:0 Directory",
    "turns/by/file 600 60:100060 \"\"",
    "usr 755 1:100001 Directory",
    "usr/bin 751 56:100056 Directory",
    "usr/bin/ping 4755 3:100003 \"ping\" security.capability",
    "usr/bin/second 4755 3:100003 \"ping\" security.capability",
    "usr/bin/through 0 5:100005 \"unreadable\"",
];

#[test]
fn an_ordinary_users_tree_is_as_the_archive_says() {
    let place = Sandbox::new();
    let tree = unpacked(&place, &layers(), false).unwrap();
    assert_eq!(lines(&tree), EXPECTED);
    // The device's place is held by what nobody takes for one.
    let placeholder = place.root().join("dev/null").symlink_metadata().unwrap();
    assert!(placeholder.is_file() && placeholder.mode() & 0o777 == 0);
    let value = &tree.get("usr/bin/ping").unwrap().xattrs[&b"security.capability"[..]];
    assert_eq!((value.len(), value[3]), (20, 2));
}

#[test]
fn roots_tree_is_the_same() {
    if !guest_kernel::host::is_root() {
        // Nobody else may give files away or make devices; the expectation is that of the test above.
        return;
    }
    let place = Sandbox::new();
    let tree = unpacked(&place, &layers(), true).unwrap();
    assert_eq!(lines(&tree), EXPECTED);
    assert_eq!(
        place.root().join("usr/bin/ping").metadata().unwrap().uid(),
        3
    );
}

#[test]
fn what_no_kernel_takes_is_refused_from_anyone() {
    let long = format!("SCHILY.xattr.user.{}", "x".repeat(251));
    let hostile = [
        Layers::new(1).device(EntryType::Char, "d", 1 << 12, 0),
        Layers::new(1).device(EntryType::Block, "d", 0, 1 << 20),
        Layers::new(1)
            .attribute(&long, b"")
            .add(EntryType::Regular, "f", 0o644, ""),
        Layers::new(1)
            .attribute("SCHILY.xattr.", b"")
            .add(EntryType::Regular, "f", 0o644, ""),
        Layers::new(1)
            .attribute("SCHILY.xattr.user.a", &[0; (1 << 16) + 1])
            .add(EntryType::Regular, "f", 0o644, ""),
        // Nothing lies below a device, whoever could not make it.
        Layers::new(1)
            .device(EntryType::Char, "d", 1, 3)
            .add(EntryType::Regular, "d/f", 0o644, ""),
    ];
    for (index, layers) in hostile.into_iter().enumerate() {
        let place = Sandbox::new();
        let error = unpacked(&place, &[layers.bytes()], false);
        assert!(
            matches!(error, Err(UnpackError::Entry { .. })),
            "{index}: {error:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever an archive does to its own entries, what is left on the disk and what the ledger says belong together: every entry has
    /// the owner that its last header gave it, but for directories that nothing has named.
    #[test]
    fn the_ledger_follows_the_disk(entries in proptest::collection::vec((name(), name(), 0..5u8), 1..12)) {
        let place = Sandbox::new();
        let mut tar = Layers::new(1);
        let mut paths = BTreeMap::new();
        for (name, link, kind) in entries {
            if name.contains("..") || name.split('/').all(str::is_empty) || link.is_empty() {
                continue;
            }
            paths.insert(tar.next, name.clone());
            let name = name.trim_start_matches('/');
            tar = match kind {
                0 => tar.add(EntryType::Regular, name, 0o644, "x"),
                1 => tar.add(EntryType::Directory, name, 0o755, ""),
                2 => tar.link(EntryType::Symlink, name, &link),
                3 => tar.device(EntryType::Char, name, 1, 3),
                _ => tar.link(EntryType::Link, name, &link),
            };
        }
        if let Ok(tree) = unpacked(&place, &[tar.bytes()], false) {
            for (path, entry) in tree.entries() {
                let implicit = entry.kind == Kind::Directory && entry.uid == 0;
                prop_assert!(implicit || paths.contains_key(&entry.uid), "{path:?} {entry:?}");
                prop_assert_eq!(entry.gid, if implicit { 0 } else { entry.uid + 100_000 });
            }
        }
    }
}
