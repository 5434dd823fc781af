// SPDX-License-Identifier: Apache-2.0

//! The seccomp profile. Names of system calls are not checked: which exist depends on the architecture.

use super::ConvertError;
use super::field::{in_range, refused, try_list, word};
use crate::oci::{self, linux_syscall::ErrnoRet};
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall,
};

/// What a refused call returns unless the rule says otherwise (OCI `errnoRet`).
const EPERM: u32 = 1;

/// Most a filter can return besides its action (SECCOMP_RET_DATA, seccomp(2)). Anything above would alter the action.
const RET_DATA_MAX: u32 = 0xffff;

/// Greatest index of a system call argument.
const ARG_INDEX_MAX: u64 = 5;

/// The default action's errno is not on the wire and stays unset, which means EPERM.
pub(super) fn seccomp_from_wire(wire: &oci::LinuxSeccomp) -> Result<LinuxSeccomp, ConvertError> {
    let mut seccomp = LinuxSeccomp::default();
    seccomp
        .set_default_action(word("LinuxSeccomp.DefaultAction", &wire.DefaultAction)?)
        .set_architectures(try_list(&wire.Architectures, |name| {
            word("LinuxSeccomp.Architectures", name)
        })?)
        .set_flags(try_list(&wire.Flags, |name| {
            word("LinuxSeccomp.Flags", name)
        })?)
        .set_syscalls(try_list(&wire.Syscalls, syscall)?);
    Ok(seccomp)
}

fn syscall(wire: &oci::LinuxSyscall) -> Result<LinuxSyscall, ConvertError> {
    let action = word("LinuxSyscall.Action", &wire.Action)?;
    let mut syscall = LinuxSyscall::default();
    syscall
        .set_names(wire.Names.clone())
        .set_action(action)
        .set_errno_ret(errno_ret(action, wire.ErrnoRet.as_ref())?)
        .set_args(try_list(&wire.Args, arg)?);
    Ok(syscall)
}

/// The errno of a rule: as sent, else EPERM, and unset for actions that return none.
fn errno_ret(
    action: LinuxSeccompAction,
    wire: Option<&ErrnoRet>,
) -> Result<Option<u32>, ConvertError> {
    use LinuxSeccompAction::{ScmpActErrno, ScmpActTrace};
    if !matches!(action, ScmpActErrno | ScmpActTrace) {
        return Ok(None);
    }
    let errno = match wire {
        Some(ErrnoRet::Errnoret(errno)) => *errno,
        _ => EPERM,
    };
    in_range("LinuxSyscall.errnoret", errno, 0..=RET_DATA_MAX).map(Some)
}

/// The second value only means something under a mask, and then 0 is a value.
fn arg(wire: &oci::LinuxSeccompArg) -> Result<LinuxSeccompArg, ConvertError> {
    let index = in_range("LinuxSeccompArg.Index", wire.Index, 0..=ARG_INDEX_MAX)?;
    let op: LinuxSeccompOperator = word("LinuxSeccompArg.Op", &wire.Op)?;
    let mut arg = LinuxSeccompArgBuilder::default()
        .index(index as usize)
        .value(wire.Value)
        .op(op);
    if op == LinuxSeccompOperator::ScmpCmpMaskedEq {
        arg = arg.value_two(wire.ValueTwo);
    }
    arg.build().map_err(refused("LinuxSeccompArg"))
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use oci_spec::runtime::{Arch, LinuxSeccompFilterFlag};

    fn convert_seccomp(
        syscall: oci::LinuxSyscall,
    ) -> Result<oci_spec::runtime::LinuxSyscall, ConvertError> {
        let seccomp = seccomp_from_wire(&oci::LinuxSeccomp {
            DefaultAction: "SCMP_ACT_ALLOW".to_owned(),
            Syscalls: vec![syscall],
            ..Default::default()
        })?;
        Ok(seccomp.syscalls().as_ref().unwrap()[0].clone())
    }

    fn rule(action: &str, errno: Option<u32>) -> oci::LinuxSyscall {
        oci::LinuxSyscall {
            Names: strings(&["chmod"]),
            Action: action.to_owned(),
            ErrnoRet: errno.map(ErrnoRet::Errnoret),
            ..Default::default()
        }
    }

    #[test]
    fn bug_absent_errno_ret_is_eperm() {
        let errno = |action, errno| convert_seccomp(rule(action, errno)).unwrap().errno_ret();
        assert_eq!(errno("SCMP_ACT_ERRNO", None), Some(1));
        assert_eq!(errno("SCMP_ACT_TRACE", None), Some(1));
        assert_eq!(errno("SCMP_ACT_ERRNO", Some(38)), Some(38));
        assert_eq!(errno("SCMP_ACT_ERRNO", Some(0)), Some(0));
        assert_eq!(errno("SCMP_ACT_ALLOW", None), None);
        assert_eq!(errno("SCMP_ACT_ALLOW", Some(0)), None);
    }

    #[test]
    fn an_errno_cannot_alter_the_action() {
        let result = convert_seccomp(rule("SCMP_ACT_ERRNO", Some(0x7fff_0000)));
        assert_out_of_range(result, "LinuxSyscall.errnoret");
    }

    #[test]
    fn every_seccomp_word_is_known() {
        use LinuxSeccompAction as Act;
        for (name, wanted) in [
            ("KILL", Act::ScmpActKill),
            ("KILL_THREAD", Act::ScmpActKillThread),
            ("KILL_PROCESS", Act::ScmpActKillProcess),
            ("TRAP", Act::ScmpActTrap),
            ("ERRNO", Act::ScmpActErrno),
            ("NOTIFY", Act::ScmpActNotify),
            ("TRACE", Act::ScmpActTrace),
            ("LOG", Act::ScmpActLog),
            ("ALLOW", Act::ScmpActAllow),
        ] {
            let syscall = convert_seccomp(rule(&format!("SCMP_ACT_{name}"), None)).unwrap();
            assert_eq!(syscall.action(), wanted);
        }
        let archs = "X86 X86_64 X32 ARM AARCH64 MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PPC PPC64 PPC64LE \
            S390 S390X PARISC PARISC64 RISCV64 LOONGARCH64 M68K SH SHEB NATIVE";
        for name in archs.split_whitespace() {
            let parsed: Result<Arch, _> = word("", &format!("SCMP_ARCH_{name}"));
            assert!(parsed.is_ok(), "{name}");
        }
        for name in ["TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV"] {
            let name = format!("SECCOMP_FILTER_FLAG_{name}");
            let parsed: Result<LinuxSeccompFilterFlag, _> = word("", &name);
            assert!(parsed.is_ok(), "{name}");
        }
        for name in ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"] {
            let parsed: Result<LinuxSeccompOperator, _> = word("", &format!("SCMP_CMP_{name}"));
            assert!(parsed.is_ok(), "{name}");
        }
    }

    #[test]
    fn bug_unknown_seccomp_words_are_errors_not_panics() {
        let profile = |change: fn(&mut oci::LinuxSeccomp)| {
            let mut seccomp = oci::LinuxSeccomp {
                DefaultAction: "SCMP_ACT_ALLOW".to_owned(),
                ..Default::default()
            };
            change(&mut seccomp);
            seccomp_from_wire(&seccomp)
        };
        let result = profile(|seccomp| seccomp.DefaultAction.clear());
        assert_unknown(result, "LinuxSeccomp.DefaultAction", "");
        let result = profile(|seccomp| seccomp.Architectures.push("x86_64".to_owned()));
        assert_unknown(result, "LinuxSeccomp.Architectures", "x86_64");
        let result = profile(|seccomp| seccomp.Flags.push("LOG".to_owned()));
        assert_unknown(result, "LinuxSeccomp.Flags", "LOG");
        assert_unknown(
            convert_seccomp(rule("ALLOW", None)),
            "LinuxSyscall.Action",
            "ALLOW",
        );
        let with_op = oci::LinuxSyscall {
            Args: vec![oci::LinuxSeccompArg::default()],
            ..rule("SCMP_ACT_ALLOW", None)
        };
        assert_unknown(convert_seccomp(with_op), "LinuxSeccompArg.Op", "");
    }

    #[test]
    fn seccomp_arguments_keep_mask_and_value() {
        let convert = |index, op: &str| {
            convert_seccomp(oci::LinuxSyscall {
                Args: vec![oci::LinuxSeccompArg {
                    Index: index,
                    Value: 0x7e02_0000,
                    ValueTwo: 0,
                    Op: op.to_owned(),
                    ..Default::default()
                }],
                ..rule("SCMP_ACT_ALLOW", None)
            })
        };
        let arg = convert(5, "SCMP_CMP_MASKED_EQ")
            .unwrap()
            .args()
            .as_ref()
            .unwrap()[0];
        assert_eq!(
            (arg.index(), arg.value(), arg.value_two()),
            (5, 0x7e02_0000, Some(0))
        );
        let arg = convert(0, "SCMP_CMP_EQ").unwrap().args().as_ref().unwrap()[0];
        assert_eq!(
            (arg.op(), arg.value_two()),
            (LinuxSeccompOperator::ScmpCmpEq, None)
        );
        assert_out_of_range(convert(6, "SCMP_CMP_EQ"), "LinuxSeccompArg.Index");
    }
}
