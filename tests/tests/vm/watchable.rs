// SPDX-License-Identifier: Apache-2.0
//! Config maps that change on the host, memory that gets another size, and mounts that containers share.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use protocols::agent::{
    RemoveStaleVirtiofsShareMountsRequest, SharedMount, Storage, UpdateEphemeralMountsRequest,
};
use tempfile::TempDir;
use tests::vm::{SHARED, shared_storage, storage};
use tests::{Code, Vm, expect_refusal, vm_story};

/// What kubelet does for a new version of two keys: a new directory, an exchanged link, the old one away.
fn publish(volume: &Path, version: u32) {
    let name = format!("..2024_{version}");
    fs::create_dir_all(volume.join(&name)).expect("a directory");
    for key in ["a", "b"] {
        fs::write(volume.join(&name).join(key), version.to_string()).expect("a key");
    }
    let old = fs::read_link(volume.join("..data"));
    symlink(&name, volume.join("..data_tmp")).expect("a link");
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("exchanged");
    if let Ok(old) = old {
        return fs::remove_dir_all(volume.join(old)).expect("the old one goes");
    }
    for key in ["a", "b"] {
        symlink(format!("..data/{key}"), volume.join(key)).expect("a link");
    }
}

fn watchable(name: &str) -> Storage {
    storage(
        "watchable-bind",
        &format!("{SHARED}/{name}"),
        "bind",
        &format!("{SHARED}/watchable/{name}"),
        &[],
    )
}

/// Says each version once; ends with an error when the keys of one version differ.
const READER: &str = "cd /mnt; last=; while :; do
        d=$(readlink ..data); a=$(cat $d/a 2>/dev/null); b=$(cat $d/b 2>/dev/null)
        test \"$(readlink ..data)\" = \"$d\" || continue
        test \"$a\" = \"$b\" || { echo torn: $a and $b; exit 1; }
        test \"$a\" = \"$last\" || echo version $a.; last=$a
        test \"$a\" = 4 && exit 0
    done";

/// kata-containers#10411, #2950, #13515, and what hosts ask of mounts that are there.
#[test]
fn config_maps_are_followed_whole() {
    vm_story(async {
        let dir = TempDir::new().expect("a temporary directory");
        let share = dir.path().join("share");
        let (map, large) = (share.join("map"), share.join("large"));
        fs::create_dir_all(&large).expect("a directory");
        for number in 0..20 {
            fs::write(large.join(number.to_string()), "x").expect("a file");
        }
        fs::create_dir(&map).expect("a directory");
        publish(&map, 1);
        symlink("nowhere", map.join("dangling")).expect("a link");
        let made = Command::new("mkfifo").arg(map.join("pipe")).status();
        assert!(made.expect("mkfifo runs").success());
        fs::write(share.join("single"), "one").expect("a file");
        let vm = Vm::boot(|g| g.share(&share)).await;
        vm.create_sandbox(|r| r.storages.push(shared_storage()))
            .await;

        let c = vm
            .container("reader")
            .storage(watchable("map"))
            .storage(watchable("large"))
            .storage(watchable("single"))
            .bind("/mnt", &format!("{SHARED}/watchable/map"))
            .sh(READER)
            .start()
            .await;
        for version in 2..=4 {
            c.expect(&format!("version {}.", version - 1)).await;
            publish(&map, version);
            if version == 4 {
                fs::remove_file(map.join("b")).expect("a key goes");
            }
        }
        c.expect("version 4.").await;
        assert_eq!(c.wait().await, 0, "a reader saw half of an update");

        let probe = vm.probe("probe").await;
        let at = format!("/mnt{SHARED}/watchable");
        let script = format!(
            "cd {at}; ls -A map; readlink map/dangling; cat single; echo
            grep -c 'watchable/large virtiofs ' /mnt/proc/1/mounts; ls large | wc -l"
        );
        let seen = probe.sh(&script).await;
        assert_eq!(
            seen.ok(),
            "..2024_4\n..data\na\ndangling\nnowhere\none\n1\n20"
        );
        // Memory that a container has in use gets another size.
        let scratch = "/run/kata-containers/sandbox/ephemeral/scratch";
        let memory = |options: &[&str]| storage("ephemeral", "tmpfs", "tmpfs", scratch, options);
        let user = vm
            .container("user")
            .storage(memory(&["noexec", "size=1048576"]))
            .bind("/mnt", scratch)
            .args(&["sleep", "100000"])
            .start()
            .await;
        let mut request = UpdateEphemeralMountsRequest::new();
        request.storages = vec![memory(&["remount", "size=2097152", "fsgid=7"])];
        vm.rpc()
            .update_ephemeral_mounts(&request)
            .await
            .expect("UpdateEphemeralMounts");
        let size = user.sh("df -k /mnt | tail -n 1 | awk '{print $2}'").await;
        assert_eq!(size.ok(), "2048");
        let kept = probe
            .sh(&format!("grep -c {scratch}.*noexec /mnt/proc/1/mounts"))
            .await;
        assert_eq!(kept.ok(), "1", "what was forbidden is allowed");
        request.storages[0].mount_point = "/run".into();
        request.storages[0].driver = "local".into();
        let refused = vm.rpc().update_ephemeral_mounts(&request).await;
        expect_refusal(refused, Code::INVALID_ARGUMENT, "Unsupported storage type");
        vm.rpc()
            .remove_stale_virtiofs_share_mounts(&RemoveStaleVirtiofsShareMountsRequest::new())
            .await
            .expect("RemoveStaleVirtiofsShareMounts");

        c.remove().await;
        let left = probe.sh("grep -c watchable /mnt/proc/1/mounts").await;
        assert_eq!(left.stdout.trim(), "0", "a removed container leaves mounts");
        assert!(!share.join("watchable/map").exists());
    });
}

fn shared(from: &str, source: &str, target: &str) -> SharedMount {
    let mut mount = SharedMount::new();
    mount.src_ctr = from.to_owned();
    mount.src_path = source.to_owned();
    mount.dst_path = target.to_owned();
    mount
}

#[test]
fn mounts_are_taken_over_from_another_container() {
    vm_story(async {
        let vm = Vm::shared().await;
        let source = vm
            .container("share-source")
            .capabilities(&tests::spec::ALL_CAPABILITIES)
            .sh(
                "mkdir -p /home/now /home/later; mount -t tmpfs now /home/now
                echo here > /home/now/file; echo ready; read x
                mount -t tmpfs later /home/later; echo there > /home/later/file; sleep 100000",
            )
            .start()
            .await;
        source.expect("ready").await;
        let both = |r: &mut protocols::agent::CreateContainerRequest| {
            r.shared_mounts = vec![
                shared("share-source", "/home/now", "/home/taken"),
                shared("share-source", "/home/later", "/home/a/b"),
            ];
        };
        let target = vm.container("share-target").request(both).sh(
            "cat /home/taken/file; while ! test -s /home/a/b/file; do :; done; cat /home/a/b/file
                grep -c ' /home/' /proc/mounts; echo back > /home/taken/reply",
        );
        let (target, ()) = tokio::join!(target.start(), async {
            // Others are served while it waits.
            let other = vm.container("share-other").sh("echo other").run().await;
            assert_eq!(other.ok(), "other");
            source.write(b"go on\n").await;
        });
        assert_eq!(target.output().await.ok(), "here\nthere\n2");
        target.remove().await;
        assert_eq!(source.sh("cat /home/now/reply").await.ok(), "back");

        let refused = |shares: Vec<SharedMount>| {
            let builder = vm.container("share-refused");
            builder
                .request(move |r| r.shared_mounts = shares)
                .sh("true")
                .try_create()
        };
        let unknown = refused(vec![shared("nobody", "/home/now", "/x")]).await;
        expect_refusal(unknown.map(drop), Code::INVALID_ARGUMENT, "nobody");
        let climbs = refused(vec![shared("share-source", "/home/../etc", "/x")]).await;
        expect_refusal(climbs.map(drop), Code::INVALID_ARGUMENT, "src_path");
        let absent = refused(vec![shared("share-source", "/home/never", "/x")]).await;
        expect_refusal(absent.map(drop), Code::INTERNAL, "/home/never");
        let occupied = refused(vec![shared("share-source", "/home/now", "/etc/passwd")]).await;
        expect_refusal(occupied.map(drop), Code::INTERNAL, "/etc/passwd");
        // Nothing of them is left in the way of the same id.
        let again = vm.container("share-refused").sh("echo fine").run().await;
        assert_eq!(again.ok(), "fine");
        source.kill_and_remove().await;
    });
}
