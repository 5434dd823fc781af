// SPDX-License-Identifier: Apache-2.0
//! What a device rule says, and which rules a container gets. Pure; how the
//! kernel is told is in [`super::ebpf`] and [`super::v1`].

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::cgroup::CgroupError;
use crate::device::{Node, NodeKind};

/// Read, write, make a node: what a rule is about and what a process may ask.
pub(super) const READ: u8 = 1;
pub(super) const WRITE: u8 = 2;
pub(super) const MKNOD: u8 = 4;
pub(super) const ALL: u8 = READ | WRITE | MKNOD;

/// More rules than any container has devices; the work of compiling them is
/// their number squared, times that of the next.
const MAX_RULES: usize = 1024;

/// More rules than anybody has for a minor number of any major: on version 1
/// each is about as many devices as there are majors.
const MAX_COLUMNS: usize = 16;

/// The kernel's numbers have 12 and 20 bits.
const MAX_MAJOR: i64 = 0xfff;
const MAX_MINOR: i64 = 0xf_ffff;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Block,
    Char,
}

/// One device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Device {
    pub kind: Kind,
    pub major: u32,
    pub minor: u32,
}

impl From<&Node> for Device {
    fn from(node: &Node) -> Self {
        Self {
            kind: match node.kind {
                NodeKind::Block => Kind::Block,
                NodeKind::Char => Kind::Char,
            },
            major: node.major,
            minor: node.minor,
        }
    }
}

/// One rule; what is absent is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub allow: bool,
    pub kind: Option<Kind>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: u8,
}

impl Rule {
    const fn allow(kind: Kind, major: Option<u32>, minor: Option<u32>, access: u8) -> Self {
        Self {
            allow: true,
            kind: Some(kind),
            major,
            minor,
            access,
        }
    }

    /// Whether it decides about every access to every device.
    fn is_total(&self) -> bool {
        (self.kind, self.major, self.minor, self.access) == (None, None, None, ALL)
    }

    /// None for a rule that says nothing: about FIFOs, which the kernel never
    /// asks about, or allowing no access at all.
    fn parse(rule: &LinuxDeviceCgroup) -> Result<Option<Self>, CgroupError> {
        let kind = match rule.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(LinuxDeviceType::B) => Some(Kind::Block),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(Kind::Char),
            Some(LinuxDeviceType::P) => return Ok(None),
        };
        let access = match rule.access().as_deref() {
            // Left open, it counts to the container's disadvantage.
            None | Some("") if rule.allow() => 0,
            None | Some("") => ALL,
            Some(letters) => access(letters)?,
        };
        let parsed = Self {
            allow: rule.allow(),
            kind,
            major: number(rule.major(), MAX_MAJOR)?,
            minor: number(rule.minor(), MAX_MINOR)?,
            access,
        };
        Ok((access != 0).then_some(parsed))
    }
}

fn access(letters: &str) -> Result<u8, CgroupError> {
    letters.bytes().try_fold(0, |access, letter| match letter {
        b'r' => Ok(access | READ),
        b'w' => Ok(access | WRITE),
        b'm' => Ok(access | MKNOD),
        _ => Err(refused("an access is none of r, w, m")),
    })
}

fn number(value: Option<i64>, most: i64) -> Result<Option<u32>, CgroupError> {
    match value {
        None | Some(-1) => Ok(None),
        Some(value) if value > most => Err(refused("no device has such a number")),
        Some(value) => u32::try_from(value)
            .map(Some)
            .map_err(|_| refused("a device number is negative")),
    }
}

fn refused(reason: &'static str) -> CgroupError {
    CgroupError::Value {
        limit: "devices",
        reason,
    }
}

/// What every container may use (protocol 4.13): any node may be made, and the
/// devices that containers are promised may be opened.
const DEFAULTS: [Rule; 12] = [
    Rule::allow(Kind::Char, None, None, MKNOD),
    Rule::allow(Kind::Block, None, None, MKNOD),
    Rule::allow(Kind::Char, Some(1), Some(3), ALL),
    Rule::allow(Kind::Char, Some(1), Some(5), ALL),
    Rule::allow(Kind::Char, Some(1), Some(7), ALL),
    Rule::allow(Kind::Char, Some(1), Some(8), ALL),
    Rule::allow(Kind::Char, Some(1), Some(9), ALL),
    Rule::allow(Kind::Char, Some(5), Some(0), ALL),
    Rule::allow(Kind::Char, Some(5), Some(1), ALL),
    Rule::allow(Kind::Char, Some(5), Some(2), ALL),
    Rule::allow(Kind::Char, Some(136), None, ALL),
    Rule::allow(Kind::Char, Some(10), Some(200), ALL),
];

/// The rules of a container, in order; the last that matches decides. Every
/// host begins with a rule that denies all: it takes back what the rules before
/// it allowed, but not the defaults, which it does not mean.
pub(super) fn effective(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, CgroupError> {
    if rules.len() > MAX_RULES {
        return Err(refused("there are too many"));
    }
    let mut all = DEFAULTS.to_vec();
    let mut columns = 0;
    for rule in rules {
        let Some(rule) = Rule::parse(rule)? else {
            continue;
        };
        columns += usize::from(rule.major.is_none() && rule.minor.is_some());
        if columns > MAX_COLUMNS {
            return Err(refused("there are too many for any major number"));
        }
        if rule.is_total() {
            all.clear();
            match rule.allow {
                true => all.push(rule),
                false => all.extend(DEFAULTS),
            }
        } else {
            all.push(rule);
        }
    }
    Ok(all)
}

/// Everything is allowed: what a guard says of all but the guest's devices.
pub(super) const ANYTHING: Rule = Rule {
    allow: true,
    kind: None,
    major: None,
    minor: None,
    access: ALL,
};

/// Which accesses the rules grant to a device: for each one the last rule that
/// matches decides, and the guest's devices are beyond all rules. A number that
/// is absent stands for one that no rule names.
pub(super) fn granted(
    rules: &[Rule],
    guest: &[Device],
    kind: Kind,
    (major, minor): (Option<u32>, Option<u32>),
) -> u8 {
    let is_it = |device: &Device| {
        device.kind == kind && Some(device.major) == major && Some(device.minor) == minor
    };
    if guest.iter().any(is_it) {
        return 0;
    }
    let matching = rules.iter().filter(|rule| {
        rule.kind.is_none_or(|wanted| wanted == kind)
            && (rule.major.is_none() || rule.major == major)
            && (rule.minor.is_none() || rule.minor == minor)
    });
    matching.fold(0, |granted, rule| match rule.allow {
        true => granted | rule.access,
        false => granted & !rule.access,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, typ: char, numbers: (i64, i64), access: &str) -> LinuxDeviceCgroup {
        let typ = match typ {
            'a' => LinuxDeviceType::A,
            'b' => LinuxDeviceType::B,
            'c' => LinuxDeviceType::C,
            'u' => LinuxDeviceType::U,
            _ => LinuxDeviceType::P,
        };
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow)
            .set_typ(Some(typ))
            .set_major(Some(numbers.0))
            .set_minor(Some(numbers.1))
            .set_access(Some(access.to_owned()));
        rule
    }

    fn grants(rules: &[LinuxDeviceCgroup], kind: Kind, major: u32, minor: u32) -> u8 {
        let numbers = (Some(major), Some(minor));
        granted(&effective(rules).unwrap(), &[], kind, numbers)
    }

    const DENY_ALL: (bool, char, (i64, i64), &str) = (false, 'a', (-1, -1), "rwm");

    fn deny_all() -> LinuxDeviceCgroup {
        rule(DENY_ALL.0, DENY_ALL.1, DENY_ALL.2, DENY_ALL.3)
    }

    #[test]
    fn the_promised_devices_survive_that_all_are_denied() {
        for rules in [vec![], vec![deny_all()], vec![deny_all(), deny_all()]] {
            assert_eq!(grants(&rules, Kind::Char, 1, 3), ALL);
            assert_eq!(grants(&rules, Kind::Char, 136, 77), ALL);
            assert_eq!(grants(&rules, Kind::Char, 10, 200), ALL);
            assert_eq!(grants(&rules, Kind::Block, 8, 0), MKNOD);
            assert_eq!(grants(&rules, Kind::Char, 10, 229), MKNOD);
        }
        // Denied by itself, one is denied.
        let rules = [deny_all(), rule(false, 'c', (1, 3), "rw")];
        assert_eq!(grants(&rules, Kind::Char, 1, 3), MKNOD);
    }

    #[test]
    fn later_rules_override_earlier_ones() {
        let rules = [
            rule(true, 'b', (8, -1), "rw"),
            rule(false, 'b', (8, 1), "w"),
            rule(false, 'a', (-1, -1), "m"),
        ];
        assert_eq!(grants(&rules, Kind::Block, 8, 0), READ | WRITE);
        assert_eq!(grants(&rules, Kind::Block, 8, 1), READ);
        let rules = [
            rule(true, 'b', (8, 0), "rwm"),
            deny_all(),
            rule(true, 'u', (4, 1), "r"),
        ];
        assert_eq!(grants(&rules, Kind::Block, 8, 0), MKNOD);
        assert_eq!(grants(&rules, Kind::Char, 4, 1), READ | MKNOD);
        let all = [rule(true, 'a', (-1, -1), "rwm")];
        assert_eq!(grants(&all, Kind::Block, 8, 0), ALL);
    }

    #[test]
    fn the_guests_devices_are_beyond_all_rules() {
        let disk = Device {
            kind: Kind::Block,
            major: 254,
            minor: 1,
        };
        let rules = effective(&[
            rule(true, 'a', (-1, -1), "rwm"),
            rule(true, 'b', (254, 1), "rwm"),
        ])
        .unwrap();
        let of = |minor| granted(&rules, &[disk], Kind::Block, (Some(254), Some(minor)));
        assert_eq!((of(1), of(2)), (0, ALL));
    }

    #[test]
    fn odd_rules_are_refused_or_mean_nothing() {
        for bad in [
            rule(true, 'c', (-2, 0), "r"),
            rule(true, 'c', (1, 1 << 20), "r"),
            rule(true, 'c', (1 << 12, 0), "r"),
            rule(true, 'c', (1, 0), "rx"),
        ] {
            assert!(effective(&[bad]).unwrap_err().is_bad_input());
        }
        assert!(effective(&vec![deny_all(); MAX_RULES + 1]).is_err());
        let column = rule(true, 'c', (-1, 7), "r");
        assert!(effective(&vec![column; MAX_COLUMNS + 1]).is_err());
        let nothing = [rule(true, 'p', (1, 1), "rwm"), rule(true, 'b', (8, 0), "")];
        assert_eq!(effective(&nothing).unwrap(), DEFAULTS);
        let open = [rule(false, 'b', (8, 0), "")];
        assert_eq!(grants(&open, Kind::Block, 8, 0), 0);
    }
}
