// SPDX-License-Identifier: Apache-2.0
//! The one way to wait for a device. Owns the kernel's messages on the event
//! loop, and the order of things: subscribe, look, have the bus rescanned where
//! nothing else would find the device, and look again after each message.

use std::convert::Infallible;
use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::time::Duration;

use init::uevent::{Received, Uevent, UeventError, UeventSocket};
use tokio::io::Interest;
use tokio::time::{Instant, timeout_at};

use super::scsi::ScsiAddress;
use super::{DeviceError, Devices};
use crate::pool::at_host_pace;
use crate::rpc::status::chain;
use crate::watch::watch_for;

/// Messages taken at one go; a flood must leave the event loop room for others.
const AT_ONCE: usize = 256;

/// What has to be told to look for new devices.
#[derive(Debug, Clone, Copy)]
pub(super) enum Bus {
    /// Nothing: the kernel hears of them.
    None,
    /// The PCI bus, which hears nothing on platforms without a hot-plug controller.
    Pci,
    /// The SCSI controllers, which look for nothing by themselves as hosts boot guests.
    Scsi(ScsiAddress),
}

impl Bus {
    /// Asks for the look. Blocks.
    fn rescan(self, sysfs: &Path) -> Result<(), DeviceError> {
        match self {
            Self::None => Ok(()),
            Self::Pci => {
                let file = sysfs.join("bus/pci/rescan");
                fs::write(&file, "1").map_err(DeviceError::file("write", &file))
            }
            Self::Scsi(address) => address.scan(sysfs),
        }
    }

    /// How long to wait for the kernel's own word before asking: not at all
    /// where there will be none.
    fn grace(self, sysfs: &Path, patience: Duration) -> Option<Duration> {
        match self {
            Self::None => None,
            // With ACPI, or by a native controller, a device tells of itself; only a word that was missed is made up for.
            Self::Pci if sysfs.join("firmware/acpi").exists() => Some(patience / 2),
            Self::Pci | Self::Scsi(_) => Some(Duration::ZERO),
        }
    }
}

impl Devices {
    /// Takes the kernel's messages for as long as the agent lives. To be called
    /// before anything waits; `events` is opened before that, so that none is missed.
    pub async fn follow(self, events: UeventSocket) {
        tokio::select! {
            Err(error) = self.follow_until_broken(events) => {
                log::error!("New devices go unnoticed: {}", chain(&*error));
            }
            () = self.keep_memory_in_use() => {}
        }
    }

    async fn follow_until_broken(
        &self,
        events: UeventSocket,
    ) -> Result<Infallible, Box<dyn std::error::Error>> {
        let mut events = watch_for(events, Interest::READABLE)?;
        loop {
            let mut ready = events.readable_mut().await?;
            let news = take(ready.get_inner_mut())?;
            if news.all {
                ready.clear_ready();
            }
            if news.memory {
                self.memory_news().notify_one();
            }
            if news.restored {
                crate::guest::follow_host_clock();
            }
            self.tell();
            tokio::task::yield_now().await;
        }
    }

    /// What `look` finds, at once or after a message of the kernel's, at the latest
    /// when patience is over.
    pub(super) async fn appearing<T: Send>(
        &self,
        address: &(dyn Display + Sync),
        bus: Bus,
        look: impl Fn() -> Result<T, DeviceError> + Send,
    ) -> Result<T, DeviceError> {
        let mut found = None;
        // One wait for all kinds of devices: it is not small.
        let place = &mut found;
        let mut look = move || {
            *place = Some(look()?);
            Ok(())
        };
        self.until(address, bus, &mut look).await?;
        found.ok_or(DeviceError::Interrupted)
    }

    async fn until(
        &self,
        address: &(dyn Display + Sync),
        bus: Bus,
        look: &mut (dyn FnMut() -> Result<(), DeviceError> + Send),
    ) -> Result<(), DeviceError> {
        // Subscribed first: what comes after the look is told.
        let mut news = self.news();
        let patience = self.0.patience;
        let deadline = Instant::now() + patience;
        let mut rescan = bus
            .grace(self.sysfs(), patience)
            .map(|grace| Instant::now() + grace);
        loop {
            let absence = match look() {
                Err(error) if error.is_absence() => error,
                other => return other,
            };
            let now = Instant::now();
            if now >= deadline {
                return Err(DeviceError::Late {
                    address: address.to_string(),
                    seconds: patience.as_secs(),
                    source: Box::new(absence),
                });
            }
            if rescan.is_some_and(|at| now >= at) {
                rescan = None;
                self.rescan(bus).await;
                continue;
            }
            // The sender is `self`: it cannot be dropped while we wait.
            let _ = timeout_at(rescan.unwrap_or(deadline), news.changed()).await;
        }
    }

    /// A bus that cannot be asked leaves what is waited for to come by itself.
    async fn rescan(&self, bus: Bus) {
        let sysfs = self.sysfs().to_owned();
        match at_host_pace(move || bus.rescan(&sysfs)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::debug!("No rescan: {}", chain(&error)),
            Err(error) => log::error!("A rescan ended early: {error}"),
        }
    }
}

/// What the kernel's messages say that somebody acts on.
#[derive(Debug, Default, PartialEq, Eq)]
struct News {
    /// There is nothing more to read.
    all: bool,
    /// Memory has come, or may have.
    memory: bool,
    /// The VM goes on from what was saved of it, maybe not for the first time.
    restored: bool,
}

impl News {
    fn add(&mut self, event: &Uevent<'_>) {
        self.memory |= event.action == "add" && event.subsystem == "memory";
        self.restored |= event.value("NEW_VMGENID") == Some("1");
    }
}

/// Takes what is there. What was dropped for want of room is as good as anything
/// that was read: everybody looks again.
fn take(events: &mut UeventSocket) -> Result<News, UeventError> {
    let mut news = News::default();
    for _ in 0..AT_ONCE {
        match events.receive()? {
            Received::Event(event) => news.add(&event),
            Received::Overflow => {
                log::warn!("The kernel dropped messages about devices");
                news.memory = true;
            }
            Received::Empty => {
                news.all = true;
                break;
            }
        }
    }
    Ok(news)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn devices(sysfs: &Path) -> Devices {
        Devices::at(sysfs, sysfs, Duration::from_secs(4))
    }

    fn absent() -> DeviceError {
        DeviceError::Absent { path: "x".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn bug_what_is_there_needs_no_message() {
        let devices = devices(Path::new("/absent"));
        let found = devices.appearing(&"x", Bus::Pci, || Ok(7)).await;
        assert_eq!(found.unwrap(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_after_each_message_until_it_is_there() {
        let devices = devices(Path::new("/absent"));
        let looks = AtomicU32::new(0);
        let look = || {
            if looks.fetch_add(1, Ordering::Relaxed) < 3 {
                Err(absent())
            } else {
                Ok(())
            }
        };
        let messages = async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                devices.0.news.send_modify(|n| *n += 1);
            }
        };
        let (found, ()) = tokio::join!(devices.appearing(&"x", Bus::None, look), messages);
        found.unwrap();
        assert_eq!(looks.into_inner(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn what_never_comes_is_reported_with_what_is_missing() {
        let devices = devices(Path::new("/absent"));
        let began = Instant::now();
        let result: Result<(), _> = devices
            .appearing(&"02/01", Bus::None, || Err(absent()))
            .await;
        let error = result.unwrap_err();
        assert_eq!(began.elapsed(), Duration::from_secs(4));
        assert_eq!(
            chain(&error),
            "Device 02/01 did not appear within 4 s: There is no x"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_that_is_no_absence_ends_the_wait() {
        let devices = devices(Path::new("/absent"));
        let look = || Err::<(), _>(DeviceError::NotBlock { path: "x".into() });
        let began = Instant::now();
        assert!(devices.appearing(&"x", Bus::None, look).await.is_err());
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[test]
    fn messages_that_somebody_acts_on() {
        let heard = |message: &str| {
            let mut news = News::default();
            news.add(&Uevent::parse(message.as_bytes()).unwrap());
            (news.memory, news.restored)
        };
        let block =
            |action| format!("{action}@/d\0ACTION={action}\0DEVPATH=/d/memory8\0SUBSYSTEM=memory");
        assert_eq!(heard(&block("add")), (true, false));
        // What our own doing leads to is no reason to do it again.
        assert_eq!(heard(&block("online")), (false, false));
        assert_eq!(heard(&block("remove")), (false, false));
        let disk = "add@/d\0ACTION=add\0DEVPATH=/d\0SUBSYSTEM=block";
        assert_eq!(heard(disk), (false, false));
        let generation = "change@/d\0ACTION=change\0DEVPATH=/d\0NEW_VMGENID=1";
        assert_eq!(heard(generation), (false, true));
    }

    /// #13889: without ACPI nothing tells of a PCI device.
    #[tokio::test]
    async fn bug_13889_the_bus_is_rescanned_once_where_nothing_else_finds_the_device() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bus/pci/rescan");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let devices = devices(dir.path());
        let look = || match file.exists() {
            true => Ok(()),
            false => Err(absent()),
        };
        devices.appearing(&"x", Bus::Pci, look).await.unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "1");
    }

    #[test]
    fn with_acpi_devices_tell_of_themselves_first() {
        let dir = tempfile::tempdir().unwrap();
        let patience = Duration::from_secs(3);
        assert_eq!(Bus::Pci.grace(dir.path(), patience), Some(Duration::ZERO));
        fs::create_dir_all(dir.path().join("firmware/acpi")).unwrap();
        assert_eq!(Bus::Pci.grace(dir.path(), patience), Some(patience / 2));
        assert_eq!(Bus::None.grace(dir.path(), patience), None);
    }
}
