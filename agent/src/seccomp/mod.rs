// SPDX-License-Identifier: Apache-2.0
//! OCI seccomp profiles as BPF filters of the kernel (docs/adr/0008-seccomp.md): read by `rules`, compiled by `filter` with what `numbers`
//! knows of the architecture, put in force by `install` in the process that becomes a container's. Never asks the kernel what it can do.

mod assemble;
mod filter;
mod install;
mod numbers;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompFilterFlag as Flag};
use serde::{Deserialize, Serialize};

use assemble::Instruction;
use filter::Listed;
use numbers::{Abi, Machine};
use rules::Profile;

/// What the kernel takes at most (`BPF_MAXINSNS`).
const MOST_INSTRUCTIONS: usize = 4096;

/// A compiled filter, with the flags to install it with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// `struct sock_filter` entries: code, jump if true, jump if false, operand.
    filter: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_*`.
    flags: u32,
}

/// A profile that cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// An action that needs a process on the host's side of the filter.
    #[error("Invalid seccomp profile: SCMP_ACT_NOTIFY for {object}: a guest has no listener")]
    Notify {
        /// The names of the calls.
        object: String,
    },
    /// A value that would alter the action.
    #[error("Invalid seccomp profile: errnoRet {value} for {object} is above 65535")]
    Value {
        /// The value.
        value: u32,
        /// The names of the calls.
        object: String,
    },
    /// An argument that no call has.
    #[error("Invalid seccomp profile: argument {index} for {object}: the last is 5")]
    Argument {
        /// Its index.
        index: usize,
        /// The names of the calls.
        object: String,
    },
    /// More rules than the kernel takes.
    #[error("Invalid seccomp profile: its filter is longer than {MOST_INSTRUCTIONS} instructions")]
    Size,
}

/// Compiles a profile for this architecture.
///
/// # Errors
/// [`SeccompError`] naming the rule.
pub fn compile(profile: &LinuxSeccomp) -> Result<Program, SeccompError> {
    compile_for(profile, Machine::OWN)
}

fn compile_for(profile: &LinuxSeccomp, machine: Machine) -> Result<Program, SeccompError> {
    let listed = listed(profile, machine);
    let known = names(machine, listed);
    let flags = flags(profile);
    let profile = Profile::read(profile, |name| known.contains(name))?;
    if !profile.unknown.is_empty() {
        let names = Vec::from_iter(&profile.unknown);
        log::debug!("The seccomp profile names calls that are not known here: {names:?}");
    }
    let filter = filter::filter(&profile, machine, listed);
    if filter.len() > MOST_INSTRUCTIONS {
        return Err(SeccompError::Size);
    }
    Ok(Program { filter, flags })
}

/// The native convention needs no listing, and other machines' cannot occur.
fn listed(profile: &LinuxSeccomp, machine: Machine) -> Listed {
    let lists = |arch: Arch| profile.architectures().iter().flatten().any(|a| *a == arch);
    let (compat, x32) = machine.listed_as();
    Listed {
        compat: lists(compat),
        x32: x32.is_some_and(lists),
    }
}

/// The calls that a profile can be about.
fn names(machine: Machine, listed: Listed) -> BTreeSet<&'static str> {
    let compat = listed.compat.then(|| machine.compat());
    let abis = [machine.native()].into_iter().chain(compat);
    let carried = |abi: &'static Abi| abi.multiplexers.iter().flat_map(|m| m.carried);
    let own = |abi: &'static Abi| abi.calls().map(|call| call.0);
    abis.flat_map(|abi| own(abi).chain(carried(abi).map(|call| call.1)))
        .collect()
}

/// How to wait for an answer to a notification means nothing without notifications.
fn flags(profile: &LinuxSeccomp) -> u32 {
    let flags = profile.flags().iter().flatten();
    let bits = flags.map(|flag| match flag {
        Flag::SeccompFilterFlagTsync => install::TSYNC,
        Flag::SeccompFilterFlagLog => install::LOG,
        Flag::SeccompFilterFlagSpecAllow => install::SPEC_ALLOW,
        Flag::SeccompFilterFlagWaitKillableRecv => 0,
    });
    bits.fold(0, |all, bit| all | bit)
}
