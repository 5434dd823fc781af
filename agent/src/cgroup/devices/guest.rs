// SPDX-License-Identifier: Apache-2.0
//! The guest's own devices, which no container may touch whatever its rules
//! say (CVE-2020-2023, CVE-2026-24834): the disks below the guest's mounts with
//! all their partitions and mapped devices, those that it swaps to, and all
//! persistent memory that was there at the start, which may be the host's file
//! itself. Reads `/proc` and `/sys`, changes nothing.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use log::warn;

use super::rule::{Device, Kind};

/// What is mounted below it is the containers', not the guest's.
const CONTAINERS: &str = "/run/kata-containers/";

/// What the rules of containers have to leave alone.
#[derive(Debug, Clone, Default)]
pub(super) struct Guest {
    /// Sorted.
    pub devices: Vec<Device>,
    /// Those among them that no part of the guest lies on: they are denied
    /// because nobody said whose they are. The host may.
    pub spare: Vec<Device>,
    /// The numbers of the drivers, for lists that cannot say "all but".
    pub majors: Vec<(Kind, u32)>,
}

/// A block device as `/sys/dev/block` has it.
#[derive(Debug)]
struct Node {
    numbers: (u32, u32),
    name: String,
    /// The disk that it is a partition of.
    disk: Option<String>,
    /// What a mapped device lies on.
    slaves: Vec<String>,
    persistent_memory: bool,
}

impl Guest {
    /// Looks at `/proc`, `/sys` and `/dev` below `root`.
    pub(super) fn find(root: &Path) -> Self {
        let nodes = block_devices(root);
        let own = related(&nodes, mounted(root, &nodes));
        let mut wanted = own.clone();
        wanted.extend((0..nodes.len()).filter(|&i| nodes[i].persistent_memory));
        let all = related(&nodes, wanted);
        let device = |i: &usize| block(nodes[*i].numbers);
        let block = all.iter().map(device);
        let mut devices: Vec<_> = block.chain(persistent_memory_controls(root)).collect();
        devices.sort_unstable();
        devices.dedup();
        Self {
            devices,
            spare: all.difference(&own).map(device).collect(),
            majors: majors(root),
        }
    }

    /// The same and one more disk, with all that shares it.
    pub(super) fn with(&self, disk: (u32, u32), root: &Path) -> Self {
        let nodes = block_devices(root);
        let wanted = (0..nodes.len()).filter(|&i| nodes[i].numbers == disk);
        let all = related(&nodes, wanted.collect());
        let mut guest = self.clone();
        guest.devices.push(block(disk));
        let more = all.iter().map(|&i| block(nodes[i].numbers));
        guest.devices.extend(more);
        guest.devices.sort_unstable();
        guest.devices.dedup();
        // What it lies on is the guest's, whoever knew that before.
        let spare = |other: &Device| !all.iter().any(|&i| block(nodes[i].numbers) == *other);
        guest.spare.retain(spare);
        guest.majors = majors(root);
        guest
    }
}

fn block((major, minor): (u32, u32)) -> Device {
    Device {
        kind: Kind::Block,
        major,
        minor,
    }
}

/// All devices that share a disk with the wanted ones or lie above or below them.
fn related(nodes: &[Node], wanted: BTreeSet<usize>) -> BTreeSet<usize> {
    let touch = |a: &Node, b: &Node| a.disk.as_ref() == Some(&b.name) || a.slaves.contains(&b.name);
    let mut found = wanted.clone();
    let mut queue: Vec<_> = wanted.into_iter().collect();
    while let Some(current) = queue.pop() {
        for (i, other) in nodes.iter().enumerate() {
            let near = touch(&nodes[current], other) || touch(other, &nodes[current]);
            if near && found.insert(i) {
                queue.push(i);
            }
        }
    }
    found
}

fn entries(path: &Path) -> Vec<PathBuf> {
    match fs::read_dir(path) {
        Ok(entries) => entries.filter_map(|e| Some(e.ok()?.path())).collect(),
        Err(_) => Vec::new(),
    }
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn numbers(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim_end().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn block_devices(root: &Path) -> Vec<Node> {
    let links = entries(&root.join("sys/dev/block"));
    links.iter().filter_map(|link| block_device(link)).collect()
}

fn block_device(link: &Path) -> Option<Node> {
    let target = fs::read_link(link).ok()?;
    let name = name(&target);
    let is_partition = link.join("partition").exists();
    Some(Node {
        numbers: numbers(link.file_name()?.to_str()?)?,
        disk: is_partition.then(|| self::name(target.parent().unwrap_or(Path::new("")))),
        slaves: entries(&link.join("slaves"))
            .iter()
            .map(|path| self::name(path))
            .collect(),
        persistent_memory: is_persistent_memory(&target) || name.starts_with("pmem"),
        name,
    })
}

/// Whatever of libnvdimm: its devices hang off a bus of their own, be it below
/// ACPI, virtio or a memory map.
fn is_persistent_memory(target: &Path) -> bool {
    target.components().any(|part| {
        let part = part.as_os_str().to_string_lossy();
        part.starts_with("ndbus")
    })
}

/// Character devices that map persistent memory (device DAX) or command it.
fn persistent_memory_controls(root: &Path) -> Vec<Device> {
    let links = entries(&root.join("sys/dev/char"));
    let is_one = |link: &&PathBuf| fs::read_link(link).is_ok_and(|t| is_persistent_memory(&t));
    let found = links.iter().filter(is_one);
    let numbers = found.filter_map(|link| numbers(&name(link)));
    numbers
        .map(|(major, minor)| Device {
            kind: Kind::Char,
            major,
            minor,
        })
        .collect()
}

/// The devices with the guest's own mounts on them.
fn mounted(root: &Path, nodes: &[Node]) -> BTreeSet<usize> {
    let path = root.join("proc/self/mountinfo");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| {
        warn!(
            "The guest's own disks are unknown: {}: {error}",
            path.display()
        );
        String::new()
    });
    let mut guests = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut hidden = false;
    for line in text.lines() {
        let mut fields = line.split(' ');
        let (device, target) = (fields.nth(2), fields.nth(1));
        let (Some(device), Some(target)) = (device.and_then(numbers), target) else {
            continue;
        };
        let mut rest = fields.skip_while(|field| *field != "-").skip(1);
        let (kind, source) = (rest.next(), rest.next().unwrap_or_default());
        // Some file systems (btrfs) have numbers of their own.
        let source = source.strip_prefix("/dev/").unwrap_or_default();
        let is_guests = !target.starts_with(CONTAINERS);
        let node = nodes
            .iter()
            .position(|node| node.numbers == device || node.name == source);
        seen.extend(node);
        if is_guests {
            guests.extend(node);
        }
        // By a name that is not the kernel's (/dev/root, /dev/mapper/root) a
        // file system with numbers of its own is not found.
        let unknown = is_guests && node.is_none() && !source.is_empty();
        hidden |= unknown || target == "/" && kind == Some("overlay");
    }
    if hidden {
        // What lies below it is mounted nowhere by its name, but held.
        let held = |&i: &usize| !seen.contains(&i) && is_held(root, &nodes[i].name);
        guests.extend((0..nodes.len()).filter(held));
    }
    guests
}

/// Whether somebody has the device for himself: a file system, a mapping.
fn is_held(root: &Path, name: &str) -> bool {
    let flags = libc::O_EXCL | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(root.join("dev").join(name));
    opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

fn majors(root: &Path) -> Vec<(Kind, u32)> {
    let text = fs::read_to_string(root.join("proc/devices")).unwrap_or_default();
    let mut kind = Kind::Char;
    let mut majors = Vec::new();
    for line in text.lines() {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        match first.parse() {
            Ok(major) => majors.push((kind, major)),
            Err(_) if first == "Block" => kind = Kind::Block,
            Err(_) => {}
        }
    }
    majors
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new(mountinfo: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for sub in ["proc/self", "sys/dev/block", "sys/dev/char", "dev"] {
                fs::create_dir_all(dir.path().join(sub)).unwrap();
            }
            fs::write(dir.path().join("proc/self/mountinfo"), mountinfo).unwrap();
            let devices = "Character devices:\n  1 mem\n\nBlock devices:\n  8 sd\n254 virtblk\n";
            fs::write(dir.path().join("proc/devices"), devices).unwrap();
            Self(dir)
        }

        fn add(&self, kind: &str, numbers: &str, path: &str) {
            let sys = self.0.path().join("sys");
            fs::create_dir_all(sys.join("devices").join(path)).unwrap();
            let target = Path::new("../../devices").join(path);
            symlink(target, sys.join("dev").join(kind).join(numbers)).unwrap();
        }

        fn disk(&self, numbers: &str, path: &str) {
            self.add("block", numbers, path);
        }

        fn partition(&self, numbers: &str, path: &str) {
            self.disk(numbers, path);
            fs::write(
                self.0
                    .path()
                    .join("sys/devices")
                    .join(path)
                    .join("partition"),
                "1",
            )
            .unwrap();
        }

        fn mapped(&self, numbers: &str, name: &str, slaves: &[&str]) {
            let path = format!("virtual/block/{name}");
            self.disk(numbers, &path);
            for slave in slaves {
                let below = self.0.path().join("sys/devices").join(&path).join("slaves");
                fs::create_dir_all(below.join(slave)).unwrap();
            }
        }

        fn found(&self) -> Vec<(Kind, u32, u32)> {
            let guest = Guest::find(self.0.path());
            assert_eq!(guest.majors, [(Char, 1), (Block, 8), (Block, 254)]);
            let devices = guest.devices.iter();
            devices.map(|d| (d.kind, d.major, d.minor)).collect()
        }
    }

    use Kind::{Block, Char};

    #[test]
    fn the_root_partition_brings_its_whole_disk() {
        let fake = Fake::new("20 1 254:1 / / ro - ext4 /dev/root ro\n");
        fake.disk("254:0", "pci/block/vda");
        fake.partition("254:1", "pci/block/vda/vda1");
        fake.partition("254:2", "pci/block/vda/vda2");
        fake.disk("254:16", "pci/block/vdb");
        assert_eq!(
            fake.found(),
            [(Block, 254, 0), (Block, 254, 1), (Block, 254, 2)]
        );
    }

    #[test]
    fn a_verified_root_brings_what_it_lies_on() {
        let fake = Fake::new("20 1 253:0 / / ro - erofs /dev/mapper/root ro\n");
        fake.mapped("253:0", "dm-0", &["vda1", "vdb"]);
        fake.mapped("253:1", "dm-1", &["vdc"]);
        fake.disk("254:0", "pci/block/vda");
        fake.partition("254:1", "pci/block/vda/vda1");
        fake.disk("254:16", "pci/block/vdb");
        fake.disk("254:32", "pci/block/vdc");
        assert_eq!(
            fake.found(),
            [
                (Block, 253, 0),
                (Block, 254, 0),
                (Block, 254, 1),
                (Block, 254, 16)
            ]
        );
    }

    #[test]
    fn extensions_are_the_guests_and_storages_are_not() {
        let fake = Fake::new(
            "1 1 0:2 / / rw - rootfs rootfs rw\n\
             2 1 254:0 / /run/kata-extensions/gpu ro shared:1 - erofs /dev/vda ro\n\
             3 1 254:16 / /run/kata-containers/sandbox/storage/x rw - ext4 /dev/vdb rw\n",
        );
        fake.disk("254:0", "pci/block/vda");
        fake.disk("254:16", "pci/block/vdb");
        assert_eq!(fake.found(), [(Block, 254, 0)]);
    }

    #[test]
    fn file_systems_with_numbers_of_their_own_are_found_by_name() {
        let fake = Fake::new("1 1 0:30 /@ / rw - btrfs /dev/vda1 rw\n");
        fake.disk("254:0", "pci/block/vda");
        fake.partition("254:1", "pci/block/vda/vda1");
        assert_eq!(fake.found(), [(Block, 254, 0), (Block, 254, 1)]);
    }

    #[test]
    fn all_persistent_memory_is_the_guests() {
        let fake = Fake::new("1 1 0:2 / / rw - rootfs rootfs rw\n");
        let bus = "pci/virtio1/ndbus0";
        fake.disk("259:0", &format!("{bus}/region0/namespace0.0/block/pmem0"));
        fake.disk("254:0", "pci/block/vda");
        fake.add("char", "252:0", &format!("{bus}/region0/dax0.0/dax/dax0.0"));
        fake.add("char", "1:3", "virtual/mem/null");
        assert_eq!(fake.found(), [(Block, 259, 0), (Char, 252, 0)]);
    }

    #[test]
    fn persistent_memory_that_is_not_mounted_may_be_given_away() {
        let fake = Fake::new("1 1 259:1 / / ro - erofs /dev/pmem0p1 ro\n");
        let place = |n| format!("pci/virtio{n}/ndbus{n}/region{n}/namespace{n}.0/block/pmem{n}");
        fake.disk("259:0", &place(0));
        fake.partition("259:1", &format!("{}/pmem0p1", place(0)));
        fake.disk("259:2", &place(1));
        fake.add("char", "250:0", "pci/virtio1/ndbus1/ndctl1");
        assert_eq!(fake.found().len(), 4);
        let spare = Guest::find(fake.0.path()).spare;
        let numbers: Vec<_> = spare.iter().map(|d| (d.kind, d.major, d.minor)).collect();
        assert_eq!(numbers, [(Block, 259, 2)]);
    }

    #[test]
    fn a_disk_may_become_the_guests_later() {
        let fake = Fake::new("1 1 254:0 / / ro - ext4 /dev/vda ro\n");
        fake.disk("254:0", "pci/block/vda");
        fake.disk(
            "259:0",
            "pci/virtio1/ndbus0/region0/namespace0.0/block/pmem0",
        );
        let guest = Guest::find(fake.0.path());
        fake.disk("254:16", "pci/block/vdb");
        fake.partition("254:17", "pci/block/vdb/vdb1");
        fake.disk("254:32", "pci/block/vdc");
        let denied = |guest: &Guest| -> Vec<_> {
            let devices = guest.devices.iter();
            devices.map(|d| (d.major, d.minor)).collect()
        };
        let more = guest.with((254, 17), fake.0.path());
        assert_eq!(denied(&more), [(254, 0), (254, 16), (254, 17), (259, 0)]);
        assert_eq!((more.spare.len(), more.majors), (1, guest.majors.clone()));
        let memory = guest.with((259, 0), fake.0.path());
        assert_eq!(denied(&memory), denied(&guest));
        assert!(memory.spare.is_empty(), "it is nobody else's any more");
    }

    #[test]
    fn a_guest_that_shows_nothing_has_nothing() {
        let empty = tempfile::tempdir().unwrap();
        assert!(Guest::find(empty.path()).devices.is_empty());
    }
}
