// SPDX-License-Identifier: Apache-2.0
//! The mount table against a real kernel, in a mount namespace of its own.
//!
//! The test runs itself again below unshare(1), so that nothing it mounts is
//! seen outside. It needs root. devtmpfs is left out: there is one for the
//! whole machine, and a test must not touch that of its host.
#![allow(clippy::unwrap_used)] // all of it is test code

use std::path::Path;
use std::process::Command;

use init::mounts::{Entry, Mounted, TABLE};

/// What the inner run prints when it got through.
const PASSED: &str = "inner run passed";

fn entries() -> impl Iterator<Item = &'static Entry> {
    TABLE.iter().filter(|entry| entry.fstype != "devtmpfs")
}

/// Set for the inner run.
const INNER: &str = "KEELSON_TEST_INNER";

#[test]
fn the_mount_table_mounts() {
    if std::env::var_os(INNER).is_some() {
        mount_and_check();
        println!("{PASSED}");
        return;
    }
    let inner = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "the_mount_table_mounts", "--nocapture"])
        .env(INNER, "1")
        .output();
    let output = match inner {
        Ok(output) => output,
        Err(error) => {
            eprintln!("SKIPPED the_mount_table_mounts: cannot run unshare: {error}");
            return;
        }
    };
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("unshare failed") {
        eprintln!("SKIPPED the_mount_table_mounts: {}", stderr.trim());
        return;
    }
    assert!(stdout.contains(PASSED), "{stdout}{stderr}");
}

fn mount_and_check() {
    let root = tempfile::tempdir().unwrap();
    // Mount points are made; what is mounted already is fine.
    for entry in entries() {
        entry.mount_at(root.path()).unwrap();
    }
    let proc = entries().find(|entry| entry.fstype == "proc").unwrap();
    proc.mount_at(root.path()).unwrap();
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
    for entry in entries() {
        let target = entry.target_at(root.path());
        let mounted = table
            .lines()
            .filter_map(Mounted::parse)
            .find(|mounted| Path::new(mounted.target.as_ref()) == target);
        assert_eq!(mounted.map(|m| m.fstype), Some(entry.fstype));
    }
    // The last mounted first, so that the directory can be removed. Some kernels
    // have stacked what was mounted twice.
    for entry in TABLE.iter().rev() {
        while umount(&entry.target_at(root.path())) {}
    }
    root.close().unwrap();
}

fn umount(target: &Path) -> bool {
    let output = Command::new("umount").arg(target).output().unwrap();
    output.status.success()
}
