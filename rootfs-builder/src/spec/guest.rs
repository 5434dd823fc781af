// SPDX-License-Identifier: Apache-2.0
//! The specification of a process in the guest itself, which no engine would send: nothing is hidden from it and nothing forbidden.

use protobuf::MessageField;
use protocols::oci;

use super::{MOUNTS, ProcessOptions, mount, namespace, strings};

/// All capabilities of Linux 6.12.
const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// The mounts of a process that looks into the guest from a root of its own.
const GUEST_MOUNTS: [(&str, &str, &str, &[&str]); 4] = [
    MOUNTS[0],
    MOUNTS[1],
    MOUNTS[2],
    ("/mnt", "bind", "/", &["rbind", "rw"]),
];

/// A process that sees the guest as PID 1 does: all capabilities, the guest's processes, nothing hidden and no device refused. With
/// `root` it has a root of its own, with the guest's at `/mnt`; without, it is in the guest's own mount namespace.
pub fn guest(id: &str, root: Option<&str>, process: &ProcessOptions) -> oci::Spec {
    let mut process = super::process(process);
    process.Capabilities = MessageField::some(oci::LinuxCapabilities {
        Bounding: strings(&ALL_CAPABILITIES),
        Effective: strings(&ALL_CAPABILITIES),
        Permitted: strings(&ALL_CAPABILITIES),
        ..Default::default()
    });
    process.NoNewPrivileges = false;
    let mut pids = namespace(&"pid");
    pids.Path = "/proc/1/ns/pid".into();
    let mut namespaces = vec![pids];
    let mut mounts = Vec::new();
    if root.is_some() {
        namespaces.push(namespace(&"mount"));
        mounts.extend(GUEST_MOUNTS.iter().map(mount));
    }
    let linux = oci::Linux {
        CgroupsPath: format!("/keelson/{id}"),
        Namespaces: namespaces,
        ..Default::default()
    };
    oci::Spec {
        Version: "1.1.0".into(),
        Process: MessageField::some(process),
        Root: MessageField::some(oci::Root {
            Path: root.unwrap_or("/").into(),
            ..Default::default()
        }),
        Mounts: mounts,
        Linux: MessageField::some(linux),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ProcessOptions {
        ProcessOptions {
            args: vec!["true".into()],
            ..Default::default()
        }
    }

    #[test]
    fn a_process_in_the_guest_is_its_root() {
        let own = guest("s1", Some("/run/x"), &options());
        assert_eq!(own.Mounts.last().unwrap().destination, "/mnt");
        assert_eq!(own.Linux.Namespaces[0].Path, "/proc/1/ns/pid");
        assert!(own.Linux.MaskedPaths.is_empty() && own.Linux.ReadonlyPaths.is_empty());
        protocols::convert::spec_from_wire(&own).unwrap();
        let inside = guest("s1", None, &options());
        assert!(inside.Mounts.is_empty() && inside.Root.Path == "/");
        assert_eq!(inside.Linux.Namespaces.len(), 1);
        assert!(
            inside
                .Process
                .Capabilities
                .Effective
                .contains(&"CAP_SYS_ADMIN".to_owned())
        );
        assert!(!inside.Process.NoNewPrivileges);
        protocols::convert::spec_from_wire(&inside).unwrap();
    }
}
