// SPDX-License-Identifier: Apache-2.0

//! The wire between host and guest: messages, service stubs, the way from the wire's OCI configuration to
//! [`oci_spec`]'s types, and the stream that keeps vsock packets small enough for every VMM.
//!
//! Messages and stubs are generated at build time from `proto/*.proto`. Their numbers and names are the
//! contract with the hosts in the field; `tests/` holds them to it.
//!
//! This crate never acts on a message: it opens no socket, touches no file, and knows no container.

#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

pub mod chunked;
pub mod convert;

pub use generated::{
    agent, agent_ttrpc, confidential_data_hub, confidential_data_hub_ttrpc, csi, health,
    health_ttrpc, oci, types,
};
pub use protobuf::well_known_types::empty;
