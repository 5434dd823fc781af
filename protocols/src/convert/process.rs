// SPDX-License-Identifier: Apache-2.0

//! The process section: identity, arguments, capabilities, resource limits.

use super::ConvertError;
use super::field::{in_range, list, refused, text, try_list, unknown, word};
use crate::oci;
use oci_spec::runtime::{
    Box as ConsoleSize, BoxBuilder, Capabilities, Capability, LinuxCapabilities, PosixRlimit,
    PosixRlimitBuilder, PosixRlimitType, Process, User,
};

/// Converts a process, of a container or of an exec.
///
/// An empty working directory is `/`. `oom_score_adj` is always set, 0 included: otherwise the process would keep the
/// agent's own, which protects it from the OOM killer.
///
/// # Errors
///
/// [`ConvertError::EmptyArgs`] without arguments, else see [`ConvertError`].
pub fn process_from_wire(wire: &oci::Process) -> Result<Process, ConvertError> {
    if wire.Args.is_empty() {
        return Err(ConvertError::EmptyArgs);
    }
    let cwd = if wire.Cwd.is_empty() { "/" } else { &wire.Cwd };
    let console_size = wire.ConsoleSize.as_ref().map(console_size).transpose()?;
    let capabilities = wire.Capabilities.as_ref().map(capabilities).transpose()?;
    let root = oci::User::default();
    let mut process = Process::default();
    process
        .set_terminal(Some(wire.Terminal))
        .set_console_size(console_size)
        .set_user(user(wire.User.as_ref().unwrap_or(&root)))
        .set_args(list(&wire.Args, String::clone))
        .set_env(list(&wire.Env, String::clone))
        .set_cwd(cwd.into())
        .set_capabilities(capabilities)
        .set_rlimits(try_list(&wire.Rlimits, rlimit)?)
        .set_no_new_privileges(Some(wire.NoNewPrivileges))
        .set_apparmor_profile(text(&wire.ApparmorProfile))
        .set_oom_score_adj(Some(oom_score_adj(wire.OOMScoreAdj)?))
        .set_selinux_label(text(&wire.SelinuxLabel));
    Ok(process)
}

fn console_size(wire: &oci::Box) -> Result<ConsoleSize, ConvertError> {
    BoxBuilder::default()
        .height(wire.Height)
        .width(wire.Width)
        .build()
        .map_err(refused("Process.ConsoleSize"))
}

/// Supplementary groups are always set: an empty list means that the process has none.
fn user(wire: &oci::User) -> User {
    let mut user = User::default();
    user.set_uid(wire.UID)
        .set_gid(wire.GID)
        .set_additional_gids(Some(wire.AdditionalGids.clone()))
        .set_username(text(&wire.Username));
    user
}

fn oom_score_adj(value: i64) -> Result<i32, ConvertError> {
    let field = "Process.OOMScoreAdj";
    let value = in_range(field, value, -1000..=1000)?;
    i32::try_from(value).map_err(|_| ConvertError::OutOfRange {
        field,
        value: value.into(),
    })
}

fn rlimit(wire: &oci::POSIXRlimit) -> Result<PosixRlimit, ConvertError> {
    let typ: PosixRlimitType = word("POSIXRlimit.Type", &wire.Type)?;
    PosixRlimitBuilder::default()
        .typ(typ)
        .hard(wire.Hard)
        .soft(wire.Soft)
        .build()
        .map_err(refused("Process.Rlimits"))
}

/// All five sets are set once the message is there: an empty set means no capabilities, not the agent's.
fn capabilities(wire: &oci::LinuxCapabilities) -> Result<LinuxCapabilities, ConvertError> {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(capability_set(
        "LinuxCapabilities.Bounding",
        &wire.Bounding,
    )?)
    .set_effective(capability_set(
        "LinuxCapabilities.Effective",
        &wire.Effective,
    )?)
    .set_inheritable(capability_set(
        "LinuxCapabilities.Inheritable",
        &wire.Inheritable,
    )?)
    .set_permitted(capability_set(
        "LinuxCapabilities.Permitted",
        &wire.Permitted,
    )?)
    .set_ambient(capability_set("LinuxCapabilities.Ambient", &wire.Ambient)?);
    Ok(sets)
}

fn capability_set(
    field: &'static str,
    names: &[String],
) -> Result<Option<Capabilities>, ConvertError> {
    let mut set = Capabilities::default();
    for name in names {
        set.insert(capability(field, name)?);
    }
    Ok(Some(set))
}

/// Takes `CAP_KILL`, `KILL`, and either as a JSON string, since hosts have sent all of these.
fn capability(field: &'static str, name: &str) -> Result<Capability, ConvertError> {
    let bare = name
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(name);
    let bare = bare.strip_prefix("CAP_").unwrap_or(bare);
    bare.parse().map_err(|_| unknown(field, name))
}

#[cfg(test)]
mod tests {
    use super::super::{check::*, spec_from_wire};
    use super::*;
    use protobuf::MessageField;

    fn wire_process() -> oci::Process {
        oci::Process {
            Args: strings(&["true"]),
            ..Default::default()
        }
    }

    #[test]
    fn a_minimal_process_gets_no_defaults() {
        let process = process_from_wire(&wire_process()).unwrap();
        assert_eq!(process.args(), &Some(strings(&["true"])));
        assert!(process.env().is_none() && process.capabilities().is_none());
        assert!(process.rlimits().is_none() && process.console_size().is_none());
        assert!(process.apparmor_profile().is_none() && process.selinux_label().is_none());
        assert_eq!(process.cwd().to_str(), Some("/"));
        assert_eq!(process.terminal(), Some(false));
        assert_eq!(process.no_new_privileges(), Some(false));
        assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
    }

    #[test]
    fn a_full_process_is_kept() {
        let process = process_from_wire(&oci::Process {
            Terminal: true,
            ConsoleSize: MessageField::some(oci::Box {
                Height: 24,
                Width: 80,
                ..Default::default()
            }),
            User: MessageField::some(oci::User {
                UID: 1000,
                GID: 100,
                AdditionalGids: vec![5, 6],
                Username: "someone".to_owned(),
                ..Default::default()
            }),
            Args: strings(&["sh", "-c", "id"]),
            Env: strings(&["A=1", "B=2"]),
            Cwd: "/home".to_owned(),
            Rlimits: vec![oci::POSIXRlimit {
                Type: "RLIMIT_NOFILE".to_owned(),
                Hard: u64::MAX,
                Soft: 1024,
                ..Default::default()
            }],
            NoNewPrivileges: true,
            ApparmorProfile: "profile".to_owned(),
            OOMScoreAdj: -998,
            SelinuxLabel: "label".to_owned(),
            ..Default::default()
        })
        .unwrap();
        let size = process.console_size().unwrap();
        assert_eq!((size.height(), size.width()), (24, 80));
        assert_eq!((process.user().uid(), process.user().gid()), (1000, 100));
        assert_eq!(process.user().additional_gids(), &Some(vec![5, 6]));
        assert_eq!(process.user().username().as_deref(), Some("someone"));
        assert_eq!(process.env().as_ref().unwrap().len(), 2);
        assert_eq!(process.cwd().to_str(), Some("/home"));
        let rlimit = process.rlimits().as_ref().unwrap()[0];
        assert_eq!(rlimit.typ(), PosixRlimitType::RlimitNofile);
        assert_eq!((rlimit.hard(), rlimit.soft()), (u64::MAX, 1024));
        assert_eq!(process.oom_score_adj(), Some(-998));
        assert_eq!(process.apparmor_profile().as_deref(), Some("profile"));
        assert_eq!(process.selinux_label().as_deref(), Some("label"));
        assert_eq!(process.terminal(), Some(true));
        assert_eq!(process.no_new_privileges(), Some(true));
    }

    #[test]
    fn bug_empty_args_are_an_error_not_a_shell() {
        let result = process_from_wire(&oci::Process::default());
        assert!(matches!(result, Err(ConvertError::EmptyArgs)));
        let spec = oci::Spec {
            Process: MessageField::some(oci::Process::default()),
            ..Default::default()
        };
        assert!(matches!(
            spec_from_wire(&spec),
            Err(ConvertError::EmptyArgs)
        ));
    }

    #[test]
    fn bug_oom_score_adj_zero_is_not_inherited() {
        assert_eq!(
            process_from_wire(&wire_process()).unwrap().oom_score_adj(),
            Some(0)
        );
    }

    #[test]
    fn oom_score_adj_beyond_the_kernels_range_is_an_error() {
        for value in [-1001, 1001, i64::MIN, i64::MAX] {
            let wire = oci::Process {
                OOMScoreAdj: value,
                ..wire_process()
            };
            assert_out_of_range(process_from_wire(&wire), "Process.OOMScoreAdj");
        }
    }

    #[test]
    fn no_supplementary_groups_means_none_rather_than_unset() {
        let process = process_from_wire(&wire_process()).unwrap();
        assert_eq!(process.user().additional_gids(), &Some(vec![]));
    }

    #[test]
    fn bug_unknown_rlimit_is_an_error_not_a_panic() {
        for word in ["RLIMIT_FOO", "rlimit_cpu", "CPU", ""] {
            let wire = oci::Process {
                Rlimits: vec![oci::POSIXRlimit {
                    Type: word.to_owned(),
                    ..Default::default()
                }],
                ..wire_process()
            };
            assert_unknown(process_from_wire(&wire), "POSIXRlimit.Type", word);
        }
    }

    #[test]
    fn every_rlimit_is_known() {
        for name in [
            "CPU",
            "FSIZE",
            "DATA",
            "STACK",
            "CORE",
            "RSS",
            "NPROC",
            "NOFILE",
            "MEMLOCK",
            "AS",
            "LOCKS",
            "SIGPENDING",
            "MSGQUEUE",
            "NICE",
            "RTPRIO",
            "RTTIME",
        ] {
            let parsed: Result<PosixRlimitType, _> = word("", &format!("RLIMIT_{name}"));
            assert!(parsed.is_ok(), "{name}");
        }
    }

    fn with_capabilities(names: &[&str]) -> oci::Process {
        oci::Process {
            Capabilities: MessageField::some(oci::LinuxCapabilities {
                Permitted: strings(names),
                ..Default::default()
            }),
            ..wire_process()
        }
    }

    #[test]
    fn capabilities_come_in_several_spellings() {
        let wire = with_capabilities(&["CAP_KILL", "SYS_ADMIN", "\"CAP_NET_RAW\"", "\"CHOWN\""]);
        let process = process_from_wire(&wire).unwrap();
        let sets = process.capabilities().as_ref().unwrap();
        let wanted = [
            Capability::Kill,
            Capability::SysAdmin,
            Capability::NetRaw,
            Capability::Chown,
        ];
        assert_eq!(sets.permitted(), &Some(wanted.into_iter().collect()));
        // A set without members is a set all the same, not the library's default.
        assert_eq!(sets.bounding(), &Some(Default::default()));
        assert_eq!(sets.ambient(), &Some(Default::default()));
    }

    #[test]
    fn every_capability_is_known() {
        let names = "AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE \
            DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD \
            NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN \
            SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME \
            SYS_TTY_CONFIG WAKE_ALARM";
        let names: Vec<&str> = names.split_whitespace().collect();
        assert_eq!(names.len(), 41);
        let process = process_from_wire(&with_capabilities(&names)).unwrap();
        let sets = process.capabilities().as_ref().unwrap();
        assert_eq!(sets.permitted().as_ref().unwrap().len(), 41);
    }

    #[test]
    fn bug_unknown_capability_is_an_error_not_a_panic() {
        for word in ["CAP_FOO", "", "\"", "CAP_", "CAP_CAP_KILL", "cap_kill"] {
            let result = process_from_wire(&with_capabilities(&[word]));
            assert_unknown(result, "LinuxCapabilities.Permitted", word);
        }
    }
}
