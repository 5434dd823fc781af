// SPDX-License-Identifier: Apache-2.0
//! Waiting for the root device to appear: by the kernel's messages and with a
//! deadline, never by looking again and again.

use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::RootError;
use crate::uevent::{Received, UeventError, UeventSocket};

/// Waits until `device` is there. The kernel makes its node in `/dev` before
/// it sends the message.
pub(super) fn wait_for(device: &Path, patience: Duration) -> Result<(), RootError> {
    // Mostly it is there already, and a subscription would be for nothing.
    if is_there(device)? {
        return Ok(());
    }
    let failed = |source| RootError::Wait {
        device: device.to_owned(),
        source,
    };
    let mut events = UeventSocket::open().map_err(failed)?;
    let deadline = Instant::now() + patience;
    // Subscribed: now nothing can come without our seeing it. Look again for
    // what came before that, and then after each message about a disk.
    while !is_there(device)? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(RootError::Missing {
                device: device.to_owned(),
                waited: patience,
            });
        }
        wait_for_disk(&mut events, left).map_err(failed)?;
    }
    Ok(())
}

fn is_there(device: &Path) -> Result<bool, RootError> {
    match device.metadata() {
        Ok(metadata) if metadata.file_type().is_block_device() => Ok(true),
        Ok(_) => Err(RootError::NotBlock {
            device: device.to_owned(),
        }),
        Err(_) => Ok(false),
    }
}

/// Returns after a message about a disk, or at the latest when the time is up.
fn wait_for_disk(events: &mut UeventSocket, patience: Duration) -> Result<(), UeventError> {
    let deadline = Instant::now() + patience;
    loop {
        loop {
            match events.receive()? {
                Received::Event(event) if event.subsystem == "block" => return Ok(()),
                Received::Event(_) => {}
                // What we wait for may be among the lost.
                Received::Overflow => return Ok(()),
                Received::Empty => break,
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        // Rounded up to a whole millisecond, lest the last one be spent here.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1));
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(UeventError::Receive(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_are_refused_at_once() {
        let error = wait_for(Path::new("/dev/null"), Duration::from_secs(60)).unwrap_err();
        assert!(matches!(error, RootError::NotBlock { .. }), "{error}");
    }

    #[test]
    fn a_device_that_never_comes_is_named() {
        let error =
            wait_for(Path::new("/dev/keelson-none"), Duration::from_millis(20)).unwrap_err();
        match error {
            RootError::Wait { .. } => {
                eprintln!(
                    "SKIPPED a_device_that_never_comes_is_named: no uevent socket here: {error}"
                );
            }
            error => assert!(error.to_string().contains("keelson-none"), "{error}"),
        }
    }
}
