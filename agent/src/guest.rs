// SPDX-License-Identifier: Apache-2.0
//! Facts and settings of the guest as a whole (protocol 3.1): memory blocks,
//! entropy, the clock. Never onlines anything.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

const MEMORY: &str = "/sys/devices/system/memory";
const RANDOM: &str = "/dev/random";

/// Clocks that are not the guest's.
const PTP: &str = "/sys/class/ptp";

/// What the kernel calls the one through which KVM shows the host's.
const HOST_CLOCK: &str = "KVM virtual PTP";

/// The kernel's pool holds less than this; a seed is never longer.
const MOST_ENTROPY: usize = 1 << 20;

/// What can go wrong with the guest's settings.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The kernel says something else than a number.
    #[error("Invalid block size {text:?}")]
    BlockSize {
        /// What it says.
        text: String,
    },
    /// A file of the guest could not be used.
    #[error("Failed to use {path}")]
    File {
        /// The file.
        path: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A seed without bytes, or with too many.
    #[error("{reason}")]
    Entropy {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The kernel did not take the seed.
    #[error("Failed to {step} the random device")]
    Random {
        /// `credit` or `reseed`.
        step: &'static str,
        /// The kernel's reason.
        source: Errno,
    },
    /// A time that is none.
    #[error("Time {sec} s {usec} us is out of range")]
    Time {
        /// Seconds since the epoch.
        sec: i64,
        /// Microseconds.
        usec: i64,
    },
    /// The kernel did not set the clock.
    #[error("Failed to set the clock")]
    Clock {
        /// The kernel's reason.
        source: Errno,
    },
}

impl GuestError {
    /// Whether the request is to blame rather than the guest.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Entropy { .. } | Self::Time { .. })
    }
}

/// The size in bytes of the blocks memory is plugged in; 0 when the kernel has
/// no memory hot-plug.
///
/// # Errors
/// [`GuestError::BlockSize`], [`GuestError::File`].
pub fn memory_block_size() -> Result<u64, GuestError> {
    memory_block_size_at(Path::new(MEMORY))
}

fn memory_block_size_at(memory: &Path) -> Result<u64, GuestError> {
    let path = memory.join("block_size_bytes");
    let text = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other.map_err(file_error(&path))?,
    };
    let text = text.trim();
    // Hexadecimal without a prefix; a sign, which the parser would take, is none.
    let digits = text.bytes().all(|b| b.is_ascii_hexdigit());
    let size = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten();
    size.ok_or_else(|| GuestError::BlockSize { text: text.into() })
}

/// Whether the kernel can be told about memory that it does not notice itself.
///
/// # Errors
/// [`GuestError::File`] when that cannot be found out.
pub fn has_memory_probe() -> Result<bool, GuestError> {
    has_memory_probe_at(Path::new(MEMORY))
}

fn has_memory_probe_at(memory: &Path) -> Result<bool, GuestError> {
    let path = memory.join("probe");
    path.try_exists().map_err(file_error(&path))
}

/// Mixes bytes from the host into the random pool, counts them as entropy, and
/// has the generator start from them at once: what a VM that was cloned from
/// another needs before it makes any key.
///
/// # Errors
/// [`GuestError::Entropy`] for bad input, else [`GuestError::File`] and
/// [`GuestError::Random`].
pub fn reseed_random(seed: &[u8]) -> Result<(), GuestError> {
    if seed.is_empty() {
        let reason = "missing entropy data";
        return Err(GuestError::Entropy { reason });
    }
    if seed.len() > MOST_ENTROPY {
        let reason = "Too much entropy data";
        return Err(GuestError::Entropy { reason });
    }
    let path = Path::new(RANDOM);
    let device = File::options().write(true).open(path);
    let mut device = device.map_err(file_error(path))?;
    device.write_all(seed).map_err(file_error(path))?;
    let failed = |step| move |source| GuestError::Random { step, source };
    random::credit(&device, entropy_bits(seed)).map_err(failed("credit"))?;
    random::reseed(&device).map_err(failed("reseed"))
}

/// The kernel counts in bits (random(4)).
fn entropy_bits(seed: &[u8]) -> i32 {
    i32::try_from(seed.len().saturating_mul(8)).unwrap_or(i32::MAX)
}

/// Sets the wall clock.
///
/// # Errors
/// [`GuestError::Time`] for a time the kernel cannot have, else
/// [`GuestError::Clock`].
pub fn set_date_time(sec: i64, usec: i64) -> Result<(), GuestError> {
    let time = time_spec(sec, usec)?;
    match clock_settime(ClockId::CLOCK_REALTIME, time) {
        // Beyond the years the kernel can count.
        Err(Errno::EINVAL) => Err(GuestError::Time { sec, usec }),
        other => other.map_err(|source| GuestError::Clock { source }),
    }
}

fn time_spec(sec: i64, usec: i64) -> Result<TimeSpec, GuestError> {
    if sec < 0 || !(0..1_000_000).contains(&usec) {
        return Err(GuestError::Time { sec, usec });
    }
    Ok(TimeSpec::new(sec, usec * 1000))
}

/// Sets the wall clock by the host's where KVM shows it: for a VM that goes on
/// after a pause of unknown length. There is nobody to tell of a failure.
pub fn follow_host_clock() {
    let Some(clock) = host_clock_at(Path::new(PTP)) else {
        return log::debug!("The guest goes on from a saved one; the host's clock cannot be seen");
    };
    let device = Path::new("/dev").join(clock);
    let step = || -> Result<(), Box<dyn std::error::Error>> {
        let clock = File::open(&device)?;
        // clock_gettime(2): dynamic clocks, FD_TO_CLOCKID.
        let id = ClockId::from_raw((!clock.as_raw_fd()) << 3 | 3);
        Ok(clock_settime(ClockId::CLOCK_REALTIME, clock_gettime(id)?)?)
    };
    match step() {
        Ok(()) => log::info!("The clock was set by the host's"),
        Err(error) => log::warn!("The clock is not set by {}: {error}", device.display()),
    }
}

/// The name of the host's clock among the clocks.
fn host_clock_at(clocks: &Path) -> Option<PathBuf> {
    let mut entries = std::fs::read_dir(clocks).ok()?.flatten();
    let found = entries.find(|entry| {
        let name = std::fs::read_to_string(entry.path().join("clock_name"));
        name.is_ok_and(|name| name.trim_end() == HOST_CLOCK)
    })?;
    Some(found.file_name().into())
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> GuestError {
    let path = path.display().to_string();
    move |source| GuestError::File { path, source }
}

/// The two ioctls of random(4).
mod random {
    #![allow(unsafe_code)]

    use std::fs::File;
    use std::os::fd::AsRawFd;

    mod raw {
        nix::ioctl_write_ptr!(add_to_entropy_count, b'R', 0x01, nix::libc::c_int);
        nix::ioctl_none!(reseed_crng, b'R', 0x07);
    }

    /// Counts bits already written as entropy.
    pub(super) fn credit(device: &File, bits: i32) -> nix::Result<()> {
        // SAFETY: the pointer is to a live integer, which the kernel only reads.
        unsafe { raw::add_to_entropy_count(device.as_raw_fd(), &bits) }.map(drop)
    }

    /// Has the generator take its key from the pool now.
    pub(super) fn reseed(device: &File) -> nix::Result<()> {
        // SAFETY: the request takes no argument.
        unsafe { raw::reseed_crng(device.as_raw_fd()) }.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn block_sizes_are_hexadecimal() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("block_size_bytes");
        assert_eq!(memory_block_size_at(dir.path()).unwrap(), 0);
        fs::write(&file, "8000000\n").unwrap();
        assert_eq!(memory_block_size_at(dir.path()).unwrap(), 128 << 20);
        for bad in ["", "\n", "0x80", "+8", "-8", "fffffffffffffffff"] {
            fs::write(&file, bad).unwrap();
            let error = memory_block_size_at(dir.path()).unwrap_err();
            assert!(matches!(error, GuestError::BlockSize { .. }), "{bad:?}");
        }
    }

    #[test]
    fn probing_needs_its_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!has_memory_probe_at(dir.path()).unwrap());
        fs::write(dir.path().join("probe"), "").unwrap();
        assert!(has_memory_probe_at(dir.path()).unwrap());
    }

    #[test]
    fn only_the_hosts_clock_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(host_clock_at(&dir.path().join("absent")), None);
        for (clock, name) in [("ptp0", "ptp_card"), ("ptp1", HOST_CLOCK)] {
            std::fs::create_dir(dir.path().join(clock)).unwrap();
            assert_eq!(host_clock_at(dir.path()), None);
            std::fs::write(
                dir.path().join(clock).join("clock_name"),
                format!("{name}\n"),
            )
            .unwrap();
        }
        assert_eq!(host_clock_at(dir.path()), Some("ptp1".into()));
    }

    #[test]
    fn bug_entropy_is_counted_in_bits() {
        assert_eq!(entropy_bits(&[0; 512]), 4096);
        assert_eq!(entropy_bits(&[0; MOST_ENTROPY]), 8 << 20);
    }

    #[test]
    fn seeds_have_a_size() {
        let error = reseed_random(&[]).unwrap_err();
        assert!(error.is_bad_input());
        assert_eq!(error.to_string(), "missing entropy data");
        assert!(
            reseed_random(&vec![0; MOST_ENTROPY + 1])
                .unwrap_err()
                .is_bad_input()
        );
    }

    #[test]
    fn the_kernel_takes_a_seed() {
        match reseed_random(&[42; 64]) {
            Ok(()) => {}
            Err(error) => {
                // The requests are known even where they are not allowed.
                let GuestError::Random { source, .. } = error else {
                    panic!("{error}");
                };
                assert_eq!(source, Errno::EPERM);
                eprintln!("SKIPPED: counting entropy needs CAP_SYS_ADMIN");
            }
        }
    }

    #[test]
    fn times_out_of_range_are_bad_input() {
        for (sec, usec) in [(-1, 0), (0, -1), (0, 1_000_000), (i64::MIN, i64::MAX)] {
            assert!(set_date_time(sec, usec).unwrap_err().is_bad_input());
        }
        // Nothing is set by this one: the kernel refuses it.
        assert!(set_date_time(i64::MAX, 0).is_err());
        assert!(time_spec(1_800_000_000, 999_999).is_ok());
    }
}
