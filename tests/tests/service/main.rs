// SPDX-License-Identifier: Apache-2.0
//! Stories of the agent as a service, without a VM: the wire, the answers that hosts depend on, and bad input. After each refusal the
//! agent must be alive; that is the point of most of them.

mod claims;
mod codes;
mod confidential;
mod disconnects;
mod given;
mod life;
mod network;
mod oci;
mod states;
mod stats;
mod wire;
