// SPDX-License-Identifier: Apache-2.0
//! The kernel and its machine: names, and the settings that belong to namespaces.

use crate::facts::{Facts, content};

/// Settings that a container's specification may change.
const SETTINGS: [&str; 11] = [
    "fs.mqueue.msg_max",
    "kernel.domainname",
    "kernel.hostname",
    "kernel.msgmax",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmmax",
    "net.core.somaxconn",
    "net.ipv4.ip_forward",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
];

/// uname(2).
pub fn uname() -> Facts {
    let name = rustix::system::uname();
    let mut facts = Facts::default();
    facts.add("sysname", name.sysname().to_string_lossy());
    facts.add("nodename", name.nodename().to_string_lossy());
    facts.add("domainname", name.domainname().to_string_lossy());
    facts.add("release", name.release().to_string_lossy());
    facts.add("version", name.version().to_string_lossy());
    facts.add("machine", name.machine().to_string_lossy());
    facts
}

/// Those settings that this kernel has, fields with single blanks between them.
pub fn sysctls() -> Facts {
    let mut facts = Facts::default();
    for name in SETTINGS {
        let value = content(&format!("/proc/sys/{}", name.replace('.', "/")));
        let value = value.map(|v| v.split_whitespace().collect::<Vec<_>>().join(" "));
        facts.maybe(&format!("sysctl:{name}"), value);
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_the_one_compiled_for() {
        assert_eq!(uname().get("machine"), Some(std::env::consts::ARCH));
    }

    #[test]
    fn a_setting_and_the_name_agree() {
        let name = sysctls();
        assert_eq!(name.get("sysctl:kernel.hostname"), uname().get("nodename"));
    }
}
