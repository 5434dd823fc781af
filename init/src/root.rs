// SPDX-License-Identifier: Apache-2.0
//! Another root than the one that PID 1 was started from.
//!
//! When the kernel starts us from an initramfs and the command line names a
//! root (kernel-parameters.txt: `root=`, `rootfstype=`, `rootflags=`, `ro`,
//! `rw`, `rootwait`, `rootdelay=`), this waits for its device, mounts it and
//! makes it the root. A root is a block device, or with `rootfstype=virtiofs`
//! the tag of a shared directory. `keelson.root_verity=` has a block device
//! verified by dm-verity, `dm-mod.create=` makes the mapped device that `root=`
//! names if the kernel has not, and `keelson.root_overlay` lays memory above
//! the root, whoever mounted it.
//!
//! It never guesses: what cannot be mounted as asked for powers the VM off,
//! because a VM that goes on from the initramfs would serve containers from a
//! root that nobody asked for. The bare word `keelson.root_fallback` says
//! otherwise, for whoever wants to look into such a VM; it does not count
//! where the root was to be verified.

mod device;
mod error;
mod mapped;
mod mount;
mod overlay;
mod request;
mod switch;

use std::path::{Path, PathBuf};

use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};

pub use error::RootError;
pub(crate) use request::patience;
pub use request::{Request, Source, is_measured};

use crate::cmdline::CommandLine;
use crate::failure::Chain;
use crate::mounts;
use request::unverifiable;

/// Where the new root is mounted before it becomes the root.
const NEW_ROOT: &str = "/sysroot";

/// Whether the root is the kernel's initramfs.
pub fn on_initramfs() -> bool {
    // RAMFS_MAGIC of magic.h; with CONFIG_TMPFS the initramfs is a tmpfs.
    let ramfs = FsType(0x8584_58f6);
    statfs("/").is_ok_and(|fs| {
        let kind = fs.filesystem_type();
        kind == ramfs || kind == TMPFS_MAGIC
    })
}

/// Makes the root of this process the one that is asked for, or leaves it if
/// it is. Returns whether it is (still) the initramfs.
pub fn settle(cmdline: &CommandLine, initramfs: bool) -> Result<bool, RootError> {
    if initramfs {
        enter(cmdline, try_enter).map(|entered| !entered)
    } else {
        check_kernels_root(cmdline)?;
        if cmdline.has("keelson.root_overlay") {
            overlay::above_kernels_root()?;
        }
        Ok(false)
    }
}

/// What the kernel has mounted itself it has mounted as it is.
fn check_kernels_root(cmdline: &CommandLine) -> Result<(), RootError> {
    match request::verity(cmdline)? {
        Some(_) => Err(unverifiable(
            "the kernel has mounted the root itself and unverified; from an initramfs it can be verified",
        )),
        None => request::check_table(cmdline),
    }
}

/// Makes the root asked for the root of this process. Returns whether it did;
/// `false` means that none was asked for, or that it is done without as told.
fn enter(
    cmdline: &CommandLine,
    try_enter: fn(&CommandLine) -> Result<bool, RootError>,
) -> Result<bool, RootError> {
    match try_enter(cmdline) {
        Err(error) if cmdline.has("keelson.root_fallback") && !is_measured(cmdline) => {
            log::error!("{}; staying on the initramfs as told", Chain(&error));
            Ok(false)
        }
        result => result,
    }
}

fn try_enter(cmdline: &CommandLine) -> Result<bool, RootError> {
    let Some(request) = Request::from_cmdline(cmdline)? else {
        return Ok(false);
    };
    let mut new_root = PathBuf::from(NEW_ROOT);
    mounts::make_target(&new_root).map_err(RootError::Prepare)?;
    mount_root(&request, cmdline, &new_root)?;
    if request.overlay {
        new_root = overlay::above(&new_root)?;
    }
    switch::switch_to(&new_root)?;
    Ok(true)
}

fn mount_root(request: &Request, cmdline: &CommandLine, target: &Path) -> Result<(), RootError> {
    let device = match &request.source {
        Source::Tag(tag) => return mount::tag(tag, request, target),
        Source::Device(device) => device,
    };
    mapped::by_kernel_word(device, cmdline, request.wait)?;
    match &request.verity {
        Some(verity) => {
            let verified = mapped::verified(device, verity, request)?;
            mount::device(&verified, request, target)
        }
        None => {
            device::wait_for(device, request.wait)?;
            mount::device(device, request, target)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMS: &str = "salt=00,data_blocks=8,root_hash=\
        ac87db56303c9c1da433d7209b5a6ef3e4779df141200cbd7c157dcb8dd89c42";

    fn cmdline(text: &str) -> CommandLine {
        CommandLine::parse(text.replace("PARAMS", PARAMS).as_bytes())
    }

    #[test]
    fn bug_nothing_falls_back_from_a_measured_root() {
        fn fails(_: &CommandLine) -> Result<bool, RootError> {
            Err(unverifiable("test"))
        }
        let falls_back = |line: &str| {
            let line = format!("keelson.root_fallback {line}");
            matches!(enter(&cmdline(&line), fails), Ok(false))
        };
        assert!(falls_back("root=/dev/vda1"));
        assert!(falls_back(
            "root=/dev/dm-0 dm-mod.create=\"x,,,ro,0 8 linear 8:1 0\""
        ));
        for line in [
            "root=/dev/vda1 keelson.root_verity=PARAMS",
            "root=/dev/vda1 keelson.root_verity=wrong",
            "root=/dev/vda1 keelson.root_verity",
            "root=/dev/dm-0 dm-mod.create=\"x,,,ro,0 8 verity 1 8:1 8:2\"",
            "root=/dev/dm-0 dm-mod.create=\"x,,,ro,0 8\tverity\t1 8:1 8:2\"",
            "root=/dev/dm-0 dm_mod.create=\"x,,,ro,0 8 verity\"",
        ] {
            assert!(!falls_back(line), "{line}");
            assert!(is_measured(&cmdline(line)), "{line}");
        }
        assert!(enter(&cmdline("root=/dev/vda1"), fails).is_err());
    }

    #[test]
    fn bug_a_root_that_the_kernel_mounted_unverified_is_not_served_from() {
        for line in [
            "keelson.root_verity=PARAMS root=/dev/vda1",
            "keelson.root_verity=PARAMS root=/dev/dm-0 keelson.root_fallback",
            "keelson.root_verity=wrong",
            "keelson.root_verity",
        ] {
            assert!(settle(&cmdline(line), false).is_err(), "{line}");
        }
        // A table that the root does not lie on protects nothing.
        for root in ["root=/dev/vda1", ""] {
            let line = format!("{root} dm-mod.create=\"x,,,ro,0 8 verity 1 8:1 8:2\"");
            for initramfs in [true, false] {
                let refused = settle(&cmdline(&line), initramfs);
                let on_no_table = matches!(refused, Err(RootError::NotOnTable { .. }));
                assert!(on_no_table, "{line} {initramfs}");
            }
        }
        // That the kernel verified it is the kernel's word.
        let line = "root=/dev/dm-0 dm-mod.create=\"x,,,ro,0 8 verity 1 8:1 8:2\"";
        assert!(matches!(settle(&cmdline(line), false), Ok(false)));
    }
}
