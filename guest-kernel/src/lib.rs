// SPDX-License-Identifier: Apache-2.0
//! Kernels for the guest: a distributor's prebuilt one, or our own built from source with our option fragments.
//!
//! Owns the option fragments (`fragments/*.config`), the merge and its check, the module closure, and the cache and host-program
//! plumbing that the rest of the tools share. It never installs anything on the host and never changes the host's apt state.

pub mod apt;
pub mod arch;
pub mod cache;
pub mod command;
pub mod compile;
pub mod config;
pub mod fetch;
pub mod fragments;
pub mod host;
pub mod lint;
pub mod modules;
pub mod progress;
pub mod source;
pub mod store;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use arch::Arch;
pub use cache::Cache;
pub use compile::{BuildOptions, build};
pub use config::check_config;
pub use fetch::{fetch, fetch_newest};
pub use fragments::Concern;
pub use progress::{Progress, Step};

/// Where a [`Kernel`] came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A distributor's package, unpacked.
    Fetched,
    /// Built from source with this crate's fragments.
    Built,
}

/// One kernel module that the guest loads at boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// The uncompressed `.ko` file on the host.
    pub path: PathBuf,
    /// Parameters given when it is loaded, `name=value` words.
    pub params: Vec<String>,
}

/// A bootable kernel on the host's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What the VMM boots: `bzImage` on x86_64, `Image` on aarch64.
    pub image: PathBuf,
    /// The uncompressed ELF, where there is one: with it a VMM can boot through PVH.
    pub vmlinux: Option<PathBuf>,
    /// The configuration the kernel was built with.
    pub config: PathBuf,
    /// `uname -r` of the kernel.
    pub release: String,
    /// What must be loaded, in load order. Empty if all of it is built in.
    pub modules: Vec<Module>,
    /// Where it came from.
    pub source: Source,
}
