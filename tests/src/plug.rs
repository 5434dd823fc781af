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

use rootfs_builder::vm::{Qmp, QmpError, Vm as Machine};
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

    /// Makes room for so much memory that comes later. The guest hears of DIMMs by ACPI, which aarch64 has with UEFI only
    /// ([`crate::roots::firmware_for_nvdimm`]).
    pub fn room_for_memory(self, gib: u32) -> Guest {
        // Without the word Linux keeps 64 MiB back for devices that cannot reach all of it.
        self.qemu(&["-m", &format!("slots=8,maxmem={gib}G")])
            .words("swiotlb=noforce")
    }

    /// Adds a virtio-mem device, with the id `vmem`, of `mib` MiB of which none are plugged in.
    pub fn virtio_mem(self, mib: u32) -> Guest {
        let memory = format!("memory-backend-memfd,id=vmem-memory,size={mib}M,share=on");
        let device = "virtio-mem-pci,id=vmem,memdev=vmem-memory,requested-size=0";
        self.qemu(&["-object", &memory, "-device", device])
    }

    /// Adds a network card, with the id `card`, whose cable is loose.
    pub fn card(self, mac: &str) -> Guest {
        let card = format!("virtio-net-pci,id=card,netdev=cable,mac={mac}");
        self.qemu(&["-netdev", "hubport,id=cable,hubid=0", "-device", &card])
    }

    /// One processor, and sockets for others. Linux takes what the tables say of processors to come for true only under a hypervisor
    /// that it knows, and TCG is none: this one looks like VMware's. x86_64 only, QEMU has no such machine for aarch64.
    pub fn sockets(self, count: u32) -> Guest {
        let sockets = format!("1,sockets={count},cores=1,threads=1,maxcpus={count}");
        self.qemu(&["-machine", "vmport=on", "-cpu", "max,-hypervisor"])
            .qemu(&["-smbios", "type=1,serial=VMware-42", "-smp", &sockets])
    }
}

impl Vm {
    /// QEMU's monitor. One at a time.
    pub async fn monitor(&self) -> Monitor {
        Monitor::of(self.machine()).await
    }
}

/// QEMU's monitor; every command has to succeed.
#[derive(Debug)]
pub struct Monitor {
    qmp: Qmp,
}

impl Monitor {
    /// The monitor of a machine with an agent that cannot be reached yet.
    pub async fn of(machine: &Machine) -> Monitor {
        loop {
            match machine.qmp().await {
                Ok(qmp) => return Monitor { qmp },
                // QEMU was started a moment ago, and makes the socket in its time.
                Err(QmpError::Io(_)) if machine.exited().is_none() => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(e) => panic!("No monitor: {e}"),
            }
        }
    }

    /// Has QEMU execute a command that it may refuse.
    pub async fn try_run(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.qmp.execute(command, arguments).await
    }

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

    /// Plugs the vsock device of a machine that was started without it.
    pub async fn plug_vsock(&mut self) {
        let bus = rootfs_builder::vm::LATE_VSOCK;
        let id = rootfs_builder::vm::VSOCK_DEVICE;
        self.plug(
            json!({ "driver": "vhost-user-vsock-pci", "id": id, "chardev": "vsock", "bus": bus }),
        )
        .await;
    }

    /// Has QEMU save the VM, or go on from what was saved, by one of its migration commands, and waits for the end of it.
    pub async fn migrate(&mut self, command: &str, uri: &str) {
        let events = json!([{ "capability": "events", "state": true }]);
        self.run(
            "migrate-set-capabilities",
            json!({ "capabilities": events }),
        )
        .await;
        self.run(command, json!({ "uri": uri })).await;
        loop {
            let event = self.event("MIGRATION").await;
            match event["status"].as_str() {
                Some("completed") => return,
                Some("failed") => panic!("{command} {uri}: it failed"),
                _ => {}
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

    /// Plugs a network card with the id `card<port>` into a root port; its cable is loose.
    pub async fn plug_card(&mut self, port: u8, mac: &str) {
        let (id, cable) = (format!("card{port}"), format!("cable{port}"));
        let hub = json!({ "type": "hubport", "id": cable, "hubid": 0 });
        self.run("netdev_add", hub).await;
        let bus = format!("port{port}");
        let card = json!({ "driver": "virtio-net-pci", "id": id, "netdev": cable, "mac": mac, "bus": bus });
        self.plug(card).await;
    }

    /// Pulls such a card out, and its cable.
    pub async fn unplug_card(&mut self, port: u8) {
        self.unplug(&format!("card{port}")).await;
        let cable = json!({ "id": format!("cable{port}") });
        self.run("netdev_del", cable).await;
    }

    /// The hardware address that a network card goes by, as QEMU knows it: the guest's driver has told it.
    pub async fn mac_of(&mut self, id: &str) -> String {
        let answer = self.run("query-rx-filter", json!({ "name": id })).await;
        let mac = answer[0]["main-mac"].as_str();
        mac.unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    /// Plugs a DIMM of `mib` MiB with the id `id` in.
    pub async fn plug_memory(&mut self, id: &str, mib: u64) {
        let (memory, bytes) = (format!("{id}-memory"), mib << 20);
        let backend = json!({
            "qom-type": "memory-backend-memfd", "id": memory, "size": bytes, "share": true,
        });
        self.run("object-add", backend).await;
        let dimm = json!({ "driver": "pc-dimm", "id": id, "memdev": memory });
        self.plug(dimm).await;
    }

    /// Asks the guest to have so much of the virtio-mem device's memory, and waits until it has.
    pub async fn resize_virtio_mem(&mut self, mib: u64) {
        let (path, bytes) = ("/machine/peripheral/vmem", mib << 20);
        let request = json!({ "path": path, "property": "requested-size", "value": bytes });
        self.run("qom-set", request).await;
        while self.event("MEMORY_DEVICE_SIZE_CHANGE").await["size"] != bytes {}
    }

    /// Plugs a processor into the first free socket and gives its id.
    pub async fn plug_cpu(&mut self) -> String {
        let sockets = self.run("query-hotpluggable-cpus", Value::Null).await;
        let free = sockets.as_array().into_iter().flatten();
        let free = free.filter(|socket| socket.get("qom-path").is_none());
        let number = |socket: &Value| socket["props"]["socket-id"].as_u64();
        let first = free
            .min_by_key(|socket| number(socket))
            .expect("a free socket");
        let id = format!("cpu{}", first["props"]["socket-id"]);
        let mut device = first["props"].clone();
        device["driver"] = first["type"].clone();
        device["id"] = id.as_str().into();
        self.plug(device).await;
        id
    }

    /// Pulls a processor out and waits until the guest has let it go. QEMU 7.2 ends when anything is plugged in after that.
    pub async fn unplug_cpu(&mut self, id: &str) {
        self.run("device_del", json!({ "id": id })).await;
        // Only of a part of it QEMU says that it is gone.
        let part = format!("/machine/peripheral/{id}/");
        loop {
            let event = self.event("DEVICE_DELETED").await;
            if event["path"].as_str().is_some_and(|p| p.starts_with(&part)) {
                break;
            }
        }
        let sockets = self.run("query-hotpluggable-cpus", Value::Null).await;
        let path = format!("/machine/peripheral/{id}");
        let mut sockets = sockets.as_array().into_iter().flatten();
        assert!(sockets.all(|socket| socket["qom-path"] != path.as_str()));
    }
}
