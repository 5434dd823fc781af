// SPDX-License-Identifier: Apache-2.0
//! Reaching a path inside a container's root without ever leaving it.
//!
//! `openat2(2)` with `RESOLVE_IN_ROOT` resolves symlinks as if the root
//! directory were `/`, atomically, so that a process which swaps components
//! meanwhile gains nothing. Whoever gets a descriptor here goes on with the
//! descriptor, never with the path.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

const CONFINED: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Opens what `path` (absolute in the container) is, following symlinks inside
/// the root. `flags` get `O_CLOEXEC`.
///
/// # Errors
/// The errno of `openat2(2)`.
pub fn open(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    resolve(root, path, flags, CONFINED)
}

/// The directory `path`, made if it is missing, without any symlink in it.
///
/// # Errors
/// `ELOOP` for a symlink, `ENOTDIR` for anything else that is no directory.
pub fn plain_directory(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let (wanted, how) = (
        OFlags::PATH | OFlags::DIRECTORY,
        CONFINED | ResolveFlags::NO_SYMLINKS,
    );
    match resolve(root, path, wanted, how) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            directory(root, path)?;
            resolve(root, path, wanted, how)
        }
        other => other,
    }
}

fn resolve(
    root: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
    how: ResolveFlags,
) -> io::Result<OwnedFd> {
    let inside = path.trim_start_matches('/');
    let inside = if inside.is_empty() { "." } else { inside };
    // A rename or mount elsewhere in the tree makes the lookup restart; the
    // kernel says EAGAIN when it cannot be sure that no escape happened.
    for _ in 0..64 {
        match openat2(root, inside, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN) => {}
            other => return Ok(other?),
        }
    }
    Err(Errno::AGAIN.into())
}

/// Like [`open`] with `O_PATH`.
///
/// # Errors
/// The errno of `openat2(2)`.
pub fn find(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    open(root, path, OFlags::PATH)
}

/// The directory `path`, with every missing component made (mode 0755).
///
/// # Errors
/// `ENOTDIR` when a component is something else, or the errno of the failing call.
pub fn directory(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let wanted = OFlags::PATH | OFlags::DIRECTORY;
    match open(root, path, wanted) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let mut current = open(root, "/", wanted)?;
    let mut walked = String::new();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        walked.push('/');
        walked.push_str(name);
        // From the root each time: a component may be a symlink to elsewhere in it.
        current = match open(root, &walked, wanted) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match mkdirat(&current, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                open(root, &walked, wanted)?
            }
            other => other?,
        };
    }
    Ok(current)
}

/// The file `path`, made empty if it is missing; an existing one is neither
/// opened for writing nor truncated.
///
/// # Errors
/// The errno of the failing call.
pub fn file(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    match find(root, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let (parent, name) = split(path);
    let parent = directory(root, parent)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
        // A dangling symlink is there: its target would be created elsewhere.
        Ok(_) => find(root, path),
        Err(errno) => Err(errno.into()),
    }
}

/// Parent and last component.
#[must_use]
pub fn split(path: &str) -> (&str, &str) {
    path.trim_end_matches('/')
        .rsplit_once('/')
        .unwrap_or(("", path))
}

/// Opens a path of the guest itself, with `O_PATH`.
///
/// # Errors
/// The errno of `openat(2)`.
pub fn in_guest(path: &str) -> io::Result<OwnedFd> {
    Ok(openat(
        CWD.as_fd(),
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = in_guest(dir.path().to_str().unwrap()).unwrap();
        (dir, fd)
    }

    #[test]
    fn directories_are_made_and_found_again() {
        let (dir, fd) = root();
        directory(fd.as_fd(), "/a/b/c").unwrap();
        directory(fd.as_fd(), "/a/b/c").unwrap();
        assert!(dir.path().join("a/b/c").is_dir());
    }

    #[test]
    fn symlinks_stay_inside() {
        let (dir, fd) = root();
        fs::create_dir(dir.path().join("etc")).unwrap();
        symlink("/etc", dir.path().join("absolute")).unwrap();
        symlink("../../../../../../etc", dir.path().join("relative")).unwrap();
        for link in ["absolute", "relative"] {
            directory(fd.as_fd(), &format!("/{link}/made-by-{link}")).unwrap();
            assert!(
                dir.path()
                    .join("etc")
                    .join(format!("made-by-{link}"))
                    .is_dir()
            );
            assert!(
                !std::path::Path::new("/etc")
                    .join(format!("made-by-{link}"))
                    .exists()
            );
        }
    }

    /// CVE-2019-19921 and CVE-2023-27561.
    #[test]
    fn a_plain_directory_has_no_symlink_in_it() {
        let (dir, fd) = root();
        fs::create_dir_all(dir.path().join("real/below")).unwrap();
        symlink("real", dir.path().join("proc")).unwrap();
        symlink("nowhere", dir.path().join("sys")).unwrap();
        assert!(plain_directory(fd.as_fd(), "/real/below").is_ok());
        for path in ["/proc", "/proc/below", "/sys"] {
            assert!(plain_directory(fd.as_fd(), path).is_err(), "{path}");
        }
        plain_directory(fd.as_fd(), "/made/here").unwrap();
        assert!(dir.path().join("made/here").is_dir());
    }

    #[test]
    fn bug_an_existing_file_is_not_truncated() {
        let (dir, fd) = root();
        fs::write(dir.path().join("hosts"), "content").unwrap();
        file(fd.as_fd(), "/hosts").unwrap();
        assert_eq!(
            fs::read_to_string(dir.path().join("hosts")).unwrap(),
            "content"
        );
        file(fd.as_fd(), "/new/file").unwrap();
        assert!(dir.path().join("new/file").is_file());
    }

    #[test]
    fn a_dangling_symlink_is_not_written_through() {
        let (dir, fd) = root();
        symlink("elsewhere", dir.path().join("link")).unwrap();
        assert!(file(fd.as_fd(), "/link").is_err());
        assert!(!dir.path().join("elsewhere").exists());
    }

    #[test]
    fn a_magic_link_is_refused() {
        let (dir, fd) = root();
        symlink("/proc/self/root", dir.path().join("x")).unwrap();
        assert!(find(fd.as_fd(), "/x/etc/passwd").is_err());
    }

    #[test]
    fn a_swapping_thread_gains_nothing() {
        let (dir, fd) = root();
        fs::create_dir_all(dir.path().join("real/target")).unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("target")).unwrap();
        let (link, stop) = (
            dir.path().join("p"),
            std::sync::atomic::AtomicBool::new(false),
        );
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = fs::remove_file(&link);
                    let _ = symlink(outside.path(), &link);
                    let _ = fs::remove_file(&link);
                    let _ = symlink("real", &link);
                }
            });
            for round in 0..2000 {
                let _ = directory(fd.as_fd(), &format!("/p/target/{round}"));
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(
            fs::read_dir(outside.path().join("target")).unwrap().count(),
            0
        );
    }
}
