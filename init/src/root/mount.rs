// SPDX-License-Identifier: Apache-2.0
//! Mounting the root: with what is asked for, and where the device cannot do
//! that, with the nearest that it can.
//!
//! The nearest is less speed (without DAX) or less room (read-only), never
//! another device and never less protection.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::MsFlags;

use super::request::VIRTIOFS;
use super::{Request, RootError};
use crate::arrival;
use crate::mounts::{self, Options};
use crate::uevent::Uevent;

/// Mounts a device with the first file system that fits.
pub(super) fn device(device: &Path, request: &Request, target: &Path) -> Result<(), RootError> {
    let fstypes = if request.fstypes.is_empty() {
        known_types()
    } else {
        request.fstypes.clone()
    };
    let source = device.to_string_lossy();
    let mut last = None;
    for fstype in fstypes {
        match mount_as(&source, request, &fstype, target) {
            Ok(()) => return Ok(()),
            // Not this file system, or not in this kernel: the next one.
            Err(errno @ (Errno::EINVAL | Errno::ENODEV)) => last = Some((fstype, errno)),
            Err(errno) => {
                last = Some((fstype, errno));
                break;
            }
        }
    }
    Err(match last {
        Some((fstype, errno)) => failed(&source, request, fstype, errno),
        None => RootError::NoType {
            device: device.to_owned(),
        },
    })
}

/// Mounts the shared directory of this tag as soon as its device is there.
/// There is no node to look for: mounting is how to find out.
pub(super) fn tag(tag: &str, request: &Request, target: &Path) -> Result<(), RootError> {
    let mut look = || match mount_as(tag, request, VIRTIOFS, target) {
        Ok(()) => Ok(Some(())),
        // Also what a wrong option gets, which no waiting makes right.
        Err(Errno::EINVAL) => Ok(None),
        Err(errno) => Err(failed(tag, request, VIRTIOFS.to_owned(), errno)),
    };
    let no_events = |source| RootError::Wait {
        device: tag.into(),
        source,
    };
    let mounted = arrival::wait_for(request.wait, driver_is_ready, &no_events, &mut look)?;
    mounted.ok_or_else(|| RootError::NoTag {
        tag: tag.to_owned(),
        options: request.options.data.clone(),
        waited: request.wait,
    })
}

/// A virtio driver has taken its device. The message that adds the device is
/// too early: its tag is not known before the driver has asked for it.
fn driver_is_ready(event: &Uevent<'_>) -> bool {
    event.subsystem == "virtio" && event.action == "bind"
}

fn failed(source: &str, request: &Request, fstype: String, errno: Errno) -> RootError {
    RootError::Mount {
        device: source.into(),
        fstype,
        options: request.options.data.clone(),
        source: errno,
    }
}

fn mount_as(source: &str, request: &Request, fstype: &str, target: &Path) -> nix::Result<()> {
    let mount =
        |options: &Options| mounts::mount(source, target, fstype, options.flags, &options.data);
    let options = nearest(&request.options, mount)?;
    if options.data != request.options.data {
        log::warn!("The root device {source} does not support DAX; mounted without");
    }
    if options.flags != request.options.flags {
        log::warn!("The root device {source} is read-only; mounted so");
    }
    Ok(())
}

/// The options that `mount` succeeds with: what is asked for, or without what
/// it refuses and can be done without.
fn nearest(wanted: &Options, mount: impl Fn(&Options) -> nix::Result<()>) -> nix::Result<Options> {
    let mut options = wanted.clone();
    loop {
        match mount(&options) {
            Ok(()) => return Ok(options),
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) if has_dax(&options.data) => {
                options.data = without_dax(&options.data);
            }
            Err(Errno::EACCES | Errno::EROFS) if !options.flags.contains(MsFlags::MS_RDONLY) => {
                options.flags |= MsFlags::MS_RDONLY;
            }
            Err(errno) => return Err(errno),
        }
    }
}

/// Only what insists on DAX: `dax=inode` and `dax=never` never fail for it.
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

    #[test]
    fn dax_is_taken_out_of_the_options() {
        assert!(has_dax("dax,data=ordered") && has_dax("x,dax=always"));
        assert!(!has_dax("dax=inode,nodax,dax=never"));
        assert_eq!(without_dax("dax,data=ordered,dax=always"), "data=ordered");
        assert_eq!(without_dax("dax"), "");
    }

    #[test]
    fn what_can_be_done_without_is_left_out_one_by_one() {
        let wanted = Options {
            flags: MsFlags::empty(),
            data: "dax,data=ordered".to_owned(),
        };
        // A device that is read-only and cannot be mapped, in either order of complaints.
        for read_only_first in [true, false] {
            let mount = |options: &Options| {
                let complaints = [
                    (!options.flags.contains(MsFlags::MS_RDONLY), Errno::EACCES),
                    (has_dax(&options.data), Errno::EINVAL),
                ];
                let mut left = complaints.into_iter().filter(|(it, _)| *it);
                let complaint = if read_only_first {
                    left.next()
                } else {
                    left.next_back()
                };
                complaint.map_or(Ok(()), |(_, errno)| Err(errno))
            };
            let options = nearest(&wanted, mount).unwrap();
            assert_eq!(options.data, "data=ordered");
            assert_eq!(options.flags, MsFlags::MS_RDONLY);
        }
        assert_eq!(nearest(&wanted, |_| Err(Errno::EIO)), Err(Errno::EIO));
        // What is not the options' fault stays an error, and ends.
        assert_eq!(nearest(&wanted, |_| Err(Errno::EINVAL)), Err(Errno::EINVAL));
    }

    #[test]
    fn bug_a_tag_is_not_tried_before_its_driver_is_ready() {
        let event = |text: &'static [u8]| driver_is_ready(&Uevent::parse(text).unwrap());
        assert!(event(
            b"bind@/devices/virtio0\0ACTION=bind\0DEVPATH=/devices/virtio0\0SUBSYSTEM=virtio\0"
        ));
        assert!(!event(
            b"add@/devices/virtio0\0ACTION=add\0DEVPATH=/devices/virtio0\0SUBSYSTEM=virtio\0"
        ));
        assert!(!event(
            b"bind@/devices/pci0\0ACTION=bind\0DEVPATH=/devices/pci0\0SUBSYSTEM=pci\0"
        ));
    }
}
