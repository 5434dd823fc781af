// SPDX-License-Identifier: Apache-2.0
//! Mounting a storage on a path of the guest. Owns the making of mount points
//! and the mount(2) calls; never follows a symbolic link on the way to the
//! mount point.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};

use super::StorageError;
use super::undo::{Step, Undo};
use crate::mount_options::MountOptions;

const O_DIR: OFlag = OFlag::O_PATH
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// One checked mount.
#[derive(Debug, Clone)]
pub(super) struct MountSpec {
    pub source: String,
    pub fstype: String,
    pub options: MountOptions,
}

impl MountSpec {
    /// Mounts, making the mount point as needed. When the same kind of file
    /// system is mounted there already (by the guest's image), that is used
    /// and will not be unmounted either.
    pub(super) fn mount(&self, place: &Path, undo: &mut Undo) -> Result<(), StorageError> {
        let options = &self.options;
        let target = self.make_target(place, undo)?;
        if options.flags.contains(MsFlags::MS_REMOUNT) {
            return self.call(&target, options.flags, place);
        }
        let mounted = mounted_fstype(&target, place);
        if mounted.is_some_and(|fstype| fstype == self.fstype.as_bytes()) {
            return Ok(());
        }
        self.call(&target, options.flags, place)?;
        undo.push(Step::Unmount(place.to_owned()));
        if !options.needs_remount() && options.propagation.is_empty() {
            return Ok(());
        }
        // The descriptor is of what lies beneath; these calls mean what is on top.
        let mounted = open_target(place).map_err(StorageError::at("open", place))?;
        if options.needs_remount() {
            let flags = (options.flags - MsFlags::MS_REC) | MsFlags::MS_REMOUNT;
            self.call(&mounted, flags, place)?;
        }
        for &propagation in &options.propagation {
            let none = None::<&str>;
            mount(none, proc_path(&mounted).as_str(), none, propagation, none)
                .map_err(|source| self.failed(place, source))?;
        }
        Ok(())
    }

    /// Changes the file system that is mounted there. What its mount forbids
    /// stays forbidden, although the kernel would take flags left out for off.
    pub(super) fn remount(&self, place: &Path) -> Result<(), StorageError> {
        let target = open_target(place).map_err(StorageError::at("find", place))?;
        let mounted = mounted_fstype(&target, place);
        if mounted.is_none_or(|fstype| fstype != self.fstype.as_bytes()) {
            return Err(self.failed(place, Errno::EINVAL));
        }
        let now = fstatvfs(&target).map_err(StorageError::at("find", place))?;
        let mut flags = self.options.flags | MsFlags::MS_REMOUNT;
        for (kept, flag) in [
            (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
            (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
            (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
            (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        ] {
            if now.flags().contains(kept) && !self.options.cleared.contains(flag) {
                flags |= flag;
            }
        }
        self.call(&target, flags, place)
    }

    fn call(&self, target: &OwnedFd, flags: MsFlags, place: &Path) -> Result<(), StorageError> {
        let data = Some(self.options.data.as_str()).filter(|data| !data.is_empty());
        let (source, fstype) = (self.source.as_str(), self.fstype.as_str());
        let target = proc_path(target);
        mount(Some(source), target.as_str(), Some(fstype), flags, data)
            .map_err(|source| self.failed(place, source))
    }

    fn failed(&self, place: &Path, source: Errno) -> StorageError {
        StorageError::Mount {
            from: self.source.clone(),
            fstype: self.fstype.clone(),
            to: place.to_owned(),
            source,
        }
    }

    /// A file is bound on a file, everything else is mounted on a directory.
    fn make_target(&self, place: &Path, undo: &mut Undo) -> Result<OwnedFd, StorageError> {
        if !self.options.is_bind() {
            return make_dir(place, undo);
        }
        let source = Path::new(&self.source);
        let metadata = fs::metadata(source).map_err(|e| errno(&e));
        if metadata.map_err(StorageError::at("find", source))?.is_dir() {
            make_dir(place, undo)
        } else {
            make_file(place, undo)
        }
    }
}

/// Opens a directory, making it and those above it (mode 0755) as needed. Only
/// the last one is taken back later: others may have come to rely on the rest.
pub(super) fn make_dir(place: &Path, undo: &mut Undo) -> Result<OwnedFd, StorageError> {
    let (dir, made) = walk(place).map_err(StorageError::at("create", place))?;
    if made {
        undo.push(Step::RemoveDir(place.to_owned()));
    }
    Ok(dir)
}

fn make_file(place: &Path, undo: &mut Undo) -> Result<OwnedFd, StorageError> {
    let failed = StorageError::at("create", place);
    let (Some(parent), Some(name)) = (place.parent(), place.file_name()) else {
        return Err(failed(Errno::EISDIR));
    };
    let open_file = |dir: &OwnedFd| {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(dir, name, flags, Mode::empty()) {
            Err(Errno::ENOENT) => {
                let create = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                openat(dir, name, create, Mode::from_bits_truncate(0o644))?;
                let made = openat(dir, name, flags, Mode::empty())?;
                Ok((made, true))
            }
            other => other.map(|fd| (fd, false)),
        }
    };
    let (dir, _) = walk(parent).map_err(StorageError::at("create", parent))?;
    let (file, made) = open_file(&dir).map_err(failed)?;
    if made {
        undo.push(Step::RemoveFile(place.to_owned()));
    }
    Ok(file)
}

/// Goes down to a directory without following links; says whether the last
/// component was made.
fn walk(place: &Path) -> nix::Result<(OwnedFd, bool)> {
    let mut dir = open("/", O_DIR, Mode::empty())?;
    let mut made = false;
    for component in place.components() {
        let Component::Normal(name) = component else {
            continue;
        };
        (dir, made) = step_into(&dir, name)?;
    }
    Ok((dir, made))
}

fn step_into(dir: &OwnedFd, name: &OsStr) -> nix::Result<(OwnedFd, bool)> {
    match openat(dir, name, O_DIR, Mode::empty()) {
        Err(Errno::ENOENT) => {}
        other => return other.map(|fd| (fd, false)),
    }
    let made = match mkdirat(dir, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) => true,
        Err(Errno::EEXIST) => false,
        Err(e) => return Err(e),
    };
    Ok((openat(dir, name, O_DIR, Mode::empty())?, made))
}

/// Opens what is at a path now, without following links.
pub(super) fn open_target(place: &Path) -> nix::Result<OwnedFd> {
    use nix::fcntl::{OpenHow, ResolveFlag, openat2};
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(nix::fcntl::AT_FDCWD, place, how)
}

/// A name of an open file for calls that only take paths.
pub(super) fn proc_path(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// The type of the file system mounted at exactly this path, if one is.
pub(super) fn mounted_fstype(target: &OwnedFd, place: &Path) -> Option<Vec<u8>> {
    // Asking about one file is far cheaper than reading the table of mounts,
    // and the answer is nearly always no.
    let stat = statx(target, c"", AtFlags::EMPTY_PATH, StatxFlags::empty()).ok()?;
    if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return None;
    }
    last_mount_at(&fs::read("/proc/thread-self/mountinfo").ok()?, place)
}

/// The type in the last line of a mountinfo text that names the mount point
/// (proc_pid_mountinfo(5)): later mounts lie on top of earlier ones.
fn last_mount_at(mountinfo: &[u8], place: &Path) -> Option<Vec<u8>> {
    let lines = mountinfo.split(|&b| b == b'\n').rev();
    lines
        .filter_map(|line| {
            let mut fields = line.split(|&b| b == b' ');
            let point = fields.nth(4)?;
            // Optional fields end with a lone hyphen.
            let mut rest = fields.skip_while(|field| *field != b"-");
            rest.next()?;
            Some((unescape(point), rest.next()?))
        })
        .find(|(point, _)| point == place)
        .map(|(_, fstype)| fstype.to_vec())
}

/// Mountinfo writes space, tab, newline and backslash as `\` and three octal digits.
pub(crate) fn unescape(field: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match rest {
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                tail @ ..,
            ] => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

pub(super) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_counts() {
        let table = b"22 1 0:20 / /run rw - tmpfs tmpfs rw\n\
            23 22 0:21 / /run/a\\040b rw,nosuid shared:1 master:2 - ext4 /dev/vda rw\n\
            24 22 0:22 / /run/a\\040b rw - virtiofs kataShared rw\n\
            broken\n\n";
        let at = |path: &str| last_mount_at(table, Path::new(path));
        assert_eq!(at("/run/a b"), Some(b"virtiofs".to_vec()));
        assert_eq!(at("/run"), Some(b"tmpfs".to_vec()));
        assert_eq!(at("/run/a"), None);
    }

    #[test]
    fn directories_are_made_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let mut undo = Undo::default();
        make_dir(&root.join("a/b/c"), &mut undo).unwrap();
        make_dir(&root.join("a/b/c"), &mut undo).unwrap();
        fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink("real", root.join("link")).unwrap();
        assert!(make_dir(&root.join("link/x"), &mut undo).is_err());
        assert!(make_dir(&root.join("link"), &mut undo).is_err());
        assert!(!root.join("real/x").exists());
        assert!(undo.run().is_empty());
        assert!(root.join("a/b").is_dir() && !root.join("a/b/c").exists());
    }

    #[test]
    fn what_is_not_a_mount_root_has_no_type() {
        let dir = tempfile::tempdir().unwrap();
        let fd = open_target(&dir.path().canonicalize().unwrap()).unwrap();
        assert_eq!(mounted_fstype(&fd, dir.path()), None);
        let proc = open_target(Path::new("/proc")).unwrap();
        assert_eq!(
            mounted_fstype(&proc, Path::new("/proc")),
            Some(b"proc".to_vec())
        );
    }

    proptest::proptest! {
        #[test]
        fn any_table_can_be_read(table: Vec<u8>) {
            let _ = last_mount_at(&table, Path::new("/"));
        }
    }
}
