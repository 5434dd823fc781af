// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a VM, with what there is to read about it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::image::disk::DiskError;

/// What can go wrong with a VM.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// A file operation failed.
    #[error("Cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A host program could not be started.
    #[error("Cannot start {program}")]
    Spawn {
        /// Its name.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A host program ended when it was still needed.
    #[error("{program} ended too early ({status}); its log:\n{log}")]
    Ended {
        /// Its name.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote.
        log: String,
    },
    /// A host program did not become ready in time.
    #[error("{program} was not ready within {after:?}; its log:\n{log}")]
    NotReady {
        /// Its name.
        program: &'static str,
        /// How long it had.
        after: Duration,
        /// What it wrote.
        log: String,
    },
    /// Something did not happen in time. [`super::Vm::report`] tells what happened instead.
    #[error("Waited {after:?} in vain for {what}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        after: Duration,
    },
    /// The VM ended while something was waited for. [`super::Vm::report`] tells what it said last.
    #[error("The VM ended while waiting for {what}")]
    Gone {
        /// What was waited for.
        what: String,
    },
    /// The handshake with the vsock device failed; nobody listens at the port, mostly.
    #[error("Vsock port {port}: no connection")]
    Handshake {
        /// The port.
        port: u32,
        /// Why.
        source: io::Error,
    },
    /// The vsock device did not answer as it should.
    #[error("Vsock port {port}: refused: {reply:?}")]
    Refused {
        /// The port.
        port: u32,
        /// What it answered.
        reply: String,
    },
    /// A serial number QEMU or the guest would not take.
    #[error("Disk serial {0:?}: at most 20 letters, digits, '-', '_' and '.' are possible")]
    BadSerial(String),
    /// The machine asked for does not exist.
    #[error("{what} is not possible: {reason}")]
    Impossible {
        /// What was asked for.
        what: &'static str,
        /// Why not, and what else would be.
        reason: &'static str,
    },
    /// The root's image has no partition table that makes sense.
    #[error("Cannot tell where the root lies in {path}", path = path.display())]
    RootImage {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<DiskError>,
    },
    /// A pmem image of a size the kernel does not take.
    #[error("Pmem image {path}: its size {size} is not a multiple of 2 MiB", path = path.display())]
    PmemSize {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
}

impl VmError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VmError {
        let path = path.to_owned();
        move |source| VmError::Io {
            action,
            path,
            source,
        }
    }
}
