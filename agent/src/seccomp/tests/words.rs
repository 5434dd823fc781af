// SPDX-License-Identifier: Apache-2.0
//! What each word of a profile comes to, one by one.

use super::*;

fn x86_64(profile: &LinuxSeccomp) -> Program {
    compile_for(profile, Machine::X86_64).unwrap()
}

#[test]
fn every_action_has_its_value() {
    for (word, data, wanted) in [
        (Word::ScmpActKill, None, 0),
        (Word::ScmpActKillThread, None, 0),
        (Word::ScmpActKillProcess, None, 0x8000_0000),
        (Word::ScmpActTrap, Some(5), 0x0003_0000),
        (Word::ScmpActErrno, Some(0), 0x0005_0000),
        (Word::ScmpActErrno, Some(38), 0x0005_0026),
        (Word::ScmpActTrace, Some(0xffff), 0x7ff0_ffff),
        (Word::ScmpActLog, None, 0x7ffc_0000),
    ] {
        let mut one = rule(&["read"], word, &[]);
        one.set_errno_ret(data);
        let program = x86_64(&profile(Word::ScmpActAllow, &[one]));
        let abi = Machine::X86_64.native();
        assert_eq!(answer(&program, abi, "read", &[]), wanted, "{word}");
        assert_eq!(answer(&program, abi, "write", &[]), 0x7fff_0000);
        let mut default = profile(word, &[rule(&["read"], Word::ScmpActAllow, &[])]);
        default.set_default_errno_ret(data);
        let program = x86_64(&default);
        assert_eq!(answer(&program, abi, "read", &[]), 0x7fff_0000);
        assert_eq!(answer(&program, abi, "write", &[]), wanted, "{word}");
    }
}

#[test]
fn bug_errno_absent_is_eperm() {
    let one = rule(&["read"], Word::ScmpActErrno, &[]);
    let program = x86_64(&profile(Word::ScmpActAllow, &[one]));
    let abi = Machine::X86_64.native();
    assert_eq!(answer(&program, abi, "read", &[]), 0x0005_0001);
    let program = x86_64(&profile(Word::ScmpActErrno, &[]));
    assert_eq!(answer(&program, abi, "read", &[]), 0x0005_0001);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let refused = |rule| {
        compile(&profile(Word::ScmpActAllow, &[rule]))
            .unwrap_err()
            .to_string()
    };
    let text = refused(rule(&["read", "write"], Word::ScmpActNotify, &[]));
    assert!(text.contains("SCMP_ACT_NOTIFY for read, write"), "{text}");
    let text = refused(errno(rule(&["read"], Word::ScmpActErrno, &[]), 0x1_0000));
    assert!(text.contains("errnoRet 65536 for read"), "{text}");
    let op = Operator::ScmpCmpEq;
    let text = refused(rule(&["read"], Word::ScmpActLog, &[arg(6, op, 0, 0)]));
    assert!(text.contains("argument 6 for read"), "{text}");
    let error = compile(&profile(Word::ScmpActNotify, &[])).unwrap_err();
    assert!(error.to_string().contains("the default"), "{error}");
}

#[test]
fn flags() {
    let mut with = profile(Word::ScmpActAllow, &[]);
    with.set_flags(Some(vec![
        Flag::SeccompFilterFlagTsync,
        Flag::SeccompFilterFlagSpecAllow,
        Flag::SeccompFilterFlagWaitKillableRecv,
    ]));
    assert_eq!(compile(&with).unwrap().flags, 1 | 4);
    with.set_flags(Some(vec![Flag::SeccompFilterFlagLog; 2]));
    assert_eq!(compile(&with).unwrap().flags, 2);
    with.set_flags(None);
    assert_eq!(compile(&with).unwrap().flags, 0);
}

#[test]
fn unknown_calls_change_nothing() {
    let known = rule(&["read"], Word::ScmpActAllow, &[]);
    let both = rule(&["no_such_call", "read", ""], Word::ScmpActAllow, &[]);
    for machine in MACHINES {
        let compiled = |rule| compile_for(&profile(Word::ScmpActErrno, &[rule]), machine).unwrap();
        assert_eq!(compiled(known.clone()), compiled(both.clone()));
    }
}

#[test]
fn a_rule_with_the_default_action_hides_no_other() {
    let (allow, deny) = (Word::ScmpActAllow, Word::ScmpActErrno);
    let abi = Machine::X86_64.native();
    let program = x86_64(&profile(
        deny,
        &[rule(&["read"], deny, &[]), rule(&["read"], allow, &[])],
    ));
    assert_eq!(answer(&program, abi, "read", &[]), 0x7fff_0000);
    // Another errno is another action.
    let other = errno(rule(&["read"], deny, &[]), 2);
    let program = x86_64(&profile(deny, &[other, rule(&["read"], allow, &[])]));
    assert_eq!(answer(&program, abi, "read", &[]), 0x0005_0002);
}

#[test]
fn rules_without_arguments_outdo_those_with_some() {
    let some = rule(
        &["read"],
        Word::ScmpActLog,
        &[arg(0, Operator::ScmpCmpEq, 3, 0)],
    );
    let (flat, later) = (
        rule(&["read"], Word::ScmpActTrap, &[]),
        rule(&["read"], Word::ScmpActErrno, &[]),
    );
    let rules = [some.clone(), flat, later];
    let program = x86_64(&profile(Word::ScmpActAllow, &rules));
    assert_eq!(
        answer(&program, Machine::X86_64.native(), "read", &[3]),
        0x0003_0000
    );
    // Among those with some the first that applies counts.
    let other = rule(
        &["read"],
        Word::ScmpActTrap,
        &[arg(0, Operator::ScmpCmpLe, 3, 0)],
    );
    let program = x86_64(&profile(Word::ScmpActAllow, &[some, other]));
    let said = |value| answer(&program, Machine::X86_64.native(), "read", &[value]);
    assert_eq!(
        [said(3), said(2), said(4)],
        [0x7ffc_0000, 0x0003_0000, 0x7fff_0000]
    );
}

#[test]
fn comparisons_of_one_argument_are_alternatives_and_of_several_all_needed() {
    let eq = Operator::ScmpCmpEq;
    let program = |args: &[LinuxSeccompArg]| {
        x86_64(&profile(
            Word::ScmpActAllow,
            &[rule(&["socket"], Word::ScmpActErrno, args)],
        ))
    };
    let denied = |program: &Program, args: &[u64]| {
        answer(program, Machine::X86_64.native(), "socket", args) == 0x0005_0001
    };
    let all = program(&[arg(0, eq, 16, 0), arg(2, eq, 9, 0)]);
    assert!(denied(&all, &[16, 3, 9]));
    assert!(!denied(&all, &[16, 3, 0]) && !denied(&all, &[1, 3, 9]));
    let any = program(&[arg(0, eq, 16, 0), arg(0, eq, 17, 0)]);
    assert!(denied(&any, &[16]) && denied(&any, &[17]));
    assert!(!denied(&any, &[18]));
}

#[test]
fn foreign_conventions_kill_the_process() {
    let mut narrow = profile(Word::ScmpActAllow, &[]);
    narrow.set_architectures(Some(vec![Arch::ScmpArchX86_64, Arch::ScmpArchPpc64]));
    let program = x86_64(&narrow);
    let said = |token, number| {
        let asked = Asked {
            token,
            number,
            args: [0; 6],
        };
        interpreter::run(&program.filter, &asked).0
    };
    assert_eq!(said(0xc000_003e, 0), 0x7fff_0000);
    assert_eq!(said(0x4000_0003, 3), 0x8000_0000);
    assert_eq!(said(0xc000_0015, 3), 0x8000_0000);
    // x32 under the native token, and the number of a call that a tracer skips.
    assert_eq!(said(0xc000_003e, 0x4000_0000), 0x8000_0000);
    assert_eq!(said(0xc000_003e, u32::MAX - 1), 0x8000_0000);
    assert_eq!(said(0xc000_003e, u32::MAX), 0x7fff_0000);
    narrow.set_architectures(Some(vec![Arch::ScmpArchX32]));
    let program = x86_64(&narrow);
    let asked = Asked {
        token: 0xc000_003e,
        number: 0x4000_0001,
        args: [0; 6],
    };
    assert_eq!(interpreter::run(&program.filter, &asked).0, 0x0005_0026);
}

/// A 32-bit program reaches each of these by two ways; a rule that looks at arguments must not be passed by through the other.
#[test]
fn carried_calls_follow_the_rules_for_what_they_carry() {
    let x86 = Machine::X86_64.compat();
    let vsock = arg(0, Operator::ScmpCmpEq, 40, 0);
    let rules = [
        rule(&["socket"], Word::ScmpActErrno, &[vsock]),
        errno(rule(&["connect", "semop"], Word::ScmpActErrno, &[]), 13),
    ];
    let program = x86_64(&profile(Word::ScmpActAllow, &rules));
    let said = |name, args: &[u64]| answer(&program, x86, name, args);
    assert_eq!(said("socket", &[40]), 0x0005_0001);
    assert_eq!(said("socket", &[2]), 0x7fff_0000);
    assert_eq!(said("socketcall", &[1]), 0x0005_0001);
    assert_eq!(said("socketcall", &[3]), 0x0005_000d);
    assert_eq!(said("socketcall", &[4]), 0x7fff_0000);
    assert_eq!(said("ipc", &[1]), 0x0005_000d);
    assert_eq!(said("ipc", &[0x5_0001]), 0x0005_000d);
    assert_eq!(said("ipc", &[2]), 0x7fff_0000);
    // In a list of what is allowed: only what needs no look at arguments.
    let rules = [
        rule(
            &["socket"],
            Word::ScmpActAllow,
            &[arg(0, Operator::ScmpCmpNe, 40, 0)],
        ),
        rule(&["connect"], Word::ScmpActAllow, &[]),
    ];
    let program = x86_64(&profile(Word::ScmpActErrno, &rules));
    let said = |args: &[u64]| answer(&program, x86, "socketcall", args);
    assert_eq!(
        [said(&[1]), said(&[3]), said(&[9])],
        [0x0005_0001, 0x7fff_0000, 0x0005_0001]
    );
}
