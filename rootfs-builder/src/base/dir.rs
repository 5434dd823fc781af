// SPDX-License-Identifier: Apache-2.0
//! A directory of the host as a base.

use std::path::Path;

use crate::tree::{Tree, TreeError};

/// The directory's tree. Owners are kept where this process is root and could have unpacked them; a directory of an ordinary user's is
/// root's inside the image.
pub fn tree(dir: &Path) -> Result<Tree, TreeError> {
    Tree::from_dir(dir, guest_kernel::host::is_root())
}
