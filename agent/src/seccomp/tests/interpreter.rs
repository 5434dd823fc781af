// SPDX-License-Identifier: Apache-2.0
//! Classic BPF as the kernel's seccomp takes it: what its checker refuses panics here.

use super::*;

/// The returned value, and how many instructions it took.
pub fn run(filter: &[Instruction], asked: &Asked) -> (u32, usize) {
    let (mut accumulator, mut at, mut steps) = (0_u32, 0, 0);
    loop {
        let (code, jt, jf, operand) = filter[at];
        at += 1;
        steps += 1;
        let holds = match code {
            0x06 => return (operand, steps),
            0x20 => {
                accumulator = word(asked, operand);
                continue;
            }
            0x54 => {
                accumulator &= operand;
                continue;
            }
            0x05 => {
                at += operand as usize;
                continue;
            }
            0x15 => accumulator == operand,
            0x25 => accumulator > operand,
            0x35 => accumulator >= operand,
            code => panic!("code {code:#x} at {}", at - 1),
        };
        at += usize::from(if holds { jt } else { jf });
    }
}

/// `struct seccomp_data`: number, architecture, instruction pointer, six arguments; little-endian.
fn word(asked: &Asked, offset: u32) -> u32 {
    assert_eq!(offset % 4, 0, "offset {offset}");
    let half = |value: u64| (value >> (8 * (offset % 8))) as u32;
    match offset {
        0 => asked.number,
        4 => asked.token,
        8 | 12 => half(0x7fff_dead_beef),
        offset => half(asked.args[(offset as usize - 16) / 8]),
    }
}

/// Insists on what the kernel insists on before it takes a filter.
pub fn check(filter: &[Instruction]) {
    assert!((1..=4096).contains(&filter.len()), "{}", filter.len());
    for (at, &(code, jt, jf, operand)) in filter.iter().enumerate() {
        let furthest = match code {
            0x05 => operand as usize,
            0x15 | 0x25 | 0x35 => usize::from(jt.max(jf)),
            0x20 => {
                assert!(operand < 64 && operand.is_multiple_of(4), "load {operand}");
                0
            }
            0x06 | 0x54 => 0,
            code => panic!("code {code:#x} at {at}"),
        };
        assert!(at + furthest + 1 < filter.len() || code == 0x06, "at {at}");
    }
    assert_eq!(filter.last().unwrap().0, 0x06);
}
