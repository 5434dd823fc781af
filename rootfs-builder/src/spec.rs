// SPDX-License-Identifier: Apache-2.0
//! The OCI runtime spec that `run` sends: what a container engine would send for a plain container, in the wire's form.
//!
//! Owns the defaults (mounts, masked paths, capabilities, limits). It reads nothing from the host.

mod guest;

pub use guest::guest;

use protobuf::MessageField;
use protocols::oci;

/// The search path of an image that sets none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The capabilities container engines leave to root by default.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Paths that tell of the guest, or change it, more than a container should see.
const MASKED_PATHS: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];

/// Paths a container may read only.
const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The mounts of every container: destination, type, source, options.
const MOUNTS: [(&str, &str, &str, &[&str]); 7] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    (
        "/dev",
        "tmpfs",
        "tmpfs",
        &["nosuid", "strictatime", "mode=755", "size=65536k"],
    ),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        &[
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ],
    ),
    (
        "/dev/shm",
        "tmpfs",
        "shm",
        &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
    ),
    (
        "/dev/mqueue",
        "mqueue",
        "mqueue",
        &["nosuid", "noexec", "nodev"],
    ),
    (
        "/sys",
        "sysfs",
        "sysfs",
        &["nosuid", "noexec", "nodev", "ro"],
    ),
    (
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "relatime", "ro"],
    ),
];

/// Namespaces of the container's own. The agent puts the sandbox's ipc and uts namespaces in their places and adds the pid
/// namespace (protocol section 4.4); the network is the guest's.
const NAMESPACES: [&str; 4] = ["ipc", "uts", "mount", "cgroup"];

/// Who the process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// What varies between the processes that are started.
#[derive(Clone, Debug, Default)]
pub struct ProcessOptions {
    /// The command and its arguments.
    pub args: Vec<String>,
    /// `NAME=value` words; of two with the same name the later one counts.
    pub env: Vec<String>,
    /// The working directory; empty for `/`.
    pub cwd: String,
    /// Who it runs as.
    pub user: User,
    /// Whether it has a terminal, and its size (rows, columns) if that is known.
    pub terminal: Option<Option<(u16, u16)>>,
}

/// What varies between containers.
#[derive(Clone, Debug, Default)]
pub struct ContainerOptions {
    /// The container's id, for its cgroup.
    pub id: String,
    /// The container's root in the guest.
    pub root: String,
    /// The root may not be written to.
    pub readonly: bool,
    /// The first process.
    pub process: ProcessOptions,
}

/// The spec of a container.
pub fn container(options: &ContainerOptions) -> oci::Spec {
    let root = oci::Root {
        Path: options.root.clone(),
        Readonly: options.readonly,
        ..Default::default()
    };
    oci::Spec {
        Version: "1.1.0".into(),
        Process: MessageField::some(process(&options.process)),
        Root: MessageField::some(root),
        Mounts: MOUNTS.iter().map(mount).collect(),
        Linux: MessageField::some(linux(&options.id)),
        ..Default::default()
    }
}

fn namespace(kind: &&str) -> oci::LinuxNamespace {
    oci::LinuxNamespace {
        Type: (*kind).into(),
        ..Default::default()
    }
}

fn linux(id: &str) -> oci::Linux {
    // Nothing but the devices every container has: the agent adds those itself, as every runtime does.
    let deny_all = oci::LinuxDeviceCgroup {
        Allow: false,
        Access: "rwm".into(),
        ..Default::default()
    };
    let resources = oci::LinuxResources {
        Devices: vec![deny_all],
        ..Default::default()
    };
    oci::Linux {
        Resources: MessageField::some(resources),
        CgroupsPath: format!("/keelson/{id}"),
        Namespaces: NAMESPACES.iter().map(namespace).collect(),
        MaskedPaths: strings(&MASKED_PATHS),
        ReadonlyPaths: strings(&READONLY_PATHS),
        ..Default::default()
    }
}

fn mount((destination, kind, source, options): &(&str, &str, &str, &[&str])) -> oci::Mount {
    oci::Mount {
        destination: (*destination).into(),
        source: (*source).into(),
        type_: (*kind).into(),
        options: strings(options),
        ..Default::default()
    }
}

/// A process, the first one of a container or one started later.
pub fn process(options: &ProcessOptions) -> oci::Process {
    let user = oci::User {
        UID: options.user.uid,
        GID: options.user.gid,
        AdditionalGids: options.user.groups.clone(),
        ..Default::default()
    };
    let size = options.terminal.flatten().map(|(rows, columns)| oci::Box {
        Height: rows.into(),
        Width: columns.into(),
        ..Default::default()
    });
    let nofile = oci::POSIXRlimit {
        Type: "RLIMIT_NOFILE".into(),
        Hard: 524_288,
        Soft: 1024,
        ..Default::default()
    };
    oci::Process {
        Terminal: options.terminal.is_some(),
        ConsoleSize: size.into(),
        User: MessageField::some(user),
        Args: options.args.clone(),
        Env: environment(&options.env, options.terminal.is_some()),
        Cwd: if options.cwd.is_empty() {
            "/".into()
        } else {
            options.cwd.clone()
        },
        Capabilities: MessageField::some(capabilities(options.user.uid == 0)),
        Rlimits: vec![nofile],
        NoNewPrivileges: true,
        ..Default::default()
    }
}

/// Root keeps the default list; another user has the right to none of it, only a bound.
fn capabilities(root: bool) -> oci::LinuxCapabilities {
    let held = if root {
        strings(&CAPABILITIES)
    } else {
        Vec::new()
    };
    oci::LinuxCapabilities {
        Bounding: strings(&CAPABILITIES),
        Effective: held.clone(),
        Permitted: held,
        ..Default::default()
    }
}

/// The environment with each name once, its last value winning, and what every process may rely on.
fn environment(words: &[String], terminal: bool) -> Vec<String> {
    let mut env = vec![DEFAULT_PATH.to_owned()];
    if terminal {
        env.push("TERM=xterm".into());
    }
    for word in words {
        let name = word.split('=').next().unwrap_or_default();
        let same = |other: &String| other.split('=').next() == Some(name);
        match env.iter().position(same) {
            Some(index) => env[index].clone_from(word),
            None => env.push(word.clone()),
        }
    }
    env
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ContainerOptions {
        ContainerOptions {
            id: "c1".into(),
            root: "/run/kata-containers/c1/rootfs".into(),
            readonly: false,
            process: ProcessOptions {
                args: vec!["true".into()],
                ..Default::default()
            },
        }
    }

    #[test]
    fn a_plain_container() {
        let spec = container(&options());
        assert_eq!(spec.Root.Path, "/run/kata-containers/c1/rootfs");
        assert_eq!(spec.Linux.CgroupsPath, "/keelson/c1");
        assert_eq!(spec.Process.Cwd, "/");
        assert_eq!(spec.Process.Env, [DEFAULT_PATH]);
        assert!(spec.Process.ConsoleSize.is_none());
        assert_eq!(
            spec.Process.Capabilities.Effective.len(),
            CAPABILITIES.len()
        );
        // Every mount point comes after the mount it lies in.
        for (index, mount) in spec.Mounts.iter().enumerate() {
            let inner = |m: &&oci::Mount| {
                m.destination
                    .starts_with(&format!("{}/", mount.destination))
            };
            assert!(
                !spec.Mounts[..index].iter().any(|m| inner(&m)),
                "{}",
                mount.destination
            );
        }
    }

    #[test]
    fn the_agents_own_conversion_takes_it() {
        protocols::convert::spec_from_wire(&container(&options())).unwrap();
    }

    #[test]
    fn users_hold_no_capabilities_and_terminals_have_a_type() {
        let process = process(&ProcessOptions {
            user: User {
                uid: 1000,
                gid: 100,
                groups: vec![4],
            },
            terminal: Some(Some((50, 132))),
            ..Default::default()
        });
        assert!(
            process.Capabilities.Effective.is_empty() && !process.Capabilities.Bounding.is_empty()
        );
        assert_eq!(
            (process.ConsoleSize.Height, process.ConsoleSize.Width),
            (50, 132)
        );
        assert!(process.Env.contains(&"TERM=xterm".to_owned()));
        assert_eq!(process.User.AdditionalGids, [4]);
    }

    #[test]
    fn the_last_value_of_a_name_counts() {
        let words = ["A=1", "PATH=/bin", "A=2=3", "B="].map(String::from);
        assert_eq!(environment(&words, false), ["PATH=/bin", "A=2=3", "B="]);
    }
}
