// SPDX-License-Identifier: Apache-2.0
//! Taking a mount of one container into another, in a clone of the launcher
//! that is there for nothing else: the agent itself never leaves its own mount
//! namespace. Both containers are hostile: their paths are resolved inside
//! their own roots, and what is held between them is a descriptor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, setns};
use nix::unistd::setsid;
use rustix::fs::{FileType, fstat};

use super::root::{attach_tree, clone_tree};
use super::{Naming, StepError, within};
use crate::launch::clone::{MountAttr, mount_setattr};
use crate::launch::message::{ShareEnd, ShareOrder, read_frame, write_frame};

/// Does the one order that comes over the socket, with the source's and the
/// target's mount namespaces, and reports its end; never returns.
pub fn run_for_agent(mut control: UnixStream) -> ! {
    let Ok((order, namespaces)) = read_frame::<ShareOrder>(&mut control) else {
        // The agent has gone: nobody wants it any more.
        std::process::exit(1);
    };
    let _ = setsid();
    let end = ShareEnd {
        failure: share(&order, &namespaces).err().map(|e| e.to_string()),
    };
    // If nobody listens any more, there is nobody to tell.
    let _ = write_frame(&mut control, &end, &[]);
    std::process::exit(0)
}

fn share(order: &ShareOrder, namespaces: &[OwnedFd]) -> Result<(), StepError> {
    let [from, to] = namespaces else {
        return Err(StepError::new("namespaces", Errno::EPROTO));
    };
    let root = enter(from).naming(|| "mount namespace of the source".into())?;
    let naming = || format!("source '{}'", order.source);
    let place = within::find(root.as_fd(), &order.source).naming(naming)?;
    let tree = clone_tree(&place, true).naming(naming)?;
    // What one of them mounts or unmounts later is no business of the other.
    let private = MountAttr {
        propagation: MsFlags::MS_PRIVATE.bits(),
        ..MountAttr::default()
    };
    mount_setattr(tree.as_fd(), &private, true).naming(naming)?;
    let kind = fstat(&tree).naming(naming)?.st_mode;
    drop((root, place));

    let root = enter(to).naming(|| "mount namespace of the target".into())?;
    let make = match FileType::from_raw_mode(kind) {
        FileType::Directory => within::directory,
        _ => within::file,
    };
    let naming = || format!("target '{}'", order.target);
    let place = make(root.as_fd(), &order.target).naming(naming)?;
    attach_tree(&tree, &place).naming(naming)
}

/// The root of a mount namespace, seen from inside.
fn enter(namespace: &OwnedFd) -> io::Result<OwnedFd> {
    setns(namespace, CloneFlags::CLONE_NEWNS)?;
    within::in_guest("/")
}
