// SPDX-License-Identifier: Apache-2.0
//! The directory with one VM's sockets and logs.

use std::path::Path;

use super::VmError;

/// The longest path a unix socket may have, with room for our longest file name.
const SOCKET_DIR_LIMIT: usize = 108 - 24;

/// The directory of one VM; removed with it unless it is to be kept.
#[derive(Debug)]
pub struct VmDir(tempfile::TempDir);

impl VmDir {
    /// Makes it, to be kept or not.
    pub fn create(keep: bool) -> Result<VmDir, VmError> {
        let temp = std::env::temp_dir();
        // A unix socket's path is short; a long TMPDIR does not leave room for one.
        let base = if temp.as_os_str().len() > SOCKET_DIR_LIMIT - 24 {
            Path::new("/tmp")
        } else {
            &temp
        };
        let dir = tempfile::Builder::new()
            .prefix("keelson-vm.")
            .disable_cleanup(keep)
            .tempdir_in(base)
            .map_err(VmError::io("create a directory in", base))?;
        Ok(VmDir(dir))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}
