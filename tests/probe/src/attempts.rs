// SPDX-License-Identifier: Apache-2.0
//! What a hostile process tries: opening, making nodes, swapping paths under somebody's hands. Reports what became of it.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, major, makedev, minor};
use rustix::fs::{mknodat, open, openat, renameat_with, statat};

use crate::calls::outcome;
use crate::facts::{Error, Facts};

/// Opens a path: `r`, `w`, `rw`, `a` (append), `c` (create), `path`, `directory`. Nothing is read or written.
pub fn try_open(path: &str, mode: &str) -> Result<Facts, Error> {
    let flags = flags_of(mode)?;
    Ok(outcome(
        open(path, flags, Mode::from_raw_mode(0o600)).map(|_| "opened"),
    ))
}

/// Opens a path without rights, and that descriptor again by its name in `/proc`.
pub fn reopen(path: &str, mode: &str) -> Result<Facts, Error> {
    let flags = flags_of(mode)?;
    let first = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let second = first.and_then(|first| {
        let number = std::os::fd::AsRawFd::as_raw_fd(&first);
        openat(CWD, format!("/proc/self/fd/{number}"), flags, Mode::empty())
    });
    Ok(outcome(second.map(|_| "opened")))
}

fn flags_of(mode: &str) -> Result<OFlags, Error> {
    Ok(OFlags::CLOEXEC
        | match mode {
            "r" => OFlags::RDONLY,
            "w" => OFlags::WRONLY,
            "rw" => OFlags::RDWR,
            "a" => OFlags::WRONLY | OFlags::APPEND,
            "c" => OFlags::WRONLY | OFlags::CREATE,
            "path" => OFlags::PATH,
            "directory" => OFlags::DIRECTORY,
            other => return Err(format!("{other:?} is no mode to open in")),
        })
}

/// Makes a device node (`c` or `b`).
pub fn mknod(args: &[String]) -> Result<Facts, Error> {
    let kind = match args[1].as_str() {
        "c" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        other => return Err(format!("{other:?} is no kind of device")),
    };
    let number = |text: &str| -> Result<u32, Error> {
        text.parse()
            .map_err(|_| format!("{text:?} is no device number"))
    };
    let device = makedev(number(&args[2])?, number(&args[3])?);
    let mode = Mode::from_raw_mode(0o666);
    Ok(outcome(
        mknodat(CWD, args[0].as_str(), kind, mode, device).map(|()| "made"),
    ))
}

/// Exchanges two paths as fast as it can, for so many seconds. `swapping=1` is told at once, the number of swaps at the end.
pub fn swap(a: &str, b: &str, seconds: &str) -> Result<Facts, Error> {
    let seconds = crate::load::number(seconds)?;
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).map_err(|e| format!("swap {a}: {e}"))?;
    println!("swapping=1");
    let _ = std::io::stdout().flush();
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut facts = Facts::default();
    let mut count = 1u64;
    while Instant::now() < end {
        // Half of the time each, and never for long: whoever looks twice sees both.
        renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)
            .map_err(|e| format!("swap {a}: {e}"))?;
        count += 1;
    }
    facts.add("swaps", count);
    Ok(facts)
}

/// Every block device of the guest that sysfs tells of: tries to make a node for it below a directory, and to open that.
pub fn disks(directory: &str) -> Result<Facts, Error> {
    let mut facts = Facts::default();
    let entries = std::fs::read_dir("/sys/class/block").map_err(|e| format!("sysfs: {e}"))?;
    let mut names: Vec<_> = entries
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    facts.add("disks", crate::facts::list(&names));
    for name in names {
        let numbers = crate::facts::content(&format!("/sys/class/block/{name}/dev"));
        let Some((major, minor)) = numbers
            .ok()
            .and_then(|n| n.split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned())))
        else {
            continue;
        };
        let path = format!("{directory}/{name}");
        let made = mknod(&[path.clone(), "b".to_owned(), major, minor])?;
        facts.append(made.prefixed(&format!("mknod:{name}:")));
        for mode in ["r", "w"] {
            let opened = try_open(&path, mode)?;
            facts.append(opened.prefixed(&format!("open-{mode}:{name}:")));
        }
    }
    Ok(facts)
}

/// Enters the own mount namespace anew, which leads to its very root, lists what is there, takes that away, and so on: `root` is all
/// that was ever seen, `depth` how often something was taken away.
pub fn dig(times: &str) -> Result<Facts, Error> {
    let times = crate::load::number(times)?;
    let namespace = std::fs::File::open("/proc/self/ns/mnt").map_err(|e| format!("ns/mnt: {e}"))?;
    let enter = || {
        let kind = rustix::thread::LinkNameSpaceType::Mount;
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind))
    };
    let mut facts = outcome(enter().map(|()| "entered"));
    let (mut names, mut depth) = (Vec::new(), 0);
    loop {
        let entries = std::fs::read_dir("/").into_iter().flatten().flatten();
        names.extend(entries.map(|e| e.file_name().to_string_lossy().into_owned()));
        if depth == times || crate::calls::detach("/").and_then(|_| enter()).is_err() {
            break;
        }
        depth += 1;
    }
    names.sort();
    names.dedup();
    facts.add("depth", depth);
    facts.add("root", crate::facts::list(names));
    Ok(facts)
}

/// What is at a path, links not followed: for whoever wants to know if something was put there.
pub fn lstat(path: &str) -> Result<Facts, Error> {
    let stat = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
    Ok(outcome(stat.map(|stat| {
        format!(
            "{:o} {}:{}",
            stat.st_mode,
            major(stat.st_rdev),
            minor(stat.st_rdev)
        )
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_answers_or_fails() {
        let result = |path, mode| try_open(path, mode).unwrap();
        assert_eq!(result("Cargo.toml", "r").get("result"), Some("opened"));
        assert_eq!(result("/no/such", "r").get("errno"), Some("ENOENT"));
        assert_eq!(result("src", "w").get("errno"), Some("EISDIR"));
        assert_eq!(
            result("Cargo.toml", "directory").get("errno"),
            Some("ENOTDIR")
        );
        let again = reopen("Cargo.toml", "r").unwrap();
        assert_eq!(again.get("result"), Some("opened"));
        assert!(try_open("Cargo.toml", "x").is_err());
    }

    #[test]
    fn paths_are_swapped() {
        let dir = std::env::temp_dir().join(format!("probe-swap-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("a")).unwrap();
        std::os::unix::fs::symlink("/", dir.join("b")).unwrap();
        let path = |name| dir.join(name).to_str().unwrap().to_owned();
        let facts = swap(&path("a"), &path("b"), "0").unwrap();
        assert_eq!(facts.get("swaps"), Some("1"));
        assert!(dir.join("a").is_symlink() && !dir.join("b").is_symlink());
        let stat = lstat(&path("a")).unwrap();
        assert!(stat.get("result").unwrap().starts_with("120777 "));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn nonsense_is_no_device() {
        let args = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(mknod(&args("/x q 1 3")).is_err());
        assert!(mknod(&args("/x c one 3")).is_err());
        let there = mknod(&args("/proc/x c 1 3")).unwrap();
        assert!(there.get("errno").is_some());
    }
}
