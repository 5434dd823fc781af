// SPDX-License-Identifier: Apache-2.0
//! The plan of one program: OCI `process`, checked.

use std::collections::HashSet;

use nix::sys::resource::Resource;
use oci_spec::runtime as oci;
use serde::{Deserialize, Serialize};

use super::PlanError;
use super::id::shorten;
use super::label::Modules;

/// Capability sets as bit masks by capability number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// What can ever be regained.
    pub bounding: u64,
    /// What is in force.
    pub effective: u64,
    /// What an executed file may inherit.
    pub inheritable: u64,
    /// What can be made effective.
    pub permitted: u64,
    /// What survives the execution of an ordinary file.
    pub ambient: u64,
}

/// One resource limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_*` number.
    pub resource: u32,
    /// Soft limit, `u64::MAX` = infinity.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// A program and the state it starts in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// The host's ports of the connections for stdin, stdout and stderr; 0 for
    /// none. The agent's business only.
    #[serde(skip)]
    pub ports: [u32; 3],
    /// At least one.
    pub args: Vec<String>,
    /// `NAME=value`, names not empty.
    pub env: Vec<String>,
    /// Absolute.
    pub cwd: String,
    /// User id inside the container.
    pub uid: u32,
    /// Group id inside the container.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Absent in an exec: the container's are used.
    pub capabilities: Option<Capabilities>,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// Set `no_new_privs`.
    pub no_new_privs: bool,
    /// `oom_score_adj`; a container never inherits the agent's protection.
    pub oom_score_adj: i32,
    /// Wants a terminal.
    pub terminal: bool,
    /// Rows and columns of a new terminal.
    pub console_size: Option<(u16, u16)>,
    /// SELinux context to execute in.
    pub selinux_label: Option<String>,
    /// AppArmor profile to execute under.
    pub apparmor_profile: Option<String>,
}

/// Checks an OCI process.
///
/// # Errors
/// [`PlanError`] naming the field.
pub fn plan(process: &oci::Process) -> Result<ProcessPlan, PlanError> {
    let args = process.args().clone().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(PlanError::Missing("process.args"));
    }
    let env = process.env().clone().unwrap_or_default();
    refuse_nul("process.args", &args)?;
    refuse_nul("process.env", &env)?;
    let labelled = process.selinux_label().is_some() || process.apparmor_profile().is_some();
    let modules = if labelled {
        Modules::detect()
    } else {
        Modules::default()
    };
    let user = process.user();
    Ok(ProcessPlan {
        ports: [0; 3],
        args,
        env: env
            .into_iter()
            .filter(|entry| is_assignment(entry))
            .collect(),
        cwd: plan_cwd(process.cwd().to_str().unwrap_or_default())?,
        uid: id("process.user.uid", user.uid())?,
        gid: id("process.user.gid", user.gid())?,
        groups: user.additional_gids().clone().unwrap_or_default(),
        capabilities: process.capabilities().as_ref().map(capabilities),
        rlimits: process
            .rlimits()
            .iter()
            .flatten()
            .map(rlimit)
            .collect::<Result<_, _>>()?,
        no_new_privs: process.no_new_privileges().unwrap_or(false),
        oom_score_adj: oom_score_adj(process.oom_score_adj().unwrap_or(0))?,
        terminal: process.terminal().unwrap_or(false),
        console_size: process
            .console_size()
            .map(|size| (clamp(size.height()), clamp(size.width()))),
        selinux_label: modules
            .selinux_label("process.selinuxLabel", process.selinux_label().as_ref())?,
        apparmor_profile: modules.apparmor_profile(process.apparmor_profile().as_ref())?,
    })
}

/// The kernel takes the highest number for "leave it as it is": the process
/// would stay root.
fn id(field: &'static str, id: u32) -> Result<u32, PlanError> {
    match id {
        u32::MAX => Err(PlanError::invalid(field, id.to_string(), "is no id")),
        id => Ok(id),
    }
}

fn is_assignment(entry: &str) -> bool {
    entry.find('=').is_some_and(|at| at > 0)
}

fn clamp(value: u64) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

fn refuse_nul(field: &'static str, values: &[String]) -> Result<(), PlanError> {
    match values.iter().find(|value| value.contains('\0')) {
        Some(value) => Err(PlanError::invalid(
            field,
            shorten(value),
            "contains a NUL byte",
        )),
        None => Ok(()),
    }
}

fn plan_cwd(cwd: &str) -> Result<String, PlanError> {
    match cwd {
        "" => Ok("/".to_owned()),
        absolute if absolute.starts_with('/') && !absolute.contains('\0') => {
            Ok(absolute.to_owned())
        }
        other => Err(PlanError::invalid(
            "process.cwd",
            shorten(other),
            "must be an absolute path",
        )),
    }
}

fn oom_score_adj(value: i32) -> Result<i32, PlanError> {
    if (-1000..=1000).contains(&value) {
        Ok(value)
    } else {
        Err(PlanError::invalid(
            "process.oomScoreAdj",
            value.to_string(),
            "must be -1000 to 1000",
        ))
    }
}

fn capabilities(sets: &oci::LinuxCapabilities) -> Capabilities {
    let mask = |set: &Option<HashSet<oci::Capability>>| {
        set.iter()
            .flatten()
            .filter_map(|cap| number(*cap))
            .fold(0, |mask, bit| mask | 1 << bit)
    };
    Capabilities {
        bounding: mask(sets.bounding()),
        effective: mask(sets.effective()),
        inheritable: mask(sets.inheritable()),
        permitted: mask(sets.permitted()),
        ambient: mask(sets.ambient()),
    }
}

/// The kernel's number of a capability. Both libraries name them alike.
fn number(capability: oci::Capability) -> Option<u8> {
    let name = capability.to_string();
    let name = caps::to_canonical(&name);
    name.parse::<caps::Capability>()
        .ok()
        .map(|known| known.index())
}

fn rlimit(limit: &oci::PosixRlimit) -> Result<Rlimit, PlanError> {
    if limit.soft() > limit.hard() {
        return Err(PlanError::invalid(
            "process.rlimits",
            limit.typ().to_string(),
            "soft limit above the hard one",
        ));
    }
    Ok(Rlimit {
        resource: resource(limit.typ()) as u32,
        soft: limit.soft(),
        hard: limit.hard(),
    })
}

fn resource(kind: oci::PosixRlimitType) -> Resource {
    use oci::PosixRlimitType as Type;
    match kind {
        Type::RlimitCpu => Resource::RLIMIT_CPU,
        Type::RlimitFsize => Resource::RLIMIT_FSIZE,
        Type::RlimitData => Resource::RLIMIT_DATA,
        Type::RlimitStack => Resource::RLIMIT_STACK,
        Type::RlimitCore => Resource::RLIMIT_CORE,
        Type::RlimitRss => Resource::RLIMIT_RSS,
        Type::RlimitNproc => Resource::RLIMIT_NPROC,
        Type::RlimitNofile => Resource::RLIMIT_NOFILE,
        Type::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
        Type::RlimitAs => Resource::RLIMIT_AS,
        Type::RlimitLocks => Resource::RLIMIT_LOCKS,
        Type::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
        Type::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
        Type::RlimitNice => Resource::RLIMIT_NICE,
        Type::RlimitRtprio => Resource::RLIMIT_RTPRIO,
        Type::RlimitRttime => Resource::RLIMIT_RTTIME,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(
        change: impl FnOnce(&mut oci::Process) -> &mut oci::Process,
    ) -> Result<ProcessPlan, PlanError> {
        let mut process = oci::Process::default();
        change(&mut process);
        plan(&process)
    }

    #[test]
    fn the_id_that_changes_nothing_is_refused() {
        let user = |uid, gid| {
            process(|p| {
                let mut user = oci::User::default();
                user.set_uid(uid).set_gid(gid);
                p.set_user(user)
            })
        };
        assert!(user(0, 0).is_ok() && user(u32::MAX - 1, 7).is_ok());
        assert!(user(u32::MAX, 0).is_err());
        assert!(user(0, u32::MAX).is_err());
    }

    #[test]
    fn what_the_kernel_would_cut_short_is_refused() {
        let nul = || Some(vec!["a\0b=c".to_owned()]);
        assert!(process(|p| p.set_args(nul())).is_err());
        assert!(process(|p| p.set_env(nul())).is_err());
        assert!(process(|p| p.set_cwd("relative".into())).is_err());
        assert!(process(|p| p.set_args(None)).is_err());
    }

    #[test]
    fn entries_that_are_no_assignments_are_dropped() {
        let env = ["A=1", "=x", "B", "C="].map(str::to_owned).to_vec();
        let plan = process(|p| p.set_env(Some(env))).unwrap();
        assert_eq!(plan.env, ["A=1", "C="]);
    }

    /// Both libraries must know the same capabilities, by the kernel's numbers.
    #[test]
    fn every_capability_has_its_number() {
        for cap in caps::all() {
            let name = cap.to_string();
            let name = name.strip_prefix("CAP_").unwrap();
            let known: oci::Capability = name.parse().unwrap();
            assert_eq!(number(known), Some(cap.index()), "{name}");
        }
    }

    #[test]
    fn a_soft_limit_above_the_hard_one_is_refused() {
        let limit = |soft: u64, hard: u64| {
            let limit = oci::PosixRlimitBuilder::default()
                .typ(oci::PosixRlimitType::RlimitNofile)
                .soft(soft)
                .hard(hard)
                .build()
                .unwrap();
            process(|p| p.set_rlimits(Some(vec![limit])))
        };
        assert_eq!(limit(1, 2).unwrap().rlimits[0].hard, 2);
        assert!(limit(2, 1).is_err());
    }
}
