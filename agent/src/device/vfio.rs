// SPDX-License-Identifier: Apache-2.0
//! PCI devices that the host passes through (protocol 6.5): waited for by PCI
//! path, and, when a container drives them itself, handed to `vfio-pci`. Owns
//! what is written to a device's files in sysfs for that.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use super::env::{PciAddress, PciMap};
use super::pci::PciPath;
use super::wait::Bus;
use super::{DeviceError, Devices, Node, NodeKind};
use crate::pool::at_host_pace;

/// The driver that lets processes drive a device.
const DRIVER: &str = "vfio-pci";

/// One function of a device: as the host calls it, and where the guest has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// The address on the host.
    pub host: PciAddress,
    /// The way to it in the guest.
    pub path: PciPath,
}

impl Devices {
    /// Waits for functions that a driver of the guest takes, and notes where they are.
    ///
    /// # Errors
    /// [`DeviceError::Late`] when one does not appear in time.
    pub async fn functions(
        &self,
        functions: &[Function],
        map: &mut PciMap,
    ) -> Result<Vec<PathBuf>, DeviceError> {
        let mut places = Vec::with_capacity(functions.len());
        for function in functions {
            let place = self.pci(&function.path).await?;
            let name = place.file_name().and_then(|name| name.to_str());
            let address = name.and_then(PciAddress::parse);
            let address = address.ok_or_else(|| DeviceError::Absent {
                path: place.clone(),
            })?;
            map.add(function.host, address)?;
            places.push(place);
        }
        Ok(places)
    }

    /// The same, and hands them to `vfio-pci`: the node of their IOMMU group.
    ///
    /// # Errors
    /// [`DeviceError::Late`]; [`DeviceError::Groups`] when they do not share a
    /// group; [`DeviceError::File`].
    pub async fn vfio(
        &self,
        functions: &[Function],
        map: &mut PciMap,
    ) -> Result<Node, DeviceError> {
        let mut shared: Option<String> = None;
        for place in self.functions(functions, map).await? {
            let sysfs = self.sysfs().to_owned();
            let device = place.clone();
            // A driver may take its time to let go.
            let bound = at_host_pace(move || bind(&sysfs, &device)).await;
            let group = bound.map_err(|_| DeviceError::Interrupted)??;
            match &shared {
                Some(other) if *other != group => {
                    return Err(DeviceError::Groups {
                        device: place,
                        group,
                        other: other.clone(),
                    });
                }
                _ => shared = Some(group),
            }
        }
        let group = shared.ok_or(DeviceError::NoGroup)?;
        let node = self.dev().join("vfio").join(group);
        let address = node.display();
        self.appearing(&address, Bus::None, || character(&node))
            .await
    }
}

/// Has `vfio-pci` take the device, from another driver if need be; answers
/// with the name of its IOMMU group.
fn bind(sysfs: &Path, device: &Path) -> Result<String, DeviceError> {
    let name = |link: io::Result<PathBuf>| {
        let target = link.ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    };
    // Without a group nothing keeps the device's accesses to memory apart, and
    // the driver would not take it: nothing is changed then.
    let group = name(fs::read_link(device.join("iommu_group")));
    let group = group.ok_or_else(|| DeviceError::Absent {
        path: device.join("iommu_group"),
    })?;
    let put = |file: PathBuf, text: &str| {
        fs::write(&file, text).map_err(DeviceError::file("write", &file))
    };
    put(device.join("driver_override"), DRIVER)?;
    let address = device.file_name().and_then(|name| name.to_str());
    let address = address.unwrap_or_default();
    match name(fs::read_link(device.join("driver"))) {
        Some(driver) if driver == DRIVER => return Ok(group),
        Some(_) => put(device.join("driver/unbind"), address)?,
        None => {}
    }
    put(sysfs.join("bus/pci/drivers_probe"), address)?;
    Ok(group)
}

/// A character device, if it is there.
pub(super) fn character(path: &Path) -> Result<Node, DeviceError> {
    let metadata = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(DeviceError::Absent { path: path.into() });
        }
        other => other.map_err(DeviceError::file("look at", path))?,
    };
    if !metadata.file_type().is_char_device() {
        return Err(DeviceError::NotCharacter { path: path.into() });
    }
    let number = metadata.rdev();
    Ok(Node {
        path: path.into(),
        kind: NodeKind::Char,
        // The kernel has 12 bits for the one and 20 for the other.
        major: major(number) as u32,
        minor: minor(number) as u32,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    /// A sysfs with one root complex; its files are ordinary ones.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for sub in ["devices/pci0000:00", "bus/pci/drivers", "groups", "dev"] {
                fs::create_dir_all(dir.path().join(sub)).unwrap();
            }
            Self(dir)
        }

        fn device(&self, slot: &str, group: Option<&str>, driver: Option<&str>) -> PathBuf {
            let root = self.0.path();
            let device = root.join(format!("devices/pci0000:00/0000:00:{slot}"));
            fs::create_dir(&device).unwrap();
            if let Some(group) = group {
                symlink(root.join("groups").join(group), device.join("iommu_group")).unwrap();
            }
            if let Some(driver) = driver {
                let place = root.join("bus/pci/drivers").join(driver);
                fs::create_dir_all(&place).unwrap();
                symlink(place, device.join("driver")).unwrap();
            }
            device
        }

        fn devices(&self) -> Devices {
            Devices::at(
                self.0.path(),
                &self.0.path().join("dev"),
                Duration::from_millis(50),
            )
        }

        fn read(&self, file: &str) -> Option<String> {
            fs::read_to_string(self.0.path().join(file)).ok()
        }
    }

    fn function(host: &str, path: &str) -> Function {
        Function {
            host: PciAddress::parse(host).unwrap(),
            path: PciPath::parse(path).unwrap(),
        }
    }

    const PROBE: &str = "bus/pci/drivers_probe";

    #[test]
    fn a_device_is_taken_from_its_driver() {
        let fake = Fake::new();
        let free = fake.device("01.0", Some("7"), None);
        assert_eq!(bind(fake.0.path(), &free).unwrap(), "7");
        let text = fs::read_to_string(free.join("driver_override")).unwrap();
        assert_eq!(text, "vfio-pci");
        assert_eq!(fake.read(PROBE).unwrap(), "0000:00:01.0");

        let taken = fake.device("02.0", Some("8"), Some("virtio-pci"));
        assert_eq!(bind(fake.0.path(), &taken).unwrap(), "8");
        let unbound = fake.read("bus/pci/drivers/virtio-pci/unbind").unwrap();
        assert_eq!(unbound, "0000:00:02.0");
        assert_eq!(fake.read(PROBE).unwrap(), "0000:00:02.0");

        let bound = fake.device("03.0", Some("9"), Some("vfio-pci"));
        assert_eq!(bind(fake.0.path(), &bound).unwrap(), "9");
        assert_eq!(fake.read("bus/pci/drivers/vfio-pci/unbind"), None);
        assert_eq!(fake.read(PROBE).unwrap(), "0000:00:02.0", "as before");
    }

    #[test]
    fn a_device_without_a_group_is_left_alone() {
        let fake = Fake::new();
        let device = fake.device("01.0", None, None);
        let error = bind(fake.0.path(), &device).unwrap_err();
        assert!(error.to_string().contains("iommu_group"), "{error}");
        assert!(!device.join("driver_override").exists());
        assert_eq!(fake.read(PROBE), None);
    }

    #[tokio::test]
    async fn functions_of_different_groups_are_refused() {
        let fake = Fake::new();
        fake.device("01.0", Some("7"), None);
        fake.device("01.1", Some("8"), None);
        let functions = [
            function("0000:3b:00.0", "01"),
            function("0000:3b:00.1", "01.1"),
        ];
        let mut map = PciMap::default();
        let error = fake.devices().vfio(&functions, &mut map).await.unwrap_err();
        assert!(matches!(error, DeviceError::Groups { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_group_whose_node_never_comes_is_late() {
        let fake = Fake::new();
        fake.device("01.0", Some("7"), None);
        let functions = [function("0000:3b:00.0", "01")];
        let mut map = PciMap::default();
        let error = fake.devices().vfio(&functions, &mut map).await.unwrap_err();
        assert!(matches!(error, DeviceError::Late { .. }), "{error}");
        let mut env = ["PCIDEVICE_X=0000:3b:00.0".to_owned()];
        map.rewrite(&mut env);
        assert_eq!(env[0], "PCIDEVICE_X=0000:00:01.0");
    }

    #[tokio::test]
    async fn functions_for_the_guest_s_drivers_are_only_waited_for() {
        let fake = Fake::new();
        let device = fake.device("01.0", None, None);
        let functions = [function("0000:3b:00.0", "01")];
        let mut map = PciMap::default();
        fake.devices()
            .functions(&functions, &mut map)
            .await
            .unwrap();
        assert_eq!(fs::read_dir(device).unwrap().count(), 0);
        let absent = [function("0000:3b:00.0", "02")];
        let error = fake.devices().functions(&absent, &mut map).await;
        assert!(matches!(error, Err(DeviceError::Late { .. })));
    }

    #[test]
    fn only_a_character_device_will_do() {
        let node = character(Path::new("/dev/null")).unwrap();
        assert_eq!((node.major, node.minor, node.mode), (1, 3, 0o666));
        assert!(
            character(Path::new("/dev/keelson-absent"))
                .unwrap_err()
                .is_absence()
        );
        let error = character(Path::new("/dev")).unwrap_err();
        assert!(matches!(error, DeviceError::NotCharacter { .. }));
    }
}
