// SPDX-License-Identifier: Apache-2.0
//! Where the host programs that make up a VM lie.
//!
//! Only looks; installing them is `setup`'s business, which also knows what they are.

use std::path::PathBuf;

use guest_kernel::host::{self, Missing, Need};
use guest_kernel::{Arch, Cache};

use crate::setup;

/// The host programs a VM is made of.
#[derive(Clone, Debug)]
pub struct Tools {
    /// `qemu-system-<arch>`.
    pub qemu: PathBuf,
    /// `vhost-device-vsock`, the vsock device that needs no host kernel support.
    pub vsock: PathBuf,
    /// `virtiofsd` (the Rust one; the C one that came with QEMU up to 7.x has another command line).
    pub virtiofsd: PathBuf,
    /// QEMU's UEFI for the guest, where the host has it.
    pub firmware: Option<PathBuf>,
    /// What a share with a window needs, where the user has it.
    pub dax: Option<Dax>,
}

/// The two programs for [`super::Share::dax`].
///
/// No QEMU gives its virtio-fs device a window. From release 11 on the generic vhost-user device has one (`SHMEM_MAP`), for a daemon that
/// asks for it; no released virtiofsd does yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dax {
    /// A `qemu-system-<arch>` of release 11 or newer, named by `KEELSON_DAX_QEMU`.
    pub qemu: PathBuf,
    /// A `virtiofsd` that maps, named by `KEELSON_DAX_VIRTIOFSD`.
    pub virtiofsd: PathBuf,
}

impl Dax {
    /// As the user's environment names them.
    fn from_env() -> Option<Dax> {
        let path = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Some(Dax {
            qemu: path("KEELSON_DAX_QEMU")?.into(),
            virtiofsd: path("KEELSON_DAX_VIRTIOFSD")?.into(),
        })
    }
}

impl Tools {
    /// Looks for the programs; all that are missing are named at once.
    pub fn find(arch: Arch, cache: &Cache) -> Result<Tools, Missing> {
        let needs = setup::vm(arch);
        let places = needs.map(|need| host::find_program(need.name(), cache).ok_or(need));
        match places {
            [Ok(qemu), Ok(vsock), Ok(virtiofsd)] => Ok(Tools {
                qemu,
                vsock,
                virtiofsd,
                firmware: setup::firmware_file(arch),
                dax: Dax::from_env(),
            }),
            places => Err(Missing {
                needs: places
                    .into_iter()
                    .filter_map(Result::err)
                    .collect::<Vec<Need>>(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_apart_or_all_named() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        match Tools::find(Arch::X86_64, &cache) {
            Ok(tools) => {
                assert!(tools.qemu.ends_with("qemu-system-x86_64"));
                assert!(tools.vsock.ends_with("vhost-device-vsock"));
                assert!(tools.virtiofsd.ends_with("virtiofsd"));
            }
            Err(missing) => assert!(!missing.needs.is_empty()),
        }
    }
}
