// SPDX-License-Identifier: Apache-2.0
//! Putting descriptors under the watch of the event loop.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use init::reaper::Reaper;
use init::uevent::UeventSocket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Types that own their descriptor: it stays open, and its number theirs, for
/// as long as they live.
pub trait Owning: AsRawFd + sealed::Sealed {}
impl<T: AsRawFd + sealed::Sealed> Owning for T {}

mod sealed {
    /// Implemented here only: what the SAFETY comment below rests on.
    pub trait Sealed {}
    impl Sealed for super::OwnedFd {}
    impl Sealed for super::Reaper {}
    impl Sealed for super::UeventSocket {}
}

/// Registers a descriptor with the running event loop, for reading and writing.
///
/// # Errors
/// The errno of `epoll_ctl(2)`, for instance for a regular file.
pub fn watch<T: Owning>(fd: T) -> io::Result<AsyncFd<T>> {
    watch_for(fd, Interest::READABLE | Interest::WRITABLE)
}

/// Registers a descriptor with the running event loop.
///
/// # Errors
/// As [`watch`].
pub fn watch_for<T: Owning>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: `Owning` types keep their descriptor open and never exchange it
    // until they are dropped, which AsyncFd does after deregistering.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
