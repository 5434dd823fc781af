// SPDX-License-Identifier: Apache-2.0
//! `fs_group`: gives a volume to a group (protocol 5.3). Walks by descriptors,
//! so that neither a symbolic link nor one put there meanwhile leads out of
//! the volume; stays on the volume's own file system.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat};
use nix::unistd::{Gid, fchownat};

use super::StorageError;
use super::mount::{errno, open_target, proc_path};

/// Each level holds one descriptor open.
const DEEPEST: usize = 256;

/// Which group, and when the walk may be spared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FsGroup {
    pub gid: u32,
    /// `OnRootMismatch`: a root that is as it should be vouches for the rest.
    pub only_on_mismatch: bool,
    /// The volume is mounted read-only for its users.
    pub read_only: bool,
}

/// A directory on the way down, and those below it still to be visited.
struct Level {
    dir: OwnedFd,
    below: Vec<std::ffi::CString>,
}

impl FsGroup {
    /// Changes group and mode of everything below a mount point. Blocks.
    pub(super) fn apply(&self, place: &Path) -> Result<(), StorageError> {
        let failed = |source| StorageError::at("change the group of", place)(source);
        let root = open_target(place).map_err(failed)?;
        let stat = fstat(&root).map_err(failed)?;
        if self.only_on_mismatch && self.is_in_place(&stat) {
            return Ok(());
        }
        if is_kind(&stat, SFlag::S_IFDIR) {
            self.walk(&root, place)?;
        }
        // Last, because a root that is in place vouches for a complete walk.
        spare_read_only(self.change(&root, &stat)).map_err(failed)
    }

    fn walk(&self, root: &OwnedFd, place: &Path) -> Result<(), StorageError> {
        let failed = |source| StorageError::at("change the group of", place)(source);
        let root = root.try_clone().map_err(|e| failed(errno(&e)))?;
        let mut levels = vec![self.enter(root).map_err(failed)?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.below.pop() else {
                levels.pop();
                continue;
            };
            let child = match open_below(&level.dir, &name) {
                // Gone meanwhile, replaced by a link, or another file system.
                Err(Errno::ENOENT | Errno::ELOOP | Errno::EXDEV) => continue,
                other => other.map_err(failed)?,
            };
            if levels.len() >= DEEPEST {
                return Err(StorageError::TooDeep {
                    path: place.to_owned(),
                });
            }
            levels.push(self.enter(child).map_err(failed)?);
        }
        Ok(())
    }

    /// Whether the root of the volume already is what the walk would make of it.
    fn is_in_place(&self, stat: &FileStat) -> bool {
        let wanted = self.mode_bits(stat);
        stat.st_gid == self.gid && stat.st_mode & wanted == wanted
    }

    fn mode_bits(&self, stat: &FileStat) -> u32 {
        let access = if self.read_only { 0o440 } else { 0o660 };
        match is_kind(stat, SFlag::S_IFDIR) {
            true => access | 0o110 | 0o2000,
            false => access,
        }
    }

    /// Changes the files of a directory, and lists the directories in it.
    fn enter(&self, dir: OwnedFd) -> nix::Result<Level> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let listing = nix::fcntl::openat(&dir, ".", flags, Mode::empty())?;
        let mut below = Vec::new();
        for entry in Dir::from_fd(listing)?.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." || entry.file_type() == Some(Type::Symlink) {
                continue;
            }
            let file = match open_below(&dir, name) {
                Err(Errno::ENOENT | Errno::ELOOP | Errno::EXDEV) => continue,
                other => other?,
            };
            let stat = fstat(&file)?;
            if is_kind(&stat, SFlag::S_IFLNK) {
                continue;
            }
            spare_read_only(self.change(&file, &stat))?;
            if is_kind(&stat, SFlag::S_IFDIR) {
                below.push(name.to_owned());
            }
        }
        Ok(Level { dir, below })
    }

    /// Group first: changing it may take mode bits away.
    fn change(&self, file: &OwnedFd, stat: &FileStat) -> nix::Result<()> {
        if stat.st_gid != self.gid {
            let gid = Some(Gid::from_raw(self.gid));
            fchownat(file, c"", None, gid, AtFlags::AT_EMPTY_PATH)?;
        }
        let plain = is_kind(stat, SFlag::S_IFREG) || is_kind(stat, SFlag::S_IFDIR);
        let mode = (stat.st_mode & 0o7777) | self.mode_bits(stat);
        if plain && (mode != stat.st_mode & 0o7777 || stat.st_gid != self.gid) {
            // The descriptor is O_PATH, which fchmod(2) does not take.
            let mode = Mode::from_bits_truncate(mode);
            let path = proc_path(file);
            fchmodat(
                nix::fcntl::AT_FDCWD,
                path.as_str(),
                mode,
                FchmodatFlags::FollowSymlink,
            )?;
        }
        Ok(())
    }
}

fn open_below(dir: &OwnedFd, name: &std::ffi::CStr) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV);
    openat2(dir, name, how)
}

/// A file system that cannot be written stays as it is.
fn spare_read_only(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::EROFS) => Ok(()),
        other => other,
    }
}

fn is_kind(stat: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == kind
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    /// Root may give files to any group; others only to their own.
    fn group() -> u32 {
        match nix::unistd::geteuid().is_root() {
            true => 4711,
            false => nix::unistd::getegid().as_raw(),
        }
    }

    fn fs_group() -> FsGroup {
        FsGroup {
            gid: group(),
            only_on_mismatch: false,
            read_only: false,
        }
    }

    fn volume() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("volume");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), "x").unwrap();
        for path in ["a/b/file", "a/b", "a", ""] {
            fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o700)).unwrap();
        }
        (dir, root)
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn the_whole_volume_goes_to_the_group() {
        let (_dir, root) = volume();
        fs_group().apply(&root).unwrap();
        for path in ["", "a", "a/b"] {
            assert_eq!(mode(&root.join(path)), 0o2770, "{path}");
        }
        assert_eq!(mode(&root.join("a/b/file")), 0o760);
        assert_eq!(root.join("a/b/file").metadata().unwrap().gid(), group());
    }

    #[test]
    fn read_only_volumes_are_made_readable_only() {
        let (_dir, root) = volume();
        let fs_group = FsGroup {
            read_only: true,
            ..fs_group()
        };
        fs_group.apply(&root).unwrap();
        assert_eq!(mode(&root), 0o2750);
        assert_eq!(mode(&root.join("a/b/file")), 0o740);
    }

    #[test]
    fn bug_linked_directories_are_not_walked() {
        let (dir, root) = volume();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "x").unwrap();
        for path in [outside.join("secret"), outside.clone()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
        }
        symlink(&outside, root.join("a/link")).unwrap();
        symlink(outside.join("secret"), root.join("a/file-link")).unwrap();
        symlink("absent", root.join("a/dangling")).unwrap();
        fs_group().apply(&root).unwrap();
        assert_eq!(mode(&outside), 0o700);
        assert_eq!(mode(&outside.join("secret")), 0o700);
    }

    #[test]
    fn a_root_in_place_spares_the_walk() {
        let (_dir, root) = volume();
        let careful = FsGroup {
            only_on_mismatch: true,
            ..fs_group()
        };
        careful.apply(&root).unwrap();
        assert_eq!(mode(&root.join("a/b/file")), 0o760);
        fs::set_permissions(root.join("a/b/file"), fs::Permissions::from_mode(0o700)).unwrap();
        careful.apply(&root).unwrap();
        assert_eq!(mode(&root.join("a/b/file")), 0o700);
    }

    #[test]
    fn a_bottomless_tree_is_refused() {
        let (_dir, root) = volume();
        let mut deep = root.join("a");
        for _ in 0..DEEPEST + 1 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        let error = fs_group().apply(&root).unwrap_err();
        assert!(matches!(error, StorageError::TooDeep { .. }));
    }
}
