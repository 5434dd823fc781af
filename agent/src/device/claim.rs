// SPDX-License-Identifier: Apache-2.0
//! The devices of a CreateContainer request (protocol 6.0), checked at the
//! door. Owns the table of types, and the way from claims to what the guest
//! has; changes no specification.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use protocols::agent::Device;

use super::env::{PciAddress, PciMap};
use super::pci::PciPath;
use super::scsi::ScsiAddress;
use super::spec::{self, Update};
use super::vfio::Function;
use super::{DeviceError, Devices, DiskAddress, Node, NodeKind, infiniband};

/// More devices than any container has.
const MOST_DEVICES: usize = 256;
/// More entries than any specification has.
const MOST_ENTRIES: usize = 4096;
/// More functions than any IOMMU group has.
const MOST_OPTIONS: usize = 64;

/// What a claim is about.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Disk(DiskAddress),
    /// For the container itself to drive, by its node.
    Vfio(Vec<Function>),
    /// For a driver of the guest; the container gets no node for it.
    Functions(Vec<Function>),
}

/// How a type of devices is read.
type Reader = fn(&Device) -> Result<Wanted, DeviceError>;

/// Every type there is.
static TYPES: [(&str, Reader); 6] = [
    ("blk", |d| {
        Ok(disk(DiskAddress::Pci(PciPath::parse(&d.id)?)))
    }),
    ("mmioblk", |d| DiskAddress::node(&d.vm_path).map(disk)),
    ("scsi", |d| {
        Ok(disk(DiskAddress::Scsi(ScsiAddress::parse(&d.id)?)))
    }),
    ("nvdimm", |d| DiskAddress::node(&d.vm_path).map(disk)),
    ("vfio-pci", |d| match functions(d)? {
        none if none.is_empty() => Err(DeviceError::NoGroup),
        all => Ok(Wanted::Vfio(all)),
    }),
    ("vfio-pci-gk", |d| functions(d).map(Wanted::Functions)),
];

/// Types of the protocol that only s390x has.
const FOREIGN: [&str; 3] = ["blk-ccw", "vfio-ap", "vfio-ap-cold"];

/// The names of the types, for `GetGuestDetails`.
pub fn types() -> impl Iterator<Item = &'static str> {
    TYPES.iter().map(|(name, _)| *name)
}

/// One device that a container is to have.
#[derive(Debug, PartialEq, Eq)]
struct Claim {
    container_path: PathBuf,
    wanted: Wanted,
}

/// The devices of a request, each of which can be had as far as the request goes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Claims(Vec<Claim>);

impl Claims {
    /// Checks the devices of a request against its specification.
    ///
    /// # Errors
    /// [`DeviceError`], all bad input but [`DeviceError::Unsupported`].
    pub fn from_wire(devices: &[Device], spec: &Spec) -> Result<Self, DeviceError> {
        if devices.len() > MOST_DEVICES {
            return Err(refused("", "devices", "there are too many"));
        }
        if !devices.is_empty() && spec::count(spec) > MOST_ENTRIES {
            return Err(refused("", "linux.devices", "there are too many"));
        }
        let claims = devices.iter().map(claim).collect::<Result<Vec<_>, _>>()?;
        let mut seen: Vec<&Path> = Vec::new();
        let mut missing = Vec::new();
        for claim in claims.iter().filter(|claim| claim.has_node()) {
            let path = claim.container_path.as_path();
            if seen.contains(&path) {
                return Err(DeviceError::Conflict {
                    what: "device updates",
                    of: shorten(&path.to_string_lossy()),
                });
            }
            seen.push(path);
            if !spec::has(spec, path) {
                missing.push(shorten(&path.to_string_lossy()));
            }
        }
        if !missing.is_empty() {
            missing.truncate(8);
            return Err(DeviceError::Missing(missing.join(", ")));
        }
        Ok(Self(claims))
    }

    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Waits for everything, one after the other. To be run to its end or given up.
    ///
    /// # Errors
    /// Of [`Devices`]; what came before stays, as the guest has it anyway.
    pub async fn provide(self, devices: &Devices) -> Result<Provided, DeviceError> {
        let mut provided = Provided::default();
        let mut passed_through = false;
        for Claim {
            container_path,
            wanted,
        } in self.0
        {
            let (node, renames) = match wanted {
                Wanted::Disk(address) => {
                    let disk = devices.disk(&address).await?;
                    (Node::block(disk), false)
                }
                Wanted::Vfio(functions) => {
                    passed_through = true;
                    let node = devices.vfio(&functions, &mut provided.pci).await?;
                    (node, true)
                }
                Wanted::Functions(functions) => {
                    passed_through = true;
                    devices.functions(&functions, &mut provided.pci).await?;
                    continue;
                }
            };
            provided.updates.push(Update {
                container_path,
                node,
                renames,
            });
        }
        if passed_through {
            provided.extra = infiniband(devices.dev());
        }
        Ok(provided)
    }
}

/// What of the guest's a container gets.
#[derive(Debug, Default)]
pub struct Provided {
    /// By entry of `linux.devices`.
    pub updates: Vec<Update>,
    /// Nodes besides those that were asked for.
    pub extra: Vec<Node>,
    /// Where the guest has the host's PCI devices.
    pub pci: PciMap,
}

impl Claim {
    fn has_node(&self) -> bool {
        !matches!(self.wanted, Wanted::Functions(_))
    }
}

impl Node {
    fn block(disk: super::BlockDevice) -> Self {
        Self {
            path: disk.node,
            kind: NodeKind::Block,
            major: disk.major,
            minor: disk.minor,
            mode: 0,
            uid: 0,
            gid: 0,
        }
    }
}

fn claim(device: &Device) -> Result<Claim, DeviceError> {
    let name = &device.type_;
    if name.is_empty() {
        return Err(refused("", "type", "it is empty"));
    }
    if device.id.is_empty() && device.vm_path.is_empty() {
        return Err(refused(name, "id", "it and vm_path are empty"));
    }
    let path = &device.container_path;
    if path.is_empty() {
        return Err(refused(name, "container_path", "it is empty"));
    }
    if FOREIGN.contains(&name.as_str()) {
        return Err(DeviceError::Unsupported { name: name.clone() });
    }
    let reader = TYPES.iter().find(|(known, _)| known == name);
    let (_, read) = reader.ok_or_else(|| DeviceError::UnknownType {
        name: shorten(name),
    })?;
    Ok(Claim {
        container_path: Path::new(path).to_owned(),
        wanted: read(device)?,
    })
}

fn disk(address: DiskAddress) -> Wanted {
    Wanted::Disk(address)
}

/// The options `HOST=PATH`. One whose path is not known (yet) stands for nothing.
fn functions(device: &Device) -> Result<Vec<Function>, DeviceError> {
    if device.options.len() > MOST_OPTIONS {
        return Err(refused(&device.type_, "options", "there are too many"));
    }
    let mut all = Vec::new();
    for option in &device.options {
        let malformed = || DeviceError::Option(shorten(option));
        let (host, path) = option.split_once('=').ok_or_else(malformed)?;
        let host = PciAddress::parse(host).ok_or_else(malformed)?;
        if path.is_empty() {
            log::warn!("Device {host} is left out: the host has no PCI path for it");
            continue;
        }
        let path = PciPath::parse(path)?;
        all.push(Function { host, path });
    }
    Ok(all)
}

fn refused(name: &str, field: &'static str, reason: &'static str) -> DeviceError {
    DeviceError::Claim {
        name: shorten(name),
        field,
        reason,
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{Linux, LinuxDevice};

    fn device(type_: &str, id: &str, vm_path: &str, container_path: &str) -> Device {
        Device {
            type_: type_.to_owned(),
            id: id.to_owned(),
            vm_path: vm_path.to_owned(),
            container_path: container_path.to_owned(),
            ..Default::default()
        }
    }

    fn with_options(type_: &str, options: &[&str]) -> Device {
        let mut device = device(type_, "7", "", "/dev/a");
        device.options = options.iter().map(|&o| o.to_owned()).collect();
        device
    }

    fn check(devices: &[Device]) -> Result<Claims, DeviceError> {
        let mut linux = Linux::default();
        let paths = ["/dev/a", "/dev/b"];
        let nodes = paths.map(|path| {
            let mut node = LinuxDevice::default();
            node.set_path(path.into());
            node
        });
        linux.set_devices(Some(nodes.to_vec()));
        let mut spec = Spec::default();
        spec.set_linux(Some(linux));
        Claims::from_wire(devices, &spec)
    }

    #[test]
    fn every_type_is_understood() {
        let claims = check(&[
            device("blk", "02/01", "/dev/vda", "/dev/a"),
            device("scsi", "0:2", "", "/dev/b"),
        ]);
        assert_eq!(claims.unwrap().0.len(), 2);
        check(&[device("mmioblk", "", "/dev/vda", "/dev/a")]).unwrap();
        check(&[device("nvdimm", "x", "/dev/pmem1", "/dev/a")]).unwrap();
        check(&[with_options("vfio-pci", &["0000:3b:00.0=02/01"])]).unwrap();
        // No entry of the specification is needed where there is no node.
        let mut guest = with_options("vfio-pci-gk", &["0000:3b:00.0=02", "0000:3b:00.1="]);
        guest.container_path = "/dev/elsewhere".to_owned();
        let claims = check(&[guest.clone(), guest]).unwrap();
        assert!(matches!(&claims.0[0].wanted, Wanted::Functions(all) if all.len() == 1));
        assert_eq!(types().count(), 6);
    }

    #[test]
    fn hostile_claims_are_refused_by_name() {
        let long = "x".repeat(10_000);
        let many: Vec<_> = (0..65).map(|_| "0000:3b:00.0=02").collect();
        let table = [
            (device("", "02", "", "/dev/a"), "type"),
            (device("blk", "", "", "/dev/a"), "id"),
            (device("blk", "02", "", ""), "container_path"),
            (
                device("floppy", "02", "", "/dev/a"),
                "Failed to find the device handler floppy",
            ),
            (device(&long, "02", "", "/dev/a"), "handler x"),
            (device("blk", "../../etc", "", "/dev/a"), "PCI path"),
            (device("blk", "", "/dev/vda", "/dev/a"), "PCI path"),
            (device("mmioblk", "02", "", "/dev/a"), "/dev"),
            (
                device("mmioblk", "", "/dev/../etc/passwd", "/dev/a"),
                "/dev/../etc",
            ),
            (device("nvdimm", "", "/etc/passwd", "/dev/a"), "/etc/passwd"),
            (device("scsi", "0", "", "/dev/a"), "SCSI Address"),
            (
                device("blk", "02", "", "/dev/c"),
                "Missing devices in OCI spec: /dev/c",
            ),
            (device("blk", "02", "", &long), "Missing devices"),
            (with_options("vfio-pci", &[]), "failed to get VFIO group"),
            (
                with_options("vfio-pci", &["0000:3b:00.0="]),
                "failed to get VFIO group",
            ),
            (
                with_options("vfio-pci", &["0000:3b:00.0"]),
                "Malformed VFIO PCI option",
            ),
            (
                with_options("vfio-pci", &["3b:00.0=02"]),
                "Malformed VFIO PCI option",
            ),
            (
                with_options("vfio-pci-gk", &["0000:3b:00.0=a=b"]),
                "PCI path",
            ),
            (with_options("vfio-pci", &many), "too many"),
        ];
        for (device, part) in table {
            let error = check(std::slice::from_ref(&device)).unwrap_err();
            let text = error.to_string();
            assert!(error.is_bad_input() && text.contains(part), "{text}");
            assert!(text.len() < 1000, "{text}");
        }
    }

    #[test]
    fn what_only_another_architecture_has_is_unsupported() {
        for name in FOREIGN {
            let error = check(&[device(name, "0.0.0001", "", "/dev/a")]).unwrap_err();
            assert!(error.is_not_implemented() && !error.is_bad_input());
            assert!(error.to_string().contains(name));
        }
    }

    #[test]
    fn a_path_is_for_one_device() {
        let twice = [
            device("blk", "02", "", "/dev/a"),
            device("blk", "03", "", "/dev//a"),
        ];
        let error = check(&twice).unwrap_err();
        let text = error.to_string();
        assert_eq!(text, "Conflicting device updates for /dev//a");
        let crowd: Vec<_> = (0..257)
            .map(|_| device("blk", "02", "", "/dev/a"))
            .collect();
        assert!(check(&crowd).unwrap_err().to_string().contains("too many"));
    }
}
