// SPDX-License-Identifier: Apache-2.0
//! AddSwap and AddSwapPath: the guest swaps to a disk of the host, which the
//! host has formatted for that. It is nobody else's from then on.

use log::warn;

use crate::cgroup::Cgroups;
use crate::device::pci::PciPath;
use crate::device::{BlockDevice, Devices, DiskAddress};
use crate::pool::at_host_pace;

use super::{VolumeError, kernel};

/// Bridges behind bridges beyond any machine.
const MOST_SLOTS: usize = 32;
/// A bus has this many.
const LAST_SLOT: u32 = 0x1f;

/// A disk to swap to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwapDisk(DiskAddress);

impl SwapDisk {
    /// By the slots on the way to it, the first on the first bus.
    ///
    /// # Errors
    /// [`VolumeError::Slots`].
    pub fn at_slots(slots: &[u32]) -> Result<Self, VolumeError> {
        let refuse = || VolumeError::Slots {
            slots: slots.iter().take(MOST_SLOTS).copied().collect(),
        };
        if slots.len() > MOST_SLOTS || slots.iter().any(|&slot| slot > LAST_SLOT) {
            return Err(refuse());
        }
        let steps: Vec<_> = slots.iter().map(|slot| format!("{slot:02x}")).collect();
        let path = PciPath::parse(&steps.join("/")).map_err(|_| refuse())?;
        Ok(Self(DiskAddress::Pci(path)))
    }

    /// By its node.
    ///
    /// # Errors
    /// [`VolumeError::Disk`].
    pub fn at_node(path: &str) -> Result<Self, VolumeError> {
        Ok(Self(DiskAddress::node(path)?))
    }
}

/// Waits for the disk, swaps to it from then on, and keeps it from containers.
///
/// # Errors
/// [`VolumeError::Disk`] when it does not come, [`VolumeError::Swap`] for what
/// the kernel says of it, [`VolumeError::NotKept`].
pub async fn add_swap(
    devices: &Devices,
    cgroups: &Cgroups,
    disk: &SwapDisk,
) -> Result<(), VolumeError> {
    let disk = devices.disk(&disk.0).await?;
    let path = disk.node.clone();
    let cgroups = cgroups.clone();
    let added = at_host_pace(move || swap_to(&disk, &cgroups)).await;
    added.map_err(|_| VolumeError::Interrupted { path })?
}

fn swap_to(disk: &BlockDevice, cgroups: &Cgroups) -> Result<(), VolumeError> {
    let node = &disk.node;
    kernel::swap_on(node).map_err(|source| VolumeError::Swap {
        node: node.clone(),
        source,
    })?;
    let kept = cgroups.take_over((disk.major, disk.minor));
    kept.map_err(|source| {
        if let Err(error) = kernel::swap_off(node) {
            warn!("The guest goes on swapping to {}: {error}", node.display());
        }
        VolumeError::NotKept {
            node: node.clone(),
            source: Box::new(source),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_a_pci_path() {
        let disk = SwapDisk::at_slots(&[2, 0x1f]).unwrap();
        assert_eq!(disk.0.to_string(), "02.0/1f.0");
        for bad in [&[][..], &[0x20], &[1, u32::MAX], &[1; 33]] {
            let error = SwapDisk::at_slots(bad).unwrap_err();
            assert!(error.is_bad_input(), "{bad:?}");
        }
    }

    #[test]
    fn nodes_are_below_dev() {
        assert!(SwapDisk::at_node("/dev/vdb").is_ok());
        for bad in ["", "/etc/passwd", "/dev/../etc/passwd", "vdb"] {
            assert!(SwapDisk::at_node(bad).unwrap_err().is_bad_input(), "{bad}");
        }
    }
}
