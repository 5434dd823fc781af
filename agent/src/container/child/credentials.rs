// SPDX-License-Identifier: Apache-2.0
//! Giving up privileges: bounding set, user and groups, the other capability
//! sets, `no_new_privs`. In this order: each needs what the next takes away.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl::set_no_new_privs;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::{Child, Naming, StepError};
use crate::container::plan::process::Capabilities;

fn wanted(child: &Child) -> Capabilities {
    child.plan.process.capabilities.unwrap_or_default()
}

fn members(mask: u64) -> CapsHashSet {
    caps::all()
        .into_iter()
        .filter(|cap| mask & cap.bitmask() != 0)
        .collect()
}

fn failed(what: impl Into<String>, error: caps::errors::CapsError) -> StepError {
    StepError::new(what, io::Error::other(error))
}

/// Narrows the bounding set, verifies it, and keeps the permitted set over the
/// change of user.
pub fn bound(child: &mut Child) -> Result<(), StepError> {
    let bounding = wanted(child).bounding;
    for cap in caps::all() {
        if bounding & cap.bitmask() != 0 {
            continue;
        }
        let dropped = caps::drop(None, CapSet::Bounding, cap);
        // A capability that this kernel does not know is in no set.
        if caps::has_cap(None, CapSet::Bounding, cap).unwrap_or(false) {
            let error = dropped
                .err()
                .map_or("still there".into(), |e| e.to_string());
            return Err(StepError::new(
                format!("bounding set without {cap}"),
                io::Error::other(error),
            ));
        }
    }
    caps::securebits::set_keepcaps(true).map_err(|e| failed("keep capabilities", e))
}

/// What installing a filter takes without `no_new_privs`. It is kept in the
/// permitted and effective sets, never in the others: `execve(2)` works out
/// both anew from the bounding, inheritable and ambient sets, so that nothing
/// of it reaches the program.
fn for_seccomp(child: &Child) -> u64 {
    if child.plan.seccomp.is_some() && !child.plan.process.no_new_privs {
        Capability::CAP_SYS_ADMIN.bitmask()
    } else {
        0
    }
}

/// Groups, group, user.
pub fn switch_user(child: &mut Child) -> Result<(), StepError> {
    let process = &child.plan.process;
    let groups: Vec<Gid> = process.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).naming(|| format!("groups {:?}", process.groups))?;
    let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    setresgid(gid, gid, gid).map_err(|errno| StepError::request(format!("group {gid}"), errno))?;
    setresuid(uid, uid, uid).map_err(|errno| StepError::request(format!("user {uid}"), errno))
}

/// The remaining sets. Effective goes down before permitted, because it must
/// stay a subset; ambient comes last, because it needs the other two.
pub fn restrict(child: &mut Child) -> Result<(), StepError> {
    let sets = wanted(child);
    let borrowed = for_seccomp(child);
    // A change of user has emptied the effective set; the kept permitted set
    // gives it back, as long as it lasts.
    let permitted = caps::read(None, CapSet::Permitted).map_err(|e| failed("permitted set", e))?;
    caps::set(None, CapSet::Effective, &permitted).map_err(|e| failed("effective set", e))?;
    let known = |mask: u64| members(mask & (sets.bounding | sets.permitted));
    caps::set(None, CapSet::Inheritable, &known(sets.inheritable))
        .map_err(|e| failed("inheritable set", e))?;
    let effective: CapsHashSet = members(sets.effective & sets.permitted | borrowed)
        .intersection(&permitted)
        .copied()
        .collect();
    caps::set(None, CapSet::Effective, &effective).map_err(|e| failed("effective set", e))?;
    let kept: CapsHashSet = members(sets.permitted | borrowed)
        .intersection(&permitted)
        .copied()
        .collect();
    caps::set(None, CapSet::Permitted, &kept).map_err(|e| failed("permitted set", e))?;
    for cap in members(sets.ambient & sets.permitted & sets.inheritable) {
        // Best effort, as in the reference: securebits may forbid it.
        let _ = caps::raise(None, CapSet::Ambient, cap);
    }
    caps::securebits::set_keepcaps(false).map_err(|e| failed("keep capabilities", e))?;
    if child.plan.process.no_new_privs {
        set_no_new_privs().naming(|| "no_new_privs".into())?;
    }
    Ok(())
}
