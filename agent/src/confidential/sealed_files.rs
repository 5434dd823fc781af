// SPDX-License-Identifier: Apache-2.0
//! Sealed files of one directory, as Kubernetes lays secrets out: `secret` is a
//! link to `..data/secret`, `..data` one to a directory with the date as its
//! name. Everything is reached by descriptors from the directory and stays
//! below it. Never talks to the hub.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fchmod, fchown, fstat, fstatfs,
    openat, openat2, renameat, statat, symlinkat, unlinkat,
};

use super::hub::LARGEST_SECRET;
use super::secrets::PREFIX;

/// How many entries of a directory are looked at, and how many of them may be
/// sealed: a Kubernetes secret is at most 1 MiB in all.
const MOST_ENTRIES: usize = 4096;
const MOST_SEALED: usize = 256;

/// The most that a sealed secret may be: envelope and encoding add to it.
const LARGEST_SEALED: u64 = 2 * LARGEST_SECRET as u64;

/// File systems that the host holds (statfs(2)): what is written there, it reads.
const HOST_FILE_SYSTEMS: [u64; 2] = [0x6573_5546, 0x0102_1997];

/// Where files of a listing may lead.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// A directory, and what is sealed in it.
pub(super) struct Found {
    pub dir: OwnedFd,
    pub files: Vec<SealedFile>,
}

/// One entry that leads to a sealed file.
#[derive(Debug)]
pub(super) struct SealedFile {
    /// Its name in the directory.
    entry: PathBuf,
    /// The file itself, below the directory, without links.
    target: PathBuf,
    /// As sealed.
    pub content: Vec<u8>,
    stat: (u64, u64),
}

impl fmt::Display for SealedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.entry.display().fmt(f)
    }
}

/// Looks for sealed files directly in `source`, which lies below `root`. A
/// source that is no directory has none. Blocks.
///
/// # Errors
/// Of the directory itself, and [`io::ErrorKind::QuotaExceeded`] for more than
/// could be secrets; an entry that cannot be read is no secret.
pub(super) fn find(root: &Path, source: &Path) -> io::Result<Found> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let below = source.strip_prefix(root).map_err(io::Error::other)?;
    let root = openat(CWD, root, flags, Mode::empty())?;
    let how = BENEATH | ResolveFlags::NO_SYMLINKS;
    let path = OFlags::PATH | OFlags::CLOEXEC;
    let dir = openat2(&root, or_dot(below), path, Mode::empty(), how)?;
    let listing = match openat(&dir, ".", flags, Mode::empty()) {
        Err(rustix::io::Errno::NOTDIR) => {
            return Ok(Found {
                dir,
                files: Vec::new(),
            });
        }
        other => Dir::new(other?)?,
    };
    let mut files = Vec::new();
    for (number, entry) in listing.enumerate() {
        let entry = entry?;
        if number >= MOST_ENTRIES || files.len() >= MOST_SEALED {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let name = Path::new(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()));
        // File systems that do not tell the kind in the listing have it looked up.
        let may_be = [FileType::Symlink, FileType::RegularFile, FileType::Unknown];
        if may_be.contains(&entry.file_type())
            && let Ok(Some(file)) = SealedFile::open(&dir, name)
        {
            files.push(file);
        }
    }
    Ok(Found { dir, files })
}

impl SealedFile {
    fn open(dir: &OwnedFd, name: &Path) -> io::Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        // Opening a device or a pipe could have effects: looked at first.
        let path = openat2(
            dir,
            name,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            BENEATH,
        )?;
        if FileType::from_raw_mode(fstat(&path)?.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        let file = openat2(dir, name, flags, Mode::empty(), BENEATH)?;
        let stat = fstat(&file)?;
        let target = path_of(&file)?
            .strip_prefix(path_of(dir)?)
            .map(Path::to_owned);
        let mut content = vec![0; PREFIX.len()];
        let mut file = File::from(file);
        if file.read_exact(&mut content).is_err() || content != PREFIX.as_bytes() {
            return Ok(None);
        }
        file.take(LARGEST_SEALED).read_to_end(&mut content)?;
        Ok(Some(Self {
            entry: name.to_owned(),
            target: target.map_err(io::Error::other)?,
            content,
            stat: (stat.st_dev, stat.st_ino),
        }))
    }

    /// Writes the secret in the clear beside the sealed file, with owner and
    /// mode of that, and leads the entry there. Blocks.
    ///
    /// # Errors
    /// Of the failing call, [`io::ErrorKind::StaleNetworkFileHandle`] when the
    /// sealed file is not there any more, and
    /// [`io::ErrorKind::PermissionDenied`] when the host could read it.
    pub(super) fn replace(&self, dir: &OwnedFd, open: &[u8]) -> io::Result<()> {
        let parent = self.target.parent().unwrap_or(Path::new(""));
        let name = self.target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let how = BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = openat2(dir, or_dot(parent), flags, Mode::empty(), how)?;
        let stat = statat(&place, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if (stat.st_dev, stat.st_ino) != self.stat {
            return Err(io::ErrorKind::StaleNetworkFileHandle.into());
        }
        if HOST_FILE_SYSTEMS.contains(&(fstatfs(&place)?.f_type as u64)) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let unsealed = suffixed(Path::new(name), ".unsealed");
        write(&place, &unsealed, open, &stat)?;
        let link = suffixed(&self.entry, ".unsealed-link");
        discard(dir, &link)?;
        symlinkat(parent.join(&unsealed), dir, &link)?;
        // Whoever reads the entry meanwhile sees the one or the other.
        Ok(renameat(dir, &link, dir, &self.entry)?)
    }
}

fn write(place: &OwnedFd, name: &Path, bytes: &[u8], like: &Stat) -> io::Result<()> {
    let draft = suffixed(name, "-new");
    discard(place, &draft)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(place, &draft, flags, Mode::RUSR | Mode::WUSR)?;
    let (uid, gid) = (
        rustix::fs::Uid::from_raw(like.st_uid),
        rustix::fs::Gid::from_raw(like.st_gid),
    );
    let written = File::from(file.try_clone()?).write_all(bytes);
    let owned = written.and_then(|()| Ok(fchown(&file, Some(uid), Some(gid))?));
    let done = owned
        .and_then(|()| Ok(fchmod(&file, Mode::from_raw_mode(like.st_mode & 0o777))?))
        .and_then(|()| Ok(renameat(place, &draft, place, name)?));
    done.inspect_err(|_| drop(discard(place, &draft)))
}

/// Removes what an attempt that failed has left.
fn discard(dir: &OwnedFd, name: &Path) -> io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

fn path_of(fd: &impl AsFd) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

fn suffixed(name: &Path, suffix: &str) -> PathBuf {
    let mut name = name.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn or_dot(path: &Path) -> &Path {
    match path.as_os_str().is_empty() {
        true => Path::new("."),
        false => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    struct Volume(tempfile::TempDir);

    impl Volume {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("root/vol/..2024_09")).unwrap();
            symlink("..2024_09", dir.path().join("root/vol/..data")).unwrap();
            Self(dir)
        }

        fn root(&self) -> PathBuf {
            self.0.path().join("root")
        }

        fn path(&self, name: &str) -> PathBuf {
            self.root().join("vol").join(name)
        }

        fn names(&self) -> Vec<String> {
            let found = find(&self.root(), &self.path("")).unwrap();
            let mut names: Vec<_> = found.files.iter().map(ToString::to_string).collect();
            names.sort();
            names
        }

        fn unseal_all(&self) {
            let found = find(&self.root(), &self.path("")).unwrap();
            for file in found.files {
                file.replace(&found.dir, b"open").unwrap();
            }
        }
    }

    #[test]
    fn entries_lead_to_the_unsealed_file_beside_the_sealed_one() {
        let v = Volume::new();
        fs::write(v.path("..2024_09/secret"), "sealed.abc").unwrap();
        let mode = fs::Permissions::from_mode(0o440);
        fs::set_permissions(v.path("..2024_09/secret"), mode).unwrap();
        symlink("..data/secret", v.path("secret")).unwrap();
        assert_eq!(v.names(), ["secret"]);
        v.unseal_all();
        assert_eq!(fs::read(v.path("secret")).unwrap(), b"open");
        let link = fs::read_link(v.path("secret")).unwrap();
        assert_eq!(link, Path::new("..2024_09/secret.unsealed"));
        assert_eq!(fs::read(v.path("..2024_09/secret")).unwrap(), b"sealed.abc");
        let mode = fs::metadata(v.path("secret")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o440);
        // A second container with the same volume finds it done.
        assert!(v.names().is_empty());
        assert_eq!(fs::read_dir(v.path("..2024_09")).unwrap().count(), 2);
    }

    /// The reference's link names the directory itself once more, and leads nowhere.
    #[test]
    fn bug_a_file_without_a_link_is_unsealed_too() {
        let v = Volume::new();
        fs::write(v.path("plain"), "sealed.abc").unwrap();
        v.unseal_all();
        assert_eq!(fs::read(v.path("plain")).unwrap(), b"open");
        // The sealed file was the entry; the secret lies beside it.
        assert_eq!(
            fs::read_link(v.path("plain")).unwrap(),
            Path::new("plain.unsealed")
        );
    }

    #[test]
    fn what_leads_out_or_is_no_file_is_left_alone() {
        let v = Volume::new();
        fs::write(v.0.path().join("outside"), "sealed.abc").unwrap();
        symlink("../../outside", v.path("relative")).unwrap();
        symlink(v.0.path().join("outside"), v.path("absolute")).unwrap();
        symlink("/proc/self/environ", v.path("magic")).unwrap();
        symlink("loop", v.path("loop")).unwrap();
        fs::write(v.path("short"), "seal").unwrap();
        fs::write(v.path("open"), "unsealed.").unwrap();
        nix::unistd::mkfifo(&v.path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(v.names().is_empty());
        assert!(find(&v.root(), &v.0.path().join("elsewhere")).is_err());
        // A single file is mounted as it is.
        let found = find(&v.root(), &v.path("open")).unwrap();
        assert!(found.files.is_empty());
        symlink("vol", v.root().join("link")).unwrap();
        assert!(find(&v.root(), &v.root().join("link")).map_or(true, |f| f.files.is_empty()));
    }

    #[test]
    fn a_file_that_was_swapped_meanwhile_is_not_unsealed() {
        let v = Volume::new();
        fs::write(v.path("secret"), "sealed.abc").unwrap();
        let found = find(&v.root(), &v.path("")).unwrap();
        fs::write(v.path("other"), "sealed.def").unwrap();
        fs::rename(v.path("other"), v.path("secret")).unwrap();
        assert!(found.files[0].replace(&found.dir, b"open").is_err());
        assert!(!v.path("secret.unsealed").exists());
    }

    #[test]
    fn a_crowd_of_secrets_is_refused() {
        let v = Volume::new();
        for number in 0..=MOST_SEALED {
            fs::write(v.path(&number.to_string()), "sealed.").unwrap();
        }
        let error = find(&v.root(), &v.path("")).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
    }
}
