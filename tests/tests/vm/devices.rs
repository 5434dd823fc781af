// SPDX-License-Identifier: Apache-2.0
//! Device rules: what a container may open and make, and that the guest's own disks are beyond all rules (CVE-2020-2023,
//! CVE-2026-24834), on both cgroup versions.

use std::path::PathBuf;

use guest_kernel::Arch;
use protocols::oci;
use rootfs_builder::vm::{Firmware, RootDevice};
use tests::container::Builder;
use tests::roots::Shape;
use tests::{Container, Vm, artifacts, roots, spec, vm_story};

const V1: &str = "systemd.unified_cgroup_hierarchy=0";
const V2: &str = "systemd.unified_cgroup_hierarchy=1";

/// Prints what succeeds for each device of the guest that is named: `make` a node (in `/dev`, which can be written to on every root),
/// `read` and `write` (open, that is) the guest's own node, which is bound to `/mnt`. Nothing is written, whatever is allowed.
const TRY: &str = r#"
    for d in $DISKS; do
        numbers=$(tr : ' ' < /sys/class/block/$d/dev) || echo "no $d"
        mknod /dev/made-$d b $numbers 2>/dev/null && echo make $d
        (: < /mnt/$d) 2>/dev/null && echo read $d
        (: >> /mnt/$d) 2>/dev/null && echo write $d
    done
    true"#;

fn rule(allow: bool, kind: &str, numbers: (i64, i64), access: &str) -> oci::LinuxDeviceCgroup {
    let mut rule = oci::LinuxDeviceCgroup::new();
    rule.Allow = allow;
    rule.Type = kind.to_owned();
    (rule.Major, rule.Minor) = numbers;
    rule.Access = access.to_owned();
    rule
}

fn everything() -> Vec<oci::LinuxDeviceCgroup> {
    vec![rule(true, "a", (-1, -1), "rwm")]
}

/// A container with all capabilities, the guest's `/dev` at `/mnt` and these rules.
fn container(vm: &Vm, id: &str, rules: Vec<oci::LinuxDeviceCgroup>) -> Builder {
    vm.container(id)
        .capabilities(&spec::ALL_CAPABILITIES)
        .bind("/mnt", "/dev")
        .linux(|l| {
            l.Seccomp.take();
            l.Resources.mut_or_insert_default().Devices = rules;
        })
        .args(&["sleep", "100000"])
}

async fn attempts(c: &Container, disks: &str) -> Vec<String> {
    let output = c.sh(&format!("DISKS='{disks}'; {TRY}")).await;
    output.ok().lines().map(str::to_owned).collect()
}

/// Which of these disks mount(2) takes, by the guest's own node. That the kernel opens them itself makes no difference.
async fn mounted(c: &Container, disks: &str) -> Vec<String> {
    let script = format!(
        "mkdir -p /dev/place; for d in {disks}; do
            for t in ext4 erofs; do mount -t $t -o ro /mnt/$d /dev/place 2>/dev/null && umount /dev/place && echo $d; done
        done; true"
    );
    // A further process has the capabilities that its own request names.
    let all = spec::capabilities(&spec::ALL_CAPABILITIES);
    let exec = c.exec(&["sh", "-c", &script]);
    let output = exec.process(|p| p.Capabilities = Some(all).into());
    let output = output.run().await;
    output.ok().lines().map(str::to_owned).collect()
}

/// A directory with an empty disk in it.
fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("No temporary directory: {e}"));
    let disk = tests::vm::ext4_image(&dir.path().join("disk"), 16, None);
    (dir, disk)
}

async fn the_root_disk_is_out_of_reach(version: &str) {
    let (_dir, disk) = scratch();
    let root = Shape::Ext4.root(RootDevice::VirtioBlk).await;
    let vm = Vm::boot_own(|g| g.root(root).disk(&disk).words(version)).await;
    let mut rules = everything();
    // By name too, and after everything else.
    rules.push(rule(true, "b", (254, -1), "rwm"));
    rules.push(rule(true, "b", (254, 1), "rwm"));
    let c = container(&vm, "privileged", rules.clone()).start().await;
    let other = ["make vdb", "read vdb", "write vdb"];
    assert_eq!(attempts(&c, "vda vda1 vdb").await, other);
    // Not vda1, whose file system is mounted already: the kernel takes it by its number and opens nothing, so the device cgroup is
    // not asked. A container may not make the node; one that is given the guest's, as here, is not kept from it.
    assert_eq!(mounted(&c, "vda vdb").await, ["vdb"]);
    // Nor after an update.
    c.update(|r| r.Devices = rules).await;
    c.sh("rm /dev/made-vdb").await.ok();
    assert_eq!(attempts(&c, "vda vda1 vdb").await, other);
    c.kill_and_remove().await;
    // An ordinary container may make nodes at most.
    let c = container(&vm, "ordinary", vec![]).start().await;
    let made = attempts(&c, "vda vda1").await;
    assert!(made.is_empty(), "{made:?}");
    vm.expect_power_off().await;
}

#[test]
fn bug_the_guests_root_disk_is_out_of_reach_on_v2() {
    vm_story(the_root_disk_is_out_of_reach(V2));
}

#[test]
fn bug_the_guests_root_disk_is_out_of_reach_on_v1() {
    vm_story(the_root_disk_is_out_of_reach(V1));
}

/// The file behind it is the host's, and may be shared by all its guests.
#[test]
fn bug_persistent_memory_is_out_of_reach() {
    vm_story(async {
        for version in [V2, V1] {
            // QEMU has no virtio-pmem for aarch64.
            let (device, firmware) = match artifacts::arch() {
                Arch::X86_64 => (RootDevice::VirtioPmem, Firmware::Direct),
                Arch::Aarch64 => (RootDevice::Nvdimm, roots::firmware_for_nvdimm()),
            };
            let root = Shape::Erofs.root(device).await;
            let vm = Vm::boot_own(|g| g.root(root).firmware(firmware).words(version)).await;
            let c = container(&vm, "privileged", everything()).start().await;
            let done = attempts(&c, "pmem0 pmem0p1").await;
            assert!(done.is_empty(), "{version}: {done:?}");
            let controls = c
                .sh("for d in /mnt/ndctl* /mnt/nmem*; do (: < $d) 2>/dev/null && echo $d; done; true")
                .await;
            assert_eq!(controls.ok(), "", "{version}");
            vm.expect_power_off().await;
        }
    });
}

#[test]
fn bug_the_disk_below_a_measured_root_is_out_of_reach() {
    vm_story(async {
        let root = Shape::Measured.root(RootDevice::VirtioBlk).await;
        let vm = Vm::boot_own(|g| g.root(root).words(V2)).await;
        let c = container(&vm, "privileged", everything()).start().await;
        let done = attempts(&c, "vda vda1 vda2 dm-0").await;
        assert!(done.is_empty(), "{done:?}");
        vm.expect_power_off().await;
    });
}

/// What lies below an overlay is not among the mounts.
#[test]
fn bug_the_disk_below_an_overlay_is_out_of_reach() {
    vm_story(async {
        let root = Shape::Erofs.root(RootDevice::VirtioBlk).await;
        let vm = Vm::boot_through_init(|g| g.root(root).words("keelson.root_overlay=1")).await;
        let c = container(&vm, "privileged", everything()).start().await;
        let done = attempts(&c, "vda vda1").await;
        assert!(done.is_empty(), "{done:?}");
        vm.expect_power_off().await;
    });
}

async fn rules_are_kept(version: &str) {
    let (_dir, disk) = scratch();
    let vm = Vm::boot(|g| g.disk(&disk).words(version)).await;
    vm.create_sandbox(|_| ()).await;
    let nothing = || vec![rule(false, "a", (-1, -1), "rwm")];
    let disk = || rule(true, "b", (254, 0), "rw");
    let promised = "for d in null zero full random urandom; do (: < /mnt/$d) && echo $d; done; \
                    (: < /mnt/kmsg) 2>/dev/null && echo kmsg; true";

    let ordinary = container(&vm, "ordinary", nothing()).start().await;
    let open = ordinary.sh(promised).await.ok().replace('\n', " ");
    assert_eq!(open, "null zero full random urandom", "{version}");
    assert_eq!(attempts(&ordinary, "vda").await, ["make vda"]);
    assert!(mounted(&ordinary, "vda").await.is_empty());

    let mut rules = nothing();
    rules.push(disk());
    let given = container(&vm, "given", rules.clone()).start().await;
    let opened = ["make vda", "read vda", "write vda"];
    assert_eq!(attempts(&given, "vda").await, opened);
    assert_eq!(mounted(&given, "vda").await, ["vda"]);
    given.sh("rm /dev/made-vda").await.ok();

    // Later rules override earlier ones; an update without rules changes none.
    rules.push(rule(false, "b", (254, 0), "w"));
    given.update(|r| r.Devices = rules).await;
    given
        .update(|r| r.Pids.mut_or_insert_default().Limit = 100)
        .await;
    let read_only = ["make vda", "read vda"];
    assert_eq!(attempts(&given, "vda").await, read_only);
    given.sh("rm /dev/made-vda").await.ok();
    given.update(|r| r.Devices = nothing()).await;
    assert_eq!(attempts(&given, "vda").await, ["make vda"]);

    // The other way round, beside it.
    ordinary.sh("rm /dev/made-vda").await.ok();
    ordinary.update(|r| r.Devices = vec![disk()]).await;
    assert_eq!(attempts(&ordinary, "vda").await, opened);
    vm.expect_power_off().await;
}

#[test]
fn rules_are_kept_and_updated_on_v2() {
    vm_story(rules_are_kept(V2));
}

#[test]
fn rules_are_kept_and_updated_on_v1() {
    vm_story(rules_are_kept(V1));
}
