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
    /// It is there but is not a character device.
    #[error("Invalid device {path}: not a character device")]
    NotCharacter {
        /// The device node.
        path: PathBuf,
    },
    /// A field of a device that cannot be used.
    #[error("Device {name:?}: {field} is refused: {reason}")]
    Claim {
        /// Its type.
        name: String,
        /// The field's name on the wire.
        field: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No such type exists.
    #[error("Failed to find the device handler {name}")]
    UnknownType {
        /// As it was sent.
        name: String,
    },
    /// A type that guests of this architecture do not have.
    #[error("Device type {name} is not supported on this architecture")]
    Unsupported {
        /// The type.
        name: String,
    },
    /// An option of a passed-through device.
    #[error("Malformed VFIO PCI option {0:?}")]
    Option(String),
    /// A passed-through device without a function.
    #[error("Device vfio-pci: failed to get VFIO group: there is no function")]
    NoGroup,
    /// Functions that are not kept apart from others alike.
    #[error("Device {device} is in IOMMU group {group}, another one of the request in {other}")]
    Groups {
        /// In sysfs.
        device: PathBuf,
        /// Its group.
        group: String,
        /// The other's.
        other: String,
    },
    /// One name for two devices.
    #[error("Conflicting {what} for {of}")]
    Conflict {
        /// What was to be said of it.
        what: &'static str,
        /// The name.
        of: String,
    },
    /// Devices that the specification does not mention.
    #[error("Missing devices in OCI spec: {0}")]
    Missing(String),
    /// Work that was given up half-way, which only a defect of the agent does.
    #[error("Work on a device was interrupted")]
    Interrupted,
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
            Self::Address { .. }
            | Self::Claim { .. }
            | Self::UnknownType { .. }
            | Self::Option(_)
            | Self::NoGroup
            | Self::Conflict { .. }
            | Self::Missing(_) => true,
            _ => false,
        }
    }

    /// Whether this agent has no such devices.
    #[must_use]
    pub fn is_not_implemented(&self) -> bool {
        matches!(self, Self::Unsupported { .. })
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
