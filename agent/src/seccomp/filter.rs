// SPDX-License-Identifier: Apache-2.0
//! From verdicts to a filter: which convention, then a binary search over the numbers, then the comparisons of the call that was found.

use super::assemble::{ABOVE, AND, AT_LEAST, Assembler, EQUAL, Instruction, LOAD, Label};
use super::numbers::{Abi, Machine};
use super::rules::{Action, Comparison, ERRNO, KILL_PROCESS, Profile, Test, Verdict};

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

/// The number that a tracer gives a call that is to be skipped. It is none of x32's.
const SKIPPED: u32 = u32::MAX;

/// Which conventions a profile lists besides the native one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed {
    /// The machine's 32-bit convention.
    pub compat: bool,
    pub x32: bool,
}

/// Compiles a profile. Anything else than the native convention and what is listed of the machine's others kills the process.
pub(super) fn filter(profile: &Profile, machine: Machine, listed: Listed) -> Vec<Instruction> {
    let mut code = Code::default();
    let foreign = code.out.returning(KILL_PROCESS);
    let mut dispatch = foreign;
    if listed.compat {
        let compat = machine.compat();
        let entry = code.search_all(&numbers(profile, compat), compat.narrow);
        dispatch = code.out.compare(EQUAL, compat.token, entry, foreign);
    }
    let native = machine.native();
    let mut calls = numbers(profile, native);
    if let Some(first) = machine.x32_bit() {
        calls.put(first, Verdict::new(x32(listed)));
        calls.put(SKIPPED, Verdict::new(profile.default));
    }
    let entry = code.search_all(&calls, native.narrow);
    code.out.compare(EQUAL, native.token, entry, dispatch);
    code.out.then(LOAD, ARCH);
    code.out.finish()
}

/// x32 calls are never let through: guest kernels do not serve them, and a profile's rules are not written with their numbers in mind. Where
/// they are listed the answer is that of such a kernel, else the call is foreign.
fn x32(listed: Listed) -> Action {
    if listed.x32 {
        ERRNO | libc::ENOSYS.cast_unsigned()
    } else {
        KILL_PROCESS
    }
}

/// What is done with every number: a list of where a different verdict begins.
struct Numbers {
    spans: Vec<(u32, Verdict)>,
}

impl Numbers {
    /// From `first` on, until the next. Numbers go up.
    fn put(&mut self, first: u32, verdict: Verdict) {
        self.spans.pop_if(|last| last.0 == first);
        if self.spans.last().is_none_or(|last| last.1 != verdict) {
            self.spans.push((first, verdict));
        }
    }
}

fn numbers(profile: &Profile, abi: &Abi) -> Numbers {
    let default = Verdict::new(profile.default);
    let mut numbers = Numbers {
        spans: vec![(0, default.clone())],
    };
    for (name, number) in abi.calls() {
        let multiplexer = abi.multiplexers.iter().find(|m| m.name == name);
        let verdict = match multiplexer {
            Some(multiplexer) => Some(profile.carrying(multiplexer)),
            None => profile.verdict(name).cloned(),
        };
        if let Some(verdict) = verdict {
            numbers.put(number, verdict);
            numbers.put(number + 1, default.clone());
        }
    }
    numbers
}

#[derive(Default)]
struct Code {
    out: Assembler,
}

impl Code {
    fn search_all(&mut self, numbers: &Numbers, narrow: bool) -> Label {
        let entry = self.search(&numbers.spans, narrow);
        if numbers.spans.len() == 1 {
            return entry;
        }
        self.out.then(LOAD, NUMBER)
    }

    /// Finds the span of the number that is loaded.
    fn search(&mut self, spans: &[(u32, Verdict)], narrow: bool) -> Label {
        if let [(_, verdict)] = spans {
            return self.verdict(verdict, narrow);
        }
        let (low, high) = spans.split_at(spans.len() / 2);
        let first = high[0].0;
        let high = self.search(high, narrow);
        let low = self.search(low, narrow);
        self.out.compare(AT_LEAST, first, high, low)
    }

    fn verdict(&mut self, verdict: &Verdict, narrow: bool) -> Label {
        let mut next = self.out.returning(verdict.otherwise);
        for rule in verdict.rules.iter().rev() {
            let mut matched = self.out.returning(rule.action);
            for test in rule.tests.iter().rev() {
                matched = self.test(test, narrow, matched, next);
            }
            next = matched;
        }
        next
    }

    fn test(&mut self, test: &Test, narrow: bool, yes: Label, no: Label) -> Label {
        let (yes, no) = if test.negated { (no, yes) } else { (yes, no) };
        let arg = Arg(ARGS + 8 * test.arg);
        let comparison = test.comparison;
        match if narrow {
            narrowed(comparison)
        } else {
            Some(comparison)
        } {
            None => no,
            Some(Comparison::Equal { mask, value }) => {
                let matched = self.half_equal(arg.low(), low(mask), low(value), yes, no);
                self.half_equal(arg.high(), high(mask), high(value), matched, no)
            }
            Some(Comparison::AtLeast(value)) => self.order(AT_LEAST, arg, value, narrow, yes, no),
            Some(Comparison::Above(value)) => self.order(ABOVE, arg, value, narrow, yes, no),
        }
    }

    fn half_equal(&mut self, offset: u32, mask: u32, value: u32, yes: Label, no: Label) -> Label {
        if mask == 0 {
            return yes;
        }
        self.out.compare(EQUAL, value, yes, no);
        if mask != u32::MAX {
            self.out.then(AND, mask);
        }
        self.out.then(LOAD, offset)
    }

    /// The upper halves decide unless they are equal.
    fn order(
        &mut self,
        code: u16,
        arg: Arg,
        value: u64,
        narrow: bool,
        yes: Label,
        no: Label,
    ) -> Label {
        self.out.compare(code, low(value), yes, no);
        let lower = self.out.then(LOAD, arg.low());
        if narrow {
            return lower;
        }
        let equal = self.out.compare(EQUAL, high(value), lower, no);
        self.out.compare(ABOVE, high(value), yes, equal);
        self.out.then(LOAD, arg.high())
    }
}

/// An argument, by its offset. Both architectures are little-endian.
#[derive(Clone, Copy)]
struct Arg(u32);

impl Arg {
    fn low(self) -> u32 {
        self.0
    }

    fn high(self) -> u32 {
        self.0 + 4
    }
}

fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

/// A comparison of the lower half alone, or nothing if it can never hold. A negative number is meant as one of 32 bits.
fn narrowed(comparison: Comparison) -> Option<Comparison> {
    let fits =
        |value, ones| high(value) == 0 || high(value) == ones && low(value).cast_signed() < 0;
    let lower = |value| u64::from(low(value));
    match comparison {
        Comparison::Equal { mask, value } => fits(value, high(mask)).then(|| Comparison::Equal {
            mask: lower(mask),
            value: lower(value),
        }),
        Comparison::AtLeast(value) => {
            fits(value, u32::MAX).then(|| Comparison::AtLeast(lower(value)))
        }
        Comparison::Above(value) => fits(value, u32::MAX).then(|| Comparison::Above(lower(value))),
    }
}
