// SPDX-License-Identifier: Apache-2.0
//! Disks of SCSI controllers (protocol 6.4), which hosts name by target and
//! unit alone: whichever controller has such a unit is meant.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use super::DeviceError;

/// What virtio-scsi has room for (virtio specification, SCSI host device).
const MOST_TARGETS: u32 = 255;
/// The same for units.
const MOST_UNITS: u32 = 16383;

/// Target and logical unit on channel 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScsiAddress {
    target: u32,
    unit: u32,
}

impl ScsiAddress {
    /// Reads `TARGET:LUN`, decimal numbers both.
    ///
    /// # Errors
    /// [`DeviceError::Address`].
    pub fn parse(text: &str) -> Result<Self, DeviceError> {
        let refuse = |reason| DeviceError::Address {
            text: text.chars().take(200).collect(),
            reason,
        };
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse::<u32>().ok()).flatten()
        };
        let parts = text.split_once(':');
        let numbers = parts.and_then(|(target, unit)| Some((number(target)?, number(unit)?)));
        match numbers {
            None => Err(refuse(
                "Unexpected format for SCSI Address: it is not TARGET:LUN",
            )),
            Some((0..=MOST_TARGETS, 0..=MOST_UNITS)) => {
                let (target, unit) = numbers.unwrap_or_default();
                Ok(Self { target, unit })
            }
            Some(_) => Err(refuse("a number is out of range")),
        }
    }

    /// The name (`sda`) of the disk.
    ///
    /// # Errors
    /// [`DeviceError::Absent`] when no controller has it.
    pub(super) fn block_device_at(self, sysfs: &Path) -> Result<OsString, DeviceError> {
        let devices = sysfs.join("class/scsi_device");
        let suffix = format!(":0:{}:{}", self.target, self.unit);
        for name in list(&devices)? {
            if !name.as_encoded_bytes().ends_with(suffix.as_bytes()) {
                continue;
            }
            let block = devices.join(&name).join("device/block");
            if let Some(disk) = list(&block)?.into_iter().next() {
                return Ok(disk);
            }
        }
        Err(DeviceError::Absent {
            path: devices.join(format!("*{suffix}")),
        })
    }

    /// Has every controller look for this unit: hosts boot guests with
    /// `scsi_mod.scan=none`. Blocks for as long as the controllers take.
    pub(super) fn scan(self, sysfs: &Path) -> Result<(), DeviceError> {
        let hosts = sysfs.join("class/scsi_host");
        for host in list(&hosts)? {
            let scan = hosts.join(host).join("scan");
            let request = format!("0 {} {}", self.target, self.unit);
            fs::write(&scan, request).map_err(DeviceError::file("write", &scan))?;
        }
        Ok(())
    }
}

impl fmt::Display for ScsiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.target, self.unit)
    }
}

/// The names in a directory, sorted; none where there is no such directory.
pub(super) fn list(dir: &Path) -> Result<Vec<OsString>, DeviceError> {
    let failed = |e| DeviceError::file("list", dir)(e);
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let names = entries.map(|entry| entry.map(|e| e.file_name()));
    let mut names: Vec<_> = names.collect::<io::Result<_>>().map_err(failed)?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn parse(text: &str) -> ScsiAddress {
        ScsiAddress::parse(text).unwrap()
    }

    #[test]
    fn the_grammar() {
        assert_eq!(parse("0:2").to_string(), "0:2");
        assert_eq!(parse("255:16383").to_string(), "255:16383");
        for bad in [
            "",
            ":",
            "0",
            "0:",
            ":0",
            "0:0:0",
            "a:0",
            "0:-1",
            "+1:0",
            "256:0",
            "0:16384",
            "0:99999999999",
        ] {
            assert!(ScsiAddress::parse(bad).unwrap_err().is_bad_input(), "{bad}");
        }
    }

    #[test]
    fn a_disk_is_found_on_any_controller_and_by_its_whole_address() {
        let dir = tempfile::tempdir().unwrap();
        let devices = dir.path().join("class/scsi_device");
        for (name, disk) in [("0:0:12:0", "sda"), ("1:0:2:0", "sdb"), ("1:0:2:1", "sdc")] {
            fs::create_dir_all(devices.join(name).join("device/block").join(disk)).unwrap();
        }
        assert_eq!(parse("2:0").block_device_at(dir.path()).unwrap(), "sdb");
        assert_eq!(parse("2:1").block_device_at(dir.path()).unwrap(), "sdc");
        assert!(
            parse("1:0")
                .block_device_at(dir.path())
                .unwrap_err()
                .is_absence()
        );
        assert!(
            parse("0:0")
                .block_device_at(Path::new("/absent"))
                .unwrap_err()
                .is_absence()
        );
    }

    #[test]
    fn every_controller_is_asked_to_scan() {
        let dir = tempfile::tempdir().unwrap();
        let hosts: Vec<PathBuf> = ["host0", "host1"]
            .map(|host| dir.path().join("class/scsi_host").join(host))
            .to_vec();
        for host in &hosts {
            fs::create_dir_all(host).unwrap();
        }
        parse("3:4").scan(dir.path()).unwrap();
        for host in &hosts {
            assert_eq!(fs::read_to_string(host.join("scan")).unwrap(), "0 3 4");
        }
        parse("3:4").scan(Path::new("/absent")).unwrap();
    }
}
