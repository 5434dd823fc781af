// SPDX-License-Identifier: Apache-2.0
//! Taking a container's root off the initramfs.
//!
//! `pivot_root(2)` refuses to replace the kernel's first mount, which the root
//! is while the guest runs from its initramfs. Instead the container's root is
//! moved on top of it, and everything else that is mounted there is taken away:
//! what remains below cannot be named any more, nor uncovered ([`super::floor`]).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chroot, fchdir};

use super::root::attach_tree;
use super::{Naming, StepError, within};

/// Makes the attached mount `root` the root of this process and its mount
/// namespace, with the floor between it and the guest's root. Reads the
/// guest's `/proc`.
pub fn leave(root: &OwnedFd, floor: Option<OwnedFd>) -> Result<(), StepError> {
    let others = std::fs::read("/proc/self/mountinfo")
        .map(|text| top_level(&String::from_utf8_lossy(&text)))
        .naming(|| "/proc/self/mountinfo".into())?;
    let top = within::in_guest("/").naming(|| "guest's root".into())?;
    if let Some(floor) = floor {
        attach_tree(&floor, &top).naming(|| "floor".into())?;
    }
    attach_tree(root, &top).naming(|| "move of the new root".into())?;
    for path in others {
        // What is shared with the guest would be unmounted there as well.
        // Whatever hinders this, umount2(2) meets and judges.
        let slave = MsFlags::MS_SLAVE | MsFlags::MS_REC;
        let _ = mount(
            None::<&str>,
            path.as_str(),
            None::<&str>,
            slave,
            None::<&str>,
        );
        match umount2(
            path.as_str(),
            MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW,
        ) {
            // Gone with one that it was stacked on, or in the guest meanwhile.
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(errno) => {
                return Err(StepError::new(
                    format!("guest's mount '{path}'"),
                    io::Error::from(errno),
                ));
            }
        }
    }
    fchdir(root.as_fd()).naming(|| "new root".into())?;
    chroot(".").naming(|| "new root".into())
}

/// The mount points that lie directly on the root, newest first
/// (`/proc/PID/mountinfo`, proc(5): id, parent, device, root, mount point, …).
fn top_level(mountinfo: &str) -> Vec<String> {
    let fields = |line: &str| -> Option<(u64, u64, String)> {
        let mut fields = line.split(' ');
        let (id, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((id, parent, unescape(fields.nth(2)?)))
    };
    let mounts: Vec<_> = mountinfo.lines().filter_map(fields).collect();
    let Some(root) = mounts
        .iter()
        .find(|(_, _, path)| path == "/")
        .map(|(id, ..)| *id)
    else {
        return Vec::new();
    };
    let on_root = mounts
        .into_iter()
        .filter(|(id, parent, _)| *parent == root && *id != root);
    on_root.rev().map(|(_, _, path)| path).collect()
}

/// The kernel writes blanks, tabs, newlines and backslashes as `\ooo`.
fn unescape(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest
            .get(at + 1..at + 4)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_on_the_root_is_taken_away() {
        let text = "1 1 0:2 / / rw - rootfs rootfs rw\n\
                    20 1 0:20 / /proc rw - proc proc rw\n\
                    21 1 0:21 / /run rw - tmpfs tmpfs rw\n\
                    22 21 0:22 / /run/a rw - tmpfs tmpfs rw\n\
                    23 1 0:23 / /odd\\040name rw - tmpfs tmpfs rw\n";
        assert_eq!(top_level(text), ["/odd name", "/run", "/proc"]);
    }

    #[test]
    fn nonsense_is_passed_over() {
        assert!(top_level("").is_empty());
        assert!(top_level("x y z\n1 2\n").is_empty());
        assert_eq!(unescape(r"a\040b\"), r"a b\");
        assert_eq!(unescape(r"\999"), r"\999");
    }
}
