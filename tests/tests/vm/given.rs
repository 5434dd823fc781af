// SPDX-License-Identifier: Apache-2.0
//! Devices given to containers by CreateContainer: disks of every kind, passed-through PCI devices, and what the guest itself
//! describes. Each is really used in the container, and nothing else is.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;

use guest_kernel::Arch;
use rootfs_builder::vm::{DiskKind, Firmware, RootDevice};
use tests::container::Builder;
use tests::given::{self, device, device_with, rule};
use tests::plug::port_path;
use tests::roots::{self, Shape};
use tests::{Code, Container, Vm, artifacts, expect_refusal, vm_story};

/// Slots of devices that are there from the start.
const COLD: &str = "1e";
const ENTROPY: &str = "1d";
const EDUCATIONAL: &str = "1c";

/// An empty disk that begins with its own name.
fn image(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let mut bytes = vec![0; 8 << 20];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path
}

/// What the container left on the disk, behind its name.
fn letter(image: &Path) -> String {
    let bytes = fs::read(image).unwrap_or_else(|e| panic!("{}: {e}", image.display()));
    let text = bytes[512..1024].iter().copied().take_while(|b| *b != 0);
    String::from_utf8_lossy(&text.collect::<Vec<_>>()).into_owned()
}

/// Reads the disk's name and leaves a letter behind it.
fn read_and_write(path: &str) -> String {
    format!(
        "head -c 4 {path}; echo dear host | dd of={path} bs=512 seek=1 conv=notrunc,fsync 2>/dev/null"
    )
}

/// How many disks of the guest the container can read, whatever nodes it makes.
const READABLE: &str = "n=0; for d in /sys/class/block/*; do
        mknod /dev/try b $(tr : ' ' < $d/dev) && (: < /dev/try) 2>/dev/null && n=$((n+1)); rm /dev/try
    done; echo $n";

/// Runs `then` while `creation` waits: it is under way when a later call of the same connection is answered.
async fn while_waiting<T>(vm: &Vm, creation: impl Future<Output = T>, then: impl Future) -> T {
    let meanwhile = async {
        vm.expect_alive().await;
        then.await;
    };
    tokio::join!(creation, meanwhile).0
}

fn asleep(vm: &Vm, id: &str) -> Builder {
    vm.container(id).args(&["sleep", "100000"])
}

#[test]
fn disks_are_given_to_containers() {
    vm_story(async {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let [hot, cold, scsi] = ["hot!", "cold", "scsi"].map(|name| image(dir.path(), name));
        let drive = format!("if=none,id=cold,format=raw,file={}", cold.display());
        let at = format!("virtio-blk-pci,drive=cold,addr=0x{COLD}");
        let vm = Vm::boot(|g| {
            g.ports(2)
                .scsi_controller()
                .qemu(&["-drive", &drive, "-device", &at])
                .words("scsi_mod.scan=none agent.hotplug_timeout=60")
        })
        .await;
        vm.create_sandbox(|_| ()).await;
        let mut monitor = vm.monitor().await;

        plugged_meanwhile(&vm, &hot, monitor.plug_disk(0, "data", &hot)).await;
        there_from_the_start(&vm, &cold).await;

        monitor.plug_scsi_disk(3, 1, "scsi0", &scsi).await;
        let c = asleep(&vm, "scsi").device(device("scsi", "3:1", "", "/dev/lun"), "b", (8, 0));
        let c = c.start().await;
        assert_eq!(c.sh(&read_and_write("/dev/lun")).await.ok(), "scsi");
        assert_eq!(letter(&scsi), "dear host\n");

        given_up(&vm).await;
        vm.expect_power_off().await;
    });
}

/// While the container waits; the rules are the host's, by its numbers.
async fn plugged_meanwhile(vm: &Vm, image: &Path, plugging: impl Future) {
    let rules = |access| {
        [
            rule(false, "a", (-1, -1), "rwm"),
            rule(true, "b", (8, 0), access),
        ]
    };
    let claim = device("blk", &port_path(0), "", "/dev/data");
    let c = asleep(vm, "hot")
        .device(claim, "b", (8, 0))
        .rules(&rules("rw"));
    let c = while_waiting(vm, c.try_create(), plugging).await;
    let c = c.unwrap_or_else(|e| panic!("CreateContainer: {e}"));
    c.start().await;
    assert_eq!(c.sh(&read_and_write("/dev/data")).await.ok(), "hot!");
    assert_eq!(letter(image), "dear host\n");
    assert_eq!(c.sh(READABLE).await.ok(), "1");
    // Rules that come later are by the host's numbers too.
    let again = rules("r").to_vec();
    c.update(|r| r.Devices = again).await;
    let access = "(: < /dev/data) && echo read; (: >> /dev/data) 2>/dev/null && echo write; true";
    assert_eq!(c.sh(access).await.ok(), "read");
    c.kill_and_remove().await;
}

/// By PCI path and by the guest's own name, twice in one container.
async fn there_from_the_start(vm: &Vm, image: &Path) {
    let c = asleep(vm, "cold")
        .device(device("blk", COLD, "", "/dev/one"), "b", (8, 0))
        .device(device("mmioblk", "", "/dev/vda", "/dev/two"), "b", (8, 16));
    let c = c.start().await;
    assert_eq!(c.sh("head -c 4 /dev/two").await.ok(), "cold");
    assert_eq!(c.sh(&read_and_write("/dev/one")).await.ok(), "cold");
    assert_eq!(letter(image), "dear host\n");
    assert_eq!(c.sh(READABLE).await.ok(), "1");
    c.kill_and_remove().await;
}

/// A container that waits is removed like any other, and its id is free again.
async fn given_up(vm: &Vm) {
    let claim = || device("blk", &port_path(1), "", "/dev/data");
    let never = asleep(vm, "never")
        .device(claim(), "b", (8, 0))
        .try_create();
    let known = Container::known(vm, "never");
    let result = while_waiting(vm, never, async { known.remove().await }).await;
    expect_refusal(result.map(drop), Code::FAILED_PRECONDITION, "never");
    assert_eq!(vm.sh("never", "echo again").await.ok(), "again");
}

#[test]
fn a_device_that_never_comes_is_told() {
    vm_story(async {
        let vm = Vm::shared().await;
        let claim = || device("blk", "1b/00", "", "/dev/data");
        let late = || {
            vm.container("late")
                .device(claim(), "b", (8, 0))
                .try_create()
        };
        let mut creation = pin!(late());
        tokio::select! {
            biased;
            early = &mut creation => panic!("Not waited for: {:?}", early.map(drop)),
            () = vm.expect_alive() => {}
        }
        let result = creation.await.map(drop);
        expect_refusal(
            result,
            Code::INTERNAL,
            "1b.0/00.0 did not appear within 3 s",
        );
        // Nothing is left of it.
        assert_eq!(vm.sh("late", "echo again").await.ok(), "again");
    });
}

/// The reference looks for descriptions once a second.
#[test]
fn bug_what_the_guest_describes_is_given_when_it_is_described() {
    const DESCRIPTION: &str = r#"{"cdiVersion": "0.6.0", "kind": "vendor.test/thing",
        "containerEdits": {"env": ["THINGS=1"]},
        "devices": [{"name": "0", "containerEdits": {
            "env": ["THING=0"],
            "deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/kmsg", "permissions": "w"}],
            "mounts": [{"hostPath": "/run/cdi", "containerPath": "/things", "options": ["rbind", "ro"]}],
            "hooks": [{"hookName": "startContainer", "path": "/bin/touch", "args": ["touch", "/tmp/hooked"]}]
        }}]}"#;
    vm_story(async {
        let vm = Vm::shared().await;
        let writer = asleep(&vm, "writer").bind("/mnt", "/run").start().await;
        let asks = |id: &str, device: &str| {
            let annotation = ("cdi.k8s.io/test".to_owned(), device.to_owned());
            asleep(&vm, id).spec(|s| s.Annotations.extend([annotation]))
        };
        let describe = format!(
            "cat > /mnt/cdi/.new <<'END'\n{DESCRIPTION}\nEND\nmv /mnt/cdi/.new /mnt/cdi/thing.json"
        );
        let creation = asks("thing", "vendor.test/thing=0").try_create();
        let describing = async { writer.sh(&describe).await.ok().to_owned() };
        let c = while_waiting(&vm, creation, describing).await;
        let c = c.unwrap_or_else(|e| panic!("CreateContainer: {e}"));
        c.start().await;
        let seen = c
            .sh(
                "tr '\\0' '\\n' < /proc/1/environ | grep THING; ls /things /tmp/hooked;
                 (: >> /dev/thing) && echo write; (: < /dev/thing) 2>/dev/null && echo read; true",
            )
            .await;
        let seen = seen.ok().replace('\n', " ");
        assert_eq!(
            seen,
            "THINGS=1 THING=0 /tmp/hooked  /things: thing.json write"
        );
        c.kill_and_remove().await;

        let other = asks("other", "vendor.test/thing=1").try_create().await;
        expect_refusal(
            other.map(drop),
            Code::INVALID_ARGUMENT,
            "vendor.test/thing=1",
        );
        writer.sh("rm /mnt/cdi/thing.json").await.ok();
        writer.kill_and_remove().await;
    });
}

/// The one that the root lies on stays the guest's.
#[test]
fn persistent_memory_is_given_by_name_and_never_the_guests_own() {
    vm_story(async {
        for version in ["1", "0"] {
            let version = format!("systemd.unified_cgroup_hierarchy={version}");
            persistent_memory_is_given(&version).await;
        }
    });
}

async fn persistent_memory_is_given(version: &str) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let memory = image(dir.path(), "pmem");
    // QEMU has no virtio-pmem for aarch64.
    let (device, kind, firmware) = match artifacts::arch() {
        Arch::X86_64 => (
            RootDevice::VirtioPmem,
            DiskKind::VirtioPmem,
            Firmware::Direct,
        ),
        Arch::Aarch64 => (
            RootDevice::Nvdimm,
            DiskKind::Pmem,
            roots::firmware_for_nvdimm(),
        ),
    };
    let root = Shape::Erofs.root(device).await;
    let vm = Vm::boot_own(|g| {
        let guest = g.root(root).firmware(firmware).words(version);
        guest.persistent_memory(&memory, kind)
    })
    .await;
    // The groups of later containers are in the same one, whose guard denies what nobody has asked for.
    let all = [rule(true, "a", (-1, -1), "rwm")];
    let before = asleep(&vm, "before").rules(&all).start().await;
    assert_eq!(before.sh(READABLE).await.ok(), "0", "{version}");

    let claim = |node: &str| given::device("nvdimm", "", node, "/dev/data");
    for own in ["/dev/pmem0", "/dev/pmem0p1"] {
        let c = asleep(&vm, "own").device(claim(own), "b", (259, 0));
        let result = c.try_create().await.map(drop);
        expect_refusal(result, Code::INVALID_ARGUMENT, "the guest's own");
    }
    let c = asleep(&vm, "given").device(claim("/dev/pmem1"), "b", (259, 0));
    let c = c.start().await;
    assert_eq!(c.sh(&read_and_write("/dev/data")).await.ok(), "pmem");
    assert_eq!(letter(&memory), "dear host\n");
    assert_eq!(c.sh(READABLE).await.ok(), "1", "{version}");
    vm.expect_power_off().await;
}

/// An IOMMU in the guest, which QEMU's aarch64 machine would need to be another machine for.
#[test]
fn passed_through_devices_are_given_to_containers() {
    vm_story(async {
        if artifacts::arch() == Arch::Aarch64 {
            // What is not there is told: without an IOMMU there are no groups.
            let at = format!("virtio-rng-pci,addr=0x{ENTROPY}");
            let vm = Vm::boot(|g| g.qemu(&["-device", &at])).await;
            let error = passed_through(&vm, "alone").try_create().await.map(drop);
            expect_refusal(error, Code::INTERNAL, "iommu_group");
            vm.expect_power_off().await;
            return;
        }
        let entropy = format!("virtio-rng-pci,addr=0x{ENTROPY}");
        let educational = format!("edu,addr=0x{EDUCATIONAL}");
        let vm = Vm::boot(|g| {
            let iommu = ["-device", "intel-iommu,intremap=off", "-device", &entropy];
            g.qemu(&iommu)
                .qemu(&["-device", &educational])
                .words("intel_iommu=on")
        })
        .await;
        let guests = format!("0000:3b:00.1={EDUCATIONAL}");
        let c = passed_through(&vm, "vfio")
            .request(|r| {
                r.devices
                    .push(device_with("vfio-pci-gk", "/dev/vfio/13", &[&guests]))
            })
            .env("PCIDEVICE_TEST_ORG_X=0000:3b:00.1,0000:3b:00.0")
            .start()
            .await;
        let found = c
            .sh(&format!(
                "basename $(readlink /sys/bus/pci/devices/0000:00:{ENTROPY}.0/iommu_group)
                 basename $(readlink /sys/bus/pci/devices/0000:00:{ENTROPY}.0/driver)
                 cd /dev/vfio && for f in *; do [ -c $f ] && (: <> $f) && echo $f; done
                 tr '\\0' '\\n' < /proc/1/environ | grep PCIDEVICE"
            ))
            .await;
        let found: Vec<_> = found.ok().lines().map(str::to_owned).collect();
        let env = format!("PCIDEVICE_TEST_ORG_X=0000:00:{EDUCATIONAL}.0,0000:00:{ENTROPY}.0");
        assert_eq!(found[1..], ["vfio-pci".to_owned(), found[0].clone(), env]);

        let further = c
            .exec(&["sh", "-c", "env | grep PCIDEVICE | sort"])
            .process(|p| {
                p.Env.push("PCIDEVICE_Y=0000:3b:00.0".to_owned());
                p.Env
                    .push("PCIDEVICE_Y_INFO={\"0000:3b:00.0\":{}}".to_owned());
                p.Env
                    .push("PCIDEVICE_Z=0000:3b:00.0,0000:3b:00.7".to_owned());
            });
        let further = further.run().await;
        let (here, z) = (format!("0000:00:{ENTROPY}.0"), "0000:3b:00.0,0000:3b:00.7");
        let expected =
            format!("PCIDEVICE_Y={here}\nPCIDEVICE_Y_INFO={{\"{here}\":{{}}}}\nPCIDEVICE_Z={z}");
        assert_eq!(further.ok(), expected);
        c.kill_and_remove().await;

        // Again, now that the driver has it; and never two that are kept apart.
        passed_through(&vm, "again")
            .start()
            .await
            .kill_and_remove()
            .await;
        let both = [format!("0000:3b:00.0={ENTROPY}"), guests];
        let both = device_with(
            "vfio-pci",
            "/dev/vfio/12",
            &both.each_ref().map(String::as_str),
        );
        let apart = asleep(&vm, "apart").device(both, "c", (240, 1));
        expect_refusal(
            apart.try_create().await.map(drop),
            Code::INTERNAL,
            "IOMMU group",
        );
        vm.expect_power_off().await;
    });
}

/// A container with the entropy device, which the host knows as group 12.
fn passed_through(vm: &Vm, id: &str) -> Builder {
    let option = format!("0000:3b:00.0={ENTROPY}");
    let claim = device_with("vfio-pci", "/dev/vfio/12", &[&option]);
    asleep(vm, id).device(claim, "c", (240, 1))
}
