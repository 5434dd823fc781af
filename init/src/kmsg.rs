// SPDX-License-Identifier: Apache-2.0
//! Lines for the kernel's log, where they are kept until the host listens.
//!
//! Owns the one descriptor of `/dev/kmsg`, the level prefix and the length
//! limit. It never fails and never waits: a line that cannot be written is
//! lost, because there is nobody left to tell.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::OFlag;

/// What the kernel takes at most per line, prefix included and the line's end
/// not: kernels refuse a longer one with EINVAL (`LOG_LINE_MAX`, 1024 less the
/// widest prefix).
pub const MAX_LINE: usize = 975;

/// Who speaks, between the level and the text.
const NAME: &[u8] = b"keelson: ";

/// Bytes of the level in front of a line, `<3>`.
const PREFIX: usize = 3;

/// The kernel forgives ten lines in five seconds per descriptor, then drops
/// (`printk.devkmsg=ratelimit`). Shortly before, the limit is lifted.
const UNLIMITED_AFTER: u32 = 8;

/// Severity of a line, numbered as in syslog(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Level {
    /// What was asked did not happen.
    Error = 3,
    /// Odd, going on.
    Warning = 4,
    /// A rare event in the life of the VM.
    Info = 6,
    /// For developers.
    Debug = 7,
}

impl From<log::Level> for Level {
    fn from(level: log::Level) -> Self {
        match level {
            log::Level::Error => Self::Error,
            log::Level::Warn => Self::Warning,
            log::Level::Info => Self::Info,
            log::Level::Debug | log::Level::Trace => Self::Debug,
        }
    }
}

/// Writes one line to the kernel's log. Until `/dev/kmsg` can be opened, lines
/// go to standard error, which the kernel connects with the console.
pub fn write(level: Level, text: &str) {
    static LINES: AtomicU32 = AtomicU32::new(0);
    let mut buffer = [0; MAX_LINE];
    let line = compose(&mut buffer, level, text);
    // A failure has nowhere to go.
    match kmsg() {
        Some(mut file) => {
            if LINES.fetch_add(1, Ordering::Relaxed) == UNLIMITED_AFTER {
                lift_rate_limit();
            }
            // Without its end the kernel keeps the record open, and shows it only
            // when the next one comes.
            let _ = file.write_vectored(&[IoSlice::new(line), IoSlice::new(b"\n")]);
        }
        None => {
            let _ = io::stderr().write_all(&line[PREFIX..]);
            let _ = io::stderr().write_all(b"\n");
        }
    }
}

/// Puts prefix and text into the buffer, cut at its end but never inside a
/// character.
fn compose<'a>(buffer: &'a mut [u8; MAX_LINE], level: Level, text: &str) -> &'a [u8] {
    let start = PREFIX + NAME.len();
    let length = text.floor_char_boundary(MAX_LINE - start);
    buffer[..PREFIX].copy_from_slice(&[b'<', b'0' + level as u8, b'>']);
    buffer[PREFIX..start].copy_from_slice(NAME);
    buffer[start..start + length].copy_from_slice(&text.as_bytes()[..length]);
    &buffer[..start + length]
}

/// The descriptor, opened when the first line is written after `/dev` is there.
fn kmsg() -> Option<&'static File> {
    static KMSG: OnceLock<File> = OnceLock::new();
    if let Some(file) = KMSG.get() {
        return Some(file);
    }
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let opened = OpenOptions::new()
        .write(true)
        .custom_flags(flags.bits())
        .open("/dev/kmsg")
        .ok()?;
    Some(KMSG.get_or_init(|| opened))
}

/// Lets all our lines through. Only as PID 1: elsewhere the kernel is not ours.
fn lift_rate_limit() {
    if nix::unistd::getpid().as_raw() == 1 {
        // Refused when the command line fixed the mode; then that is wanted.
        let _ = fs::write("/proc/sys/kernel/printk_devkmsg", "on\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: Level, text: &str) -> Vec<u8> {
        compose(&mut [0; MAX_LINE], level, text).to_vec()
    }

    #[test]
    fn prefix_carries_the_level() {
        assert_eq!(line(Level::Error, "x"), b"<3>keelson: x");
        assert_eq!(line(log::Level::Trace.into(), ""), b"<7>keelson: ");
    }

    #[test]
    fn long_lines_are_cut_on_a_character_boundary() {
        let cut = line(Level::Info, &"é".repeat(1000));
        assert!(cut.len() <= MAX_LINE && cut.len() > MAX_LINE - 2);
        assert!(std::str::from_utf8(&cut).is_ok());
        assert_eq!(line(Level::Info, &"x".repeat(5000)).len(), MAX_LINE);
    }

    #[test]
    fn writing_never_fails() {
        write(Level::Debug, "");
        write(Level::Debug, &"long ".repeat(1000));
    }
}
