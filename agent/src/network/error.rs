// SPDX-License-Identifier: Apache-2.0
//! What can go wrong in configuring the network.

use std::net::IpAddr;

use super::netlink::NetlinkError;
use crate::container::plan::id::shorten;
use crate::device::DeviceError;

/// An error of the network's configuration.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A value that cannot be used.
    #[error("Failed to parse {field} '{value}': {reason}")]
    Invalid {
        /// What it was sent as.
        field: &'static str,
        /// The beginning of it.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More than anybody needs.
    #[error("More than {most} {what} in one request")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many are taken.
        most: usize,
    },
    /// More than an answer holds.
    #[error("The guest's {what} take {bytes} bytes, which is more than an answer holds")]
    TooLong {
        /// Of what.
        what: &'static str,
        /// As they would be sent.
        bytes: u64,
    },
    /// A path that is none.
    #[error("Invalid PCI path for network interface")]
    Path(#[source] crate::device::pci::PciError),
    /// The device did not come.
    #[error("Network interface not available")]
    Device(#[source] DeviceError),
    /// No such link. Hosts look for the first three words, and ask again.
    #[error("Link not found (Name: {0})")]
    NoLink(String),
    /// The kernel refused a change to an interface; what was done before is undone.
    #[error("Failed to update interface {name}")]
    Interface {
        /// As it was to be called.
        name: String,
        /// Why.
        source: NetlinkError,
    },
    /// The kernel refused a route; those before it are taken back.
    #[error("Failed to update routes: {route}")]
    Route {
        /// As ip-route(8) would write it.
        route: String,
        /// Why.
        source: NetlinkError,
    },
    /// The kernel refused a neighbour; those before it are taken back.
    #[error("Failed to add ARP neighbours: {ip} on {device}")]
    Neighbour {
        /// Its address.
        ip: IpAddr,
        /// Where it is.
        device: String,
        /// Why.
        source: NetlinkError,
    },
    /// The state of things could not be had.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A task of ours was lost.
    #[error("Internal task ended early")]
    Task,
}

impl NetworkError {
    pub(super) fn invalid(field: &'static str, value: &str, reason: &'static str) -> Self {
        let value = shorten(value);
        Self::Invalid {
            field,
            value,
            reason,
        }
    }

    /// Whether there is more of something than can be told.
    #[must_use]
    pub fn is_too_much(&self) -> bool {
        matches!(
            self,
            Self::TooLong { .. } | Self::Netlink(NetlinkError::TooMany { .. })
        )
    }

    /// Whether the request is to blame rather than the guest.
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        matches!(
            self,
            Self::Invalid { .. } | Self::TooMany { .. } | Self::Path(_)
        )
    }
}
