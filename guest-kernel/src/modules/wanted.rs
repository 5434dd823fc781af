// SPDX-License-Identifier: Apache-2.0
//! The modules the guest wants of a modular kernel, in load order, and what each is for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a module is loaded for. A module costs every boot that loads it, so an image has only those of its purposes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// Every guest.
    #[default]
    Guest,
    /// Verified and compressed images: a root on a device that init mounts, and guest extensions.
    Disk,
}

impl Purpose {
    /// Every purpose, in the order their modules are loaded.
    pub const ALL: [Purpose; 2] = [Purpose::Guest, Purpose::Disk];

    /// What it is called in messages.
    pub fn name(self) -> &'static str {
        match self {
            Purpose::Guest => "guest",
            Purpose::Disk => "disk",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One module the guest wants, and whether a kernel that has it neither built in nor as a module is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name, with `_` for `-`.
    pub name: &'static str,
    /// The option it is built by, without `CONFIG_`.
    pub option: &'static str,
    /// Whether the guest cannot do without.
    pub required: bool,
    /// What it is for.
    pub purpose: Purpose,
}

pub(super) const fn required(name: &'static str, option: &'static str) -> Wanted {
    Wanted {
        name,
        option,
        required: true,
        purpose: Purpose::Guest,
    }
}

pub(super) const fn optional(name: &'static str, option: &'static str) -> Wanted {
    Wanted {
        required: false,
        ..required(name, option)
    }
}

const fn disk(name: &'static str, option: &'static str) -> Wanted {
    Wanted {
        purpose: Purpose::Disk,
        ..optional(name, option)
    }
}

/// What the guest loads, in order. The socket comes first: the host is waiting for the RPC port, not for disks.
pub const GUEST_MODULES: &[Wanted] = &[
    required("virtio_pci", "VIRTIO_PCI"),
    optional("virtio_mmio", "VIRTIO_MMIO"),
    required("vmw_vsock_virtio_transport", "VIRTIO_VSOCKETS"),
    required("virtiofs", "VIRTIO_FS"),
    required("virtio_blk", "VIRTIO_BLK"),
    required("ext4", "EXT4_FS"),
    required("overlay", "OVERLAY_FS"),
    required("virtio_console", "VIRTIO_CONSOLE"),
    required("virtio_net", "VIRTIO_NET"),
    optional("af_packet", "PACKET"),
    optional("virtio_rng", "HW_RANDOM_VIRTIO"),
    optional("virtio_mem", "VIRTIO_MEM"),
    optional("virtio_balloon", "VIRTIO_BALLOON"),
    optional("nfit", "ACPI_NFIT"),
    optional("nd_pmem", "BLK_DEV_PMEM"),
    optional("virtio_pmem", "VIRTIO_PMEM"),
    disk("erofs", "EROFS_FS"),
    disk("dm_mod", "BLK_DEV_DM"),
    disk("dm_verity", "DM_VERITY"),
    // The processor's own instructions for verity's digest; it takes whichever there is when it is set up.
    disk("sha256_ssse3", "CRYPTO_SHA256_SSSE3"),
    disk("sha2_ce", "CRYPTO_SHA2_ARM64_CE"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_loaded_before_any_disk() {
        let at = |name: &str| GUEST_MODULES.iter().position(|w| w.name == name).unwrap();
        assert!(at("vmw_vsock_virtio_transport") < at("virtio_blk"));
        assert!(at("virtio_pci") < at("vmw_vsock_virtio_transport"));
    }

    #[test]
    fn purposes_follow_one_another() {
        assert!(GUEST_MODULES.is_sorted_by_key(|w| w.purpose));
        // No guest can insist on what only some images need.
        assert!(
            GUEST_MODULES
                .iter()
                .all(|w| !w.required || w.purpose == Purpose::Guest)
        );
    }
}
