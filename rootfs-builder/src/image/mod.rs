// SPDX-License-Identifier: Apache-2.0
//! Writers of image formats. Each writes one [`crate::tree::Tree`], or wraps what another one wrote; none looks at the host's file
//! system for anything but contents. The same tree and options give the same bytes.

pub mod compress;
pub mod cpio;
pub mod dax;
pub mod directory;
pub mod disk;
pub mod erofs;
pub mod ext4;
pub mod oci;
pub mod partition;
pub mod read;
pub mod tar;
pub mod verity;
