// SPDX-License-Identifier: Apache-2.0
//! Storage drivers and CopyFile, on one guest with a shared directory and two disks.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use protocols::agent::CopyFileRequest;
use tempfile::TempDir;
use tests::vm::{SHARED, ext4_image, storage};
use tests::{Code, Vm, artifacts, expect_refusal, vm_story};

/// Where the second disk sits on the PCI bus.
const SLOT: &str = "1e";

/// The guest of these stories and the host's directory that it shares.
struct Pod {
    vm: Vm,
    dir: TempDir,
}

impl Pod {
    fn shared_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("share")
    }
}

/// Boots the guest with everything the stories need; each story has its own, for what it leaves behind must not matter to others.
async fn pod() -> Pod {
    pod_sharing(&["nodev"]).await
}

/// The same, the shared directory mounted with these options.
async fn pod_sharing(options: &[&str]) -> Pod {
    let dir = TempDir::new().expect("a temporary directory");
    let share = dir.path().join("share");
    fs::create_dir(&share).expect("a directory to share");
    let first = ext4_image(&dir.path().join("first.img"), 16, None);
    let second = ext4_image(&dir.path().join("second.img"), 16, None);
    let drive = format!("if=none,id=second,format=raw,file={}", second.display());
    let device = format!("virtio-blk-pci,drive=second,addr=0x{SLOT}");
    let plan9 = format!(
        "local,path={},mount_tag=host9p,security_model=none",
        share.display()
    );
    let vm = Vm::boot(|g| {
        g.share(&share)
            .disk(&first)
            .qemu(&["-drive", &drive, "-device", &device, "-virtfs", &plan9])
    })
    .await;
    let shared = storage("virtio-fs", "kataShared", "virtiofs", SHARED, options);
    vm.create_sandbox(|r| r.storages.push(shared)).await;
    Pod { vm, dir }
}

#[test]
fn a_container_runs_on_a_shared_root() {
    vm_story(async {
        let pod = pod().await;
        artifacts::new_rootfs(&pod.shared_dir().join("c1/rootfs")).expect("a root file system");
        let output = pod
            .vm
            .container("c1")
            .root(&format!("{SHARED}/c1/rootfs"))
            .sh("echo from the guest > /root/letter; cat /etc/hostname")
            .run()
            .await;
        assert_eq!(output.ok(), "image");
        let letter = fs::read_to_string(pod.shared_dir().join("c1/rootfs/root/letter"));
        assert_eq!(
            letter.expect("the guest wrote through virtio-fs"),
            "from the guest\n"
        );
        pod.vm.expect_power_off().await;
        assert!(
            pod.shared_dir().join("c1/rootfs/bin/sh").exists(),
            "the end of the guest empties nothing"
        );
    });
}

/// QEMU's device has no window for it: the share is mounted all the same, and the log says so once.
#[test]
fn a_share_asked_for_with_dax_does_without() {
    vm_story(async {
        let pod = pod_sharing(&["nodev", "dax=always"]).await;
        fs::write(pod.shared_dir().join("letter"), "from the host\n").expect("a file");
        let again = format!("{SHARED}/again");
        let seen = pod
            .vm
            .container("c1")
            .storage(storage(
                "virtio-fs",
                "kataShared",
                "virtiofs",
                &again,
                &["dax"],
            ))
            .bind("/mnt", SHARED)
            .sh("cat /mnt/letter; grep ' /mnt ' /proc/mounts | grep -c dax")
            .run()
            .await;
        assert_eq!(seen.stdout, "from the host\n0\n");
        let console = pod.vm.console();
        let said = console.iter().filter(|line| line.contains("without dax"));
        assert_eq!(said.count(), 1, "{console:#?}");
    });
}

/// What hosts without virtio-fs still send.
#[test]
fn a_directory_of_the_host_by_9p() {
    vm_story(async {
        let pod = pod().await;
        fs::write(pod.shared_dir().join("letter"), "from the host\n").expect("a file");
        let place = "/run/kata-containers/sandbox/storage/plan9";
        let options = ["trans=virtio", "version=9p2000.L", "cache=none", "nodev"];
        let output = pod
            .vm
            .container("c1")
            .storage(storage("9p", "host9p", "9p", place, &options))
            .bind("/mnt", place)
            .sh("cat /mnt/letter; echo from the guest > /mnt/answer; grep ' /mnt ' /proc/mounts | cut -d ' ' -f 3")
            .run()
            .await;
        assert_eq!(output.ok(), "from the host\n9p");
        let answer = fs::read_to_string(pod.shared_dir().join("answer"));
        assert_eq!(answer.expect("the guest wrote it"), "from the guest\n");
        let probe = pod.vm.probe("probe").await;
        let left = probe.sh("grep -c plan9 /mnt/proc/1/mounts").await;
        assert_eq!(left.stdout.trim(), "0");
    });
}

fn copy(path: &str, mode: u32, data: &[u8]) -> CopyFileRequest {
    let mut request = CopyFileRequest::new();
    request.path = path.to_owned();
    request.file_size = i64::try_from(data.len()).expect("a small file");
    request.file_mode = mode;
    request.dir_mode = 0o750 | 1 << 31;
    request.uid = 1000;
    request.gid = 1001;
    request.data = data.to_vec();
    request
}

#[test]
fn copied_files_are_seen_on_both_sides() {
    vm_story(async {
        let pod = pod().await;
        let rpc = pod.vm.rpc();
        rpc.copy_file(&copy(
            &format!("{SHARED}/etc/hosts"),
            0o100_640,
            b"127.0.0.1 me\n",
        ))
        .await
        .expect("CopyFile");
        let host = pod.shared_dir().join("etc/hosts");
        assert_eq!(
            fs::read(&host).expect("the file is there"),
            b"127.0.0.1 me\n"
        );
        let meta = fs::metadata(&host).expect("it has attributes");
        assert_eq!(
            (meta.mode() & 0o7777, meta.uid(), meta.gid()),
            (0o640, 1000, 1001)
        );
        let seen = pod
            .vm
            .container("c1")
            .bind("/mnt", &format!("{SHARED}/etc"))
            .sh("cat /mnt/hosts")
            .run()
            .await;
        assert_eq!(seen.ok(), "127.0.0.1 me");

        // Three chunks; nothing is seen under the name before the last.
        let whole: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        for (number, chunk) in whole.chunks(1 << 20).enumerate() {
            let mut request = copy(&format!("{SHARED}/big"), 0o100_600, chunk);
            request.file_size = 3_000_000;
            request.offset = i64::try_from(number << 20).expect("a small file");
            assert!(!pod.shared_dir().join("big").exists());
            rpc.copy_file(&request).await.expect("CopyFile");
        }
        assert!(fs::read(pod.shared_dir().join("big")).expect("it is there") == whole);

        rpc.copy_file(&copy(&format!("{SHARED}/link"), 0o120_777, b"etc/hosts"))
            .await
            .expect("CopyFile");
        assert_eq!(
            fs::read_link(pod.shared_dir().join("link")).expect("a link"),
            Path::new("etc/hosts")
        );
        rpc.copy_file(&copy(&format!("{SHARED}/dir"), 0o040_711, b""))
            .await
            .expect("CopyFile");
        assert!(pod.shared_dir().join("dir").is_dir());
        let left = fs::read_dir(pod.shared_dir()).expect("a listing").count();
        assert_eq!(left, 4, "no temporary files stay");
    });
}

/// CVE-2026-41326: a request that leaves the shared directory.
#[test]
fn copied_files_stay_in_their_place() {
    vm_story(async {
        let pod = pod().await;
        let rpc = pod.vm.rpc();
        rpc.copy_file(&copy(&format!("{SHARED}/out"), 0o120_777, b"/etc"))
            .await
            .expect("a link may point anywhere");
        let escapes = [
            "/etc/evil",
            "relative",
            "",
            "/run/kata-containers/evil",
            &format!("{SHARED}/../../evil"),
            SHARED,
        ];
        for path in escapes {
            let refused = rpc.copy_file(&copy(path, 0o100_644, b"evil")).await;
            assert!(refused.is_err(), "{path} was written");
        }
        // Through the link: resolved inside the shared directory, or refused; never outside.
        let _ = rpc
            .copy_file(&copy(&format!("{SHARED}/out/evil"), 0o100_644, b"evil"))
            .await;
        let probe = pod.vm.probe("probe").await;
        let found = probe
            .sh("find /mnt/etc /mnt/run -xdev -name 'evil*' | wc -l")
            .await;
        assert_eq!(found.ok(), "0");
    });
}

#[test]
fn ephemeral_and_local_storages() {
    vm_story(async {
        let pod = pod().await;
        let shm = "/run/kata-containers/sandbox/shm";
        let dir = "/run/kata-containers/sandbox/ephemeral/scratch";
        let local = "/run/kata-containers/sandbox/local/disk";
        let output = pod
            .vm
            .container("c1")
            .storage(storage("ephemeral", "shm", "tmpfs", shm, &["noexec", "nosuid", "nodev", "mode=1777", "size=1048576"]))
            .storage(storage("ephemeral", "tmpfs", "tmpfs", dir, &["fsgid=1234"]))
            .storage(storage("local", "local", "local", local, &["mode=0777", "fsgid=1234"]))
            .spec(|s| s.Mounts.retain(|m| m.destination != "/dev/shm"))
            .bind("/dev/shm", shm)
            .bind("/tmp", dir)
            .bind("/mnt", local)
            .sh("grep ' /dev/shm ' /proc/mounts | cut -d ' ' -f 3,4; stat -c %a /dev/shm; stat -c '%g %a' /tmp /mnt; touch /mnt/x")
            .run()
            .await;
        let lines: Vec<&str> = output.ok().lines().collect();
        for word in ["tmpfs", "nosuid", "nodev", "noexec", "size=1024k"] {
            assert!(lines[0].contains(word), "{word} is not in {}", lines[0]);
        }
        assert_eq!(lines[1], "1777");
        assert_eq!(lines[2], "1234 3777");
        assert_eq!(lines[3], "1234 2777");
    });
}

#[test]
fn bind_and_overlay_storages() {
    vm_story(async {
        let pod = pod().await;
        for name in ["lower", "upper", "work"] {
            let path = format!("/run/kata-containers/sandbox/storage/{name}");
            let local = storage("local", "local", "local", &path, &["mode=0755"]);
            pod.vm
                .container(name)
                .storage(local)
                .sh("true")
                .create()
                .await;
        }
        let base = "/run/kata-containers/sandbox/storage";
        let merged = format!("{base}/merged");
        let bound = format!("{base}/bound");
        let lower = format!("lowerdir={}", artifacts::ROOTFS);
        let (upper, work) = (
            format!("upperdir={base}/upper"),
            format!("workdir={base}/work"),
        );
        let overlay = storage(
            "overlayfs",
            "overlay",
            "overlay",
            &merged,
            &[&lower, &upper, &work, "io.katacontainers.fs-opt.is-layer"],
        );
        let bind = storage("bind", &format!("{base}/upper"), "bind", &bound, &["bind"]);
        let output = pod
            .vm
            .container("c1")
            .storage(overlay)
            .storage(bind)
            .root(&merged)
            .bind("/mnt", &bound)
            .sh("echo new > /root/new; cat /mnt/root/new; cat /etc/hostname")
            .run()
            .await;
        assert_eq!(output.ok(), "new\nimage");
        let probe = pod.vm.probe("probe").await;
        let left = probe
            .sh(&format!(
                "grep -c -E '{merged}|{bound}' /mnt/proc/1/mounts; ls /mnt{}/root",
                artifacts::ROOTFS
            ))
            .await;
        assert_eq!(
            left.stdout.trim(),
            "0",
            "mounts are left, or the lower layer was written to"
        );
    });
}

/// A root that the storage mounts right where the bundle wants it, writable without a writable layer below.
#[test]
fn an_overlay_may_bring_its_own_upper_layer() {
    vm_story(async {
        let pod = pod().await;
        let lower = format!("lowerdir={}", artifacts::ROOTFS);
        let root = "/run/kata-containers/c1/rootfs";
        let overlay = storage(
            "overlayfs",
            "none",
            "overlay",
            root,
            &["io.katacontainers.fs-opt.overlay-rw", &lower],
        );
        let output = pod
            .vm
            .container("c1")
            .storage(overlay)
            .root(root)
            .sh("touch /root/x && ls /root")
            .run()
            .await;
        assert_eq!(output.ok(), "x");
        let probe = pod.vm.probe("probe").await;
        assert_eq!(
            probe
                .sh("ls /mnt/run/kata-containers | grep -c '^c1$'")
                .await
                .stdout
                .trim(),
            "0"
        );
    });
}

#[test]
fn a_disk_by_pci_path_and_by_node() {
    vm_story(async {
        let pod = pod().await;
        let by_path = "/run/kata-containers/sandbox/storage/by-path";
        let by_node = "/run/kata-containers/sandbox/storage/by-node";
        let output = pod
            .vm
            .container("c1")
            .storage(storage("blk", SLOT, "ext4", by_path, &[]))
            .storage(storage("blk", "/dev/vda", "ext4", by_node, &["ro"]))
            .bind("/mnt", by_path)
            .bind("/home", by_node)
            .sh("echo kept > /mnt/file; touch /home/x 2>&1 | grep -c 'Read-only'; ls -d /mnt/lost+found /home/lost+found")
            .run()
            .await;
        assert_eq!(output.ok(), "1\n/home/lost+found\n/mnt/lost+found");
        // Unmounted with the container, mounted again with the next, and the data is there.
        let again = pod
            .vm
            .container("c2")
            .storage(storage("blk", SLOT, "ext4", by_path, &[]))
            .bind("/mnt", by_path);
        assert_eq!(again.sh("cat /mnt/file").run().await.ok(), "kept");
        let probe = pod.vm.probe("probe").await;
        assert_eq!(
            probe
                .sh("grep -c 'sandbox/storage' /mnt/proc/1/mounts")
                .await
                .stdout
                .trim(),
            "0"
        );
    });
}

#[test]
fn two_containers_may_use_one_mount() {
    vm_story(async {
        let pod = pod().await;
        let point = "/run/kata-containers/sandbox/storage/both";
        let disk = || storage("blk", SLOT, "ext4", point, &[]);
        let first = pod
            .vm
            .container("c1")
            .storage(disk())
            .bind("/mnt", point)
            .args(&["sleep", "100000"])
            .start()
            .await;
        let second = pod
            .vm
            .container("c2")
            .storage(disk())
            .bind("/mnt", point)
            .args(&["sleep", "100000"])
            .start()
            .await;
        first.sh("echo shared > /mnt/file").await.ok();
        assert_eq!(second.sh("cat /mnt/file").await.ok(), "shared");
        let probe = pod.vm.probe("probe").await;
        let count = format!("grep -c ' {point} ' /mnt/proc/1/mounts");
        assert_eq!(probe.sh(&count).await.ok(), "1");
        first.kill_and_remove().await;
        assert_eq!(probe.sh(&count).await.ok(), "1", "the second still uses it");
        second.kill_and_remove().await;
        assert_eq!(probe.sh(&count).await.stdout.trim(), "0");
    });
}

#[test]
fn a_storage_that_fails_leaves_the_others_undone() {
    vm_story(async {
        let pod = pod().await;
        let good = "/run/kata-containers/sandbox/storage/good";
        let bad = "/run/kata-containers/sandbox/storage/bad";
        for round in 0..2 {
            let result = pod
                .vm
                .container("c1")
                .storage(storage("blk", SLOT, "ext4", good, &[]))
                .storage(storage("blk", "/dev/vdz", "ext4", bad, &[]))
                .try_create()
                .await;
            let refusal = result.map(drop).expect_err("there is no such disk");
            assert!(
                refusal.text.contains("/dev/vdz"),
                "round {round}: {refusal}"
            );
        }
        let probe = pod.vm.probe("probe").await;
        assert_eq!(
            probe
                .sh("grep -c 'sandbox/storage' /mnt/proc/1/mounts")
                .await
                .stdout
                .trim(),
            "0"
        );
        let claim = pod
            .vm
            .container("c2")
            .storage(storage("blk", "zz/not-a-path", "ext4", bad, &[]))
            .try_create()
            .await;
        expect_refusal(claim.map(drop), Code::INVALID_ARGUMENT, "zz/not-a-path");
    });
}
