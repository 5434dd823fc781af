// SPDX-License-Identifier: Apache-2.0
//! Making a file system on a disk that the host says is fresh (protocol 5.5,
//! `create_filesystem`). Owns the memory of which disks got theirs: a request
//! that is sent again must not empty a volume.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Mutex as AsyncMutex;

use super::StorageError;
use super::mount::errno;
use crate::children::Children;
use crate::device::BlockDevice;
use crate::pool::at_host_pace;
use crate::program::{self, Call};

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
/// kernel gives each disk once and never again. Each has a lock of its own, held
/// while its file system is made: whoever else wants one on it waits for that.
#[derive(Debug, Clone, Default)]
pub(crate) struct Made(Arc<Mutex<HashMap<String, Arc<AsyncMutex<bool>>>>>);

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
        let (place, number) = (sysfs.to_owned(), disk.clone());
        let found = at_host_pace(move || sequence(&place, &number)).await;
        let sequence = found.map_err(|e| failed(e.to_string()))??;
        let slot = self.disks().entry(sequence).or_default().clone();
        let mut made = slot.lock().await;
        let node = disk.node.clone();
        let has_one = at_host_pace(move || has_ext4(&node)).await;
        if *made && has_one.map_err(|e| failed(e.to_string()))? {
            return Ok(());
        }
        let node = disk.node.to_string_lossy();
        let mut arguments = OPTIONS.to_vec();
        arguments.push(&node);
        let call = Call {
            program: MKFS,
            arguments: &arguments,
            input: &[],
            most: 0,
        };
        let ended = program::run(children, call).await;
        let ended = ended.map_err(|e| failed(format!("{MKFS} (package e2fsprogs): {e}")))?;
        if ended.code != 0 {
            let (code, output) = (ended.code, ended.complaint);
            return Err(failed(format!("exit status {code}: {output}")));
        }
        *made = true;
        Ok(())
    }

    fn disks(&self) -> MutexGuard<'_, HashMap<String, Arc<AsyncMutex<bool>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The kernel's number for this disk and no later one (`diskseq`); partitions
/// are told apart by their own numbers.
fn sequence(sysfs: &Path, disk: &BlockDevice) -> Result<String, StorageError> {
    let number = format!("{}:{}", disk.major, disk.minor);
    let place = sysfs.join("dev/block").join(&number);
    let (whole, above) = (place.join("diskseq"), place.join("../diskseq"));
    let text = fs::read_to_string(&whole).or_else(|_| fs::read_to_string(&above));
    let text = text.map_err(|e| StorageError::at("read", &whole)(errno(&e)))?;
    Ok(format!("{} {number}", text.trim_end()))
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
        // As the kernel has it: the numbers are links to the disks' directories.
        let place = dir.path().join("devices/vdb/vdb1");
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("../diskseq"), "7\n").unwrap();
        fs::create_dir_all(dir.path().join("dev/block")).unwrap();
        for (number, target) in [("254:16", place.join("..")), ("254:17", place.clone())] {
            let link = dir.path().join("dev/block").join(number);
            std::os::unix::fs::symlink(target, link).unwrap();
        }
        assert_eq!(sequence(dir.path(), &disk).unwrap(), "7 254:16");
        let partition = BlockDevice { minor: 17, ..disk };
        assert_eq!(sequence(dir.path(), &partition).unwrap(), "7 254:17");
    }
}
