// SPDX-License-Identifier: Apache-2.0
//! Filters are run as the kernel runs them ([`interpreter`]) and compared with what a plain reading of the profile says ([`oracle`]).

mod defaults;
mod filters;
mod interpreter;
mod kernel;
mod oracle;
mod words;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Word, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator as Operator, LinuxSyscall,
};

use super::numbers::{Abi, Machine};
use super::*;

const MACHINES: [Machine; 2] = [Machine::X86_64, Machine::Aarch64];

/// What a filter is asked: `struct seccomp_data`.
#[derive(Clone, Copy, Debug)]
struct Asked {
    number: u32,
    token: u32,
    args: [u64; 6],
}

fn arg(index: usize, op: Operator, value: u64, value_two: u64) -> LinuxSeccompArg {
    let arg = LinuxSeccompArgBuilder::default()
        .index(index)
        .op(op)
        .value(value);
    arg.value_two(value_two).build().unwrap()
}

fn rule(names: &[&str], action: Word, args: &[LinuxSeccompArg]) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.iter().map(|&name| name.to_owned()).collect())
        .set_action(action)
        .set_args(Some(args.to_vec()));
    rule
}

fn errno(mut rule: LinuxSyscall, errno: u32) -> LinuxSyscall {
    rule.set_errno_ret(Some(errno));
    rule
}

/// A profile for all conventions of both machines but x32.
fn profile(default: Word, rules: &[LinuxSyscall]) -> LinuxSeccomp {
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(default)
        .set_architectures(Some(vec![Arch::ScmpArchX86, Arch::ScmpArchArm]))
        .set_syscalls(Some(rules.to_vec()));
    profile
}

fn number(abi: &Abi, name: &str) -> u32 {
    let call = abi.calls().find(|call| call.0 == name);
    call.unwrap_or_else(|| panic!("no {name} in {:#x}", abi.token))
        .1
}

/// What the filter says to a call.
fn answer(filter: &Program, abi: &Abi, name: &str, first_args: &[u64]) -> u32 {
    let mut args = [0; 6];
    args[..first_args.len()].copy_from_slice(first_args);
    let asked = Asked {
        number: number(abi, name),
        token: abi.token,
        args,
    };
    interpreter::run(&filter.filter, &asked).0
}
