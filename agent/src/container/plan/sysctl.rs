// SPDX-License-Identifier: Apache-2.0
//! Sysctls of a container: which it may set, and what their files are called.

use oci_spec::runtime as oci;

use super::id::shorten;
use super::{Namespace, Namespaces, PlanError};

/// Sysctls that belong to the ipc namespace.
const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Only what belongs to a namespace of the container may be set: everything
/// else would change the guest under the other containers.
pub(super) fn check(linux: &oci::Linux, namespaces: &Namespaces) -> Result<(), PlanError> {
    for key in linux.sysctl().iter().flatten().map(|(key, _)| key) {
        let fail = |reason| Err(PlanError::invalid("linux.sysctl", shorten(key), reason));
        if key.split(['.', '/']).any(str::is_empty) || key.contains('\0') {
            return fail("is no sysctl name");
        }
        let dotted = path(key).replace('/', ".");
        let needs = match dotted.as_str() {
            name if IPC_SYSCTLS.contains(&name) || name.starts_with("fs.mqueue.") => {
                Some(Namespace::Ipc)
            }
            "kernel.domainname" => Some(Namespace::Uts),
            name if name.starts_with("net.") => None,
            _ => return fail("does not belong to a namespace of the container"),
        };
        if needs.is_some_and(|kind| !namespaces.contains_key(&kind)) {
            return fail("needs a namespace that the container does not have");
        }
    }
    Ok(())
}

/// What is below these goes by the name of a network interface, which may
/// itself have dots.
const BY_INTERFACE: [&str; 4] = [
    "net.ipv4.conf.",
    "net.ipv4.neigh.",
    "net.ipv6.conf.",
    "net.ipv6.neigh.",
];

/// The file of a sysctl below `/proc/sys`. As in sysctl(8) the first separator
/// says which of `.` and `/` separates; the other one then stands for a dot in
/// a name. A name with dots throughout is an interface's if it is where one
/// belongs.
pub(super) fn path(key: &str) -> String {
    if key
        .find(['.', '/'])
        .is_some_and(|at| key[at..].starts_with('/'))
    {
        return key.to_owned();
    }
    let interface = BY_INTERFACE.iter().find_map(|prefix| {
        let (name, parameter) = key.strip_prefix(prefix)?.rsplit_once('.')?;
        Some((prefix, name.replace('/', "."), parameter))
    });
    match interface {
        Some((prefix, name, parameter)) => {
            format!("{}{name}/{parameter}", prefix.replace('.', "/"))
        }
        None => key
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::NamespaceSource;
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn a_sysctl_of_the_whole_guest_is_refused() {
        let namespaces = Namespaces::from([(Namespace::Ipc, NamespaceSource::Sandbox)]);
        let set = |key: &str| {
            let mut linux = oci::Linux::default();
            linux.set_sysctl(Some(HashMap::from([(key.to_owned(), "1".to_owned())])));
            check(&linux, &namespaces)
        };
        assert!(set("kernel.shmmax").is_ok());
        assert!(set("net.ipv4.ip_forward").is_ok());
        assert!(set("kernel.core_pattern").is_err());
        assert!(set("kernel.hostname").is_err());
        assert!(set("kernel.domainname").is_err(), "without a uts namespace");
        assert!(set("net..x").is_err());
        assert!(set("net/../kernel/core_pattern").is_err());
        assert!(set("net.ipv4.conf.///.kernel").is_err());
        assert!(set("net.ipv4.conf...x.y").is_err());
    }

    #[test]
    fn bug_a_dot_in_an_interface_name_survives() {
        assert_eq!(
            path("net/ipv4/conf/eth0.100/forwarding"),
            "net/ipv4/conf/eth0.100/forwarding"
        );
        assert_eq!(path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        for key in [
            "net.ipv4.conf.eth0/100.forwarding",
            "net.ipv4.conf.eth0.100.forwarding",
        ] {
            assert_eq!(path(key), "net/ipv4/conf/eth0.100/forwarding");
        }
        let plain = "net.ipv6.conf.all.disable_ipv6";
        assert_eq!(path(plain), "net/ipv6/conf/all/disable_ipv6");
        assert_eq!(path("fs.mqueue.msg_max"), "fs/mqueue/msg_max");
    }
}
