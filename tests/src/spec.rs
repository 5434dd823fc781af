// SPDX-License-Identifier: Apache-2.0
//! The OCI spec that the tests' containers start from: what a Kata host sends for an ordinary, unprivileged container.
//!
//! Values only. A story that is about one field changes that field.

use protocols::oci;

/// The capabilities that container engines grant by default.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Every capability that Linux 6.12 knows, by number.
pub const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What engines hide. `/proc/acpi` and `/sys/firmware` are directories, the rest files, where they exist.
pub const MASKED: [&str; 7] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/sys/firmware",
];

/// What engines make read-only.
pub const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The spec of an ordinary container on `rootfs`, in the cgroup `cgroup`.
pub fn ordinary(rootfs: &str, cgroup: String) -> oci::Spec {
    let mut spec = oci::Spec::new();
    spec.Version = "1.1.0".to_owned();
    spec.Hostname = "guest".to_owned();
    spec.Process = Some(process(&["true"])).into();
    let mut root = oci::Root::new();
    root.Path = rootfs.to_owned();
    spec.Root = Some(root).into();
    spec.Mounts = mounts();
    let mut linux = oci::Linux::new();
    linux.Namespaces = ["ipc", "uts", "mount"].map(namespace).to_vec();
    linux.CgroupsPath = cgroup;
    linux.MaskedPaths = MASKED.map(str::to_owned).to_vec();
    linux.ReadonlyPaths = READ_ONLY.map(str::to_owned).to_vec();
    linux.Resources = Some(resources()).into();
    spec.Linux = Some(linux).into();
    spec
}

/// A root process with the default capabilities.
pub fn process(args: &[&str]) -> oci::Process {
    let mut process = oci::Process::new();
    process.Args = args.iter().map(|&a| a.to_owned()).collect();
    process.Env = vec!["PATH=/bin:/sbin:/usr/bin:/usr/sbin".to_owned()];
    process.Cwd = "/".to_owned();
    process.User = Some(oci::User::new()).into();
    process.Capabilities = Some(capabilities(&DEFAULT_CAPABILITIES)).into();
    process.NoNewPrivileges = true;
    process
}

/// The mask of these capabilities, as `/proc/PID/status` shows it.
pub fn capability_mask(names: &[&str]) -> u64 {
    let bit = |name: &&str| ALL_CAPABILITIES.iter().position(|known| known == name);
    names.iter().filter_map(bit).map(|n| 1 << n).sum()
}

/// The same names in the three sets that engines fill.
pub fn capabilities(names: &[&str]) -> oci::LinuxCapabilities {
    let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
    let mut caps = oci::LinuxCapabilities::new();
    caps.Bounding = names.clone();
    caps.Effective = names.clone();
    caps.Permitted = names;
    caps
}

/// A namespace entry without a path: a new one.
pub fn namespace(kind: &str) -> oci::LinuxNamespace {
    let mut namespace = oci::LinuxNamespace::new();
    namespace.Type = kind.to_owned();
    namespace
}

/// A mount entry.
pub fn mount(destination: &str, source: &str, kind: &str, options: &[&str]) -> oci::Mount {
    let mut mount = oci::Mount::new();
    mount.destination = destination.to_owned();
    mount.source = source.to_owned();
    mount.type_ = kind.to_owned();
    mount.options = options.iter().map(|&o| o.to_owned()).collect();
    mount
}

fn mounts() -> Vec<oci::Mount> {
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
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
        mount(
            "/dev/shm",
            "shm",
            "tmpfs",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ),
    ]
}

/// Deny all devices; the agent adds the default ones by itself.
fn resources() -> oci::LinuxResources {
    let mut rule = oci::LinuxDeviceCgroup::new();
    rule.Access = "rwm".to_owned();
    rule.Type = "a".to_owned();
    let mut resources = oci::LinuxResources::new();
    resources.Devices = vec![rule];
    resources
}
