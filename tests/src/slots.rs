// SPDX-License-Identifier: Apache-2.0
//! Bounds how many VMs run at once, across threads and test processes.
//!
//! Each slot is a locked file in the cache directory; the kernel lets go of it with the process, so a killed test leaves nothing
//! behind. `KEELSON_TEST_VMS` sets the number (default 2, right for two cores without KVM).

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// The variable that sets how many VMs may run at once.
pub const VARIABLE: &str = "KEELSON_TEST_VMS";

const DEFAULT: usize = 2;

/// How often a waiting story looks for a free slot. File locks have no wake-up across several files; a VM lives for seconds.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Permission to run one VM, given back when dropped.
#[derive(Debug)]
pub struct Slot {
    _file: File,
}

/// Waits for one of `count` slots that lie in `dir`.
pub async fn take(dir: &Path, count: usize) -> Result<Slot> {
    std::fs::create_dir_all(dir).with_context(|| format!("Cannot create {}", dir.display()))?;
    loop {
        for number in 0..count.max(1) {
            let path = dir.join(format!("vm-{number}.lock"));
            let file =
                File::create(&path).with_context(|| format!("Cannot create {}", path.display()))?;
            match file.try_lock() {
                Ok(()) => return Ok(Slot { _file: file }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(e)) => {
                    return Err(e).with_context(|| format!("Cannot lock {}", path.display()));
                }
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// How many VMs may run at once.
pub fn limit() -> usize {
    std::env::var(VARIABLE)
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_given_once() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let first = take(dir.path(), 2).await.unwrap();
            let _second = take(dir.path(), 2).await.unwrap();
            let patience = Duration::from_millis(300);
            assert!(
                tokio::time::timeout(patience, take(dir.path(), 2))
                    .await
                    .is_err()
            );
            drop(first);
            take(dir.path(), 2).await.unwrap();
        });
    }
}
