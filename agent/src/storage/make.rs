// SPDX-License-Identifier: Apache-2.0
//! Making a file system on a disk that the host says is fresh (protocol 5.5,
//! `create_filesystem`). Owns the memory of which disks got theirs: a request
//! that is sent again must not empty a volume.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::StorageError;
use super::mount::errno;
use crate::children::Children;
use crate::device::BlockDevice;
use crate::pool::at_host_pace;
use crate::program;

/// In e2fsprogs, which an image for such volumes has to have.
const MKFS: &str = "/sbin/mkfs.ext4";

/// For volumes of some GiB that end with the pod: no journal, nothing reserved.
const OPTIONS: [&str; 9] = [
    "-F",
    "-O",
    "^has_journal",
    "-m",
    "0",
    "-i",
    "163840",
    "-I",
    "128",
];

/// Where ext4 has its magic number, and which that is (Documentation/filesystems/ext4/super.rst).
const MAGIC: (u64, [u8; 2]) = (1024 + 0x38, [0x53, 0xef]);

/// Disks on which this guest has made file systems, by the number that the
/// kernel gives each disk once and never again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Made(Arc<Mutex<HashSet<String>>>);

impl Made {
    /// Makes an ext4 file system, but not on a disk that this guest has made one
    /// on and that still has it.
    pub(super) async fn ext4(
        &self,
        children: &Children,
        sysfs: &Path,
        disk: &BlockDevice,
    ) -> Result<(), StorageError> {
        let failed = |reason: String| StorageError::MakeFileSystem {
            node: disk.node.clone(),
            reason,
        };
        let (place, node) = (sysfs.to_owned(), disk.clone());
        let looked = at_host_pace(move || (sequence(&place, &node), has_ext4(&node.node))).await;
        let (sequence, has_one) = looked.map_err(|e| failed(e.to_string()))?;
        let sequence = sequence?;
        if has_one
            && self
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .contains(&sequence)
        {
            return Ok(());
        }
        let node = disk.node.to_string_lossy();
        let mut arguments = OPTIONS.to_vec();
        arguments.push(&node);
        let ended = program::run(children, MKFS, &arguments).await;
        let ended = ended.map_err(|e| {
            failed(format!(
                "{MKFS} (package e2fsprogs of the guest's image): {e}"
            ))
        })?;
        if ended.code != 0 {
            return Err(failed(format!(
                "exit status {}: {}",
                ended.code, ended.output
            )));
        }
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(sequence);
        Ok(())
    }
}

/// The kernel's number for this disk and no later one (`diskseq`).
fn sequence(sysfs: &Path, disk: &BlockDevice) -> Result<String, StorageError> {
    let number = format!("dev/block/{}:{}/diskseq", disk.major, disk.minor);
    let file = sysfs.join(number);
    let text = fs::read_to_string(&file);
    text.map_err(|e| StorageError::at("read", &file)(errno(&e)))
}

/// What cannot be read has none.
fn has_ext4(node: &Path) -> bool {
    let mut magic = [0; 2];
    let read = File::open(node).and_then(|disk| disk.read_exact_at(&mut magic, MAGIC.0));
    read.is_ok() && magic == MAGIC.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ext4_is_known_by_its_magic_number() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!has_ext4(file.path()) && !has_ext4(Path::new("/absent")));
        file.as_file().set_len(4096).unwrap();
        assert!(!has_ext4(file.path()));
        file.as_file().write_all_at(&[0x53, 0xef], 1080).unwrap();
        assert!(has_ext4(file.path()));
    }

    #[test]
    fn a_disk_is_known_by_its_sequence_number() {
        let dir = tempfile::tempdir().unwrap();
        let disk = BlockDevice {
            node: "/dev/vdb".into(),
            major: 254,
            minor: 16,
        };
        let error = sequence(dir.path(), &disk).unwrap_err();
        assert!(error.to_string().contains("254:16/diskseq"), "{error}");
        let place = dir.path().join("dev/block/254:16");
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("diskseq"), "7\n").unwrap();
        assert_eq!(sequence(dir.path(), &disk).unwrap(), "7\n");
    }
}
