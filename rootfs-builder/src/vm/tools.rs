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
