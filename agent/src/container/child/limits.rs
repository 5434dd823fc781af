// SPDX-License-Identifier: Apache-2.0
//! What limits the process from outside: cgroup, OOM score, resource limits.

use std::fs::File;
use std::io::Write;

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};

use super::{Child, Naming, StepError};
use crate::container::plan::process::Rlimit;

/// Joins by `cgroup.procs` files (cgroup v1; on v2 the clone was made inside).
pub fn join_cgroup(child: &mut Child) -> Result<(), StepError> {
    for file in std::mem::take(&mut child.cgroup_files) {
        // "0" is the writer itself, whatever pid namespace it is in.
        File::from(file)
            .write_all(b"0")
            .naming(|| "cgroup.procs".into())?;
    }
    Ok(())
}

/// Written through the guest's `/proc`, which is still the one in view.
pub fn oom_score(child: &mut Child) -> Result<(), StepError> {
    let value = child.plan.process.oom_score_adj.to_string();
    std::fs::write("/proc/self/oom_score_adj", value).naming(|| "/proc/self/oom_score_adj".into())
}

/// Before the privileges go that raising a hard limit takes.
pub fn rlimits(child: &mut Child) -> Result<(), StepError> {
    for limit in &child.plan.process.rlimits {
        let kind = kind(limit)
            .ok_or_else(|| StepError::new(format!("rlimit {}", limit.resource), Errno::EINVAL))?;
        setrlimit(kind, limit.soft, limit.hard).map_err(|errno| {
            StepError::request(format!("{kind:?} {}:{}", limit.soft, limit.hard), errno)
        })?;
    }
    Ok(())
}

fn kind(limit: &Rlimit) -> Option<Resource> {
    use Resource as R;
    let all = [
        R::RLIMIT_CPU,
        R::RLIMIT_FSIZE,
        R::RLIMIT_DATA,
        R::RLIMIT_STACK,
        R::RLIMIT_CORE,
        R::RLIMIT_RSS,
        R::RLIMIT_NPROC,
        R::RLIMIT_NOFILE,
        R::RLIMIT_MEMLOCK,
        R::RLIMIT_AS,
        R::RLIMIT_LOCKS,
        R::RLIMIT_SIGPENDING,
        R::RLIMIT_MSGQUEUE,
        R::RLIMIT_NICE,
        R::RLIMIT_RTPRIO,
        R::RLIMIT_RTTIME,
    ];
    all.into_iter().find(|kind| *kind as u32 == limit.resource)
}
