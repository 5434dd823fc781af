// SPDX-License-Identifier: Apache-2.0
//! Storages on disks of every kind, there from the start or plugged in while the container is created.

use std::path::Path;

use guest_kernel::Arch;
use rootfs_builder::vm::DiskKind;
use tempfile::TempDir;
use tests::roots::PROBE;
use tests::vm::{ext4_image, storage};
use tests::{Code, Container, Vm, artifacts, disks, expect_refusal, plug, roots, vm_story};

/// Where the stories mount.
const BASE: &str = "/run/kata-containers/sandbox/storage";

/// Insists that nothing is mounted, mapped or left where the stories mount.
async fn expect_nothing_left(probe: &Container) {
    let left = probe
        .sh(&format!(
            "grep -E 'sandbox/storage|multi-layer' /mnt/proc/1/mounts; ls -d /mnt/sys/block/dm-* /mnt{BASE}/* 2>/dev/null"
        ))
        .await;
    assert_eq!(left.stdout, "", "something is left");
}

#[test]
fn disks_plugged_in_while_they_are_waited_for() {
    vm_story(async {
        let dir = TempDir::new().expect("a temporary directory");
        let image = |name: &str| ext4_image(&dir.path().join(name), 16, None);
        let (pci, scsi, node) = (image("pci.img"), image("scsi.img"), image("node.img"));
        let vm = Vm::boot(|g| {
            let g = g.ports(2).scsi_controller();
            g.words("scsi_mod.scan=none agent.hotplug_timeout=30")
        })
        .await;
        vm.create_sandbox(|_| ()).await;
        let probe = vm.probe("probe").await;
        let place = |name: &str| format!("{BASE}/{name}");
        let container = |id: &str| {
            let all = [
                storage("blk", &plug::port_path(0), "ext4", &place("pci"), &[]),
                storage("scsi", "1:2", "ext4", &place("scsi"), &["noatime"]),
                storage("mmioblk", "/dev/vdb", "ext4", &place("node"), &[]),
            ];
            let builder = vm.container(id).bind("/mnt", BASE);
            all.into_iter().fold(builder, |b, s| b.storage(s))
        };
        // The request is under way before any of them is there, and other calls are answered meanwhile.
        let mut monitor = vm.monitor().await;
        let plugging = async {
            vm.rpc().check().await.expect("Check");
            monitor.plug_disk(0, "pci", &pci).await;
            vm.rpc().check().await.expect("Check");
            monitor.plug_scsi_disk(1, 2, "sd", &scsi).await;
            monitor.plug_disk(1, "node", &node).await;
        };
        let write = "for d in pci scsi node; do echo $d > /mnt/$d/file; done; grep /scsi /proc/mounts | grep -c noatime";
        let (first, ()) = tokio::join!(container("c1").sh(write).run(), plugging);
        assert_eq!(first.ok(), "1");
        expect_nothing_left(&probe).await;
        // Found at once, and what was written is there; two at a time use the same.
        let second = container("c2").args(&["sleep", "100000"]).start().await;
        let third = container("c3").args(&["sleep", "100000"]).start().await;
        let read = "cat /mnt/pci/file /mnt/scsi/file /mnt/node/file";
        assert_eq!(second.sh(read).await.ok(), "pci\nscsi\nnode");
        second.kill_and_remove().await;
        assert_eq!(third.sh(read).await.ok(), "pci\nscsi\nnode");
        third.kill_and_remove().await;
        expect_nothing_left(&probe).await;
        for id in ["pci", "sd", "node"] {
            monitor.unplug(id).await;
            monitor.close_image(&format!("{id}-image")).await;
        }
        vm.expect_power_off().await;
        for image in [&pci, &scsi, &node] {
            disks::expect_whole("ext4", image);
        }
    });
}

/// Asked for by every address there is: refused with what is missing, everything before it undone, nobody kept waiting.
#[test]
fn a_disk_that_never_comes() {
    vm_story(async {
        let dir = TempDir::new().expect("a temporary directory");
        let good = ext4_image(&dir.path().join("good.img"), 16, None);
        let vm = Vm::boot(|g| {
            let g = g.disk(&good).ports(1).scsi_controller();
            g.words("agent.hotplug_timeout=1")
        })
        .await;
        vm.create_sandbox(|_| ()).await;
        let probe = vm.probe("probe").await;
        let port = plug::port_path(0);
        for (driver, source) in [
            ("blk", port.as_str()),
            ("blk", "1d/03"),
            ("mmioblk", "/dev/vdz"),
            ("scsi", "7:7"),
            ("nvdimm", "/dev/pmem7"),
        ] {
            let create = vm
                .container("c1")
                .storage(storage(
                    "blk",
                    "/dev/vda",
                    "ext4",
                    &format!("{BASE}/good"),
                    &[],
                ))
                .storage(storage(driver, source, "ext4", &format!("{BASE}/bad"), &[]))
                .try_create();
            let (refused, check) = tokio::join!(create, vm.rpc().check());
            check.expect("Check");
            expect_refusal(
                refused.map(drop),
                Code::INTERNAL,
                "did not appear within 1 s",
            );
        }
        for (driver, source) in [
            ("blk", "/dev/../etc/hosts"),
            ("scsi", "1"),
            ("mmioblk", "/etc/hosts"),
            ("nvdimm", "/dev/vda"),
        ] {
            let bad = storage(driver, source, "ext4", &format!("{BASE}/bad"), &[]);
            let refused = vm.container("c1").storage(bad).try_create().await;
            expect_refusal(refused.map(drop), Code::INVALID_ARGUMENT, source);
        }
        expect_nothing_left(&probe).await;
    });
}

/// What a machine's persistent memory is, and the guest that has it.
async fn with_persistent_memory(image: &Path) -> Vm {
    let kind = match artifacts::arch() {
        Arch::X86_64 => DiskKind::VirtioPmem,
        // QEMU's aarch64 machines have no virtio-pmem.
        Arch::Aarch64 => DiskKind::Pmem,
    };
    let vm = Vm::boot(|g| {
        let g = g.persistent_memory(image, kind);
        match kind {
            DiskKind::Pmem => g.firmware(roots::firmware_for_nvdimm()),
            _ => g,
        }
    })
    .await;
    vm.create_sandbox(|_| ()).await;
    vm
}

/// Its pages are the file's: nothing is copied into the guest's memory, and what was written is there when the VM is killed.
#[test]
fn persistent_memory_is_mapped_directly_and_survives_a_kill() {
    vm_story(async {
        let dir = TempDir::new().expect("a temporary directory");
        // Its blocks are as large as pages are, or they could not be mapped.
        let image = disks::ext4_of_pages(&dir.path().join("pmem.img"), 64);
        let place = format!("{BASE}/pmem");
        // An nvdimm without a namespace header is no DAX device: there it is a disk.
        let dax = artifacts::arch() == Arch::X86_64;
        let options: &[&str] = if dax { &["dax"] } else { &[] };
        let volume = || storage("nvdimm", "/dev/pmem0", "ext4", &place, options);
        let vm = with_persistent_memory(&image).await;
        let c = vm.container("c1").storage(volume()).bind("/mnt", &place);
        let c = c.args(&["sleep", "100000"]).start().await;
        c.sh("echo kept > /mnt/file; sync").await.ok();
        let facts = c.exec(&[PROBE, "statx", "/mnt/file"]).run().await.facts();
        facts.expect_all(&[&format!("dax={dax}"), "fstype=ext4"]);
        // As a host that has crashed would leave it.
        let pid = vm.machine().pid().to_string();
        let killed = std::process::Command::new("kill")
            .args(["-9", &pid])
            .status();
        assert!(killed.expect("kill(1)").success());
        let ended = vm
            .machine()
            .wait_exit(std::time::Duration::from_secs(60))
            .await;
        assert!(!ended.expect("it ends").success());
        drop(vm);
        let vm = with_persistent_memory(&image).await;
        let again = vm.container("c1").storage(volume()).bind("/mnt", &place);
        assert_eq!(again.sh("cat /mnt/file").run().await.ok(), "kept");
        expect_nothing_left(&vm.probe("probe").await).await;
        vm.expect_power_off().await;
        disks::expect_whole("ext4", &image);
    });
}

/// What is on a disk is the host's word, and may be a lie: refused, with a reason, and the agent goes on.
#[test]
fn disks_that_are_not_what_they_should_be() {
    vm_story(async {
        let dir = TempDir::new().expect("a temporary directory");
        let path = |name: &str| dir.path().join(name);
        let files = [("a/file", "content")];
        // A superblock that lies about its size, one that is cut off, noise, and an empty disk.
        let torn = ext4_image(&path("torn.img"), 16, None);
        disks::flip_bit(&torn, 1024 + 4 + 3);
        let cut = disks::erofs_image(&path("cut.img"), &files);
        disks::flip_bit(&cut, 1024 + 1);
        let noise: Vec<u8> = (0..1u32 << 20)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        std::fs::write(path("noise.img"), noise).expect("a file");
        let empty = disks::blank(&path("empty.img"), 1 << 20);
        let good = ext4_image(&path("good.img"), 16, None);
        let vm = Vm::boot(|g| {
            g.disk(&torn)
                .disk(&cut)
                .disk(&path("noise.img"))
                .disk(&empty)
                .disk(&good)
        })
        .await;
        vm.create_sandbox(|_| ()).await;
        let place = format!("{BASE}/bad");
        for (node, fstype) in [
            ("/dev/vda", "ext4"),
            ("/dev/vdb", "erofs"),
            ("/dev/vdc", "ext4"),
            ("/dev/vdc", "xfs"),
            ("/dev/vdc", "erofs"),
            ("/dev/vdd", "ext4"),
            ("/dev/vde", "nonsense"),
        ] {
            let bad = storage("blk", node, fstype, &place, &[]);
            let refused = vm.container("c1").storage(bad).try_create().await;
            expect_refusal(refused.map(drop), Code::INTERNAL, node);
        }
        let long = "x".repeat(5000);
        let bad = storage("blk", "/dev/vde", "ext4", &place, &[&long]);
        let refused = vm.container("c1").storage(bad).try_create().await;
        expect_refusal(
            refused.map(drop),
            Code::INVALID_ARGUMENT,
            "the kernel takes 4095",
        );
        // No mkfs in this guest: the request says so, and the disk is as it was.
        let mut fresh = storage("blk", "/dev/vde", "ext4", &place, &[]);
        fresh.driver_options = vec!["create_filesystem".to_owned()];
        let refused = vm.container("c1").storage(fresh).try_create().await;
        expect_refusal(refused.map(drop), Code::INTERNAL, "e2fsprogs");
        let fine = storage("blk", "/dev/vde", "ext4", &place, &[]);
        let fine = vm.container("c1").storage(fine).bind("/mnt", &place);
        assert_eq!(fine.sh("ls /mnt").run().await.ok(), "lost+found");
        expect_nothing_left(&vm.probe("probe").await).await;
    });
}

/// The words of a layer of a GPT disk.
fn layer(number: usize, verified: Option<&disks::Verified>) -> Vec<String> {
    let mut words = vec![
        "X-kata.multi-layer=true".to_owned(),
        "X-kata.overlay-lower".to_owned(),
        "X-kata.gpt-partitioned=true".to_owned(),
        format!("X-kata.partition-number={number}"),
    ];
    if let Some(verified) = verified {
        words.push("X-kata.dmverity-enabled=true".to_owned());
        words.push(format!("X-kata.dmverity.roothash={}", verified.root_hash));
        words.push(format!(
            "X-kata.dmverity.hashoffset={}",
            verified.hash_offset
        ));
    }
    words
}

#[test]
fn layers_of_a_partitioned_disk_are_one_file_system() {
    vm_story(async {
        let dir = TempDir::new().expect("a temporary directory");
        let path = |name: &str| dir.path().join(name);
        let lower = |n: usize| {
            let own = format!("only-{n}");
            disks::erofs_image(
                &path(&format!("layer{n}.img")),
                &[("both", &format!("{n}\n")), (&own, "x")],
            )
        };
        let images = [lower(1), lower(2), lower(3)];
        let verified: Vec<_> = images.iter().map(|image| disks::verify(image)).collect();
        let disk = disks::partitioned(&path("layers.img"), &images);
        let upper = ext4_image(&path("upper.img"), 16, None);
        let vm = Vm::boot(|g| g.disk(&upper).ports(1).words("agent.hotplug_timeout=10")).await;
        vm.create_sandbox(|_| ()).await;
        let probe = vm.probe("probe").await;
        let mut monitor = vm.monitor().await;
        monitor.plug_disk(0, "layers", &disk).await;
        let place = format!("{BASE}/whole");
        let create = |verified: [Option<&disks::Verified>; 3], with_upper: bool| {
            let mut builder = vm.container("c1").bind("/mnt", &place);
            for (n, verified) in [3, 1, 2].into_iter().zip(verified) {
                let words = layer(n, verified);
                let words: Vec<_> = words.iter().map(String::as_str).collect();
                let below = format!("{BASE}/lower");
                let target = if with_upper { &below } else { &place };
                builder =
                    builder.storage(storage("blk", &plug::port_path(0), "erofs", target, &words));
            }
            match with_upper {
                true => builder.storage(storage(
                    "blk",
                    "/dev/vda",
                    "ext4",
                    &place,
                    &[
                        "X-kata.multi-layer=true",
                        "X-kata.overlay-upper",
                        "X-kata.mkdir.path={{ mount 0 }}/upper/made",
                    ],
                )),
                false => builder,
            }
        };
        let all = [Some(&verified[2]), Some(&verified[0]), Some(&verified[1])];
        let output = create(all, true)
            .sh("cat /mnt/both; ls /mnt; echo changed > /mnt/both; ls /mnt/made | wc -l")
            .run()
            .await;
        assert_eq!(output.ok(), "1\nboth\nmade\nonly-1\nonly-2\nonly-3\n0");
        expect_nothing_left(&probe).await;
        // What was changed is on the upper disk; without one it is in memory, and goes.
        assert_eq!(
            create([None; 3], true).sh("cat /mnt/both").run().await.ok(),
            "changed"
        );
        assert_eq!(
            create([None; 3], false)
                .sh("cat /mnt/both; echo new > /mnt/both")
                .run()
                .await
                .ok(),
            "1"
        );
        assert_eq!(create(all, false).sh("cat /mnt/both").run().await.ok(), "1");
        expect_nothing_left(&probe).await;
        // Measured by another hash: not served from, and nothing stays.
        let mut other = verified[0].clone();
        other.root_hash.replace_range(
            0..1,
            if other.root_hash.starts_with('0') {
                "1"
            } else {
                "0"
            },
        );
        let wrong = [Some(&verified[2]), Some(&other), Some(&verified[1])];
        let refused = create(wrong, true).sh("true").try_create().await;
        assert_eq!(
            refused
                .map(drop)
                .expect_err("it is not what was measured")
                .code,
            Some(Code::INTERNAL)
        );
        expect_nothing_left(&probe).await;
        // One bit of the data turned over, under the measured hash: not served either.
        monitor.unplug("layers").await;
        monitor.close_image("layers-image").await;
        disks::flip_bit(&disk, (1 << 20) + 1024 + 1);
        monitor.plug_disk(0, "layers", &disk).await;
        let refused = create(all, true).sh("true").try_create().await;
        assert!(refused.is_err(), "a layer was changed");
        // A table that is none has no partitions.
        monitor.unplug("layers").await;
        monitor.close_image("layers-image").await;
        disks::ruin_table(&disk);
        monitor.plug_disk(0, "layers", &disk).await;
        let refused = create(all, true).sh("true").try_create().await;
        expect_refusal(refused.map(drop), Code::INTERNAL, "did not appear");
        expect_nothing_left(&probe).await;
        vm.rpc().check().await.expect("Check");
        vm.expect_power_off().await;
        disks::expect_whole("ext4", &upper);
    });
}

/// More than fit into a page by their paths, and a disk with more partitions than a disk has minor numbers.
#[test]
fn two_dozen_layers_of_a_container_with_a_long_name() {
    vm_story(async {
        const LAYERS: usize = 24;
        let dir = TempDir::new().expect("a temporary directory");
        let images: Vec<_> = (1..=LAYERS)
            .map(|n| {
                let (path, own) = (dir.path().join(format!("{n}.img")), format!("only-{n}"));
                disks::erofs_image(&path, &[("both", &format!("{n}\n")), (&own, "x")])
            })
            .collect();
        let disk = disks::partitioned(&dir.path().join("layers.img"), &images);
        let vm = Vm::boot(|g| g.disk(&disk)).await;
        vm.create_sandbox(|_| ()).await;
        let place = format!("{BASE}/whole");
        let mut builder = vm.container(&"x".repeat(180)).bind("/mnt", &place);
        for n in 1..=LAYERS {
            let words = layer(n, None);
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            builder = builder.storage(storage("blk", "/dev/vda", "erofs", &place, &words));
        }
        let output = builder.sh("cat /mnt/both; ls /mnt | wc -l").run().await;
        assert_eq!(output.ok(), format!("1\n{}", LAYERS + 1));
        expect_nothing_left(&vm.probe("probe").await).await;
    });
}

/// The guest's own mkfs, which its image has to bring along: here this host's, so only for guests of the same architecture.
#[test]
fn a_fresh_disk_gets_its_file_system_once() {
    vm_story(async {
        if Some(artifacts::arch()) != Arch::host() {
            return eprintln!(
                "Told on this host's own architecture: the guest runs this host's mkfs.ext4"
            );
        }
        let dir = TempDir::new().expect("a temporary directory");
        let share = dir.path().join("share");
        disks::bring_along("mkfs.ext4", &share);
        let disk = disks::blank(&dir.path().join("fresh.img"), 64 << 20);
        let vm = Vm::boot(|g| g.share(&share).disk(&disk)).await;
        vm.create_sandbox(|r| r.storages.push(tests::vm::shared_storage()))
            .await;
        let probe = vm.probe("probe").await;
        let shared = tests::vm::SHARED;
        probe.sh(&format!("cp -a /mnt{shared}/. /mnt/")).await.ok();
        let place = format!("{BASE}/fresh");
        let fresh = |group: u32| {
            let mut fresh = storage("blk", "/dev/vda", "ext4", &place, &[]);
            fresh.driver_options = vec!["create_filesystem".to_owned()];
            let mut owner = protocols::agent::FSGroup::new();
            owner.group_id = group;
            fresh.fs_group = Some(owner).into();
            fresh
        };
        let first = vm.container("c1").storage(fresh(1234)).bind("/mnt", &place);
        let said = first
            .sh("stat -c '%g %a' /mnt; echo kept > /mnt/file")
            .run()
            .await;
        assert_eq!(said.ok(), "1234 2775");
        let again = vm.container("c2").storage(fresh(1234)).bind("/mnt", &place);
        assert_eq!(again.sh("cat /mnt/file").run().await.ok(), "kept");
        expect_nothing_left(&probe).await;
        vm.expect_power_off().await;
        disks::expect_whole("ext4", &disk);
    });
}
