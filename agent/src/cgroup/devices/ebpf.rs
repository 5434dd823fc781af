// SPDX-License-Identifier: Apache-2.0
//! Device rules as a program for the kernel (`BPF_PROG_TYPE_CGROUP_DEVICE`).
//! Pure: owns the few instructions it takes, loads nothing.
//!
//! The program goes through the rules from the last to the first and takes off
//! the accesses that a rule allows, until none is left (allowed) or a rule
//! denies one of the rest, or the rules end (denied).

use super::rule::{Device, Kind, MKNOD, READ, Rule, WRITE};

// Instruction classes, sizes, sources and operations: linux/bpf.h, bpf_common.h.
const LDX_MEM_W: u8 = 0x61;
const MOV64_IMM: u8 = 0xb7;
const MOV32_REG: u8 = 0xbc;
const AND32_IMM: u8 = 0x54;
const RSH32_IMM: u8 = 0x74;
const JNE32_IMM: u8 = 0x56;
const JSET32_IMM: u8 = 0x46;
const JA: u8 = 0x05;
const EXIT: u8 = 0x95;

// Registers. R0 is the answer, R1 the argument, a `struct bpf_cgroup_dev_ctx`.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
/// What has been asked for and is not allowed yet.
const REST: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

// `BPF_DEVCG_DEV_*` and `BPF_DEVCG_ACC_*`.
const DEV_BLOCK: i32 = 1;
const DEV_CHAR: i32 = 2;
const ACC_MKNOD: i32 = 1;
const ACC_READ: i32 = 2;
const ACC_WRITE: i32 = 4;

/// One instruction as the kernel wants it, in the little-endian order that both
/// architectures have.
fn instruction(code: u8, target: u8, source: u8, offset: i16, value: i32) -> u64 {
    let [o0, o1] = offset.to_le_bytes();
    let [v0, v1, v2, v3] = value.to_le_bytes();
    u64::from_le_bytes([code, source << 4 | target, o0, o1, v0, v1, v2, v3])
}

/// The answer and the end.
fn answer(allowed: bool) -> [u64; 2] {
    [
        instruction(MOV64_IMM, ANSWER, 0, 0, i32::from(allowed)),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

/// The program for rules of which the last that matches decides, below which
/// the guest's own devices are denied whatever the rules say.
pub(super) fn program(rules: &[Rule], guest: &[Device]) -> Vec<u64> {
    // The context holds the access above 16 bits of type, then the numbers.
    let mut code = vec![
        instruction(LDX_MEM_W, KIND, CONTEXT, 0, 0),
        instruction(MOV32_REG, REST, KIND, 0, 0),
        instruction(AND32_IMM, KIND, 0, 0, 0xffff),
        instruction(RSH32_IMM, REST, 0, 0, 16),
        instruction(LDX_MEM_W, MAJOR, CONTEXT, 4, 0),
        instruction(LDX_MEM_W, MINOR, CONTEXT, 8, 0),
    ];
    for device in guest {
        let numbers = (Some(device.major), Some(device.minor));
        on_match(&mut code, Some(device.kind), numbers, &answer(false));
    }
    for rule in rules.iter().rev() {
        let access = access_bits(rule.access);
        let [value, exit] = answer(rule.allow);
        let then = if rule.allow {
            [
                instruction(AND32_IMM, REST, 0, 0, !access),
                instruction(JNE32_IMM, REST, 0, 2, 0),
                value,
                exit,
            ]
        } else {
            [
                instruction(JSET32_IMM, REST, 0, 1, access),
                instruction(JA, 0, 0, 2, 0),
                value,
                exit,
            ]
        };
        on_match(&mut code, rule.kind, (rule.major, rule.minor), &then);
    }
    code.extend(answer(false));
    code
}

/// Appends instructions that are jumped over unless the device matches.
fn on_match(
    code: &mut Vec<u64>,
    kind: Option<Kind>,
    (major, minor): (Option<u32>, Option<u32>),
    then: &[u64],
) {
    let kind = kind.map(|kind| match kind {
        Kind::Block => DEV_BLOCK,
        Kind::Char => DEV_CHAR,
    });
    let conditions = [
        (KIND, kind),
        (MAJOR, major.map(u32::cast_signed)),
        (MINOR, minor.map(u32::cast_signed)),
    ];
    let conditions = conditions
        .iter()
        .filter_map(|&(r, value)| Some((r, value?)));
    let mut left = conditions.clone().count() + then.len();
    for (register, value) in conditions {
        left -= 1;
        // At most two conditions and four instructions.
        let over = i16::try_from(left).unwrap_or(i16::MAX);
        code.push(instruction(JNE32_IMM, register, 0, over, value));
    }
    code.extend_from_slice(then);
}

fn access_bits(access: u8) -> i32 {
    [(READ, ACC_READ), (WRITE, ACC_WRITE), (MKNOD, ACC_MKNOD)]
        .iter()
        .filter(|(ours, _)| access & ours != 0)
        .fold(0, |bits, (_, bit)| bits | bit)
}

#[cfg(test)]
mod tests {
    use super::super::rule::{ALL, ANYTHING, granted};
    use super::super::sample::{devices, rules};
    use super::*;
    use proptest::prelude::*;

    /// Runs a program in an interpreter that is not ours.
    fn run(program: &[u64], kind: Kind, major: u32, minor: u32, access: u8) -> bool {
        let code: Vec<u8> = program.iter().flat_map(|i| i.to_le_bytes()).collect();
        let kind = match kind {
            Kind::Block => DEV_BLOCK,
            Kind::Char => DEV_CHAR,
        };
        let first = (access_bits(access) << 16 | kind).cast_unsigned();
        let mut context: Vec<u8> = [first, major, minor]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let machine = rbpf::EbpfVmRaw::new(Some(&code)).unwrap();
        machine.execute_program(&mut context).unwrap() == 1
    }

    #[test]
    fn without_rules_nothing_is_allowed() {
        let program = program(&[], &[]);
        assert!(!run(&program, Kind::Char, 1, 3, READ));
        assert_eq!(program.len(), 8);
    }

    #[test]
    fn a_guard_denies_the_guests_devices_alone() {
        let disk = Device {
            kind: Kind::Block,
            major: 254,
            minor: 1,
        };
        let guard = program(&[ANYTHING], &[disk]);
        for access in 1..=ALL {
            assert!(!run(&guard, Kind::Block, 254, 1, access));
            assert!(run(&guard, Kind::Char, 254, 1, access));
            assert!(run(&guard, Kind::Block, 254, 2, access));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn the_program_is_the_naive_matcher(
            rules in rules(), guest in devices(), asked in devices(), access in 1..=ALL,
        ) {
            let program = program(&rules, &guest);
            for device in asked.iter().chain(&guest) {
                let numbers = (Some(device.major), Some(device.minor));
                let granted = granted(&rules, &guest, device.kind, numbers);
                let answer = run(&program, device.kind, device.major, device.minor, access);
                prop_assert_eq!(answer, access & !granted == 0);
            }
        }
    }
}
