// SPDX-License-Identifier: Apache-2.0
//! Removes directories when the test process exits: those of what its tests share, which lives in statics and is never dropped.

#![allow(unsafe_code)]

use std::path::PathBuf;
use std::sync::{Mutex, Once, PoisonError};

static DIRECTORIES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static REGISTERED: Once = Once::new();

/// Has `path` removed, with all it holds, when this process exits normally.
pub fn remove_at_exit(path: PathBuf) {
    DIRECTORIES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(path);
    REGISTERED.call_once(|| {
        // SAFETY: atexit(3) asks for a function that takes nothing, lives as long as the program and does not unwind: `remove`
        // is a plain item, and nothing it calls panics. If there is no room for it, directories are left: nothing worse.
        unsafe {
            libc::atexit(remove);
        }
    });
}

extern "C" fn remove() {
    for path in DIRECTORIES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .drain(..)
    {
        // Nobody is left to tell.
        let _ = std::fs::remove_dir_all(path);
    }
}
