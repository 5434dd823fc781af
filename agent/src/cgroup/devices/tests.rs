// SPDX-License-Identifier: Apache-2.0
//! Device rules in the kernel's own groups. These need root and a mounted
//! hierarchy; without, each says so and passes.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};

use oci_spec::runtime::LinuxDeviceType;

use super::rule::{Device, Kind};
use super::*;
use crate::cgroup::tests::{empties, path, root_of, split, unified};
use crate::cgroup::{Join, Version};

/// Both versions, of a guest whose own device is `/dev/zero`.
fn guests() -> impl Iterator<Item = Cgroups> {
    let guests = [unified(), split()].into_iter().flatten();
    guests.inspect(|cgroups| {
        let guest = Guest {
            devices: vec![Device {
                kind: Kind::Char,
                major: 1,
                minor: 5,
            }],
            spare: Vec::new(),
            majors: vec![(Kind::Char, 1), (Kind::Char, 5)],
        };
        *lock(&cgroups.0.devices.guest) = Some(Arc::new(guest));
    })
}

fn rule(allow: bool, typ: LinuxDeviceType, major: i64, minor: i64) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(Some(typ))
        .set_major(Some(major))
        .set_minor(Some(minor))
        .set_access(Some("rwm".to_owned()));
    rule
}

/// Runs a script in the group and answers with its lines.
fn run(group: &Cgroup, script: &str) -> Vec<String> {
    let mut child = Command::new("sh")
        .args(["-c", &format!("read go; {script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    enter(group, &child);
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn enter(group: &Cgroup, child: &Child) {
    let pid = child.id().to_string();
    let files = match group.join().unwrap() {
        Join::V1(files) => files,
        Join::V2(dir) => {
            let mode = nix::sys::stat::Mode::empty();
            vec![nix::fcntl::openat(&dir, "cgroup.procs", OFlag::O_WRONLY, mode).unwrap()]
        }
        Join::None => panic!("no hierarchy"),
    };
    for file in files {
        write(&file, pid.as_bytes()).unwrap();
    }
}

/// Prints the names of those that can be opened for reading.
const OPEN: &str = "for d in null zero full kmsg; do (: < /dev/$d) && echo $d; done";

/// Prints the minor numbers of those that can be made.
const MAKE: &str =
    "cd $(mktemp -d) && for n in 3 5 7; do mknod n$n c 1 $n && echo $n; done; rm -r $PWD";

fn remove(group: &Cgroup) {
    assert!(empties(group));
    assert!(group.try_remove().unwrap());
}

#[test]
fn rules_decide_and_the_guests_own_device_is_beyond_them() {
    for cgroups in guests() {
        let group = cgroups.create(&path("c1")).unwrap();
        group.restrict_devices(&[]).unwrap();
        assert_eq!(run(&group, OPEN), ["null", "full"]);
        assert_eq!(run(&group, MAKE), ["3", "7"]);
        // An update, and back.
        let log = rule(true, LinuxDeviceType::C, 1, 11);
        group.restrict_devices(&[log]).unwrap();
        assert_eq!(run(&group, OPEN), ["null", "full", "kmsg"]);
        group.restrict_devices(&[]).unwrap();
        assert_eq!(run(&group, OPEN), ["null", "full"]);
        // Everything, and that device by name.
        let all = rule(true, LinuxDeviceType::A, -1, -1);
        let zero = rule(true, LinuxDeviceType::C, 1, 5);
        group.restrict_devices(&[all.clone(), zero]).unwrap();
        assert_eq!(run(&group, OPEN), ["null", "full", "kmsg"]);
        assert_eq!(run(&group, MAKE), ["3", "7"]);
        let null = rule(false, LinuxDeviceType::C, 1, 3);
        group.restrict_devices(&[all, null]).unwrap();
        // The shell's own output to /dev/null was open before.
        assert_eq!(run(&group, OPEN), ["full", "kmsg"]);
        remove(&group);
    }
}

/// Running containers too, also in a guest that had nothing of its own before.
#[test]
fn a_disk_that_becomes_the_guests_is_taken_from_all() {
    let make =
        "cd $(mktemp -d) && for n in 200 201; do mknod n$n b 7 $n && echo $n; done; rm -r $PWD";
    for had_any in [true, false] {
        for cgroups in guests() {
            if !had_any {
                *lock(&cgroups.0.devices.guest) = Some(Arc::default());
            }
            let group = cgroups.create(&path("c1")).unwrap();
            let all = rule(true, LinuxDeviceType::A, -1, -1);
            group.restrict_devices(std::slice::from_ref(&all)).unwrap();
            assert_eq!(run(&group, make), ["200", "201"]);
            cgroups.take_over((7, 200)).unwrap();
            assert_eq!(run(&group, make), ["201"]);
            let later = cgroups.create(&path("c2")).unwrap();
            later.restrict_devices(&[all]).unwrap();
            assert_eq!(run(&later, make), ["201"]);
            remove(&later);
            remove(&group);
        }
    }
}

/// What a container with every capability could do to its own group.
#[test]
fn the_guard_holds_when_a_groups_own_rules_are_gone() {
    for cgroups in guests() {
        let group = cgroups.create(&path("c1")).unwrap();
        let log = rule(true, LinuxDeviceType::C, 1, 11);
        group.restrict_devices(&[log]).unwrap();
        match &cgroups.0.layout {
            Layout::V1(split) => {
                let hierarchy = split.hierarchy_of("devices").unwrap();
                let allow = |text| hierarchy.write(group.path(), "devices.allow", text);
                assert_eq!(allow("c 1:5 rwm"), Err(Errno::EPERM));
                allow("a").unwrap();
                assert_eq!(allow("c 1:5 rwm"), Err(Errno::EPERM));
            }
            Layout::V2(unified) => {
                // Takes the place of the program: nothing denied any more here.
                let code = ebpf::program(&[rule::ANYTHING], &[]);
                let open = Program {
                    fd: bpf::load(&code).unwrap(),
                    id: 0,
                    code,
                };
                let old = lock(&group.devices).take();
                let Some(Applied(Given::V2(id))) = old else {
                    panic!("{old:?}")
                };
                replace(&unified.hierarchy, group.path(), &open, Some(id)).unwrap();
            }
            Layout::None => unreachable!(),
        }
        assert_eq!(run(&group, OPEN), ["null", "full", "kmsg"]);
        assert_eq!(run(&group, MAKE), ["3", "7"]);
        remove(&group);
    }
}

#[test]
fn equal_rules_are_one_program_and_descriptors_are_bounded() {
    let Some(cgroups) = guests().find(|c| c.version() == Version::V2) else {
        return;
    };
    let program = |group: &Cgroup| match *lock(&group.devices) {
        Some(Applied(Given::V2(id))) => id,
        _ => panic!("no program"),
    };
    let (one, two) = (
        cgroups.create(&path("c1")).unwrap(),
        cgroups.create(&path("c2")).unwrap(),
    );
    one.restrict_devices(&[]).unwrap();
    two.restrict_devices(&[]).unwrap();
    assert_eq!(program(&one), program(&two));
    for minor in 0..20 {
        let rules = [rule(true, LinuxDeviceType::C, 4, minor)];
        two.restrict_devices(&rules).unwrap();
        assert!(lock(&cgroups.0.devices.programs).len() <= KEPT_PROGRAMS);
    }
    // A program that a group still has is found although it is not kept.
    one.restrict_devices(&[rule(true, LinuxDeviceType::C, 1, 11)])
        .unwrap();
    assert!(run(&one, OPEN).contains(&"kmsg".to_owned()));
    remove(&one);
    remove(&two);
}

/// Also where an earlier container's group is guarded by the same guard.
#[test]
fn what_nobody_uses_may_be_handed_out_and_the_guests_own_may_not() {
    let node = |minor| crate::device::Node {
        path: "/dev/x".into(),
        kind: crate::device::NodeKind::Char,
        major: 1,
        minor,
        mode: 0,
        uid: 0,
        gid: 0,
    };
    let script = "for d in null zero full; do (: < /dev/$d) && echo $d; done";
    for cgroups in guests() {
        let zero = lock(&cgroups.0.devices.guest).clone().unwrap();
        let mut guest = Guest::clone(&zero);
        let full = Device {
            minor: 7,
            ..guest.devices[0]
        };
        guest.devices.push(full);
        guest.spare.push(full);
        *lock(&cgroups.0.devices.guest) = Some(Arc::new(guest));
        let group = cgroups.create(&path("c1")).unwrap();
        group.restrict_devices(&[]).unwrap();
        assert_eq!(run(&group, script), ["null"]);
        let own = cgroups.hand_out(&[node(7), node(5)]).unwrap();
        assert_eq!(own.map(|node| node.minor), Some(5));
        assert_eq!(run(&group, script), ["null"], "nothing was done");
        assert_eq!(cgroups.hand_out(&[node(7), node(3)]).unwrap(), None);
        let rules = [rule(true, LinuxDeviceType::A, -1, -1)];
        group.restrict_devices(&rules).unwrap();
        assert_eq!(run(&group, script), ["null", "full"]);
        assert_eq!(cgroups.hand_out(&[node(7)]).unwrap(), None, "again");
        remove(&group);
    }
}

/// A list with groups below it is changed line by line.
#[test]
fn a_container_with_groups_of_its_own_is_updated() {
    for cgroups in guests() {
        let group = cgroups.create(&path("c1")).unwrap();
        group.restrict_devices(&[]).unwrap();
        let inner = match cgroups.version() {
            Version::V1 => Path::new("/sys/fs/cgroup/devices").to_owned(),
            _ => root_of(&cgroups),
        };
        std::fs::create_dir(inner.join(group.path()).join("inner")).unwrap();
        let log = rule(true, LinuxDeviceType::C, 1, 11);
        group.restrict_devices(&[log]).unwrap();
        assert_eq!(run(&group, OPEN), ["null", "full", "kmsg"]);
        group.restrict_devices(&[]).unwrap();
        assert_eq!(run(&group, OPEN), ["null", "full"]);
        remove(&group);
    }
}
