// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a device.

use std::io;
use std::path::PathBuf;

use super::pci::PciError;

/// An error of a device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A PCI path that cannot be read, or has no such device.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// An address that is none.
    #[error("Address {text:?} is refused: {reason}")]
    Address {
        /// As it was sent.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Nothing has that address (yet).
    #[error("There is no {path}")]
    Absent {
        /// What was looked for.
        path: PathBuf,
    },
    /// It is there but is not a block device.
    #[error("Invalid device {path}: not a block device")]
    NotBlock {
        /// The device node.
        path: PathBuf,
    },
    /// It is smaller than it should be (yet).
    #[error("It has {bytes} bytes")]
    Small {
        /// How many it has.
        bytes: u64,
    },
    /// It did not come.
    #[error("Device {address} did not appear within {seconds} s")]
    Late {
        /// As the host gave it.
        address: String,
        /// How long it was waited for.
        seconds: u64,
        /// What was still missing at the end.
        source: Box<DeviceError>,
    },
    /// A file of the kernel's could not be used.
    #[error("Failed to {step} {path}")]
    File {
        /// What was tried.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl DeviceError {
    /// Whether the request is to blame rather than the guest.
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Pci(error) => error.is_bad_input(),
            Self::Address { .. } => true,
            _ => false,
        }
    }

    /// Whether it may still come.
    pub(super) fn is_absence(&self) -> bool {
        match self {
            Self::Pci(error) => {
                matches!(
                    error,
                    PciError::Absent { .. } | PciError::NoBlockDevice { .. }
                )
            }
            Self::Absent { .. } | Self::Small { .. } => true,
            _ => false,
        }
    }

    /// For `map_err` on calls that name one file.
    pub(super) fn file(
        step: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { step, path, source }
    }
}
