// SPDX-License-Identifier: Apache-2.0
//! Writers of image formats. Each writes one [`crate::tree::Tree`]; none looks at the host's file system for anything but contents.

pub mod cpio;
