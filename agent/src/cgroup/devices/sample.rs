// SPDX-License-Identifier: Apache-2.0
//! Random rules and devices for the proofs, of few numbers so that they meet.

use proptest::prelude::*;

use super::rule::{ALL, Device, Kind, Rule};

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Block), Just(Kind::Char)]
}

pub(super) fn devices() -> impl Strategy<Value = Vec<Device>> {
    let device = (kind(), 1u32..6, 0u32..6);
    let device = device.prop_map(|(kind, major, minor)| Device { kind, major, minor });
    proptest::collection::vec(device, 0..4)
}

pub(super) fn rules() -> impl Strategy<Value = Vec<Rule>> {
    use proptest::option::weighted;
    let numbers = (weighted(0.7, 1u32..5), weighted(0.7, 0u32..5));
    let rule = (any::<bool>(), weighted(0.8, kind()), numbers, 1..=ALL);
    let rule = rule.prop_map(|(allow, kind, (major, minor), access)| Rule {
        allow,
        kind,
        major,
        minor,
        access,
    });
    proptest::collection::vec(rule, 0..12)
}
