// SPDX-License-Identifier: Apache-2.0
//! What a profile says of each system call, by name: actions as the kernel's return values, arguments as comparisons of 64-bit values.
//! Knows no numbers and no architectures.

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Word, LinuxSeccompArg, LinuxSeccompOperator as Operator,
    LinuxSyscall,
};

use super::numbers::Multiplexer;
use super::{MOST_INSTRUCTIONS, SeccompError};

/// What a filter returns: `SECCOMP_RET_*` with its value in the lower half.
pub(super) type Action = u32;

pub(super) const KILL_PROCESS: Action = 0x8000_0000;
pub(super) const KILL_THREAD: Action = 0;
pub(super) const TRAP: Action = 0x0003_0000;
pub(super) const ERRNO: Action = 0x0005_0000;
pub(super) const TRACE: Action = 0x7ff0_0000;
pub(super) const LOG: Action = 0x7ffc_0000;
pub(super) const ALLOW: Action = 0x7fff_0000;

/// What an action may say besides itself.
const DATA: u32 = 0xffff;

/// How one argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// Equal in the bits of the mask; the value has no others.
    Equal {
        mask: u64,
        value: u64,
    },
    AtLeast(u64),
    Above(u64),
}

/// One comparison, or its opposite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Test {
    pub arg: u32,
    pub comparison: Comparison,
    pub negated: bool,
}

/// An action for calls that pass all tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub tests: Vec<Test>,
    pub action: Action,
}

/// What is done with one call: the action of the first rule that applies, else `otherwise`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub rules: Vec<Rule>,
    pub otherwise: Action,
}

impl Verdict {
    pub fn new(otherwise: Action) -> Self {
        Self {
            rules: Vec::new(),
            otherwise,
        }
    }

    /// The most severe action that this can lead to: what must be done with a call whose arguments cannot be seen. The kernel ranks actions
    /// in the same way, as signed numbers (seccomp(2)).
    fn worst(&self) -> Action {
        let actions = self.rules.iter().map(|rule| rule.action);
        actions
            .chain([self.otherwise])
            .min_by_key(|action| (action & !DATA).cast_signed())
            .unwrap_or(self.otherwise)
    }
}

/// A verdict while rules are still read.
#[derive(Clone)]
struct Draft {
    verdict: Verdict,
    /// A rule without arguments was among them.
    decided: bool,
}

impl Draft {
    fn new(default: Action) -> Self {
        Self {
            verdict: Verdict::new(default),
            decided: false,
        }
    }

    /// A rule without arguments outdoes all that have some, wherever it stands, and of several the first counts. That is how libseccomp has
    /// it; among rules with arguments it keeps no order, and here it is the profile's.
    fn add(&mut self, rules: &[Rule]) {
        match rules {
            _ if self.decided => {}
            [rule] if rule.tests.is_empty() => {
                self.verdict = Verdict::new(rule.action);
                self.decided = true;
            }
            rules => self.verdict.rules.extend_from_slice(rules),
        }
    }
}

/// A profile, checked.
pub(super) struct Profile<'a> {
    pub default: Action,
    drafts: BTreeMap<&'a str, Draft>,
    /// Names that no listed convention has.
    pub unknown: BTreeSet<&'a str>,
}

impl<'a> Profile<'a> {
    /// Reads the rules for calls that are known. Rules with the default's action are left out, so that they do not hide others: that is
    /// what runtimes with libseccomp do, which refuses such rules.
    pub fn read(
        profile: &'a LinuxSeccomp,
        known: impl Fn(&str) -> bool,
    ) -> Result<Self, SeccompError> {
        let default = action(
            profile.default_action(),
            profile.default_errno_ret(),
            || "the default".to_owned(),
        )?;
        let (mut drafts, mut unknown) = (BTreeMap::new(), BTreeSet::new());
        // Each rule that has arguments takes at least one instruction for each call.
        let mut room = MOST_INSTRUCTIONS;
        for syscall in profile.syscalls().iter().flatten() {
            let rules = rules(syscall)?;
            if rules.iter().all(|rule| rule.action == default) {
                continue;
            }
            for name in syscall.names() {
                if !known(name) {
                    unknown.insert(name.as_str());
                    continue;
                }
                let tested = rules.iter().filter(|rule| !rule.tests.is_empty());
                room = room.checked_sub(tested.count()).ok_or(SeccompError::Size)?;
                let draft = drafts.entry(name.as_str());
                draft.or_insert_with(|| Draft::new(default)).add(&rules);
            }
        }
        Ok(Self {
            default,
            drafts,
            unknown,
        })
    }

    /// What is said of a call; nothing means the default.
    pub fn verdict(&self, name: &str) -> Option<&Verdict> {
        self.drafts.get(name).map(|draft| &draft.verdict)
    }

    /// What is to be done with a call that carries others. What the profile says of it by name comes first. Then each call that it carries is
    /// treated as that call is; where that depends on arguments, which are out of sight in memory, by the most severe of its outcomes.
    pub fn carrying(&self, multiplexer: &Multiplexer) -> Verdict {
        let named = self.drafts.get(multiplexer.name).cloned();
        let mut draft = named.unwrap_or_else(|| Draft::new(self.default));
        for &(value, name) in multiplexer.carried {
            let action = self.verdict(name).map(Verdict::worst);
            let Some(action) = action.filter(|action| *action != self.default) else {
                continue;
            };
            let mask = multiplexer.mask;
            let test = Test {
                arg: 0,
                comparison: Comparison::Equal { mask, value },
                negated: false,
            };
            draft.add(&[Rule {
                tests: vec![test],
                action,
            }]);
        }
        draft.verdict
    }
}

/// The rules of one entry. Comparisons of different arguments must all hold. If one argument is compared twice, each comparison is a rule
/// of its own: libseccomp takes none twice, and runc, crun and youki agreed on this.
fn rules(syscall: &LinuxSyscall) -> Result<Vec<Rule>, SeccompError> {
    let names = || syscall.names().join(", ");
    let action = action(syscall.action(), syscall.errno_ret(), names)?;
    let args = syscall.args().iter().flatten();
    let tests = args
        .map(|arg| test(arg, names))
        .collect::<Result<Vec<_>, _>>()?;
    let seen = tests.iter().fold(0_u8, |seen, test| seen | 1 << test.arg);
    if seen.count_ones() as usize == tests.len() {
        return Ok(vec![Rule { tests, action }]);
    }
    let alone = |test| Rule {
        tests: vec![test],
        action,
    };
    Ok(tests.into_iter().map(alone).collect())
}

fn action(
    word: Word,
    data: Option<u32>,
    object: impl FnOnce() -> String,
) -> Result<Action, SeccompError> {
    let action = match word {
        Word::ScmpActKill | Word::ScmpActKillThread => return Ok(KILL_THREAD),
        Word::ScmpActKillProcess => return Ok(KILL_PROCESS),
        Word::ScmpActTrap => return Ok(TRAP),
        Word::ScmpActLog => return Ok(LOG),
        Word::ScmpActAllow => return Ok(ALLOW),
        Word::ScmpActNotify => return Err(SeccompError::Notify { object: object() }),
        Word::ScmpActErrno => ERRNO,
        Word::ScmpActTrace => TRACE,
    };
    let value = data.unwrap_or(libc::EPERM.cast_unsigned());
    if value > DATA {
        let object = object();
        return Err(SeccompError::Value { value, object });
    }
    Ok(action | value)
}

fn test(arg: &LinuxSeccompArg, names: impl FnOnce() -> String) -> Result<Test, SeccompError> {
    let value = arg.value();
    let equal = Comparison::Equal {
        mask: u64::MAX,
        value,
    };
    let (comparison, negated) = match arg.op() {
        Operator::ScmpCmpEq => (equal, false),
        Operator::ScmpCmpNe => (equal, true),
        Operator::ScmpCmpGe => (Comparison::AtLeast(value), false),
        Operator::ScmpCmpLt => (Comparison::AtLeast(value), true),
        Operator::ScmpCmpGt => (Comparison::Above(value), false),
        Operator::ScmpCmpLe => (Comparison::Above(value), true),
        // Both are masked (seccomp_rule_add(3)).
        Operator::ScmpCmpMaskedEq => {
            let value = value & arg.value_two().unwrap_or(0);
            let mask = arg.value();
            (Comparison::Equal { mask, value }, false)
        }
    };
    match arg.index() {
        index @ 0..=5 => Ok(Test {
            arg: index as u32,
            comparison,
            negated,
        }),
        index => Err(SeccompError::Argument {
            index,
            object: names(),
        }),
    }
}
