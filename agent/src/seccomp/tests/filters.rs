// SPDX-License-Identifier: Apache-2.0
//! Random profiles and calls: the compiled filter and the plain reading agree.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

/// Calls that exist everywhere, nowhere, once, and those that carry others.
const NAMES: &[&str] = &[
    "read",
    "openat",
    "socket",
    "connect",
    "socketcall",
    "ipc",
    "semop",
    "shmget",
    "msgctl",
    "clone",
    "mmap2",
    "set_tls",
    "open",
    "bogus",
];

fn word() -> impl Strategy<Value = Word> {
    select(vec![
        Word::ScmpActKill,
        Word::ScmpActKillThread,
        Word::ScmpActKillProcess,
        Word::ScmpActTrap,
        Word::ScmpActErrno,
        Word::ScmpActTrace,
        Word::ScmpActLog,
        Word::ScmpActAllow,
    ])
}

fn operator() -> impl Strategy<Value = Operator> {
    select(vec![
        Operator::ScmpCmpNe,
        Operator::ScmpCmpLt,
        Operator::ScmpCmpLe,
        Operator::ScmpCmpEq,
        Operator::ScmpCmpGe,
        Operator::ScmpCmpGt,
        Operator::ScmpCmpMaskedEq,
    ])
}

/// Values whose halves are at their limits, or equal, or off by one.
fn value() -> impl Strategy<Value = u64> {
    let half = prop_oneof![
        select(vec![
            0_u32,
            1,
            2,
            21,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_fffe,
            u32::MAX
        ]),
        any::<u32>(),
    ];
    let halves =
        (half.clone(), half).prop_map(|(high, low)| u64::from(high) << 32 | u64::from(low));
    prop_oneof![0..30_u64, halves, any::<u64>()]
}

fn rules(names: &'static [&'static str], count: usize) -> impl Strategy<Value = Vec<LinuxSyscall>> {
    let args = prop::collection::vec((0..6_usize, operator(), value(), value()), 0..4);
    let names = prop::collection::vec(select(names), 1..4);
    let data = prop::option::of(prop_oneof![Just(0), Just(1), Just(0xffff), 0..4096_u32]);
    let rule = (names, word(), data, args).prop_map(|(names, word, data, args)| {
        let args: Vec<_> = args
            .into_iter()
            .map(|(i, op, a, b)| arg(i, op, a, b))
            .collect();
        let mut rule = rule(&names, word, &args);
        rule.set_errno_ret(data);
        rule
    });
    prop::collection::vec(rule, 0..count)
}

fn any_profile(
    names: &'static [&'static str],
    count: usize,
) -> impl Strategy<Value = LinuxSeccomp> {
    let archs = vec![
        Arch::ScmpArchX86,
        Arch::ScmpArchX32,
        Arch::ScmpArchArm,
        Arch::ScmpArchNative,
    ];
    let archs = prop::sample::subsequence(archs, 0..=4);
    let errno = prop::option::of(0..0xffff_u32);
    (word(), errno, archs, rules(names, count)).prop_map(|(default, errno, archs, rules)| {
        let mut profile = profile(default, &rules);
        profile
            .set_default_errno_ret(errno)
            .set_architectures(Some(archs));
        profile
    })
}

/// A call that is near to what the profile speaks of.
#[derive(Clone, Debug)]
struct Near {
    token: Index,
    any_token: u32,
    call: Index,
    number: (u8, u32),
    args: [(u8, Index, u64); 6],
}

fn near() -> impl Strategy<Value = Near> {
    let arg = || (0..6_u8, any::<Index>(), value());
    (
        any::<Index>(),
        any::<u32>(),
        any::<Index>(),
        (0..20_u8, any::<u32>()),
        [arg(), arg(), arg(), arg(), arg(), arg()],
    )
        .prop_map(|(token, any_token, call, number, args)| Near {
            token,
            any_token,
            call,
            number,
            args,
        })
}

impl Near {
    fn asked(&self, profile: &LinuxSeccomp, machine: Machine) -> Asked {
        let (native, compat) = (machine.native(), machine.compat());
        let abi = *self.token.get(&[native, native, native, compat, compat]);
        let token = match self.number.0 {
            0 => self.any_token,
            1 => 0x4000_003e,
            _ => abi.token,
        };
        let rules = profile.syscalls().as_ref().unwrap();
        let named: Vec<_> = rules.iter().flat_map(|rule| rule.names()).collect();
        let numbers: Vec<_> = abi
            .calls()
            .filter(|call| named.iter().any(|name| *name == call.0))
            .collect();
        let call = if numbers.is_empty() {
            0
        } else {
            self.call.get(&numbers).1
        };
        let number = match self.number.0 {
            2 => self.number.1,
            3 => call | 0x4000_0000,
            4 => u32::MAX,
            5 => call + 1,
            6 => call.saturating_sub(1),
            7 => self.number.1 % 500,
            8 => 0x3fff_ffff + self.number.1 % 3,
            _ => call,
        };
        let values: Vec<u64> = rules
            .iter()
            .flat_map(|rule| rule.args().iter().flatten())
            .flat_map(|arg| {
                [
                    arg.value(),
                    arg.value_two().unwrap_or_default() & arg.value(),
                ]
            })
            .collect();
        let args = self.args.map(|(how, which, other)| {
            let value = if values.is_empty() {
                other
            } else {
                *which.get(&values)
            };
            match how {
                0 => other,
                1 => value.wrapping_add(1),
                2 => value.wrapping_sub(1),
                3 => value ^ 1 << 32,
                4 => value & 0xffff_ffff,
                _ => value,
            }
        });
        Asked {
            number,
            token,
            args,
        }
    }
}

fn agree(profile: &LinuxSeccomp, calls: &[Near]) -> Result<(), TestCaseError> {
    for machine in MACHINES {
        let program = match compile_for(profile, machine) {
            Ok(program) => program,
            Err(SeccompError::Size) => continue,
            Err(error) => panic!("{error}"),
        };
        interpreter::check(&program.filter);
        for call in calls {
            let asked = call.asked(profile, machine);
            let (said, _) = interpreter::run(&program.filter, &asked);
            let wanted = oracle::decide(profile, machine, &asked);
            prop_assert_eq!(
                said,
                wanted,
                "{:?} {:x?}: {:#x} {:#x}",
                machine,
                asked,
                said,
                wanted
            );
        }
    }
    Ok(())
}

/// All names of both machines.
fn every_name() -> &'static [&'static str] {
    let abis = MACHINES
        .iter()
        .flat_map(|machine| [machine.native(), machine.compat()]);
    Vec::leak(abis.flat_map(Abi::calls).map(|call| call.0).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]
    #[test]
    fn small_profiles(
        profile in any_profile(NAMES, 12),
        calls in prop::collection::vec(near(), 30),
    ) {
        agree(&profile, &calls)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    /// Long enough that no conditional jump reaches from one end to the other.
    #[test]
    fn large_profiles(
        profile in any_profile(every_name(), 150),
        calls in prop::collection::vec(near(), 150),
    ) {
        agree(&profile, &calls)?;
    }
}

#[test]
fn every_comparison_at_the_edges_of_the_halves() {
    let edges = [
        0,
        1,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_fffe,
        0xffff_ffff,
        0x1_0000_0000,
        0x1_0000_0001,
        0x7fff_ffff_ffff_ffff,
        0xffff_fffe_ffff_ffff,
        0xffff_ffff_0000_0000,
        0xffff_ffff_8000_0000,
        u64::MAX,
    ];
    let ops = [
        Operator::ScmpCmpNe,
        Operator::ScmpCmpLt,
        Operator::ScmpCmpLe,
        Operator::ScmpCmpEq,
        Operator::ScmpCmpGe,
        Operator::ScmpCmpGt,
        Operator::ScmpCmpMaskedEq,
    ];
    for machine in MACHINES {
        for op in ops {
            for value in edges {
                let rule = rule(
                    &["read"],
                    Word::ScmpActLog,
                    &[arg(2, op, value, 0x8000_0000_8000_0001)],
                );
                let profile = profile(Word::ScmpActAllow, &[rule]);
                let program = compile_for(&profile, machine).unwrap();
                for abi in [machine.native(), machine.compat()] {
                    for given in edges {
                        let args = [7, 7, given, 7, 7, 7];
                        let asked = Asked {
                            number: number(abi, "read"),
                            token: abi.token,
                            args,
                        };
                        let (said, _) = interpreter::run(&program.filter, &asked);
                        let wanted = oracle::decide(&profile, machine, &asked);
                        assert_eq!(said, wanted, "{machine:?} {op} {value:#x} given {given:#x}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_profile_that_is_too_long_is_refused() {
    let with = |count: u64| {
        let rules: Vec<_> = (0..count)
            .map(|i| {
                rule(
                    &["read"],
                    Word::ScmpActLog,
                    &[arg(0, Operator::ScmpCmpEq, i << 32 | i, 0)],
                )
            })
            .collect();
        compile_for(&profile(Word::ScmpActAllow, &rules), Machine::X86_64)
    };
    let lengths = |count| with(count).map(|program| program.filter.len());
    let per_rule = lengths(2).unwrap() - lengths(1).unwrap();
    let longest = ((4096 - lengths(0).unwrap()) / per_rule) as u64;
    let longest = (0..=longest).rfind(|&count| with(count).is_ok()).unwrap();
    let program = with(longest).unwrap();
    assert!(
        (4080..=4096).contains(&program.filter.len()),
        "{}",
        program.filter.len()
    );
    interpreter::check(&program.filter);
    let error = with(longest + 1).unwrap_err();
    assert!(error.to_string().contains("4096 instructions"), "{error}");
    // What cannot fit is not even tried.
    let names = vec!["read"; 100_000];
    let args: Vec<_> = (0..10_000)
        .map(|i| arg(0, Operator::ScmpCmpEq, i, 0))
        .collect();
    let huge = profile(Word::ScmpActAllow, &[rule(&names, Word::ScmpActLog, &args)]);
    assert!(matches!(compile(&huge), Err(SeccompError::Size)));
}
