// SPDX-License-Identifier: Apache-2.0
//! Root on another device.
//!
//! When the kernel starts us from an initramfs and the command line names a
//! block device as root (kernel-parameters.txt: `root=`, `rootfstype=`,
//! `rootflags=`, `ro`, `rw`, `rootwait`, `rootdelay=`), this waits for the
//! device, mounts it and makes it the root. It never runs on any other root
//! and never guesses: what cannot be mounted as asked for powers the VM off,
//! because a VM that goes on from the initramfs would serve containers from a
//! root that nobody asked for. The bare word `keelson.root_fallback` says
//! otherwise, for whoever wants to look into such a VM.

mod device;
mod switch;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use thiserror::Error;

use crate::cmdline::CommandLine;
use crate::failure::Chain;
use crate::mounts::{self, MountError, Options};
use crate::uevent::UeventError;

/// Where the new root is mounted before it becomes the root.
const NEW_ROOT: &str = "/sysroot";

/// How long the device may take to appear, without and with `rootwait`. The
/// kernel's `rootwait` has no end, but a VM that waits for ever tells nobody.
const WAIT: Duration = Duration::from_secs(3);
const ROOTWAIT: Duration = Duration::from_secs(30);

/// The root asked for cannot be had.
#[derive(Debug, Error)]
pub enum RootError {
    /// A way of naming a device that is not supported here.
    #[error(
        "root={root} does not name a device by its path in /dev, which is all that is supported"
    )]
    Unsupported {
        /// The value of `root=`.
        root: String,
    },
    /// Waiting needs the kernel's messages.
    #[error("Cannot wait for the root device {}", device.display())]
    Wait {
        /// The device.
        device: PathBuf,
        /// What failed.
        source: UeventError,
    },
    /// The device did not appear.
    #[error("The root device {} did not appear within {} s", device.display(), waited.as_secs())]
    Missing {
        /// The device.
        device: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The path is there and is something else.
    #[error("The root device {} is not a block device", device.display())]
    NotBlock {
        /// The path.
        device: PathBuf,
    },
    /// The directory for the new root cannot be made.
    #[error("Cannot prepare the new root")]
    Prepare(#[source] MountError),
    /// mount(2) failed; the kernel's log often says more.
    #[error("Cannot mount the root device {} as {fstype} with options \"{options}\"", device.display())]
    Mount {
        /// The device.
        device: PathBuf,
        /// The file system, or the last of those tried.
        fstype: String,
        /// The options of the file system.
        options: String,
        /// What the kernel answered.
        source: Errno,
    },
    /// `rootfstype=` is not given, and the kernel knows no file system at all.
    #[error("No file system to mount the root device {} with", device.display())]
    NoType {
        /// The device.
        device: PathBuf,
    },
    /// The new root is mounted but cannot become the root.
    #[error("Cannot switch to the new root: {step}")]
    Switch {
        /// Which step of it.
        step: &'static str,
        /// What the kernel answered.
        source: Errno,
    },
}

/// The root that the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The device's path in `/dev`.
    pub device: PathBuf,
    /// File systems to try, in order; empty means all that the kernel knows.
    pub fstypes: Vec<String>,
    /// Flags and options of the mount.
    pub options: Options,
    /// How long to wait for the device.
    pub wait: Duration,
}

impl Request {
    /// Reads the request. `None` if no root is asked for that would be a block
    /// device: `root=` is missing, names the initramfs (`/dev/ram0`), or is a
    /// word that no kernel would take for a device either.
    pub fn from_cmdline(cmdline: &CommandLine) -> Result<Option<Self>, RootError> {
        let Some(root) = cmdline.value("root") else {
            return Ok(None);
        };
        let Some(device) = device_path(root)? else {
            return Ok(None);
        };
        let fstypes = cmdline.value("rootfstype").unwrap_or("");
        let fstypes = fstypes.split(',').filter(|name| !name.is_empty());
        Ok(Some(Self {
            device,
            fstypes: fstypes.map(str::to_owned).collect(),
            options: options(cmdline),
            wait: patience(cmdline),
        }))
    }
}

/// The device that the value of `root=` names.
fn device_path(root: &str) -> Result<Option<PathBuf>, RootError> {
    let by_content = ["PARTUUID=", "PARTLABEL=", "UUID=", "LABEL="];
    if by_content.iter().any(|prefix| root.starts_with(prefix)) {
        let root = root.to_owned();
        return Err(RootError::Unsupported { root });
    }
    let Some(name) = root.strip_prefix("/dev/") else {
        log::warn!("root={root} is not a device; staying on the initramfs");
        return Ok(None);
    };
    let plain = !name.is_empty() && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !plain {
        let root = root.to_owned();
        return Err(RootError::Unsupported { root });
    }
    // The old way to say that the initramfs is the root.
    let ram = name
        .strip_prefix("ram")
        .is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
    Ok((!ram).then(|| PathBuf::from(root)))
}

/// Options of the root: read-only unless `rw` follows, as the kernel has it.
/// `ro` and `rw` count as words and inside `rootflags=`; the last one wins.
fn options(cmdline: &CommandLine) -> Options {
    let mut all = String::new();
    for word in cmdline.words() {
        match (word.key, word.value) {
            ("ro" | "rw", None) => mounts::push_option(&mut all, word.key),
            ("rootflags", Some(flags)) => mounts::push_option(&mut all, flags),
            _ => {}
        }
    }
    Options::parse(&all, MsFlags::MS_RDONLY)
}

/// How long to wait. `rootdelay=` does not delay, since the device is waited
/// for by its event, but it allows for as much more time.
fn patience(cmdline: &CommandLine) -> Duration {
    let seconds = |key| cmdline.value(key).and_then(|value| value.parse().ok());
    let wait = match (cmdline.has("rootwait"), seconds("rootwait")) {
        (_, Some(seconds)) => Duration::from_secs(seconds),
        (true, None) => ROOTWAIT,
        (false, None) => WAIT,
    };
    let delay = seconds("rootdelay").map_or(Duration::ZERO, Duration::from_secs);
    wait.saturating_add(delay).min(ROOTWAIT)
}

/// Whether the root is the kernel's initramfs.
pub fn on_initramfs() -> bool {
    // RAMFS_MAGIC of magic.h; with CONFIG_TMPFS the initramfs is a tmpfs.
    let ramfs = FsType(0x8584_58f6);
    statfs("/").is_ok_and(|fs| {
        let kind = fs.filesystem_type();
        kind == ramfs || kind == TMPFS_MAGIC
    })
}

/// Makes the root asked for the root of this process. Returns whether it did;
/// `false` means that none was asked for. To be called on an initramfs only.
pub fn enter(cmdline: &CommandLine) -> Result<bool, RootError> {
    match try_enter(cmdline) {
        Err(error) if cmdline.has("keelson.root_fallback") => {
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
    device::wait_for(&request.device, request.wait)?;
    let new_root = Path::new(NEW_ROOT);
    mounts::make_target(new_root).map_err(RootError::Prepare)?;
    mount(&request, new_root)?;
    switch::switch_to(new_root)?;
    Ok(true)
}

/// Mounts the device with the first file system that fits.
fn mount(request: &Request, target: &Path) -> Result<(), RootError> {
    let fstypes = if request.fstypes.is_empty() {
        known_types()
    } else {
        request.fstypes.clone()
    };
    let mut last = None;
    for fstype in fstypes {
        match mount_as(request, &fstype, target) {
            Ok(()) => return Ok(()),
            // Not this file system, or not in this kernel: the next one.
            Err(source @ (Errno::EINVAL | Errno::ENODEV)) => last = Some((fstype, source)),
            Err(source) => {
                last = Some((fstype, source));
                break;
            }
        }
    }
    let device = request.device.clone();
    Err(match last {
        Some((fstype, source)) => RootError::Mount {
            device,
            fstype,
            options: request.options.data.clone(),
            source,
        },
        None => RootError::NoType { device },
    })
}

/// Mounts with what is asked for, and where the device cannot do that, with
/// the nearest that it can: without DAX, or read-only.
fn mount_as(request: &Request, fstype: &str, target: &Path) -> nix::Result<()> {
    let device = request.device.to_string_lossy();
    let Options { flags, data } = &request.options;
    let mount = |flags, data: &str| mounts::mount(&device, target, fstype, flags, data);
    match mount(*flags, data) {
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) if has_dax(data) => {
            mount(*flags, &without_dax(data))?;
            log::warn!("The root device {device} does not support DAX; mounted without");
            Ok(())
        }
        Err(Errno::EACCES | Errno::EROFS) if !flags.contains(MsFlags::MS_RDONLY) => {
            mount(*flags | MsFlags::MS_RDONLY, data)?;
            log::warn!("The root device {device} is read-only; mounted so");
            Ok(())
        }
        result => result,
    }
}

fn is_dax(option: &str) -> bool {
    matches!(option, "dax" | "dax=always")
}

fn has_dax(data: &str) -> bool {
    data.split(',').any(is_dax)
}

fn without_dax(data: &str) -> String {
    let mut rest = String::with_capacity(data.len());
    for option in data.split(',').filter(|option| !is_dax(option)) {
        mounts::push_option(&mut rest, option);
    }
    rest
}

/// The file systems of this kernel that live on a device (proc(5)).
fn known_types() -> Vec<String> {
    let table = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let on_device = |line: &str| line.strip_prefix('\t').map(|name| name.trim().to_owned());
    table.lines().filter_map(on_device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(line: &str) -> Option<Request> {
        Request::from_cmdline(&CommandLine::parse(line.as_bytes())).unwrap()
    }

    #[test]
    fn the_words_that_hosts_send() {
        let line =
            "root=/dev/pmem0p1 rootflags=dax,data=ordered,errors=remount-ro ro rootfstype=ext4";
        let request = request(line).unwrap();
        assert_eq!(request.device, Path::new("/dev/pmem0p1"));
        assert_eq!(request.fstypes, ["ext4"]);
        assert_eq!(request.options.flags, MsFlags::MS_RDONLY);
        assert_eq!(request.options.data, "dax,data=ordered,errors=remount-ro");
        assert_eq!(request.wait, WAIT);
    }

    #[test]
    fn read_only_unless_told_otherwise() {
        let flags = |line| request(line).unwrap().options.flags;
        assert_eq!(flags("root=/dev/vda1"), MsFlags::MS_RDONLY);
        assert_eq!(flags("root=/dev/vda1 rw"), MsFlags::empty());
        assert_eq!(flags("root=/dev/vda1 rootflags=rw"), MsFlags::empty());
        assert_eq!(
            flags("rw root=/dev/vda1 rootflags=x ro"),
            MsFlags::MS_RDONLY
        );
    }

    #[test]
    fn waiting_has_an_end() {
        let wait = |line| request(line).unwrap().wait.as_secs();
        assert_eq!(wait("root=/dev/vda1 rootwait"), 30);
        assert_eq!(wait("root=/dev/vda1 rootwait=7"), 7);
        assert_eq!(wait("root=/dev/vda1 rootdelay=5"), 8);
        assert_eq!(
            wait("root=/dev/vda1 rootwait=18446744073709551615 rootdelay=9"),
            30
        );
        assert_eq!(wait("root=/dev/vda1 rootwait=soon rootdelay=-1"), 3);
    }

    #[test]
    fn bug_roots_that_are_no_devices_are_ignored() {
        for line in [
            "",
            "root",
            "root=",
            "root=rootfs",
            "root=/dev/ram0",
            "root=/dev/ram",
            "root=x/dev/vda",
        ] {
            assert_eq!(request(line), None, "{line}");
        }
        assert!(request("root=/dev/ramdisk").is_some());
        assert!(request("root=/dev/mapper/root").is_some());
    }

    #[test]
    fn devices_that_cannot_be_found_are_refused() {
        for line in [
            "root=PARTUUID=1",
            "root=LABEL=x",
            "root=/dev/",
            "root=/dev/../etc",
            "root=/dev//vda",
        ] {
            let cmdline = CommandLine::parse(line.as_bytes());
            assert!(
                matches!(
                    Request::from_cmdline(&cmdline),
                    Err(RootError::Unsupported { .. })
                ),
                "{line}"
            );
        }
    }

    #[test]
    fn dax_is_taken_out_of_the_options() {
        assert!(has_dax("dax,data=ordered") && has_dax("x,dax=always"));
        assert!(!has_dax("dax=inode,nodax"));
        assert_eq!(without_dax("dax,data=ordered,dax=always"), "data=ordered");
        assert_eq!(without_dax("dax"), "");
    }

    proptest! {
        #[test]
        fn any_command_line(line in "(root(=|fstype=|flags=|wait=|delay=)?[ -~]{0,20} ?){0,5}") {
            let cmdline = CommandLine::parse(line.as_bytes());
            if let Ok(Some(request)) = Request::from_cmdline(&cmdline) {
                prop_assert!(request.device.starts_with("/dev"));
                prop_assert!(request.wait <= ROOTWAIT);
            }
        }
    }
}
