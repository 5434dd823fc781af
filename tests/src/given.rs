// SPDX-License-Identifier: Apache-2.0
//! Devices of a CreateContainer request, as words: the claim for the guest and the entry of the specification that it is about, with
//! the numbers that the device has on the host.

use protocols::agent::Device;
use protocols::oci;

use crate::container::Builder;

/// A device of some type, for the entry `path` of the specification.
pub fn device(kind: &str, id: &str, vm_path: &str, path: &str) -> Device {
    let mut device = Device::new();
    device.type_ = kind.to_owned();
    device.id = id.to_owned();
    device.vm_path = vm_path.to_owned();
    device.container_path = path.to_owned();
    device
}

/// The same with options.
pub fn device_with(kind: &str, path: &str, options: &[&str]) -> Device {
    let mut device = device(kind, "12", "", path);
    device.options = options.iter().map(|&o| o.to_owned()).collect();
    device
}

/// A device rule.
pub fn rule(allow: bool, kind: &str, numbers: (i64, i64), access: &str) -> oci::LinuxDeviceCgroup {
    let mut rule = oci::LinuxDeviceCgroup::new();
    rule.Allow = allow;
    rule.Type = kind.to_owned();
    (rule.Major, rule.Minor) = numbers;
    rule.Access = access.to_owned();
    rule
}

impl Builder {
    /// Asks for a device. In the specification it is the node `device.container_path` with the host's type and numbers.
    pub fn device(self, device: Device, kind: &str, numbers: (i64, i64)) -> Builder {
        let mut node = oci::LinuxDevice::new();
        node.Path = device.container_path.clone();
        node.Type = kind.to_owned();
        (node.Major, node.Minor) = numbers;
        self.linux(|l| l.Devices.push(node))
            .request(|r| r.devices.push(device))
    }

    /// The device rules of the specification, in place of all others.
    pub fn rules(self, rules: &[oci::LinuxDeviceCgroup]) -> Builder {
        self.linux(|l| l.Resources.mut_or_insert_default().Devices = rules.to_vec())
    }
}
