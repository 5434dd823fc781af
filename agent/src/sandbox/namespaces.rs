// SPDX-License-Identifier: Apache-2.0
//! The ipc and uts namespaces that all containers of a sandbox share. They
//! live by their descriptors: no process and no mount is needed to keep them.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::sethostname;

/// New namespaces: ipc, uts. The uts one is called `hostname` unless that is empty.
///
/// # Errors
/// The errno of the failing call.
pub fn create(hostname: &str) -> io::Result<(OwnedFd, OwnedFd)> {
    let hostname = hostname.to_owned();
    // A thread of its own enters them and ends; this one stays where it is.
    let maker =
        std::thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(move || -> io::Result<_> {
                unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)?;
                if !hostname.is_empty() {
                    sethostname(&hostname)?;
                }
                let open = |kind: &str| {
                    File::open(format!("/proc/thread-self/ns/{kind}")).map(OwnedFd::from)
                };
                Ok((open("ipc")?, open("uts")?))
            })?;
    maker
        .join()
        .map_err(|_| io::Error::other("thread ended early"))?
}
