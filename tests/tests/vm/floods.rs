// SPDX-License-Identifier: Apache-2.0
//! Floods of the kernel's messages about devices: whoever waits for one gets it or its error, and nobody else waits.

use tempfile::TempDir;
use tests::net::interface;
use tests::plug::port_path;
use tests::story::say;
use tests::vm::{ext4_image, storage};
use tests::{Agent, Code, Container, Vm, expect_refusal, vm_story};

const BASE: &str = "/run/kata-containers/sandbox/storage";
const MAC: &str = "02:00:00:00:00:0a";

/// How many messages the kernel has sent.
async fn sent(probe: &Container) -> u64 {
    let number = probe.sh("cat /mnt/sys/kernel/uevent_seqnum").await;
    number.ok().parse().expect("a number")
}

/// What a container with a disk of this kind and address finds on it.
async fn look_at_disk(agent: &Agent, id: &str, driver: &str, source: &str) -> String {
    let place = format!("{BASE}/{id}");
    let disk = storage(driver, source, "ext4", &place, &[]);
    let c = agent.container(id).storage(disk).bind("/mnt", &place);
    c.sh("ls /mnt").run().await.ok().to_owned()
}

#[test]
fn a_flood_drowns_nobody_and_what_is_lost_is_found() {
    vm_story(async {
        let dir = TempDir::new().expect("a temporary directory");
        let image = |name: &str| ext4_image(&dir.path().join(name), 16, None);
        let (first, second) = (image("first.img"), image("second.img"));
        let vm = Vm::boot(|g| g.ports(3).words("agent.hotplug_timeout=15")).await;
        vm.create_sandbox(|_| ()).await;
        let mut monitor = vm.monitor().await;
        let probe = vm.probe("probe").await;
        let flood = vm.probe("flood").await;
        let before = sent(&probe).await;
        flood.flood().await;

        let other = vm.another_connection().await;
        let never = tokio::spawn(async move {
            let disk = storage("mmioblk", "/dev/vdz", "ext4", &format!("{BASE}/never"), &[]);
            let never = other.container("never").storage(disk).try_create().await;
            never.map(drop)
        });
        for _ in 0..20 {
            vm.rpc().check().await.expect("Check is answered");
        }
        let path = port_path(0);
        let found = look_at_disk(&vm, "disk", "blk", &path);
        let (found, ()) = tokio::join!(found, monitor.plug_disk(0, "first", &first));
        assert_eq!(found, "lost+found");
        let mut wanted = interface("eth0", MAC, &["10.0.0.2/24"]);
        wanted.devicePath = port_path(1);
        tokio::join!(vm.interface(wanted), monitor.plug_card(1, MAC));
        assert!(!never.is_finished(), "what never came was given up early");
        let refused = never.await.expect("a task of ours");
        expect_refusal(refused, Code::INTERNAL, "did not appear within 15 s");
        flood.kill_and_remove().await;
        let sent = sent(&probe).await - before;
        assert!(sent > 300, "{sent} messages are no flood");

        // The next disk is there, and nobody was told.
        let other = vm.another_connection().await;
        let late =
            tokio::spawn(async move { look_at_disk(&other, "late", "mmioblk", "/dev/vdb").await });
        probe.sh("true").await.ok();
        let plug = monitor.plug_disk(2, "second", &second);
        let lost = vm.unheard(plug, "[ -e /mnt/sys/class/block/vdb ]").await;
        assert_eq!(late.await.expect("a task of ours"), "lost+found");
        say(&format!("{sent} messages were heard, {lost} were lost"));
        vm.expect_alive().await;
        vm.expect_power_off().await;
    });
}
