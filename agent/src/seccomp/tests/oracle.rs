// SPDX-License-Identifier: Apache-2.0
//! What a profile says of a call, read rule by rule. Shares the names and numbers with the compiler, nothing else.

use super::*;

/// From the most to the least severe (seccomp(2)).
const SEVERITY: [u32; 7] = [
    0x8000_0000,
    0,
    0x0003_0000,
    0x0005_0000,
    0x7ff0_0000,
    0x7ffc_0000,
    0x7fff_0000,
];

pub fn decide(profile: &LinuxSeccomp, machine: Machine, asked: &Asked) -> u32 {
    let lists = |arch| profile.architectures().as_ref().unwrap().contains(&arch);
    let (native, compat, compat_listed) = match machine {
        Machine::X86_64 => (0xc000_003e, 0x4000_0003, lists(Arch::ScmpArchX86)),
        Machine::Aarch64 => (0xc000_00b7, 0x4000_0028, lists(Arch::ScmpArchArm)),
    };
    let x32 = machine == Machine::X86_64 && (0x4000_0000..u32::MAX).contains(&asked.number);
    let abi = match asked.token {
        token if token == native && x32 && lists(Arch::ScmpArchX32) => return 0x0005_0000 | 38,
        token if token == native && !x32 => machine.native(),
        token if token == compat && compat_listed => machine.compat(),
        _ => return 0x8000_0000,
    };
    let default = value(
        profile.default_action(),
        profile.default_errno_ret().unwrap_or(1),
    );
    let Some((name, _)) = abi.calls().find(|call| call.1 == asked.number) else {
        return default;
    };
    let said = Said::of(profile, default, name);
    if let Some(action) = said.flat.or(said.first_match(asked, abi.narrow)) {
        return action;
    }
    let carried = match (machine, name) {
        (Machine::X86_64, "socketcall") if abi.narrow => socketcall(asked.args[0] as u32),
        (Machine::X86_64, "ipc") if abi.narrow => ipc(asked.args[0] as u32 & 0xffff),
        _ => None,
    };
    let Some(carried) = carried else {
        return default;
    };
    let said = Said::of(profile, default, carried);
    said.flat.unwrap_or_else(|| {
        let mut outcomes: Vec<u32> = said.matched.iter().map(|rule| action(rule)).collect();
        outcomes.push(default);
        let rank = |a: &u32| SEVERITY.iter().position(|s| *s == a & 0xffff_0000).unwrap();
        // Of several equally severe the first rule's.
        let first = outcomes
            .iter()
            .enumerate()
            .min_by_key(|(i, a)| (rank(a), *i));
        *first.unwrap().1
    })
}

/// The rules about one name.
struct Said<'a> {
    flat: Option<u32>,
    matched: Vec<&'a LinuxSyscall>,
}

impl<'a> Said<'a> {
    fn of(profile: &'a LinuxSeccomp, default: u32, name: &str) -> Self {
        let rules = profile.syscalls().iter().flatten();
        let mut matched: Vec<_> = rules
            .filter(|rule| rule.names().iter().any(|n| n == name) && action(rule) != default)
            .collect();
        let flat = matched.iter().find(|rule| args(rule).is_empty());
        let flat = flat.map(|rule| action(rule));
        matched.retain(|rule| !args(rule).is_empty());
        Said { flat, matched }
    }

    fn first_match(&self, asked: &Asked, narrow: bool) -> Option<u32> {
        let mut rules = self.matched.iter();
        rules
            .find(|rule| matches(args(rule), asked, narrow))
            .map(|rule| action(rule))
    }
}

fn args(rule: &LinuxSyscall) -> &[LinuxSeccompArg] {
    rule.args().as_deref().unwrap_or_default()
}

fn action(rule: &LinuxSyscall) -> u32 {
    value(rule.action(), rule.errno_ret().unwrap_or(1))
}

fn value(word: Word, data: u32) -> u32 {
    match word {
        Word::ScmpActKill | Word::ScmpActKillThread => 0,
        Word::ScmpActKillProcess => 0x8000_0000,
        Word::ScmpActTrap => 0x0003_0000,
        Word::ScmpActErrno => 0x0005_0000 + data,
        Word::ScmpActTrace => 0x7ff0_0000 + data,
        Word::ScmpActLog => 0x7ffc_0000,
        Word::ScmpActAllow => 0x7fff_0000,
        Word::ScmpActNotify => panic!("refused"),
    }
}

fn matches(args: &[LinuxSeccompArg], asked: &Asked, narrow: bool) -> bool {
    let twice = (0..6).any(|i| args.iter().filter(|arg| arg.index() == i).count() > 1);
    let mut each = args.iter().map(|arg| holds(arg, asked, narrow));
    if twice {
        each.any(|held| held)
    } else {
        each.all(|held| held)
    }
}

fn holds(arg: &LinuxSeccompArg, asked: &Asked, narrow: bool) -> bool {
    let mut given = asked.args[arg.index()];
    let (mut value, mut mask) = (arg.value(), u64::MAX);
    if arg.op() == Operator::ScmpCmpMaskedEq {
        mask = arg.value();
        value = arg.value_two().unwrap() & mask;
    }
    if narrow {
        // 32-bit programs have 32-bit arguments; -1 is written as one of 64 in some profiles.
        given &= 0xffff_ffff;
        if value >> 32 != 0 && value >> 32 == mask >> 32 && value & 0x8000_0000 != 0 {
            value &= 0xffff_ffff;
        }
        mask &= 0xffff_ffff;
    }
    match arg.op() {
        Operator::ScmpCmpNe => given != value,
        Operator::ScmpCmpLt => given < value,
        Operator::ScmpCmpLe => given <= value,
        Operator::ScmpCmpEq => given == value,
        Operator::ScmpCmpGe => given >= value,
        Operator::ScmpCmpGt => given > value,
        Operator::ScmpCmpMaskedEq => given & mask == value,
    }
}

/// linux/net.h
fn socketcall(call: u32) -> Option<&'static str> {
    let names = "socket bind connect listen accept getsockname getpeername socketpair send recv sendto recvfrom shutdown \
        setsockopt getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg";
    names
        .split_whitespace()
        .nth((call as usize).checked_sub(1)?)
}

/// linux/ipc.h
fn ipc(call: u32) -> Option<&'static str> {
    Some(match call {
        1 => "semop",
        2 => "semget",
        3 => "semctl",
        4 => "semtimedop",
        11 => "msgsnd",
        12 => "msgrcv",
        13 => "msgget",
        14 => "msgctl",
        21 => "shmat",
        22 => "shmdt",
        23 => "shmget",
        24 => "shmctl",
        _ => return None,
    })
}
