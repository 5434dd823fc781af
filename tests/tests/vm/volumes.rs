// SPDX-License-Identifier: Apache-2.0
//! Volumes: how full they are, and how they grow while a container writes to them; swap.

use protocols::agent::{
    AddSwapPathRequest, AddSwapRequest, ResizeVolumeRequest, VolumeStatsRequest,
};
use protocols::csi::volume_usage::Unit;
use tempfile::TempDir;
use tests::given::rule;
use tests::vm::{ext4_image, storage};
use tests::{Code, Container, Vm, disks, expect_refusal, plug, spec, vm_story};

const BASE: &str = "/run/kata-containers/sandbox/storage";

fn resize(path: &str, size: u64) -> ResizeVolumeRequest {
    let mut request = ResizeVolumeRequest::new();
    request.volume_guest_path = path.to_owned();
    request.size = size;
    request
}

#[test]
fn ext4_and_xfs_grow_while_they_are_written_to() {
    vm_story(async {
        const MIB: u64 = 1 << 20;
        let dir = TempDir::new().expect("a temporary directory");
        let ext4 = ext4_image(&dir.path().join("ext4.img"), 32, None);
        let xfs = disks::xfs_image(&dir.path().join("xfs.img"), 320);
        let vm = Vm::boot(|g| {
            g.ports(2)
                .scsi_controller()
                .words("agent.hotplug_timeout=2")
        })
        .await;
        vm.create_sandbox(|_| ()).await;
        let mut monitor = vm.monitor().await;
        monitor.plug_disk(0, "ext4", &ext4).await;
        monitor.plug_scsi_disk(0, 1, "xfs", &xfs).await;
        let (one, other) = (format!("{BASE}/ext4"), format!("{BASE}/xfs"));
        let c = vm
            .container("c1")
            .storage(storage("blk", &plug::port_path(0), "ext4", &one, &[]))
            .storage(storage("scsi", "0:1", "xfs", &other, &["nouuid"]))
            .bind("/mnt", BASE)
            .args(&["sleep", "100000"])
            .start()
            .await;
        for (name, before, after) in [("ext4", 32, 96), ("xfs", 320, 512)] {
            let place = format!("{BASE}/{name}");
            let stats = async || {
                let mut request = VolumeStatsRequest::new();
                request.volume_guest_path = place.clone();
                vm.rpc()
                    .get_volume_stats(&request)
                    .await
                    .expect("GetVolumeStats")
            };
            let df = async || {
                let output = c
                    .sh(&format!("stat -f -c '%b %f %S %c %d' /mnt/{name}"))
                    .await;
                output
                    .ok()
                    .split(' ')
                    .map(|n| n.parse().expect("a number"))
                    .collect::<Vec<u64>>()
            };
            let (answer, df_says) = (stats().await, df().await);
            let [bytes, inodes] = &answer.usage[..] else {
                panic!("{answer:?}")
            };
            assert_eq!(
                (bytes.unit, inodes.unit),
                (Unit::BYTES.into(), Unit::INODES.into())
            );
            assert_eq!(bytes.total, df_says[0] * df_says[2]);
            assert_eq!(bytes.used, bytes.total - df_says[1] * df_says[2]);
            assert_eq!((inodes.total, inodes.available), (df_says[3], df_says[4]));
            assert!(!answer.volume_condition.abnormal && answer.volume_condition.message == "OK");
            let total = bytes.total;

            // The disk is as large as before: it is waited for, and then said.
            let early = vm.rpc().resize_volume(&resize(&place, after * MIB)).await;
            expect_refusal(early, Code::INTERNAL, "did not appear within 2 s");
            let writer = c.exec(&["sh", "-c", &format!("i=0; while [ ! -e /mnt/{name}/stop ]; do i=$((i+1)); echo $i >> /mnt/{name}/log; done; wc -l < /mnt/{name}/log; tail -n 1 /mnt/{name}/log")]).start().await;
            monitor.grow_disk(name, after * MIB).await;
            for _ in 0..2 {
                vm.rpc()
                    .resize_volume(&resize(&place, after * MIB))
                    .await
                    .expect("ResizeVolume");
            }
            vm.rpc()
                .resize_volume(&resize(&place, 0))
                .await
                .expect("ResizeVolume");
            c.sh(&format!("touch /mnt/{name}/stop")).await.ok();
            let log = writer.output().await;
            let lines: Vec<_> = log.ok().lines().collect();
            assert_eq!(lines[0], lines[1], "lines are lost");
            let grown = stats().await.usage[0].total;
            assert!(
                grown >= total + (after - before) * MIB * 8 / 10,
                "{total} -> {grown}"
            );
            c.sh(&format!(
                "dd if=/dev/zero of=/mnt/{name}/big bs=1M count={} 2>&1",
                before + 16
            ))
            .await
            .ok();
            let smaller = vm.rpc().resize_volume(&resize(&place, before * MIB)).await;
            expect_refusal(smaller, Code::INVALID_ARGUMENT, "cannot shrink");
        }
        for (path, code, text) in [
            ("/proc", Code::FAILED_PRECONDITION, "neither ext4 nor xfs"),
            ("/run/keelson-absent", Code::INTERNAL, "/run/keelson-absent"),
            ("relative", Code::INVALID_ARGUMENT, "not absolute"),
            ("/run/../etc", Code::INVALID_ARGUMENT, ".."),
        ] {
            expect_refusal(vm.rpc().resize_volume(&resize(path, 0)).await, code, text);
        }
        c.kill_and_remove().await;
        vm.expect_power_off().await;
        disks::expect_whole("ext4", &ext4);
        disks::expect_whole("xfs", &xfs);
    });
}

/// A container that may do with devices whatever a container may.
async fn privileged(vm: &Vm, id: &str) -> Container {
    vm.container(id)
        .capabilities(&spec::ALL_CAPABILITIES)
        .rules(&[rule(true, "a", (-1, -1), "rwm")])
        .bind("/mnt", "/dev")
        .args(&["sleep", "100000"])
        .start()
        .await
}

/// The disks that it can open, and those that it can make.
async fn within_reach(c: &Container) -> String {
    let script = "for d in $(ls /mnt | grep ^vd); do
            (: < /mnt/$d) 2>/dev/null && echo open $d
            mknod /dev/made b $(tr : ' ' < /sys/class/block/$d/dev) 2>/dev/null && echo make $d && rm /dev/made
        done; true";
    c.sh(script).await.ok().replace('\n', ", ")
}

#[test]
fn the_guest_swaps_to_a_disk() {
    vm_story(async {
        let dir = TempDir::new().expect("a temporary directory");
        let first = disks::swap_image(&dir.path().join("first.img"), 16);
        let second = disks::swap_image(&dir.path().join("second.img"), 16);
        let blank = disks::blank(&dir.path().join("blank.img"), 1 << 20);
        let vm = Vm::boot(|g| {
            g.disk(&second)
                .disk(&blank)
                .ports(1)
                .words("agent.hotplug_timeout=20")
        })
        .await;
        vm.create_sandbox(|_| ()).await;
        let early = privileged(&vm, "early").await;
        let both = "open vda, make vda, open vdb, make vdb";
        assert_eq!(within_reach(&early).await, both);
        let mut monitor = vm.monitor().await;
        let mut slots = AddSwapRequest::new();
        slots.PCIPath = plug::port_path(0)
            .split('/')
            .map(|s| u32::from_str_radix(s, 16).expect("a slot"))
            .collect();
        // Asked for before it is there.
        let (added, ()) = tokio::join!(
            vm.rpc().add_swap(&slots),
            monitor.plug_disk(0, "swap", &first)
        );
        added.expect("AddSwap");
        let by_path = |path: &str| {
            let mut request = AddSwapPathRequest::new();
            request.path = path.to_owned();
            request
        };
        vm.rpc()
            .add_swap_path(&by_path("/dev/vda"))
            .await
            .expect("AddSwapPath");
        let probe = vm.probe("probe").await;
        let swaps = probe.sh("grep -c ^/dev/vd /mnt/proc/swaps").await;
        assert_eq!(swaps.ok(), "2");
        expect_refusal(
            vm.rpc().add_swap_path(&by_path("/dev/vdb")).await,
            Code::INTERNAL,
            "swapon get error for /dev/vdb",
        );
        expect_refusal(
            vm.rpc().add_swap_path(&by_path("/etc/passwd")).await,
            Code::INVALID_ARGUMENT,
            "/etc/passwd",
        );
        slots.PCIPath = vec![0x20];
        expect_refusal(
            vm.rpc().add_swap(&slots).await,
            Code::INVALID_ARGUMENT,
            "32",
        );
        // Neither by a container that was there before, whose rules allow it, nor by a later one.
        let late = privileged(&vm, "late").await;
        for c in [&early, &late] {
            assert_eq!(within_reach(c).await, "open vdb, make vdb");
        }
        vm.expect_power_off().await;
    });
}
