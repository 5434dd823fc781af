// SPDX-License-Identifier: Apache-2.0
//! Who this process is and what it may do: ids, capabilities, privileges, the maps of its user namespace.
//!
//! Asked of the kernel by system calls where there are any, so that a container without `/proc` is seen too.

use rustix::process::{getegid, geteuid, getgid, getgroups, getuid, umask};
use rustix::thread::{
    CapabilitySet, capabilities, capabilities_secure_bits, capability_is_in_ambient_set,
    capability_is_in_bounding_set, no_new_privs, secure_computing_mode,
};

use crate::facts::{Facts, content, list};
use crate::process::status_line;

/// Every capability that Linux 6.12 knows, by number.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Users, groups and the file mode mask.
pub fn ids() -> Facts {
    let mut facts = Facts::default();
    facts.add("uid", getuid().as_raw());
    facts.add("euid", geteuid().as_raw());
    facts.add("gid", getgid().as_raw());
    facts.add("egid", getegid().as_raw());
    let groups = getgroups().map(|groups| {
        let mut groups: Vec<u32> = groups.into_iter().map(|group| group.as_raw()).collect();
        groups.sort_unstable();
        list(groups)
    });
    facts.maybe("groups", groups);
    // The mask is told only by being changed.
    let mask = umask(rustix::fs::Mode::empty());
    umask(mask);
    facts.add("umask", format_args!("{:03o}", mask.bits()));
    facts
}

/// The five sets, each a list of names in the order of their numbers.
pub fn caps() -> Facts {
    let mut facts = Facts::default();
    let all = 0..64;
    let known = |has: &dyn Fn(CapabilitySet) -> bool| {
        let members = all
            .clone()
            .filter(|n| has(CapabilitySet::from_bits_retain(1 << n)));
        list(members.map(name))
    };
    facts.add(
        "cap:bounding",
        known(&|cap| capability_is_in_bounding_set(cap).unwrap_or(false)),
    );
    if let Ok(sets) = capabilities(None) {
        facts.add("cap:effective", known(&|cap| sets.effective.contains(cap)));
        facts.add("cap:permitted", known(&|cap| sets.permitted.contains(cap)));
        facts.add(
            "cap:inheritable",
            known(&|cap| sets.inheritable.contains(cap)),
        );
    }
    facts.add(
        "cap:ambient",
        known(&|cap| capability_is_in_ambient_set(cap).unwrap_or(false)),
    );
    facts
}

/// A capability by its name, or by its number if it is newer than the table.
fn name(number: usize) -> String {
    match CAPABILITIES.get(number) {
        Some(name) => format!("CAP_{name}"),
        None => format!("CAP_{number}"),
    }
}

/// What restricts the process besides its capabilities.
pub fn privileges() -> Facts {
    let mut facts = Facts::default();
    facts.maybe("no_new_privs", no_new_privs());
    let mode = status_line("self", "Seccomp");
    let mode = mode.or_else(|| {
        secure_computing_mode()
            .ok()
            .map(|m| format!("{}", m as i32))
    });
    facts.maybe("seccomp", mode.ok_or(()));
    facts.maybe(
        "seccomp_filters",
        status_line("self", "Seccomp_filters").ok_or(()),
    );
    let bits = capabilities_secure_bits().map(|bits| format!("{:#x}", bits.bits()));
    facts.maybe("securebits", bits);
    facts.maybe("lsm", content("/proc/self/attr/current"));
    let signal = rustix::process::parent_process_death_signal();
    facts.maybe(
        "parent_death_signal",
        signal.map(|signal| signal.map_or(0, |s| s.as_raw())),
    );
    facts
}

/// The maps of the user namespace; blanks between the fields are single, lines are joined by commas.
pub fn id_maps() -> Facts {
    let mut facts = Facts::default();
    for map in ["uid_map", "gid_map"] {
        let text = content(&format!("/proc/self/{map}"));
        facts.maybe(map, text.map(|text| list(text.lines().map(squeezed))));
    }
    facts.maybe("setgroups", content("/proc/self/setgroups"));
    facts
}

fn squeezed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_process() {
        let facts = ids();
        assert_eq!(
            facts.get("uid"),
            Some(getuid().as_raw().to_string().as_str())
        );
        assert_eq!(ids(), facts, "asking for the mask leaves it as it was");
    }

    #[test]
    fn sets_agree_with_what_proc_tells() {
        let facts = caps();
        for (set, line) in [
            ("bounding", "CapBnd"),
            ("effective", "CapEff"),
            ("ambient", "CapAmb"),
        ] {
            let mask = status_line("self", line).unwrap();
            let mask = u64::from_str_radix(&mask, 16).unwrap();
            let names = list((0..64).filter(|n| mask >> n & 1 == 1).map(name));
            assert_eq!(facts.get(&format!("cap:{set}")), Some(names.as_str()));
        }
    }

    #[test]
    fn names_are_at_their_numbers() {
        assert_eq!(name(0), "CAP_CHOWN");
        assert_eq!(name(21), "CAP_SYS_ADMIN");
        assert_eq!(name(40), "CAP_CHECKPOINT_RESTORE");
        assert_eq!(name(41), "CAP_41");
    }

    #[test]
    fn privileges_and_maps_are_told() {
        assert!(privileges().get("no_new_privs").is_some());
        assert!(privileges().get("seccomp").is_some());
        assert!(id_maps().get("uid_map").is_some());
        assert_eq!(squeezed("         0       1000          1"), "0 1000 1");
    }
}
