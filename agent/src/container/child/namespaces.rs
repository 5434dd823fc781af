// SPDX-License-Identifier: Apache-2.0
//! Entering namespaces: those that exist by descriptor, the rest anew. What
//! can be made at the clone was made there.

use std::os::fd::AsFd;

use nix::sched::{CloneFlags, setns, unshare as unshare_now};
use nix::unistd::{Gid, Uid, setgroups, sethostname, setresgid, setresuid};

use super::{Child, Naming, StepError, mounts};
use crate::container::plan::Namespace;
use crate::launch::message::Report;

/// In a new user namespace: asks for the id maps, waits for them, and becomes
/// root inside, which all further steps need.
pub fn become_root(child: &mut Child) -> Result<(), StepError> {
    if !child.plan.new_user_namespace {
        return Ok(());
    }
    child
        .report(&Report::NeedsIdMaps)
        .naming(|| "request for id maps".into())?;
    child.await_go()?;
    root_inside()
}

fn root_inside() -> Result<(), StepError> {
    let (root, group) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(group, group, group).naming(|| "group 0 of the user namespace".into())?;
    setgroups(&[]).naming(|| "groups of the user namespace".into())?;
    setresuid(root, root, root).naming(|| "user 0 of the user namespace".into())
}

/// Joins in the order of the plan, that of [`Namespace::ALL`]. Nothing is
/// looked up by path on the way.
pub fn join(child: &mut Child) -> Result<(), StepError> {
    for kind in child.plan.joins.clone() {
        let Some(namespace) = child.joins.pop_front() else {
            break;
        };
        // Pid was entered by the clone; it is in the list for nobody.
        let flag = CloneFlags::from_bits_truncate(kind.flag() as i32);
        if kind == Namespace::User {
            // The pid namespace was made at the clone and is the guest's.
            child.proc = child.root_plan().and_then(mounts::proc_ahead);
        }
        setns(namespace.as_fd(), flag).naming(|| format!("{} namespace", kind.file()))?;
        if kind == Namespace::User {
            root_inside()?;
        }
    }
    Ok(())
}

/// What cannot be created by the clone: the cgroup namespace, whose root is
/// the cgroup that the process is in by now, and everything that a joined user
/// namespace has to own.
pub fn unshare(child: &mut Child) -> Result<(), StepError> {
    if child.plan.unshare == 0 {
        return Ok(());
    }
    let flags = CloneFlags::from_bits_truncate(child.plan.unshare as i32);
    unshare_now(flags).naming(|| format!("new namespaces {flags:?}"))
}

/// For a UTS namespace of the container's own; a shared one has its name.
pub fn hostname(child: &mut Child) -> Result<(), StepError> {
    if child.plan.joins.contains(&Namespace::Uts) {
        return Ok(());
    }
    match child
        .plan
        .init
        .as_ref()
        .and_then(|init| init.hostname.as_ref())
    {
        Some(name) => sethostname(name)
            .map_err(|errno| StepError::request(format!("hostname '{name}'"), errno)),
        None => Ok(()),
    }
}
