// SPDX-License-Identifier: Apache-2.0
//! The vocabulary in which the guest's tests are told: boot a VM or start the agent as a service, create a container, exec, expect.
//!
//! ```no_run
//! use tests::{Vm, vm_story};
//!
//! vm_story(async {
//!     let vm = Vm::boot(|guest| guest.memory_mib(512)).await;
//!     let c = vm.container("c1").sh("exit 3").start().await;
//!     assert_eq!(c.wait().await, 3);
//! });
//! ```
//!
//! Everything here talks to the agent the way a Kata host does, over ttrpc; nothing here links the agent. A step that fails panics
//! with what was asked and what came back, because that is what a test wants; a story that fails also prints the guest's console.

pub mod agent;
pub mod artifacts;
pub mod container;
pub mod cuts;
pub mod disks;
mod exit;
pub mod facts;
pub mod figures;
pub mod flood;
pub mod given;
pub mod hub;
pub mod ledger;
pub mod manage;
pub mod net;
pub mod plug;
pub mod rootfs;
pub mod roots;
pub mod service;
pub mod slots;
pub mod spec;
pub mod story;
pub mod template;
pub mod vm;
pub mod wire;

pub use agent::{Agent, Code, Refusal, expect_refusal};
pub use container::{Container, Output, Process};
pub use facts::Facts;
pub use hub::Hub;
pub use service::Service;
pub use story::{service_story, vm_story};
pub use vm::Vm;
