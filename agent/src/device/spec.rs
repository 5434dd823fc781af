// SPDX-License-Identifier: Apache-2.0
//! What devices change in a container's specification: the host wrote its own
//! numbers of them there (protocol 6.0). Owns the patch of `linux.devices` and
//! of the device rules; looks at no device.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};

use super::{DeviceError, Node, NodeKind};

/// The guest's node for an entry of `linux.devices`.
#[derive(Debug)]
pub struct Update {
    /// The entry's path.
    pub container_path: PathBuf,
    /// The guest's device.
    pub node: Node,
    /// Whether the container is to find it under the guest's name.
    pub renames: bool,
}

/// A node that the host does not know of, and how it may be used.
pub type Extra = (Node, String);

/// Type, major and minor of a device.
type Numbers = (NodeKind, i64, i64);

/// Devices by the host's numbers and the guest's: how rules are to be read
/// that the host sends later.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renumbering {
    pairs: Vec<(Numbers, Numbers)>,
    /// For devices that the host has no numbers of.
    extra: Vec<LinuxDeviceCgroup>,
}

impl From<LinuxDeviceType> for NodeKind {
    fn from(typ: LinuxDeviceType) -> Self {
        match typ {
            LinuxDeviceType::B => Self::Block,
            _ => Self::Char,
        }
    }
}

impl NodeKind {
    fn typ(self) -> LinuxDeviceType {
        match self {
            Self::Block => LinuxDeviceType::B,
            Self::Char => LinuxDeviceType::C,
        }
    }
}

impl Node {
    pub(super) fn numbers(&self) -> Numbers {
        (self.kind, self.major.into(), self.minor.into())
    }

    /// As an entry of `linux.devices`.
    fn entry(&self) -> LinuxDevice {
        let mut entry = LinuxDevice::default();
        entry
            .set_path(self.path.clone())
            .set_typ(self.kind.typ())
            .set_major(self.major.into())
            .set_minor(self.minor.into())
            .set_file_mode(Some(self.mode))
            .set_uid(Some(self.uid))
            .set_gid(Some(self.gid));
        entry
    }
}

fn entries(spec: &Spec) -> &[LinuxDevice] {
    let devices = spec.linux().as_ref().and_then(|l| l.devices().as_deref());
    devices.unwrap_or_default()
}

/// How many entries the container has.
pub(super) fn count(spec: &Spec) -> usize {
    entries(spec).len()
}

/// Whether the container has an entry of that path.
pub(super) fn has(spec: &Spec, path: &Path) -> bool {
    entries(spec).iter().any(|device| device.path() == path)
}

/// Puts the guest's numbers in the place of the host's, and allows the container
/// to use what it was given.
///
/// # Errors
/// [`DeviceError::Conflict`] when a number of the host's stands for two devices.
pub fn patch(spec: &mut Spec, updates: &[Update]) -> Result<Renumbering, DeviceError> {
    let mut renumbering = Renumbering::default();
    let Some(linux) = spec.linux_mut() else {
        return Ok(renumbering);
    };
    // Once over all: a number of the guest's may be another device's on the host.
    for device in linux.devices_mut().iter_mut().flatten() {
        let mine = |update: &&Update| update.container_path == *device.path();
        let Some(update) = updates.iter().find(mine) else {
            continue;
        };
        let node = &update.node;
        let host = (device.typ().into(), device.major(), device.minor());
        renumbering.add(host, node.numbers())?;
        device
            .set_typ(node.kind.typ())
            .set_major(node.major.into())
            .set_minor(node.minor.into());
        if update.renames {
            device.set_path(node.path.clone());
        }
    }
    if !renumbering.pairs.is_empty() {
        renumbering.apply(rules_of(linux));
    }
    Ok(renumbering)
}

/// Adds nodes in the place of others of the same path, with a rule for each.
pub(super) fn add(spec: &mut Spec, nodes: &[Extra]) {
    let Some(linux) = spec.linux_mut() else {
        return;
    };
    if nodes.is_empty() {
        return;
    }
    let entries = linux.devices_mut().get_or_insert_default();
    for (node, _) in nodes {
        entries.retain(|entry| entry.path() != &node.path);
        entries.push(node.entry());
    }
    let rules = rules_of(linux);
    for (node, access) in nodes {
        rules.push(allow(node.numbers(), access));
    }
}

fn rules_of(linux: &mut Linux) -> &mut Vec<LinuxDeviceCgroup> {
    let resources = linux.resources_mut().get_or_insert_default();
    resources.devices_mut().get_or_insert_default()
}

/// Adds nodes that come with what was asked for.
pub fn add_extra(spec: &mut Spec, nodes: Vec<Node>) -> Vec<Extra> {
    let all: Vec<_> = nodes
        .into_iter()
        .map(|node| (node, ALL.to_owned()))
        .collect();
    add(spec, &all);
    all
}

/// Read, write, make a node.
const ALL: &str = "rwm";

fn allow((kind, major, minor): Numbers, access: &str) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true)
        .set_typ(Some(kind.typ()))
        .set_major(Some(major))
        .set_minor(Some(minor))
        .set_access(Some(access.to_owned()));
    rule
}

impl Renumbering {
    fn add(&mut self, host: Numbers, guest: Numbers) -> Result<(), DeviceError> {
        match self.pairs.iter().find(|(known, _)| *known == host) {
            Some((_, other)) if *other != guest => Err(DeviceError::Conflict {
                what: "resource updates",
                of: format!("{}:{}", host.1, host.2),
            }),
            Some(_) => Ok(()),
            None => {
                self.pairs.push((host, guest));
                Ok(())
            }
        }
    }

    /// Remembers a node that the host does not know of.
    pub fn also(&mut self, (node, access): &Extra) {
        self.extra.push(allow(node.numbers(), access));
    }

    /// The same for rules that take the place of all earlier ones: what the
    /// container was given stays its own.
    pub fn apply_to_update(&self, rules: &mut Vec<LinuxDeviceCgroup>) {
        self.apply(rules);
        rules.extend(self.extra.iter().cloned());
    }

    /// Rewrites the rules that name a device by the host's numbers, and ends
    /// them with one for each device: the accesses that the host allows it by
    /// its numbers, or all.
    pub fn apply(&self, rules: &mut Vec<LinuxDeviceCgroup>) {
        let mut named: Vec<String> = vec![String::new(); self.pairs.len()];
        for rule in rules.iter_mut() {
            let (Some(typ), Some(major), Some(minor)) = (rule.typ(), rule.major(), rule.minor())
            else {
                continue;
            };
            let host = (typ.into(), major, minor);
            let Some(at) = self.pairs.iter().position(|(known, _)| *known == host) else {
                continue;
            };
            if typ == LinuxDeviceType::A {
                continue;
            }
            let (kind, major, minor) = self.pairs[at].1;
            rule.set_typ(Some(kind.typ()))
                .set_major(Some(major))
                .set_minor(Some(minor));
            if rule.allow() {
                named[at].push_str(rule.access().as_deref().unwrap_or_default());
            }
        }
        for ((_, guest), access) in self.pairs.iter().zip(named) {
            let access = if access.is_empty() { ALL } else { &access };
            rules.push(allow(*guest, access));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, typ: LinuxDeviceType, major: i64, minor: i64) -> LinuxDevice {
        let mut entry = LinuxDevice::default();
        entry
            .set_path(path.into())
            .set_typ(typ)
            .set_major(major)
            .set_minor(minor);
        entry
    }

    fn spec(devices: Vec<LinuxDevice>, rules: Option<Vec<LinuxDeviceCgroup>>) -> Spec {
        let mut linux = Linux::default();
        linux.set_devices(Some(devices)).set_resources(None);
        if let Some(rules) = rules {
            let mut resources = oci_spec::runtime::LinuxResources::default();
            resources.set_devices(Some(rules));
            linux.set_resources(Some(resources));
        }
        let mut spec = Spec::default();
        spec.set_linux(Some(linux));
        spec
    }

    fn update(path: &str, kind: NodeKind, major: u32, minor: u32) -> Update {
        Update {
            container_path: path.into(),
            node: Node {
                path: "/dev/vfio/3".into(),
                kind,
                major,
                minor,
                mode: 0o600,
                uid: 0,
                gid: 0,
            },
            renames: kind == NodeKind::Char,
        }
    }

    fn rules(spec: &Spec) -> Vec<String> {
        let resources = spec.linux().as_ref().unwrap().resources();
        let rules = resources.as_ref().unwrap().devices();
        rules
            .iter()
            .flatten()
            .map(|rule| format!("{} {rule}", rule.allow()))
            .collect()
    }

    fn devices(spec: &Spec) -> Vec<(String, i64, i64)> {
        let devices = spec.linux().as_ref().unwrap().devices();
        let all = devices.iter().flatten();
        all.map(|d| (d.path().display().to_string(), d.major(), d.minor()))
            .collect()
    }

    use LinuxDeviceType::{B, C};

    #[test]
    fn the_guest_s_numbers_take_the_place_of_the_host_s() {
        let deny = |typ, major, minor| {
            let mut rule = allow((NodeKind::Block, 0, 0), ALL);
            rule.set_allow(false)
                .set_typ(typ)
                .set_major(major)
                .set_minor(minor);
            rule
        };
        let before = vec![
            deny(None, None, None),
            allow((NodeKind::Block, 8, 16), "r"),
            allow((NodeKind::Block, 8, 16), "m"),
            allow((NodeKind::Char, 8, 16), "w"),
        ];
        let mut spec = spec(
            vec![
                entry("/dev/disk", B, 8, 16),
                entry("/dev/other", B, 254, 16),
            ],
            Some(before),
        );
        patch(&mut spec, &[update("/dev/disk", NodeKind::Block, 254, 16)]).unwrap();
        assert_eq!(
            devices(&spec),
            [
                ("/dev/disk".into(), 254, 16),
                ("/dev/other".into(), 254, 16)
            ]
        );
        // What the host lets it do stays: read-only here.
        let after = rules(&spec);
        assert_eq!(after[1..3], ["true b 254:16 r", "true b 254:16 m"]);
        assert_eq!(after[3..], ["true c 8:16 w", "true b 254:16 rm"]);
    }

    /// The reference loses the rule.
    #[test]
    fn bug_a_rule_comes_also_where_there_are_no_resources() {
        let mut spec = spec(vec![entry("/dev/vfio/12", C, 240, 1)], None);
        let renumbering = patch(&mut spec, &[update("/dev/vfio/12", NodeKind::Char, 241, 0)]);
        assert_eq!(rules(&spec), ["true c 241:0 rwm"]);
        assert_eq!(devices(&spec), [("/dev/vfio/3".into(), 241, 0)]);
        // Rules that come later are read alike.
        let mut later = vec![allow((NodeKind::Char, 240, 1), "rw")];
        renumbering.unwrap().apply(&mut later);
        assert_eq!(later.len(), 2);
        assert_eq!((later[0].major(), later[0].minor()), (Some(241), Some(0)));
    }

    #[test]
    fn numbers_that_are_exchanged_are_replaced_once() {
        let mut spec = spec(
            vec![entry("/dev/a", B, 8, 0), entry("/dev/b", B, 8, 16)],
            Some(vec![
                allow((NodeKind::Block, 8, 0), "r"),
                allow((NodeKind::Block, 8, 16), "w"),
            ]),
        );
        let updates = [
            update("/dev/a", NodeKind::Block, 8, 16),
            update("/dev/b", NodeKind::Block, 8, 0),
        ];
        patch(&mut spec, &updates).unwrap();
        assert_eq!(
            devices(&spec),
            [("/dev/a".into(), 8, 16), ("/dev/b".into(), 8, 0)]
        );
        assert_eq!(rules(&spec)[..2], ["true b 8:16 r", "true b 8:0 w"]);
    }

    #[test]
    fn a_number_of_the_host_is_one_device() {
        let entries = || vec![entry("/dev/a", B, 8, 0), entry("/dev/b", B, 8, 0)];
        let updates = |minor| {
            [
                update("/dev/a", NodeKind::Block, 254, 0),
                update("/dev/b", NodeKind::Block, 254, minor),
            ]
        };
        let error = patch(&mut spec(entries(), None), &updates(16)).unwrap_err();
        assert_eq!(error.to_string(), "Conflicting resource updates for 8:0");
        // Two names for the same one are none of anybody's business.
        patch(&mut spec(entries(), None), &updates(0)).unwrap();
    }

    #[test]
    fn nodes_that_are_added_replace_others() {
        let mut spec = spec(vec![entry("/dev/vfio/3", C, 1, 3)], None);
        let node = update("", NodeKind::Char, 231, 0).node;
        let extra = add_extra(&mut spec, vec![node]);
        assert_eq!(devices(&spec), [("/dev/vfio/3".into(), 231, 0)]);
        assert_eq!(rules(&spec), ["true c 231:0 rwm"]);
        let mut renumbering = Renumbering::default();
        renumbering.also(&extra[0]);
        let mut later = vec![allow((NodeKind::Char, 1, 3), "r")];
        renumbering.apply_to_update(&mut later);
        assert_eq!(later[1].major(), Some(231));
    }
}
