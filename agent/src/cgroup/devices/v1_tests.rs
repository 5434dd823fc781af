// SPDX-License-Identifier: Apache-2.0
//! The lists against a model of the kernel's (security/device_cgroup.c), which
//! is asked in the words that are written to it.

use proptest::prelude::*;

use super::super::rule::{ANYTHING, Device, effective};
use super::super::sample::{devices, rules};
use super::*;

/// A group as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Model {
    allows: bool,
    exceptions: Vec<Exception>,
}

/// `EPERM`.
#[derive(Debug)]
struct Refused;

impl Model {
    /// The root group, with what a guard denies.
    fn guard(guest: &[Device]) -> Self {
        let mut root = Self {
            allows: true,
            exceptions: Vec::new(),
        };
        for device in guest {
            root.add(exception_of(device));
        }
        root
    }

    fn add(&mut self, new: Exception) {
        match self.exceptions.iter_mut().find(|e| same(e, &new)) {
            Some(there) => there.access |= new.access,
            None => self.exceptions.push(new),
        }
    }

    fn remove(&mut self, old: Exception) {
        for exception in self.exceptions.iter_mut().filter(|e| same(e, &old)) {
            exception.access &= !old.access;
        }
        self.exceptions.retain(|e| e.access != 0);
    }

    /// One exception covers all that is asked for.
    fn covers(&self, asked: &Exception) -> bool {
        self.exceptions.iter().any(|e| {
            let covers = |ours: Number, asked: Number| ours.is_none() || ours == asked;
            e.kind == asked.kind
                && covers(e.numbers.0, asked.numbers.0)
                && covers(e.numbers.1, asked.numbers.1)
                && asked.access & !e.access == 0
        })
    }

    /// One exception has something to do with what is asked for.
    fn touches(&self, asked: &Exception) -> bool {
        self.exceptions.iter().any(|e| {
            let meets =
                |ours: Number, asked: Number| ours.is_none() || asked.is_none() || ours == asked;
            e.kind == asked.kind
                && meets(e.numbers.0, asked.numbers.0)
                && meets(e.numbers.1, asked.numbers.1)
                && asked.access & e.access != 0
        })
    }

    fn allows(&self, asked: &Exception) -> bool {
        match self.allows {
            true => !self.touches(asked),
            false => self.covers(asked),
        }
    }

    fn write(&mut self, parent: &Self, file: File, text: &str) -> Result<(), Refused> {
        if text.starts_with('a') {
            self.allows = file == File::Allow;
            self.exceptions.clear();
            if self.allows {
                assert!(parent.allows, "the model's parents allow");
                self.exceptions.clone_from(&parent.exceptions);
            }
            return Ok(());
        }
        let exception = parse(text);
        let parent_has = match (parent.allows, self.allows) {
            (true, true) => true,
            (true, false) => !parent.touches(&exception),
            (false, _) => parent.covers(&exception),
        };
        match (file, self.allows) {
            (File::Allow, true) if parent.touches(&exception) => return Err(Refused),
            (File::Allow, true) => self.remove(exception),
            (File::Allow, false) if !parent_has => return Err(Refused),
            (File::Allow, false) => self.add(exception),
            (File::Deny, true) => self.add(exception),
            (File::Deny, false) => self.remove(exception),
        }
        Ok(())
    }

    fn write_all(&mut self, parent: &Self, writes: &[(File, String)]) -> Result<(), Refused> {
        let mut writes = writes.iter();
        writes.try_for_each(|(file, text)| self.write(parent, *file, text))
    }
}

fn exception_of(device: &Device) -> Exception {
    Exception {
        kind: device.kind,
        numbers: (Some(device.major), Some(device.minor)),
        access: ALL,
    }
}

fn parse(text: &str) -> Exception {
    let number = |text: &str| (text != "*").then(|| text.parse().unwrap());
    let (kind, rest) = text.split_once(' ').unwrap();
    let (numbers, access) = rest.split_once(' ').unwrap();
    let (major, minor) = numbers.split_once(':').unwrap();
    Exception {
        kind: if kind == "b" { Kind::Block } else { Kind::Char },
        numbers: (number(major), number(minor)),
        access: [('r', READ), ('w', WRITE), ('m', MKNOD)]
            .iter()
            .filter(|(letter, _)| access.contains(*letter))
            .fold(0, |bits, (_, bit)| bits | bit),
    }
}

/// Every access to every device that could matter.
fn questions() -> impl Iterator<Item = Exception> {
    let kinds = [Kind::Block, Kind::Char].into_iter();
    let numbers = kinds.flat_map(|kind| (0..7).map(move |major| (kind, major)));
    let numbers = numbers.flat_map(|(kind, major)| (0..7).map(move |minor| (kind, major, minor)));
    numbers.flat_map(|(kind, major, minor)| {
        (1..=ALL).map(move |access| Exception {
            kind,
            numbers: (Some(major), Some(minor)),
            access,
        })
    })
}

fn grants(rules: &[Rule], guest: &Guest, asked: &Exception) -> bool {
    let granted = granted(rules, &guest.devices, asked.kind, asked.numbers);
    asked.access & !granted == 0
}

fn guest(devices: Vec<Device>) -> Guest {
    Guest {
        spare: Vec::new(),
        devices,
        majors: vec![(Kind::Block, 1), (Kind::Block, 3), (Kind::Char, 6)],
    }
}

fn fresh(list: &List, guard: &Model) -> Model {
    let mut group = guard.clone();
    group.write_all(guard, &list.writes(None)).unwrap();
    group
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn a_list_never_grants_more_and_says_when_it_grants_less(
        rules in rules(), devices in devices(),
    ) {
        let guest = guest(devices);
        let guard = Model::guard(&guest.devices);
        let list = List::compile(&rules, &guest);
        let group = fresh(&list, &guard);
        for asked in questions() {
            let (ours, exact) = (group.allows(&asked), grants(&rules, &guest, &asked));
            prop_assert!(!ours || exact, "{} is granted", asked);
            prop_assert!(!list.exact || ours == exact, "{} is not granted", asked);
        }
    }

    #[test]
    fn an_update_leads_to_the_new_list_without_a_gap(
        one in rules(), two in rules(), devices in devices(),
    ) {
        let guest = guest(devices);
        let guard = Model::guard(&guest.devices);
        let lists = [List::compile(&one, &guest), List::compile(&two, &guest)];
        let (start, end) = (fresh(&lists[0], &guard), fresh(&lists[1], &guard));
        let mut group = start.clone();
        let jumps = lists[0].allows != lists[1].allows;
        for (file, text) in lists[1].writes(Some(&lists[0])) {
            if group.write(&guard, file, &text).is_err() {
                // Takes back what the guard denies as well: done anew by the caller.
                prop_assert!(lists[1].allows);
                return Ok(());
            }
            for asked in questions() {
                let [old, new, now] = [&start, &end, &group].map(|g| g.allows(&asked));
                prop_assert!(jumps || now || !(old && new), "{asked} is lost for a moment");
                // Two accesses together may be, the one by the old list and the other by the new.
                let single = asked.access.is_power_of_two();
                prop_assert!(jumps || !single || !now || old || new, "{asked} is granted for a moment");
            }
        }
        for asked in questions() {
            prop_assert_eq!(group.allows(&asked), end.allows(&asked));
        }
    }
}

fn lines(rules: &[Rule], guest: &Guest) -> Vec<String> {
    let list = List::compile(rules, guest);
    list.exceptions.iter().map(ToString::to_string).collect()
}

fn disk() -> Guest {
    Guest {
        spare: Vec::new(),
        devices: vec![Device {
            kind: Kind::Block,
            major: 254,
            minor: 1,
        }],
        majors: [7, 8, 254].map(|major| (Kind::Block, major)).to_vec(),
    }
}

#[test]
fn the_defaults_are_said_exactly_where_the_guest_has_no_disk() {
    let rules = effective(&[]).unwrap();
    let list = List::compile(&rules, &Guest::default());
    assert!(list.exact && !list.allows);
    let lines = lines(&rules, &Guest::default());
    assert_eq!(lines[..2], ["b *:* m", "c *:* m"]);
    assert!(lines.contains(&"c 136:* rwm".to_owned()));
    assert_eq!(lines.len(), 12);
}

#[test]
fn nodes_of_block_devices_are_allowed_by_driver_beside_the_guests_disk() {
    let lines = lines(&effective(&[]).unwrap(), &disk());
    assert_eq!(lines[..3], ["b 7:* m", "b 8:* m", "c *:* m"]);
}

#[test]
fn all_devices_but_the_guests_are_said_exactly() {
    let list = List::compile(&[ANYTHING], &disk());
    assert!(list.exact && list.allows);
    let text: Vec<_> = list.exceptions.iter().map(ToString::to_string).collect();
    assert_eq!(text, ["b 254:1 rwm"]);
}
