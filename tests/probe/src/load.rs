// SPDX-License-Identifier: Apache-2.0
//! Work that runs into limits: memory, processor, processes, file writes, descriptors. Reports how far it came.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use rustix::time::{ClockId, clock_gettime};

use crate::calls::errno_name;
use crate::facts::{Error, Facts};

/// Bytes written at once; direct writes need them to begin at a block's address.
const PIECE: usize = 64 << 10;
const BLOCK: usize = 4096;

/// A number of an argument.
pub fn number(text: &str) -> Result<u64, Error> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

/// Says what is known so far and waits until standard input ends.
fn hold(facts: &Facts) {
    print!("{}", facts.text());
    let _ = std::io::stdout().flush();
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Whether the story wants the thing held until its standard input ends.
fn is_held(args: &[String], at: usize) -> Result<bool, Error> {
    match args.get(at).map(String::as_str) {
        None => Ok(false),
        Some("hold") => Ok(true),
        Some(other) => Err(format!("{other:?} is not \"hold\"")),
    }
}

fn told(facts: Facts, held: bool) -> Facts {
    if held {
        hold(&facts);
        return Facts::default();
    }
    facts
}

/// Uses so many MiB, every page of them.
pub fn eat_memory(args: &[String]) -> Result<Facts, Error> {
    let (mib, held) = (number(&args[0])?, is_held(args, 1)?);
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    for _ in 0..mib {
        eaten.push(std::hint::black_box(vec![1; 1 << 20]));
    }
    let mut facts = Facts::default();
    facts.add("eaten", eaten.len());
    let facts = told(facts, held);
    drop(std::hint::black_box(eaten));
    Ok(facts)
}

/// Keeps one processor busy for so many seconds of wall time; says how much of it was had.
pub fn spin(seconds: &str) -> Result<Facts, Error> {
    let start = Instant::now();
    let wanted = Duration::from_secs(number(seconds)?);
    while start.elapsed() < wanted {
        std::hint::spin_loop();
    }
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let mut facts = Facts::default();
    facts.add("wall_us", start.elapsed().as_micros());
    facts.add("cpu_us", used.tv_sec * 1_000_000 + used.tv_nsec / 1000);
    Ok(facts)
}

/// Makes so many children that do nothing; ends them again.
pub fn fork(args: &[String]) -> Result<Facts, Error> {
    let (wanted, held) = (number(&args[0])?, is_held(args, 1)?);
    let mut children = Vec::new();
    let mut facts = Facts::default();
    for _ in 0..wanted {
        match idle_child() {
            Ok(pid) => children.push(pid),
            Err(errno) => {
                facts.add("errno", errno_name(errno.raw_os_error()));
                break;
            }
        }
    }
    facts.add("forked", children.len());
    let facts = told(facts, held);
    for pid in children {
        let _ = kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), WaitOptions::empty());
    }
    Ok(facts)
}

#[allow(unsafe_code)]
fn idle_child() -> Result<Pid, Errno> {
    // SAFETY: this program has one thread, and the child does nothing but wait for a signal.
    match unsafe { libc::fork() } {
        0 => loop {
            std::thread::sleep(Duration::from_secs(1000));
        },
        pid => Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(|| {
            let error = std::io::Error::last_os_error();
            Errno::from_raw_os_error(error.raw_os_error().unwrap_or(0))
        }),
    }
}

/// Writes so many bytes to a file: through the cache, or past it (`direct`). Stops at the first error and tells it.
pub fn write(args: &[String]) -> Result<Facts, Error> {
    let bytes = number(&args[1])?;
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    match args.get(2).map(String::as_str) {
        None => {}
        Some("direct") => {
            options.custom_flags(libc::O_DIRECT);
        }
        Some(other) => return Err(format!("{other:?} is not \"direct\"")),
    }
    let start = Instant::now();
    let mut facts = Facts::default();
    let written = options.open(&args[0]).and_then(|file| {
        let mut written = 0;
        let ended = fill(&file, bytes, &mut written).and_then(|()| file.sync_all());
        facts.add("written", written);
        ended
    });
    if let Err(error) = written {
        facts.add("errno", errno_name(error.raw_os_error().unwrap_or(0)));
    }
    facts.add("wall_us", start.elapsed().as_micros());
    Ok(facts)
}

fn fill(mut file: &File, bytes: u64, written: &mut u64) -> std::io::Result<()> {
    let room = vec![0u8; PIECE + BLOCK];
    let start = room.as_ptr().align_offset(BLOCK);
    while *written < bytes {
        let piece = PIECE.min(usize::try_from(bytes - *written).unwrap_or(PIECE));
        *written += file.write(&room[start..start + piece])? as u64;
    }
    Ok(())
}

/// Opens a path for reading and holds the descriptor until standard input ends.
pub fn hold_fd(path: &str) -> Result<Facts, Error> {
    let file = File::open(path).map_err(|error| format!("open {path}: {error}"))?;
    let mut facts = Facts::default();
    facts.add("fd", file.as_raw_fd());
    hold(&facts);
    Ok(Facts::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn memory_and_time_are_used() {
        assert_eq!(eat_memory(&words("3")).unwrap().get("eaten"), Some("3"));
        let facts = spin("0").unwrap();
        assert!(facts.get("cpu_us").is_some() && facts.get("wall_us").is_some());
        assert!(eat_memory(&words("many")).is_err());
        assert!(eat_memory(&words("1 x")).is_err());
    }

    #[test]
    fn bytes_are_written_and_errors_told() {
        let path = std::env::temp_dir().join(format!("probe-write-{}", std::process::id()));
        let facts = write(&[path.to_str().unwrap().to_owned(), "100000".to_owned()]).unwrap();
        assert_eq!(facts.get("written"), Some("100000"));
        assert_eq!(facts.get("errno"), None);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 100_000);
        std::fs::remove_file(path).unwrap();
        assert_eq!(
            write(&words("/dev/full 1")).unwrap().get("errno"),
            Some("ENOSPC")
        );
        assert_eq!(
            write(&words("/no/such 1")).unwrap().get("errno"),
            Some("ENOENT")
        );
    }
}
