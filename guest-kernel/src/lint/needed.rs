// SPDX-License-Identifier: Apache-2.0
//! What is known of options: which the guest cannot do without, which are only one way of several, and which come by other modules.

/// What the guest needs of its kernel: one of some options, and what fails without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needed {
    /// Any of them will do.
    pub any: &'static [&'static str],
    /// What it is for.
    pub reason: &'static str,
}

const fn needed(any: &'static [&'static str], reason: &'static str) -> Needed {
    Needed { any, reason }
}

/// What no guest can do without, whatever its image.
pub const NEEDED: &[Needed] = &[
    needed(&["BINFMT_ELF"], "programs"),
    needed(&["MULTIUSER"], "the users of containers"),
    needed(&["PROC_FS"], "init and every container mount it"),
    needed(&["SYSFS"], "init and every container mount it"),
    needed(&["TMPFS"], "what a container may write without a disk"),
    needed(&["POSIX_MQUEUE"], "a mount that every container has"),
    needed(&["UNIX98_PTYS"], "terminals"),
    needed(&["EPOLL"], "the agent's event loop"),
    needed(&["EVENTFD"], "the agent's event loop"),
    needed(&["FUTEX"], "the agent's threads"),
    needed(&["SIGNALFD"], "init reaps processes by it"),
    needed(
        &["MEMFD_CREATE"],
        "the agent's launcher runs a sealed copy of itself",
    ),
    needed(&["UNIX"], "the agent talks to its launcher"),
    needed(&["NET"], "the pod's network"),
    needed(&["INET"], "the pod's network"),
    needed(&["VIRTIO_NET"], "the pod's network"),
    needed(&["VSOCKETS"], "the agent's port"),
    needed(&["VIRTIO_VSOCKETS"], "the agent's port"),
    needed(&["VIRTIO_PCI", "VIRTIO_MMIO"], "every device of the VM"),
    needed(&["VIRTIO_CONSOLE"], "the guest's log"),
    needed(&["VIRTIO_BLK"], "volumes on disks"),
    needed(&["EXT4_FS"], "volumes on disks"),
    needed(&["FUSE_FS"], "directories shared by the host"),
    needed(&["VIRTIO_FS"], "directories shared by the host"),
    needed(&["OVERLAY_FS"], "containers made of layers"),
    needed(&["NAMESPACES"], "containers"),
    needed(&["UTS_NS"], "containers"),
    needed(&["IPC_NS"], "containers"),
    needed(&["PID_NS"], "containers"),
    needed(&["NET_NS"], "containers"),
    needed(&["CGROUPS"], "limits and statistics"),
    needed(&["MEMCG"], "limits of memory"),
    needed(&["CGROUP_SCHED"], "limits of processor time"),
    needed(&["CFS_BANDWIDTH"], "limits of processor time"),
    needed(&["CPUSETS"], "limits of processors"),
    needed(&["CGROUP_PIDS"], "limits of processes"),
    needed(
        &["CGROUP_BPF", "CGROUP_DEVICE"],
        "which devices a container may use",
    ),
];

/// Options that pick one of several ways, or only save time or memory; a kernel without them can do as much.
pub(super) const CHOICES: &[&str] = &[
    "ARM64_4K_PAGES",
    "ARM64_PA_BITS_48",
    "ARM64_VA_BITS_48",
    "CC_OPTIMIZE_FOR_PERFORMANCE",
    "CGROUP_FAVOR_DYNMODS",
    "CMDLINE_BOOL",
    "CRYPTO_MANAGER_DISABLE_TESTS",
    "DEVTMPFS_MOUNT",
    "EXPERT",
    "GENERIC_CPU",
    "HZ_100",
    "IKCONFIG",
    "IKCONFIG_PROC",
    "ISA_DMA_API",
    "KERNEL_LZ4",
    "LEGACY_VSYSCALL_NONE",
    "LRU_GEN_ENABLED",
    "NO_HZ_IDLE",
    "PARTITION_ADVANCED",
    "PREEMPT_NONE",
    "PVH",
    "TRANSPARENT_HUGEPAGE_MADVISE",
    "UNWINDER_FRAME_POINTER",
    "ZONE_DMA",
];

/// Options that are modules of their own in modular kernels, but come with others as what these depend on.
pub(super) const DEPENDENCIES: &[(&str, &str)] = &[
    ("VSOCKETS", "vsock"),
    ("FUSE_FS", "fuse"),
    ("LIBNVDIMM", "libnvdimm"),
    ("DAX", "dax"),
];
