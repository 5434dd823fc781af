// SPDX-License-Identifier: Apache-2.0
//! What becomes of osbuilder's variables that are not settings here.

/// Variables without an effect here, and why none is needed.
pub const NOT_NEEDED: &[(&str, &str)] = &[
    ("USE_DOCKER", "no container is needed"),
    ("USE_PODMAN", "no container is needed"),
    ("DOCKER_RUNTIME", "no container is needed"),
    ("IMAGE_REGISTRY", "no container is needed"),
    ("SECCOMP", "the agent always applies profiles"),
    (
        "NSDAX_BIN",
        "the header for DAX is written by the builder itself",
    ),
    (
        "AGENT_BIN",
        "the guest binary is init, whatever its file is called",
    ),
    (
        "AGENT_VERSION",
        "the guest binary is built from this source tree",
    ),
    (
        "RUST_VERSION",
        "the guest binary is built by the compiler that is installed",
    ),
    (
        "MUSL_VERSION",
        "the guest binary is built by the compiler that is installed",
    ),
    ("LIBC", "the guest binary is static, with musl"),
    ("CROSS_BUILD", "either architecture is built on either"),
    ("TARGET_OS", "guests run Linux"),
    ("DISTRO_REPO", "the host's own package sources are used"),
    ("GRACEFUL_EXIT", "a failed build fails"),
    (
        "OSBUILDER_VERSION",
        "the manifest beside the image names all inputs",
    ),
    (
        "DM_VERITY",
        "there is no systemd in the guest that had to keep its units for it",
    ),
    ("SKIP_ROOTFS_CHECK", "a root always has its init"),
    (
        "BUILD_VARIANT",
        "the root hash is in the manifest beside the image",
    ),
    (
        "CONFIDENTIAL_GUEST",
        "/run may always use half of the memory",
    ),
    ("DEBUG", "-v shows what goes on"),
];

/// What a variable is refused for.
pub struct MustBe {
    /// Its name.
    pub variable: &'static str,
    /// The values that ask for what is done here anyway.
    pub accepted: &'static [&'static str],
    /// Why nothing else is.
    pub why: &'static str,
    /// What can be done.
    pub hint: &'static str,
}

/// What switches something off.
pub const NO: &[&str] = &["no", "false", "0"];

const COMPONENTS: &str = "unpack it, and add [[files]] with source = its directory and target = \"/\" to a definition (-f)";

/// Variables that must not ask for anything else.
pub const MUST_BE: &[MustBe] = &[
    MustBe {
        variable: "AGENT_INIT",
        accepted: &["yes", "true", "1"],
        why: "the guest binary is init and agent in one, and no systemd goes in",
        hint: "AGENT_INIT=yes",
    },
    MustBe {
        variable: "SELINUX",
        accepted: NO,
        why: "the guest's files get no labels",
        hint: "SELINUX=no, and disable_guest_selinux = true in Kata's configuration",
    },
    MustBe {
        variable: "AGENT_POLICY",
        accepted: NO,
        why: "the agent enforces no policy yet, and one that is not enforced must not look as if it were",
        hint: "AGENT_POLICY=no",
    },
    MustBe {
        variable: "BLOCK_SIZE",
        accepted: &["4096"],
        why: "DAX and EROFS need blocks of the size of a page",
        hint: "BLOCK_SIZE=4096",
    },
    MustBe {
        variable: "BUILD_METHOD",
        accepted: &["distro"],
        why: "dracut puts the host's own files into the guest",
        hint: "unset it: --kernel fetched brings the modules the guest needs",
    },
    MustBe {
        variable: "PULL_TYPE",
        accepted: &["default"],
        why: "the agent pulls no images",
        hint: "PULL_TYPE=default",
    },
    MustBe {
        variable: "AGENT_POLICY_FILE",
        accepted: &[],
        why: "the agent enforces no policy yet, and one that is not enforced must not look as if it were",
        hint: "unset it",
    },
    MustBe {
        variable: "AGENT_TARBALL",
        accepted: &[],
        why: "archives of Kata's own build are not unpacked",
        hint: "AGENT_SOURCE_BIN takes the path of a guest binary; without it one is built",
    },
    MustBe {
        variable: "COCO_GUEST_COMPONENTS_TARBALL",
        accepted: &[],
        why: "archives of Kata's own build are not unpacked",
        hint: COMPONENTS,
    },
    MustBe {
        variable: "PAUSE_IMAGE_TARBALL",
        accepted: &[],
        why: "archives of Kata's own build are not unpacked",
        hint: COMPONENTS,
    },
    MustBe {
        variable: "NVIDIA_GPU_STACK",
        accepted: &[],
        why: "drivers are not built",
        hint: "--profile gpu with --base, a directory or OCI image that has the driver",
    },
    MustBe {
        variable: "VARIANT",
        accepted: &[],
        why: "the variants are Kata's own images",
        hint: "--profile gpu or --profile coco",
    },
];

/// Debian's releases by the numbers osbuilder takes.
pub const RELEASES: &[(&str, &str)] = &[("11", "bullseye"), ("12", "bookworm"), ("13", "trixie")];
