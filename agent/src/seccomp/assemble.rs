// SPDX-License-Identifier: Apache-2.0
//! Classic BPF, written from its last instruction to its first: jumps only go forward, so where one leads is known when it is written.
//! Knows instructions and distances, not what they mean.

use std::collections::BTreeMap;

/// `struct sock_filter`: code, jump if true, jump if false, operand.
pub(super) type Instruction = (u16, u8, u8, u32);

/// `BPF_LD | BPF_W | BPF_ABS`: a word of `struct seccomp_data`.
pub(super) const LOAD: u16 = 0x20;
/// `BPF_ALU | BPF_AND | BPF_K`
pub(super) const AND: u16 = 0x54;
/// `BPF_JMP | BPF_JA`
pub(super) const ALWAYS: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`
pub(super) const EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`
pub(super) const ABOVE: u16 = 0x25;
/// `BPF_JMP | BPF_JGE | BPF_K`
pub(super) const AT_LEAST: u16 = 0x35;
/// `BPF_RET | BPF_K`
pub(super) const RETURN: u16 = 0x06;

/// An instruction, by how many there are from it to the end.
pub(super) type Label = usize;

#[derive(Default)]
pub(super) struct Assembler {
    reversed: Vec<Instruction>,
    /// The latest return of each value.
    returns: BTreeMap<u32, Label>,
}

impl Assembler {
    fn push(&mut self, instruction: Instruction) -> Label {
        self.reversed.push(instruction);
        self.reversed.len()
    }

    /// Does this, then goes on with what was written last.
    pub fn then(&mut self, code: u16, operand: u32) -> Label {
        self.push((code, 0, 0, operand))
    }

    /// An instruction that returns the value. There is one of each, and more only where it is too far away.
    pub fn returning(&mut self, value: u32) -> Label {
        if let Some(&label) = self.returns.get(&value) {
            return label;
        }
        let label = self.push((RETURN, 0, 0, value));
        self.returns.insert(value, label);
        label
    }

    /// Compares what is loaded with `operand` and goes on at `yes` or `no`.
    pub fn compare(&mut self, code: u16, operand: u32, yes: Label, no: Label) -> Label {
        // Bringing `yes` near may put one instruction in between.
        let no = self.near(no, 1);
        let yes = self.near(yes, 0);
        let (yes, no) = (self.distance(yes), self.distance(no));
        // `near` has seen to it that both fit.
        self.push((code, yes as u8, no as u8, operand))
    }

    /// How many instructions the next one would have to skip.
    fn distance(&self, label: Label) -> usize {
        self.reversed.len() - label
    }

    /// A conditional jump skips at most 255 instructions. What is further away gets a substitute here: a return a copy, anything
    /// else an unconditional jump.
    fn near(&mut self, label: Label, spare: usize) -> Label {
        let distance = self.distance(label);
        if distance + spare <= usize::from(u8::MAX) {
            return label;
        }
        match self.reversed[label - 1] {
            (RETURN, _, _, value) => {
                let copy = self.push((RETURN, 0, 0, value));
                self.returns.insert(value, copy);
                copy
            }
            _ => self.push((ALWAYS, 0, 0, u32::try_from(distance).unwrap_or(u32::MAX))),
        }
    }

    pub fn finish(mut self) -> Vec<Instruction> {
        self.reversed.reverse();
        self.reversed
    }
}
