// SPDX-License-Identifier: Apache-2.0
//! `keelson.root_overlay`: a root that can be written to, above one that
//! cannot. What is written lives in memory and ends with the VM.
//!
//! overlayfs keeps the file systems it is made of by itself, so that neither
//! of them stays mounted where somebody could reach round it.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};

use super::{RootError, switch};
use crate::mounts;

/// Where the memory is mounted on an initramfs, and where the overlay.
const AREA: &str = "/overlay";
const ROOT: &str = "/overlay.root";

/// Where it is mounted on a root that cannot be written to: a directory that
/// every image has and that the boot's own mounts hide later.
const AREA_ON_DISK: &str = "/run";

/// Lays the overlay above the new root `lower`, which is mounted on the
/// initramfs, and answers with where it is.
pub(super) fn above(lower: &Path) -> Result<PathBuf, RootError> {
    let (area, root) = (Path::new(AREA), PathBuf::from(ROOT));
    for directory in [area, &root] {
        mounts::make_target(directory).map_err(RootError::Prepare)?;
    }
    lay(lower, area, &root)?;
    for mounted in [lower, area] {
        // If it stays, it is out of reach all the same once the root is moved.
        let _ = umount2(mounted, MntFlags::MNT_DETACH);
    }
    Ok(root)
}

/// Lays the overlay above the root that the kernel has mounted, and makes it
/// the root.
pub(super) fn above_kernels_root() -> Result<(), RootError> {
    let area = Path::new(AREA_ON_DISK);
    let root = lay_within(Path::new("/"), area)?;
    switch::pivot_to(&root)
}

/// The overlay's mount point is on its own memory, and goes out of sight with
/// the old root.
fn lay_within(lower: &Path, area: &Path) -> Result<PathBuf, RootError> {
    let root = area.join("root");
    lay(lower, area, &root)?;
    Ok(root)
}

fn lay(lower: &Path, area: &Path, target: &Path) -> Result<(), RootError> {
    let failed = |step| move |source| RootError::Overlay { step, source };
    let tmpfs = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    // Its size is the kernel's default, half of the memory there is now.
    mounts::mount("overlay", area, "tmpfs", tmpfs, "mode=755")
        .map_err(failed("mount the tmpfs for it"))?;
    let (upper, work) = (area.join("upper"), area.join("work"));
    for directory in [&upper, &work, &area.join("root")] {
        // The upper one lends its mode to the root.
        let made = DirBuilder::new().mode(0o755).create(directory);
        made.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
            .map_err(failed("make its directories"))?;
    }
    let data = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    mounts::mount("overlay", target, "overlay", MsFlags::empty(), &data)
        .map_err(failed("mount the overlayfs"))
}
