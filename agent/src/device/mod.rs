// SPDX-License-Identifier: Apache-2.0
//! Finding the guest's devices (protocol section 6). Owns the addresses hosts
//! use, the look into sysfs, and the one way to wait for a device that is still
//! being plugged in: subscribe, look, wait for the kernel's word, look again.
//! Never creates nodes, and never waits on a thread.

pub mod cdi;
mod claim;
mod disk;
mod env;
mod error;
mod net;
pub mod pci;
pub mod scsi;
mod spec;
mod vfio;
mod wait;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

pub use claim::{Claims, Provided, types};
pub use disk::{BlockDevice, DiskAddress};
pub use env::{PciAddress, PciMap};
pub use error::DeviceError;
pub use spec::{Extra, Renumbering, Update, add_extra, patch};
pub use vfio::Function;

use crate::pool::at_host_pace;
use pci::{PciPath, SYSFS};

/// Where the kernel makes the nodes of devices.
const DEV: &str = "/dev";

/// What a device's node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeKind {
    /// Of a block device.
    Block,
    /// Of a character device.
    Char,
}

/// A device's node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub kind: NodeKind,
    /// Its number.
    pub major: u32,
    /// Its number.
    pub minor: u32,
    /// Its permission bits; 0 when they do not matter.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// The devices of the guest. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Devices(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sysfs: PathBuf,
    dev: PathBuf,
    /// How long a device may take to appear (`agent.hotplug_timeout`).
    patience: Duration,
    /// Counts the kernel's messages about devices, several that come together as one.
    news: watch::Sender<u64>,
    /// Told when memory has come, or may have.
    memory: Notify,
}

impl Devices {
    /// The guest's devices; what is not there yet is waited for so long. Nothing
    /// is heard of new ones until [`Devices::follow`] runs.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        Self::at(Path::new(SYSFS), Path::new(DEV), patience)
    }

    /// As [`Devices::new`], with sysfs and the device nodes elsewhere.
    #[must_use]
    pub fn at(sysfs: &Path, dev: &Path, patience: Duration) -> Self {
        Self(Arc::new(Inner {
            sysfs: sysfs.to_owned(),
            dev: dev.to_owned(),
            patience,
            news: watch::Sender::new(0),
            memory: Notify::new(),
        }))
    }

    /// Where sysfs is mounted.
    #[must_use]
    pub fn sysfs(&self) -> &Path {
        &self.0.sysfs
    }

    /// Where the nodes are.
    #[must_use]
    pub fn dev(&self) -> &Path {
        &self.0.dev
    }

    /// Changes with each of the kernel's messages.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.0.news.subscribe()
    }

    /// Has everybody look again.
    pub(crate) fn tell(&self) {
        self.0
            .news
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Told when memory has come, or may have.
    pub(crate) fn memory_news(&self) -> &Notify {
        &self.0.memory
    }

    /// A disk, by whichever address the host gave it. What is there already is
    /// found at once.
    ///
    /// # Errors
    /// [`DeviceError::Late`] when it does not appear in time;
    /// [`DeviceError::NotBlock`] for a node that is something else.
    pub async fn disk(&self, address: &DiskAddress) -> Result<BlockDevice, DeviceError> {
        // Subscribed first: what comes after a look is told.
        let mut news = self.news();
        let deadline = Instant::now() + self.0.patience;
        loop {
            let look = || disk::look(self.sysfs(), &self.0.dev, address);
            let found = self.appearing(address, address.bus(), look).await?;
            let (sysfs, disk) = (self.sysfs().to_owned(), found.clone());
            let live = at_host_pace(move || disk::is_live(&sysfs, &disk)).await;
            if live.map_err(|_| DeviceError::Interrupted)? {
                return Ok(found);
            }
            // The kernel makes the node before the disk can be opened, and its word comes after that.
            let _ = timeout_at(deadline, news.changed()).await;
            if Instant::now() >= deadline {
                return Err(DeviceError::Late {
                    address: address.to_string(),
                    seconds: self.0.patience.as_secs(),
                    source: Box::new(DeviceError::Absent { path: found.node }),
                });
            }
        }
    }

    /// Waits until a disk has at least so many bytes, which the host is making it
    /// have; answers with how many it has.
    ///
    /// # Errors
    /// [`DeviceError::Late`] when it stays smaller.
    pub async fn disk_of_size(&self, number: (u32, u32), bytes: u64) -> Result<u64, DeviceError> {
        let (major, minor) = number;
        let file = self.sysfs().join(format!("dev/block/{major}:{minor}/size"));
        let look = || disk::look_at_size(&file, bytes);
        let address = format!("{major}:{minor} of {bytes} bytes");
        self.appearing(&address, wait::Bus::None, look).await
    }

    /// The numbers of the network interfaces that a PCI device provides, at least one.
    ///
    /// # Errors
    /// [`DeviceError::Late`] when none appears in time.
    pub async fn network_interfaces(&self, path: &PciPath) -> Result<Vec<u32>, DeviceError> {
        let look = || net::look(self.sysfs(), path);
        self.appearing(path, wait::Bus::Pci, look).await
    }

    /// The sysfs directory of a PCI device, whatever it is.
    ///
    /// # Errors
    /// [`DeviceError::Late`] when it does not appear in time.
    pub async fn pci(&self, path: &PciPath) -> Result<PathBuf, DeviceError> {
        let look = || Ok(path.resolve_at(self.sysfs())?);
        self.appearing(path, wait::Bus::Pci, look).await
    }
}

impl Default for Devices {
    fn default() -> Self {
        Self::new(crate::config::Config::default().hotplug_timeout)
    }
}

/// The nodes of InfiniBand, which those drive who drive a network adapter by
/// themselves. More than a thousand belong to no guest.
fn infiniband(dev: &Path) -> Vec<Node> {
    let dir = dev.join("infiniband");
    let names = scsi::list(&dir).unwrap_or_default().into_iter().take(1024);
    names
        .filter_map(|name| vfio::character(&dir.join(name)).ok())
        .collect()
}
