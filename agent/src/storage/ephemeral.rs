// SPDX-License-Identifier: Apache-2.0
//! `ephemeral`: memory as a file system, either tmpfs or huge pages
//! (protocol 5.6). Belongs to the pod rather than to one container: a
//! restarted container must find what it left there.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{Gid, fchown};

use super::mount::{MountSpec, errno};
use super::plan::{Action, Claim, Ready};
use super::undo::{Step, Undo};
use super::{Driver, Environment, StorageError, open_dir};

pub(super) struct Ephemeral;

impl Driver for Ephemeral {
    fn name(&self) -> &'static str {
        "ephemeral"
    }

    fn keeps(&self) -> bool {
        true
    }

    fn plan(&self, claim: &Claim<'_>) -> Result<Box<dyn Action>, StorageError> {
        match claim.fstype() {
            "tmpfs" => plan_tmpfs(claim),
            "hugetlbfs" => plan_hugepages(claim),
            other => Err(claim.refuse("fstype", other, "it is neither tmpfs nor hugetlbfs")),
        }
    }
}

fn plan_tmpfs(claim: &Claim<'_>) -> Result<Box<dyn Action>, StorageError> {
    let mut claim = claim.clone();
    // Not an option of the kernel's.
    let gid = claim.take_option("fsgid");
    Ok(Box::new(Tmpfs {
        gid: gid.map(|gid| claim.gid(gid)).transpose()?,
        spec: claim.mount_spec()?,
    }))
}

fn plan_hugepages(claim: &Claim<'_>) -> Result<Box<dyn Action>, StorageError> {
    let number = |key: &'static str| {
        let mut words = claim.options.iter();
        let text = words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        text.and_then(|text| text.parse::<u64>().ok())
    };
    let (Some(page_size), Some(size)) = (number("pagesize"), number("size")) else {
        let words = claim.options.join(",");
        return Err(claim.refuse("options", &words, "no pagesize/size options found"));
    };
    if page_size < 1024 || page_size % 1024 != 0 || size % page_size != 0 {
        let words = claim.options.join(",");
        return Err(claim.refuse("options", &words, "size is not a number of whole pages"));
    }
    Ok(Box::new(Hugepages {
        page_size,
        pages: size / page_size,
        spec: claim.mount_spec()?,
    }))
}

#[derive(Debug)]
struct Tmpfs {
    gid: Option<u32>,
    spec: MountSpec,
}

impl Action for Tmpfs {
    fn run(
        &self,
        place: &Path,
        _: &Ready,
        _: &Environment,
        undo: &mut Undo,
    ) -> Result<(), StorageError> {
        self.spec.mount(place, undo)?;
        let Some(gid) = self.gid else {
            return Ok(());
        };
        let give = || {
            let dir = open_dir(place)?;
            fchown(&dir, None, Some(Gid::from_raw(gid)))?;
            let mode = fstat(&dir)?.st_mode & 0o7777 | 0o2000;
            fchmod(&dir, Mode::from_bits_truncate(mode))
        };
        give().map_err(StorageError::at("change the group of", place))
    }
}

#[derive(Debug)]
struct Hugepages {
    page_size: u64,
    pages: u64,
    spec: MountSpec,
}

impl Action for Hugepages {
    fn run(
        &self,
        place: &Path,
        _: &Ready,
        environment: &Environment,
        undo: &mut Undo,
    ) -> Result<(), StorageError> {
        let dir = environment.devices.sysfs().join(format!(
            "kernel/mm/hugepages/hugepages-{}kB",
            self.page_size / 1024
        ));
        reserve_hugepages(&dir, self.pages, self.page_size)?;
        undo.push(Step::ReturnHugepages(dir, self.pages));
        self.spec.mount(place, undo)
    }
}

/// Readers of the number of pages that are about to change it.
static RESERVING: Mutex<()> = Mutex::new(());

/// Adds to the pages the guest has, which other storages may hold already.
fn reserve_hugepages(dir: &Path, pages: u64, page_size: u64) -> Result<(), StorageError> {
    let _alone = RESERVING.lock().unwrap_or_else(PoisonError::into_inner);
    let before = read_pages(dir)?;
    let wanted = before.saturating_add(pages);
    write_pages(dir, wanted)?;
    let after = read_pages(dir)?;
    if after < wanted {
        write_pages(dir, before)?;
        return Err(StorageError::Hugepages {
            got: after.saturating_sub(before),
            wanted: pages,
            page_size,
        });
    }
    Ok(())
}

pub(super) fn return_hugepages(dir: &Path, pages: u64) -> Result<(), StorageError> {
    let _alone = RESERVING.lock().unwrap_or_else(PoisonError::into_inner);
    let now = read_pages(dir)?;
    write_pages(dir, now.saturating_sub(pages))
}

fn pages_file(dir: &Path) -> PathBuf {
    dir.join("nr_hugepages")
}

fn read_pages(dir: &Path) -> Result<u64, StorageError> {
    let file = pages_file(dir);
    let text = fs::read_to_string(&file).map_err(|e| StorageError::at("read", &file)(errno(&e)))?;
    let pages = text.trim_end().parse();
    pages.map_err(|_| StorageError::at("read", &file)(nix::errno::Errno::EINVAL))
}

fn write_pages(dir: &Path, pages: u64) -> Result<(), StorageError> {
    let file = pages_file(dir);
    let written = fs::write(&file, pages.to_string());
    written.map_err(|e| StorageError::at("write", &file)(errno(&e)))
}

#[cfg(test)]
mod tests {
    use super::super::StoragePlan;
    use super::*;
    use protocols::agent::Storage;

    fn plan(fstype: &str, options: &[&str]) -> Result<StoragePlan, StorageError> {
        let storage = Storage {
            driver: "ephemeral".into(),
            source: "nodev".into(),
            fstype: fstype.into(),
            mount_point: "/run/x".into(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            ..Storage::default()
        };
        StoragePlan::from_wire(&storage, None)
    }

    #[test]
    fn bug_hugepages_add_up() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("nr_hugepages"), "3\n").unwrap();
        reserve_hugepages(dir.path(), 4, 2 << 20).unwrap();
        reserve_hugepages(dir.path(), 1, 2 << 20).unwrap();
        assert_eq!(read_pages(dir.path()).unwrap(), 8);
        return_hugepages(dir.path(), 4).unwrap();
        assert_eq!(read_pages(dir.path()).unwrap(), 4);
    }

    #[test]
    fn a_page_size_the_kernel_lacks_is_named() {
        let error = reserve_hugepages(Path::new("/absent"), 1, 4096).unwrap_err();
        assert!(
            error.to_string().contains("/absent/nr_hugepages"),
            "{error}"
        );
    }

    #[test]
    fn numbers_of_pages_are_checked_at_the_door() {
        assert!(plan("hugetlbfs", &["pagesize=2097152,size=4194304"]).is_ok());
        assert!(plan("hugetlbfs", &["pagesize=2097152", "size=4194304"]).is_ok());
        for bad in [
            &["pagesize=2097152"][..],
            &["size=4194304"],
            &["pagesize=0,size=0"],
            &["pagesize=1,size=1"],
            &["pagesize=2097152,size=1"],
            &["pagesize=2M,size=4M"],
            &["pagesize=99999999999999999999,size=1"],
            &[],
        ] {
            assert!(
                plan("hugetlbfs", bad).unwrap_err().is_bad_input(),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn groups_are_checked_at_the_door() {
        assert!(plan("tmpfs", &["fsgid=12", "size=1m"]).is_ok());
        for bad in ["fsgid=x", "fsgid=", "fsgid=-1", "fsgid=4294967295"] {
            assert!(plan("tmpfs", &[bad]).unwrap_err().is_bad_input(), "{bad}");
        }
        assert!(plan("ext4", &[]).unwrap_err().is_bad_input());
    }
}
