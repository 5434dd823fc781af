// SPDX-License-Identifier: Apache-2.0
//! PCI paths (protocol 6.1): the chain of slots from the root complex to a
//! device, which is all that a host knows about where the guest will see it.
//! Owns the grammar and the walk through sysfs.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where sysfs is mounted.
pub const SYSFS: &str = "/sys";

/// Bridges behind bridges beyond any machine; keeps paths bounded.
const MAX_STEPS: usize = 32;

/// What can go wrong with a PCI path.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// The text is not a PCI path.
    #[error("PCI path {text:?} is refused: {reason}")]
    Malformed {
        /// As it was sent.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is no such device (yet).
    #[error("No device at PCI path {path}: {missing} does not exist")]
    Absent {
        /// The PCI path.
        path: PciPath,
        /// The first part that is missing in sysfs.
        missing: PathBuf,
    },
    /// The device is there but has no driver that makes it a disk (yet).
    #[error("Device at PCI path {path} has no block device")]
    NoBlockDevice {
        /// The PCI path.
        path: PciPath,
    },
    /// Sysfs could not be read.
    #[error("Cannot read {dir} for PCI path {path}")]
    Sysfs {
        /// The PCI path.
        path: PciPath,
        /// The directory.
        dir: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl PciError {
    /// Whether the request is to blame rather than the guest.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Malformed { .. })
    }
}

/// Slot and function on one bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct SlotFunction {
    slot: u8,
    function: u8,
}

impl fmt::Display for SlotFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{:x}", self.slot, self.function)
    }
}

/// A checked PCI path: the root complex and at least one slot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PciPath {
    root: u8,
    steps: Vec<SlotFunction>,
}

impl fmt::Display for PciPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.root != 0 {
            write!(f, "{:02x}/", self.root)?;
        }
        for (n, step) in self.steps.iter().enumerate() {
            if n > 0 {
                f.write_str("/")?;
            }
            step.fmt(f)?;
        }
        Ok(())
    }
}

impl PciPath {
    /// Reads `SS[.F]` elements joined by `/`, in hexadecimal. Of three or more
    /// elements a first one of 0x20 or more is the bus of a NUMA node's root
    /// complex.
    ///
    /// # Errors
    /// [`PciError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, PciError> {
        let refuse = |reason| PciError::Malformed {
            text: text.chars().take(200).collect(),
            reason,
        };
        let elements: Vec<_> = text.split('/').collect();
        if elements.len() > MAX_STEPS {
            return Err(refuse("it has too many elements"));
        }
        let complex = match elements.first().and_then(|first| hex(first)) {
            Some(bus) if bus >= 0x20 && elements.len() >= 3 => Some(bus),
            _ => None,
        };
        let slots = elements.iter().skip(usize::from(complex.is_some()));
        let steps = slots
            .map(|element| slot_function(element).map_err(refuse))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            root: complex.unwrap_or(0),
            steps,
        })
    }

    /// The sysfs directory of the device.
    ///
    /// # Errors
    /// [`PciError::Absent`] when the device or a bridge before it is not there.
    pub fn resolve(&self) -> Result<PathBuf, PciError> {
        self.resolve_at(Path::new(SYSFS))
    }

    /// As [`Self::resolve`], with sysfs mounted elsewhere.
    pub fn resolve_at(&self, sysfs: &Path) -> Result<PathBuf, PciError> {
        let mut dir = self.root_complex(sysfs)?;
        let mut bus = format!("0000:{:02x}", self.root);
        for (n, step) in self.steps.iter().enumerate() {
            dir.push(format!("{bus}:{step}"));
            if !dir.is_dir() {
                return Err(self.absent(dir));
            }
            if n + 1 < self.steps.len() {
                bus = self.bus_behind(&dir)?;
            }
        }
        Ok(dir)
    }

    /// The name (`vda`) of the disk the device provides, looked for the way
    /// virtio disks hang below their PCI device.
    ///
    /// # Errors
    /// As [`Self::resolve`], and [`PciError::NoBlockDevice`].
    pub fn block_device_at(&self, sysfs: &Path) -> Result<OsString, PciError> {
        let dir = self.resolve_at(sysfs)?;
        for name in self.list(&dir)? {
            if !is_numbered(&name, "virtio") {
                continue;
            }
            let block = dir.join(&name).join("block");
            match self.list(&block) {
                Ok(disks) => {
                    if let Some(disk) = disks.into_iter().next() {
                        return Ok(disk);
                    }
                }
                Err(PciError::Absent { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Err(PciError::NoBlockDevice { path: self.clone() })
    }

    /// Machines with ACPI have their root complexes at the top; on arm64
    /// without it they lie below the platform's PCIe controller.
    fn root_complex(&self, sysfs: &Path) -> Result<PathBuf, PciError> {
        let name = format!("pci0000:{:02x}", self.root);
        let devices = sysfs.join("devices");
        let top = devices.join(&name);
        if top.is_dir() {
            return Ok(top);
        }
        let platform = devices.join("platform");
        let mut controllers = self.list(&platform).unwrap_or_default();
        controllers.retain(|c| c.as_encoded_bytes().ends_with(b".pcie"));
        controllers.sort();
        let mut below = controllers.iter().map(|c| platform.join(c).join(&name));
        below
            .find(|path| path.is_dir())
            .ok_or_else(|| self.absent(top))
    }

    /// The bus a bridge leads to, as `domain:bus`.
    fn bus_behind(&self, bridge: &Path) -> Result<String, PciError> {
        let listed = match self.list(&bridge.join("pci_bus")) {
            Ok(buses) => buses,
            // Some bridges do not list their bus; their devices tell it.
            Err(PciError::Absent { .. }) => {
                let mut buses: Vec<_> = self
                    .list(bridge)?
                    .iter()
                    .filter_map(|name| bus_of_device(name.to_str()?))
                    .collect();
                buses.sort();
                buses.dedup();
                buses
            }
            Err(e) => return Err(e),
        };
        match listed.as_slice() {
            [bus] => Ok(bus.to_string_lossy().into_owned()),
            _ => Err(self.absent(bridge.join("pci_bus"))),
        }
    }

    fn list(&self, dir: &Path) -> Result<Vec<OsString>, PciError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => self.absent(dir.to_owned()),
            _ => PciError::Sysfs {
                path: self.clone(),
                dir: dir.to_owned(),
                source,
            },
        };
        let entries = fs::read_dir(dir).map_err(failed)?;
        let names = entries.map(|entry| entry.map(|e| e.file_name()));
        names.collect::<io::Result<_>>().map_err(failed)
    }

    fn absent(&self, missing: PathBuf) -> PciError {
        PciError::Absent {
            path: self.clone(),
            missing,
        }
    }
}

/// One or two hexadecimal digits.
fn hex(text: &str) -> Option<u8> {
    let digits = text.bytes().all(|b| b.is_ascii_hexdigit());
    let short = (1..=2).contains(&text.len());
    (digits && short).then(|| u8::from_str_radix(text, 16).ok())?
}

fn slot_function(element: &str) -> Result<SlotFunction, &'static str> {
    let (slot, function) = element.split_once('.').unwrap_or((element, "0"));
    let slot = hex(slot).ok_or("a slot is not one or two hexadecimal digits")?;
    let function = hex(function).ok_or("a function is not a hexadecimal digit")?;
    match (slot, function) {
        (0x20.., _) => Err("a slot is above 1f"),
        (_, 8..) => Err("a function is above 7"),
        _ => Ok(SlotFunction { slot, function }),
    }
}

/// `0000:01` of `0000:01:00.0`, and nothing of names that are not devices.
fn bus_of_device(name: &str) -> Option<OsString> {
    let (bus, device) = name.rsplit_once(':')?;
    let (domain, number) = bus.split_once(':')?;
    let domain_ok = domain.len() == 4 && domain.bytes().all(|b| b.is_ascii_hexdigit());
    let valid = domain_ok && number.len() == 2 && hex(number).is_some();
    (valid && slot_function(device).is_ok() && device.contains('.')).then(|| bus.into())
}

fn is_numbered(name: &OsString, prefix: &str) -> bool {
    let number = name.to_str().and_then(|name| name.strip_prefix(prefix));
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(dirs: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for dir in dirs {
            fs::create_dir_all(root.path().join("devices").join(dir)).unwrap();
        }
        root
    }

    fn parse(text: &str) -> PciPath {
        PciPath::parse(text).unwrap()
    }

    #[test]
    fn the_grammar() {
        assert_eq!(parse("02").to_string(), "02.0");
        assert_eq!(parse("2/1f.7").to_string(), "02.0/1f.7");
        assert_eq!(parse("06.0/00.1").to_string(), "06.0/00.1");
        // A NUMA root complex only with a bridge and a device after it.
        assert_eq!(parse("20/00/01").to_string(), "20/00.0/01.0");
        assert!(PciPath::parse("20/00").is_err());
        assert_eq!(parse("1f/00/01").to_string(), "1f.0/00.0/01.0");
    }

    #[test]
    fn what_is_refused() {
        for bad in [
            "",
            "/",
            "02/",
            "/02",
            "zz",
            "20",
            "02.8",
            "002",
            "02.00.0",
            "+2",
            "02 ",
            "..",
            "0000:00:02.0",
        ] {
            assert!(PciPath::parse(bad).unwrap_err().is_bad_input(), "{bad:?}");
        }
        assert!(PciPath::parse(&["01"; 33].join("/")).is_err());
    }

    #[test]
    fn a_disk_behind_a_bridge() {
        let disk = "pci0000:00/0000:00:02.0/0000:01:05.0/virtio3/block/vdb";
        let sysfs = tree(&[disk, "pci0000:00/0000:00:02.0/pci_bus/0000:01"]);
        assert_eq!(parse("02/05").block_device_at(sysfs.path()).unwrap(), "vdb");
    }

    #[test]
    fn a_bridge_that_does_not_list_its_bus() {
        let disk = "pci0000:00/0000:00:02.0/0000:01:05.0/virtio0/block/vdc";
        let sysfs = tree(&[disk, "pci0000:00/0000:00:02.0/power"]);
        assert_eq!(parse("02/05").block_device_at(sysfs.path()).unwrap(), "vdc");
    }

    #[test]
    fn bug_walk_starts_at_the_bus_of_the_root_complex() {
        let sysfs = tree(&[
            "pci0000:40/0000:40:00.0/pci_bus/0000:41",
            "pci0000:40/0000:40:00.0/0000:41:01.0",
        ]);
        let dir = parse("40/00/01").resolve_at(sysfs.path()).unwrap();
        assert!(dir.ends_with("0000:40:00.0/0000:41:01.0"));
    }

    #[test]
    fn a_root_complex_below_the_platform() {
        let sysfs = tree(&[
            "platform/4010000000.pcie/pci0000:00/0000:00:03.0/virtio1/block/vda",
            "platform/gpio",
        ]);
        assert_eq!(parse("03").block_device_at(sysfs.path()).unwrap(), "vda");
    }

    #[test]
    fn a_missing_device_is_named() {
        let sysfs = tree(&["pci0000:00/0000:00:03.0/virtio1"]);
        let error = parse("02/01").resolve_at(sysfs.path()).unwrap_err();
        assert!(!error.is_bad_input());
        assert!(error.to_string().contains("02.0/01.0"), "{error}");
        let no_disk = parse("03").block_device_at(sysfs.path()).unwrap_err();
        assert!(matches!(no_disk, PciError::NoBlockDevice { .. }));
    }

    proptest::proptest! {
        #[test]
        fn what_is_parsed_is_parsed_again(text in "[0-9a-f]{1,2}(\\.[0-7])?(/[0-9a-f]{1,2}(\\.[0-7])?){0,4}") {
            if let Ok(path) = PciPath::parse(&text) {
                proptest::prop_assert_eq!(PciPath::parse(&path.to_string()).unwrap(), path);
            }
        }
    }
}
