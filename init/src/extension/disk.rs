// SPDX-License-Identifier: Apache-2.0
//! Finding an extension's disk by its serial, and its partitions.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::Problem;

/// A virtio-blk serial ends here (`VIRTIO_BLK_ID_BYTES`), whatever the host
/// was told.
const SERIAL_LENGTH: usize = 20;

/// An extension's disk, by the names in `/dev`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Disk {
    pub name: String,
    /// Partition 1.
    pub data: Option<String>,
    /// Partition 2.
    pub hashes: Option<String>,
}

/// The disk with this serial, below another root. `None` while it is not
/// there, or not ready to be opened.
pub(super) fn find_at(root: &Path, serial: &str) -> Result<Option<Disk>, Problem> {
    let Some(name) = find_name(&root.join("sys/block"), serial)? else {
        return Ok(None);
    };
    // The kernel lists a disk before it has looked for its partitions, and
    // does so at the latest when it is opened. Without this, hashes could be
    // missed that are there.
    let path = root.join("dev").join(&name);
    match File::open(&path) {
        Ok(_) => {}
        Err(error) if is_not_ready(&error) => return Ok(None),
        Err(source) => return Err(Problem::Open { path, source }),
    }
    let mut disk = Disk {
        name,
        ..Disk::default()
    };
    for (entry, path) in list(&root.join("sys/block").join(&disk.name))? {
        match fs::read_to_string(path.join("partition")).as_deref() {
            Ok("1\n") => disk.data = Some(entry),
            Ok("2\n") => disk.hashes = Some(entry),
            _ => {}
        }
    }
    Ok(Some(disk))
}

/// Its node is not there yet, or its driver is not.
fn is_not_ready(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code.is_some_and(|code| matches!(code, libc::ENOENT | libc::ENXIO | libc::ENODEV))
}

/// What a virtio-blk disk tells of a serial.
pub(super) fn cut(serial: &str) -> &str {
    serial.get(..SERIAL_LENGTH).unwrap_or(serial)
}

fn find_name(sys_block: &Path, serial: &str) -> Result<Option<String>, Problem> {
    let wanted = cut(serial);
    let mut found: Option<String> = None;
    for (entry, path) in list(sys_block)? {
        let own = fs::read_to_string(path.join("serial")).unwrap_or_default();
        let own = own.trim_end();
        if own == serial || own == wanted {
            if let Some(first) = found {
                let second = entry;
                return Err(Problem::Ambiguous { first, second });
            }
            found = Some(entry);
        }
    }
    Ok(found)
}

/// The entries of a directory of sysfs, whose names are all plain.
fn list(path: &Path) -> Result<Vec<(String, PathBuf)>, Problem> {
    let failed = |source| Problem::List {
        path: path.to_owned(),
        source,
    };
    let entries = fs::read_dir(path).map_err(failed)?;
    let entries: Vec<_> = entries.collect::<Result<_, _>>().map_err(failed)?;
    let name = |entry: &fs::DirEntry| entry.file_name().into_string().ok();
    Ok(entries
        .into_iter()
        .filter_map(|entry| Some((name(&entry)?, entry.path())))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(disks: &[(&str, &str, usize)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("dev")).unwrap();
        for (name, serial, partitions) in disks {
            let disk = root.path().join("sys/block").join(name);
            fs::create_dir_all(disk.join("queue")).unwrap();
            fs::write(disk.join("serial"), serial).unwrap();
            for n in 1..=*partitions {
                let partition = disk.join(format!("{name}{n}"));
                fs::create_dir(&partition).unwrap();
                fs::write(partition.join("partition"), format!("{n}\n")).unwrap();
            }
        }
        root
    }

    #[test]
    fn disks_are_known_by_their_serial() {
        let root = machine(&[
            ("vda", "", 1),
            ("vdb", "extension-coco", 3),
            ("vdc", "extension-kata-devki", 1),
        ]);
        let find = |serial| find_at(root.path(), serial).unwrap();
        // Not ready: its partitions cannot be known.
        assert_eq!(find("extension-coco"), None);
        for name in ["vdb", "vdc"] {
            fs::write(root.path().join("dev").join(name), "").unwrap();
        }
        let coco = Disk {
            name: "vdb".into(),
            data: Some("vdb1".into()),
            hashes: Some("vdb2".into()),
        };
        assert_eq!(find("extension-coco"), Some(coco));
        assert_eq!(find("extension-co"), None);
        // Cut off by virtio-blk.
        let devkit = find("extension-kata-devkit").unwrap();
        assert_eq!(devkit.data.as_deref(), Some("vdc1"));
        assert_eq!(devkit.hashes, None);
    }

    #[test]
    fn bug_two_disks_of_one_serial_are_refused() {
        let root = machine(&[("vda", "extension-x", 2), ("vdb", "extension-x\n", 1)]);
        let error = find_at(root.path(), "extension-x").unwrap_err();
        assert!(matches!(error, Problem::Ambiguous { .. }), "{error}");
    }
}
