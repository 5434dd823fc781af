// SPDX-License-Identifier: Apache-2.0
//! The root's block devices: waiting for one to appear, and the partition that
//! follows another.

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::RootError;
use crate::arrival;

/// Waits until the block device `device` is there.
pub(super) fn wait_for(device: &Path, patience: Duration) -> Result<(), RootError> {
    wait_until(device, patience, &mut || is_there(device))
}

/// The same for a device by its number, `MAJOR:MINOR`.
pub(super) fn wait_for_number(number: &str, patience: Duration) -> Result<(), RootError> {
    let path = Path::new("/sys/dev/block").join(number);
    wait_until(Path::new(number), patience, &mut || Ok(path.exists()))
}

fn wait_until(
    device: &Path,
    patience: Duration,
    is_there: &mut dyn FnMut() -> Result<bool, RootError>,
) -> Result<(), RootError> {
    let no_events = |source| RootError::Wait {
        device: device.to_owned(),
        source,
    };
    let mut look = || Ok(is_there()?.then_some(()));
    let found = arrival::wait_for(patience, arrival::about_disks, &no_events, &mut look)?;
    found.ok_or_else(|| RootError::Missing {
        device: device.to_owned(),
        waited: patience,
    })
}

fn is_there(device: &Path) -> Result<bool, RootError> {
    match device.metadata() {
        Ok(metadata) if metadata.file_type().is_block_device() => Ok(true),
        Ok(_) => Err(RootError::NotBlock {
            device: device.to_owned(),
        }),
        Err(_) => Ok(false),
    }
}

/// The partition after `device` on the same disk, whether it is there or not.
/// `None` if `device`, which must be there, is no partition.
pub(super) fn next_partition(root: &Path, device: &Path) -> Option<PathBuf> {
    // The kernel says what a partition is: `pmem0` and `nvme0n1` are disks.
    let name = device.file_name()?.to_str()?;
    let partition = root.join("sys/class/block").join(name).join("partition");
    let number = std::fs::read_to_string(partition).ok()?;
    let number = number.trim_end();
    let disk = name.strip_suffix(number)?;
    let next = number.parse::<u32>().ok()?.checked_add(1)?;
    Some(device.with_file_name(format!("{disk}{next}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn other_files_are_refused_at_once() {
        let error = wait_for(Path::new("/dev/null"), Duration::from_secs(60)).unwrap_err();
        assert!(matches!(error, RootError::NotBlock { .. }), "{error}");
    }

    #[test]
    fn a_device_that_never_comes_is_named() {
        let error =
            wait_for(Path::new("/dev/keelson-none"), Duration::from_millis(20)).unwrap_err();
        match error {
            RootError::Wait { .. } => {
                eprintln!(
                    "SKIPPED a_device_that_never_comes_is_named: no uevent socket here: {error}"
                );
            }
            error => assert!(error.to_string().contains("keelson-none"), "{error}"),
        }
    }

    #[test]
    fn bug_a_disk_has_no_next_partition_whatever_its_name_ends_with() {
        let root = tempfile::tempdir().unwrap();
        for (name, number) in [("vda1", "1"), ("pmem0p1", "1"), ("sda9", "9")] {
            let dir = root.path().join("sys/class/block").join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("partition"), format!("{number}\n")).unwrap();
        }
        fs::create_dir_all(root.path().join("sys/class/block/pmem0")).unwrap();
        let next = |name: &str| next_partition(root.path(), &Path::new("/dev").join(name));
        assert_eq!(next("vda1").unwrap(), Path::new("/dev/vda2"));
        assert_eq!(next("pmem0p1").unwrap(), Path::new("/dev/pmem0p2"));
        assert_eq!(next("sda9").unwrap(), Path::new("/dev/sda10"));
        assert_eq!(next("pmem0"), None);
        assert_eq!(next("vdz1"), None);
    }
}
