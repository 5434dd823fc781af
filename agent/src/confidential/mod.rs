// SPDX-License-Identifier: Apache-2.0
//! What a confidential guest gets from its data hub, a program in the guest
//! that holds the keys: images, encrypted volumes, secrets (protocol 2.6, 5.8,
//! 13.7). Owns the client and what is done with unsealed secrets; never starts
//! the hub, and without one nothing here has an effect.

mod hub;
pub mod pause;
mod sealed_files;
mod secrets;

pub use hub::{Asked, Hub, HubError};
pub use secrets::unseal;
