// SPDX-License-Identifier: Apache-2.0
//! Bakes the guest binary into images, gets it a kernel, and boots the result: the tools behind the `rootfs-builder` program.
//!
//! A library so that the VM tests use the same code as the command line. It never runs inside a guest.

pub mod assemble;
pub mod base;
pub mod build;
pub mod cache;
pub mod clean;
pub mod cli;
pub mod client;
pub mod definition;
pub mod diff;
pub mod image;
pub mod inspect;
pub mod kata;
pub mod kernel;
pub mod manifest;
pub mod progress;
pub mod run;
pub mod sbom;
pub mod setup;
pub mod shell;
pub mod spec;
pub mod terminal;
pub mod timings;
pub mod toolchain;
pub mod tree;
pub mod verify;
pub mod vm;
