// SPDX-License-Identifier: Apache-2.0
//! Network interfaces by the PCI path of their device.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::DeviceError;
use super::pci::PciPath;

/// The kernel's numbers of the interfaces that a device provides, if it provides
/// one already: a card's hang right below its PCI device, those of virtio one
/// level deeper. Numbers and not names, which may change before they are used.
pub(super) fn look(sysfs: &Path, path: &PciPath) -> Result<Vec<u32>, DeviceError> {
    let device = path.resolve_at(sysfs)?;
    let below = list(&device)?;
    let is_virtio = |dir: &PathBuf| {
        let name = dir.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("virtio"))
    };
    let virtio = below.into_iter().filter(is_virtio);
    let mut found = Vec::new();
    for dir in [device.clone()].into_iter().chain(virtio) {
        for interface in list(&dir.join("net"))? {
            found.extend(number(&interface.join("ifindex"))?);
        }
    }
    if found.is_empty() {
        let path = device.join("net");
        return Err(DeviceError::Absent { path });
    }
    Ok(found)
}

/// What is in a directory; nothing if it is not there (any more).
fn list(dir: &Path) -> Result<Vec<PathBuf>, DeviceError> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(DeviceError::file("read", dir))?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let paths: io::Result<_> = paths.collect();
    paths.map_err(DeviceError::file("read", dir))
}

fn number(file: &Path) -> Result<Option<u32>, DeviceError> {
    match fs::read_to_string(file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => {
            let text = other.map_err(DeviceError::file("read", file))?;
            Ok(text.trim().parse().ok())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysfs(interfaces: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let device = root.path().join("devices/pci0000:00/0000:00:03.0");
        fs::create_dir_all(device.join("virtio0/block/vda")).unwrap();
        for (dir, index) in interfaces {
            let dir = root.path().join("devices/pci0000:00").join(dir);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("ifindex"), index).unwrap();
        }
        root
    }

    fn found(interfaces: &[(&str, &str)]) -> Result<Vec<u32>, DeviceError> {
        let root = sysfs(interfaces);
        look(root.path(), &PciPath::parse("03").unwrap())
    }

    #[test]
    fn cards_and_virtio() {
        assert_eq!(found(&[("0000:00:03.0/net/eth1", "4\n")]).unwrap(), [4]);
        let virtio = ("0000:00:03.0/virtio7/net/eth0", "3\n");
        assert_eq!(found(&[virtio]).unwrap(), [3]);
        // Two ports of one card.
        let ports = [("0000:00:03.0/net/b", "6\n"), ("0000:00:03.0/net/a", "5\n")];
        let mut both = found(&ports).unwrap();
        both.sort_unstable();
        assert_eq!(both, [5, 6]);
    }

    #[test]
    fn bug_a_path_that_only_begins_the_same_is_another() {
        let others = [
            ("0000:00:03.1/virtio1/net/eth0", "3\n"),
            ("0000:00:03.00/net/eth1", "4\n"),
            ("0000:00:03.0/0000:01:00.0/net/eth2", "5\n"),
        ];
        assert!(found(&others).unwrap_err().is_absence());
    }

    #[test]
    fn what_is_half_there_is_waited_for() {
        let root = sysfs(&[]);
        let net = "devices/pci0000:00/0000:00:03.0/net/eth0";
        fs::create_dir_all(root.path().join(net)).unwrap();
        let path = PciPath::parse("03").unwrap();
        assert!(look(root.path(), &path).unwrap_err().is_absence());
        assert!(look(root.path(), &PciPath::parse("04").unwrap()).is_err());
    }
}
