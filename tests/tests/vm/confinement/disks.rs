// SPDX-License-Identifier: Apache-2.0
//! Disks by nodes that a container makes.

use protocols::oci;
use rootfs_builder::vm::RootDevice;
use tests::container::Builder;
use tests::roots::Shape;
use tests::vm::ext4_image;
use tests::{Container, Vm, spec, vm_story};

use super::{probe, script, start};

/// Allows every access to every device.
fn all_devices(linux: &mut oci::Linux) {
    let mut rule = oci::LinuxDeviceCgroup::new();
    rule.Allow = true;
    rule.Type = "a".to_owned();
    (rule.Major, rule.Minor) = (-1, -1);
    rule.Access = "rwm".to_owned();
    linux.Resources.mut_or_insert_default().Devices = vec![rule];
}

/// Insists that no disk can be opened by a node that the container makes, and that another device can.
async fn expect_no_disk(c: &Container, disk: &str) {
    let seen = probe(c, &["disks", "/tmp"]).await;
    assert!(
        seen.expect("disks").split(',').any(|name| name == disk),
        "{disk}: {seen:?}"
    );
    for mode in ["r", "w"] {
        let opened = seen.starting_with(if mode == "r" { "open-r:" } else { "open-w:" });
        assert!(!opened.is_empty(), "{seen:?}");
        let guests =
            |name: &str| name.contains(":vd") || name.contains(":pmem") || name.contains(":dm-");
        let reached: Vec<_> = opened
            .iter()
            .filter(|(name, value)| guests(name) && *value == "opened")
            .collect();
        assert!(reached.is_empty(), "{reached:?}");
    }
    probe(c, &["mknod", "/tmp/conf-zero", "c", "1", "5"])
        .await
        .expect_all(&["result=made"]);
    probe(c, &["open", "/tmp/conf-zero", "rw"])
        .await
        .expect_all(&["result=opened"]);
    script(
        c,
        "rm -f /tmp/conf-zero /tmp/vd* /tmp/pmem* /tmp/loop* /tmp/ram* /tmp/dm-*",
    )
    .await
    .ok();
}

/// Writing to the guest's disk by a node that the container makes itself (CVE-2020-2023): a disk that the container was not given.
#[test]
fn opening_a_disk_that_was_not_given() {
    vm_story(async {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = ext4_image(&dir.path().join("disk"), 8, None);
        for words in [
            "systemd.unified_cgroup_hierarchy=1",
            "systemd.unified_cgroup_hierarchy=0",
        ] {
            let vm = Vm::boot(|g| g.disk(&disk).words(words)).await;
            let c = start(vm.container("conf-disk")).await;
            expect_no_disk(&c, "vda").await;
            c.kill_and_remove().await;
            // The disk can be given.
            let given = vm.container("conf-given").linux(all_devices);
            let given = start(given).await;
            let seen = probe(&given, &["disks", "/tmp"]).await;
            seen.expect_all(&["mknod:vda:result=made", "open-r:vda:result=opened"]);
            script(&given, "rm -f /tmp/vd* /tmp/pmem* /tmp/loop* /tmp/ram*")
                .await
                .ok();
            vm.expect_power_off().await;
        }
    });
}

/// The same with the disk that the guest runs from, which nobody is given, whatever the specification says.
#[test]
fn opening_the_disk_that_the_guest_runs_from() {
    vm_story(async {
        for (shape, disk) in [(Shape::Ext4, "vda1"), (Shape::Measured, "dm-0")] {
            let root = shape.root(RootDevice::VirtioBlk).await;
            let vm = Vm::boot_own(|g| g.root(root)).await;
            let tmp = |c: Builder| start(c.mount("/tmp", "tmpfs", "tmpfs", &["mode=1777"]));
            let ordinary = tmp(vm.container("conf-root")).await;
            expect_no_disk(&ordinary, disk).await;
            let powerful = vm.container("conf-root-all").linux(all_devices);
            let powerful = tmp(powerful.capabilities(&spec::ALL_CAPABILITIES)).await;
            expect_no_disk(&powerful, disk).await;
            vm.expect_power_off().await;
        }
    });
}
