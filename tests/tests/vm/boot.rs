// SPDX-License-Identifier: Apache-2.0
//! PID 1: the boot, what it makes of the kernel command line, and the end.

use std::os::unix::net::UnixListener;
use std::time::Duration;

use protocols::agent::{GuestDetailsRequest, ReseedRandomDevRequest, SetGuestDateTimeRequest};
use protocols::health::health_check_response::ServingStatus;
use tests::{Vm, artifacts, vm_story};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn it_boots_and_says_who_it_is() {
    vm_story(async {
        let vm = Vm::shared().await;
        let health = vm.rpc().check().await.expect("Check");
        assert_eq!(health.status.enum_value(), Ok(ServingStatus::SERVING));
        let version = vm.rpc().version().await.expect("Version");
        assert!(!version.agent_version.is_empty());
        let mut request = GuestDetailsRequest::new();
        request.mem_block_size = true;
        request.mem_hotplug_probe = true;
        let details = vm
            .rpc()
            .get_guest_details(&request)
            .await
            .expect("GetGuestDetails");
        assert!(details.agent_details.init_daemon);
        assert_eq!(details.agent_details.version, version.agent_version);
        for driver in [
            "virtio-fs",
            "blk",
            "ephemeral",
            "local",
            "bind",
            "overlayfs",
        ] {
            let drivers = &details.agent_details.storage_handlers;
            assert!(
                drivers.iter().any(|d| d == driver),
                "{driver} is not among {drivers:?}"
            );
        }
    });
}

#[test]
fn loopback_is_up() {
    vm_story(async {
        let vm = Vm::shared().await;
        let interfaces = vm
            .rpc()
            .list_interfaces(&Default::default())
            .await
            .expect("ListInterfaces");
        let loopback = interfaces
            .Interfaces
            .iter()
            .find(|i| i.name == "lo")
            .expect("lo is listed");
        assert!(
            loopback
                .IPAddresses
                .iter()
                .any(|a| a.address == "127.0.0.1" && a.mask == "8")
        );
        vm.rpc()
            .list_routes(&Default::default())
            .await
            .expect("ListRoutes");
        let ping = vm
            .sh("boot-lo", "ping -c 1 -W 5 127.0.0.1 >/dev/null && echo up")
            .await;
        assert_eq!(ping.ok(), "up");
    });
}

#[test]
fn pid_1_is_small_at_rest() {
    vm_story(async {
        let vm = Vm::boot(|g| g).await;
        let probe = vm.probe("probe").await;
        let status = probe.sh("grep -E 'Threads|VmRSS' /mnt/proc/1/status").await;
        let threads: u32 = field(status.ok(), "Threads:");
        assert!(threads <= 2 + BLOCKING_AT_REST, "{}", status.stdout);
    });
}

/// A blocking thread may not have timed out yet so soon after the probe's creation.
const BLOCKING_AT_REST: u32 = 2;

fn field(text: &str, name: &str) -> u32 {
    let line = text
        .lines()
        .find(|l| l.starts_with(name))
        .unwrap_or_else(|| panic!("{name} in {text:?}"));
    line.split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or_else(|| panic!("{line:?}"))
}

#[test]
fn bad_kernel_words_do_not_matter() {
    vm_story(async {
        let words = "agent.log=nonsense agent.hotplug_timeout=x agent.hotplug_timeout agent.server_addr= foo bar=baz \
            agent.log_vport=-7 agent.container_pipe_size=-1 agent.config_file=/no/such agent.=1 =x agent.log=debug=x \
            agent.guest_components_procs=everything dm-mod.create=\"x,,,ro,0 1 linear\" agent.debug_console=1 -- --flag 1 -x";
        let vm = Vm::boot(|g| g.words(words)).await;
        assert_eq!(vm.sh("c1", "echo hello").await.ok(), "hello");
        vm.expect_power_off().await;
    });
}

#[test]
fn destroying_the_sandbox_powers_off() {
    vm_story(async {
        let vm = Vm::boot(|g| g).await;
        vm.create_sandbox(|_| ()).await;
        vm.container("left").args(&["sleep", "1000"]).start().await;
        vm.expect_power_off().await;
        let console = vm.console().join("\n");
        assert!(
            !console.contains("Kernel panic"),
            "PID 1 must not just exit"
        );
    });
}

/// The console becomes a virtio port, whose other end the story holds.
#[test]
fn ctrl_c_on_the_console_does_nothing() {
    vm_story(async {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("tty.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        listener
            .set_nonblocking(true)
            .expect("a non-blocking socket");
        let listener = tokio::net::UnixListener::from_std(listener).expect("a listener");
        let chardev = format!("socket,id=tty,path={}", path.display());
        let vm = Vm::boot(|g| {
            g.qemu(&["-chardev", &chardev, "-device", "virtio-serial-pci"])
                .qemu(&["-device", "virtconsole,chardev=tty"])
                .words("console=hvc0")
        })
        .await;
        let (mut tty, _) = listener.accept().await.expect("QEMU connects");
        for _ in 0..5 {
            // ^C, ^\ and ^Z: whoever has the console as controlling terminal gets a signal for each.
            tty.write_all(b"\x03\x1c\x1a\r\n")
                .await
                .expect("the console takes input");
            tokio::time::sleep(Duration::from_millis(100)).await;
            vm.expect_alive().await;
        }
        let mut seen = vec![0; 1 << 16];
        let count = tty.read(&mut seen).await.expect("the console is readable");
        assert!(count > 0, "the port is not a console");
        assert_eq!(vm.sh("c1", "echo alive").await.ok(), "alive");
    });
}

#[test]
fn cgroup_v2_by_default() {
    vm_story(async {
        let vm = Vm::shared().await;
        let probe = vm.probe("boot-v2").await;
        let magic = probe.sh("stat -f -c %t /mnt/sys/fs/cgroup").await;
        assert_eq!(magic.ok(), "63677270", "the magic number of cgroup2");
        let inside = vm.sh("boot-v2-in", "cat /proc/self/cgroup").await;
        assert_eq!(
            inside.ok(),
            "0::/",
            "a container sees its own cgroup as the root"
        );
        probe.kill_and_remove().await;
    });
}

#[test]
fn cgroup_v1_when_asked_for() {
    vm_story(async {
        let vm = Vm::boot(|g| g.words("systemd.unified_cgroup_hierarchy=0")).await;
        let probe = vm.probe("probe").await;
        let listing = probe
            .sh("cd /mnt/sys/fs/cgroup && stat -f -c %t pids cpu && ls")
            .await;
        assert!(listing.ok().starts_with("27e0eb\n27e0eb\n"), "{listing:?}");
        // A controller that could not be mounted leaves no directory that looks like one.
        let kinds = probe
            .sh("stat -f -c %t /mnt/sys/fs/cgroup/* | sort -u")
            .await;
        assert_eq!(kinds.ok(), "27e0eb", "{}", listing.stdout);
        let c = vm.container("c1").args(&["sleep", "1000"]).start().await;
        // Not memory: Debian's kernels have that for v2 only.
        for controller in ["pids", "cpu", "freezer", "devices"] {
            let procs = format!("/mnt/sys/fs/cgroup/{controller}/stories/c1/cgroup.procs");
            let count = probe.sh(&format!("wc -l < {procs}")).await;
            assert_eq!(count.ok(), "1", "{controller}");
        }
        c.kill_and_remove().await;
        let left = probe
            .sh("ls -d /mnt/sys/fs/cgroup/*/stories/c1 | wc -l")
            .await;
        assert_eq!(left.ok(), "0", "{}", left.stderr);
        vm.expect_power_off().await;
    });
}

#[test]
fn a_distributors_kernel_finds_an_ext4_disk_by_its_modules() {
    vm_story(async {
        let disk = artifacts::root_disk().expect("a root disk can be made");
        let vm = Vm::boot_distributors(|g| {
            g.disk(&disk.path())
                .words("root=/dev/vda rootfstype=ext4 rw")
        })
        .await;
        let probe = vm.probe("probe").await;
        let root = probe.sh("grep ' /mnt ' /proc/mounts").await;
        assert!(root.ok().contains(" ext4 "), "{root:?}");
        assert_eq!(
            probe.sh("cat /mnt/etc/marker").await.ok(),
            artifacts::ROOT_DISK_MARKER
        );
        assert_eq!(vm.sh("c1", "echo from a disk").await.ok(), "from a disk");
        vm.expect_power_off().await;
    });
}

#[test]
fn a_root_that_is_not_there_ends_the_vm_and_says_why() {
    vm_story(async {
        // No agent answers here: the machine is started bare.
        let image = artifacts::guest().await;
        let mut config = image.config();
        config
            .cmdline
            .push("root=/dev/vdz rootfstype=ext4".to_owned());
        let machine = rootfs_builder::vm::Vm::start(config)
            .await
            .expect("the machine starts");
        machine
            .wait_exit(Duration::from_secs(120))
            .await
            .expect("the VM ends");
        let console = machine.console();
        assert!(console.contains("/dev/vdz"), "{console}");
    });
}

#[test]
fn the_clock_can_be_set() {
    vm_story(async {
        let vm = Vm::boot(|g| g).await;
        let mut request = SetGuestDateTimeRequest::new();
        request.Sec = 2_000_000_000;
        vm.rpc()
            .set_guest_date_time(&request)
            .await
            .expect("SetGuestDateTime");
        let year = vm.sh("c1", "date -u +%Y-%m-%d").await;
        assert_eq!(year.ok(), "2033-05-18");
        let mut absurd = SetGuestDateTimeRequest::new();
        absurd.Usec = -1;
        assert!(vm.rpc().set_guest_date_time(&absurd).await.is_err());
    });
}

#[test]
fn entropy_is_taken() {
    vm_story(async {
        let vm = Vm::shared().await;
        let mut request = ReseedRandomDevRequest::new();
        request.data = vec![7; 512];
        vm.rpc()
            .reseed_random_dev(&request)
            .await
            .expect("ReseedRandomDev");
        let random = vm.sh("boot-random", "head -c 16 /dev/random | wc -c").await;
        assert_eq!(random.ok(), "16");
    });
}
