// SPDX-License-Identifier: Apache-2.0
//! The cache directory of the tools, shared with the kernel crate.

pub use guest_kernel::cache::{Cache, CacheError, Key, file_digest, hex};
