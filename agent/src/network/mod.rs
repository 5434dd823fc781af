// SPDX-License-Identifier: Apache-2.0
//! The guest's network, as the kernel has it. Owns the rtnetlink conversation;
//! never touches the network of the host, never remembers anything itself.

pub mod list;
mod netlink;

pub use netlink::NetlinkError;
