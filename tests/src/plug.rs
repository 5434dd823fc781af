// SPDX-License-Identifier: Apache-2.0
//! Plugging devices into a running guest and pulling them out, the way a Kata host does: through QEMU's monitor.
//!
//! ```no_run
//! use tests::{Vm, plug, vm_story};
//!
//! vm_story(async {
//!     let vm = Vm::boot(|guest| guest.ports(1)).await;
//!     let mut monitor = vm.monitor().await;
//!     monitor.plug_disk(0, "data", "/tmp/data.img".as_ref()).await;
//!     println!("the guest has it at PCI path {}", plug::port_path(0));
//!     monitor.unplug("data").await;
//! });
//! ```

use std::path::Path;
use std::time::Duration;

use rootfs_builder::vm::qmp::Qmp;
use serde_json::{Value, json};

use crate::vm::{Guest, Vm};

/// The slot of the first root port on the first bus, behind those that QEMU gives away by itself.
const FIRST_SLOT: u8 = 0x10;

/// How long the guest may take to let go of a device. Native PCI Express has a person's five seconds to change their mind.
const LETS_GO: Duration = Duration::from_secs(60);

/// The PCI path of what is plugged into a root port, as a Kata host writes it.
pub fn port_path(port: u8) -> String {
    format!("{:02x}/00", FIRST_SLOT + port)
}

impl Guest {
    /// Adds root ports for devices that come later, numbered from 0.
    pub fn ports(self, count: u8) -> Guest {
        (0..count).fold(self, |guest, port| {
            let slot = FIRST_SLOT + port;
            let device = format!(
                "pcie-root-port,id=port{port},chassis={},addr=0x{slot:x}",
                port + 1
            );
            guest.qemu(&["-device", &device])
        })
    }

    /// Adds a SCSI controller, with the id `scsi`, for disks that come later.
    pub fn scsi_controller(self) -> Guest {
        self.qemu(&["-device", "virtio-scsi-pci,id=scsi"])
    }
}

impl Vm {
    /// QEMU's monitor. One at a time.
    pub async fn monitor(&self) -> Monitor {
        let qmp = self.machine().qmp().await;
        Monitor {
            qmp: qmp.unwrap_or_else(|e| panic!("No monitor: {e}")),
        }
    }
}

/// QEMU's monitor; every command has to succeed.
#[derive(Debug)]
pub struct Monitor {
    qmp: Qmp,
}

impl Monitor {
    /// Has QEMU execute a command and gives its answer.
    pub async fn run(&mut self, command: &str, arguments: Value) -> Value {
        let answer = self.qmp.execute(command, arguments.clone()).await;
        answer.unwrap_or_else(|e| panic!("{command} {arguments}: {e}"))
    }

    /// Waits for an event of QEMU's and gives its data.
    pub async fn event(&mut self, name: &str) -> Value {
        let event = self.qmp.event(name, LETS_GO).await;
        event.unwrap_or_else(|e| panic!("{name}: {e}")).data
    }

    /// Plugs a device in: its driver, id and other properties.
    pub async fn plug(&mut self, device: Value) {
        self.run("device_add", device).await;
    }

    /// Pulls a device out and waits until the guest has let it go.
    pub async fn unplug(&mut self, id: &str) {
        self.run("device_del", json!({ "id": id })).await;
        loop {
            // Devices on top of it may go first.
            if self.event("DEVICE_DELETED").await["device"] == id {
                return;
            }
        }
    }

    /// Makes an image file known to QEMU under the name `node`.
    pub async fn open_image(&mut self, node: &str, image: &Path) {
        let file = json!({ "driver": "file", "filename": image });
        let image = json!({ "driver": "raw", "node-name": node, "file": file });
        self.run("blockdev-add", image).await;
    }

    /// Closes an image file.
    pub async fn close_image(&mut self, node: &str) {
        self.run("blockdev-del", json!({ "node-name": node })).await;
    }

    /// Plugs a virtio-blk disk with the id `id` into a root port; the guest has it at [`port_path`].
    pub async fn plug_disk(&mut self, port: u8, id: &str, image: &Path) {
        let node = format!("{id}-image");
        self.open_image(&node, image).await;
        let bus = format!("port{port}");
        let disk = json!({ "driver": "virtio-blk-pci", "id": id, "drive": node, "bus": bus });
        self.plug(disk).await;
    }

    /// Plugs a disk into the [`Guest::scsi_controller`]; the guest has it at `target:unit`.
    pub async fn plug_scsi_disk(&mut self, target: u32, unit: u32, id: &str, image: &Path) {
        let node = format!("{id}-image");
        self.open_image(&node, image).await;
        let disk = json!({
            "driver": "scsi-hd", "id": id, "drive": node, "bus": "scsi.0",
            "channel": 0, "scsi-id": target, "lun": unit,
        });
        self.plug(disk).await;
    }

    /// Grows the disk with the id `id`, and the image file below it.
    pub async fn grow_disk(&mut self, id: &str, bytes: u64) {
        let node = format!("{id}-image");
        self.run("block_resize", json!({ "node-name": node, "size": bytes }))
            .await;
    }
}
