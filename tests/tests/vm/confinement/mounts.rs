// SPDX-License-Identifier: Apache-2.0
//! What mounts hide and protect, and what they stand on.

use tests::container::Builder;
use tests::rootfs::PROBE;
use tests::{Vm, spec, vm_story};

use super::{REFUSED, default_and, script, start};

/// Reading what is masked (CVE-2025-31133 and kin): by other names of the same place, by other mounts of proc, by taking the masks off.
#[test]
fn reading_what_is_masked() {
    vm_story(async {
        let vm = Vm::shared().await;
        let hidden = ["/etc/passwd", "/proc/version", "/sys/kernel"].map(str::to_owned);
        let c = vm.container("conf-masked");
        let c = start(c.linux(|l| l.MaskedPaths.extend(hidden))).await;
        let names = "mkdir -p /tmp/m && ln -sf /proc /tmp/m/p && ln -sf /etc/passwd /tmp/m/e && ln -sf /sys /tmp/m/s
            for f in /etc/passwd /tmp/m/e /proc/self/root/etc/passwd /proc/1/root/etc/passwd /proc/1/cwd/etc/passwd \
                     /proc/version /tmp/m/p/version /proc/self/../version /proc/1/root/proc/version; do
                test -z \"$(cat $f 2>/dev/null)\" || echo $f shows something
                (: >> $f) 2>/dev/null; rm -f $f 2>/dev/null
            done
            for d in /sys/kernel /tmp/m/s/kernel /proc/1/root/sys/kernel /sys/class/../kernel; do
                test -z \"$(ls -A $d 2>/dev/null)\" || echo $d shows something
            done
            test -n \"$(cat /proc/1/root/etc/group)\" && test -n \"$(cat /tmp/m/p/uptime)\" && test -n \"$(ls /tmp/m/s)\" && echo looked";
        assert_eq!(script(&c, names).await.ok(), "looked");
        for attempt in [
            "mount -t proc proc /mnt",
            "umount /etc/passwd",
            "mount --bind /proc /mnt",
            "mount -o remount,rw /proc",
            // As root of a user namespace: what hides is locked there, and proc is not to be had without it.
            "unshare -U -r -m umount /etc/passwd",
            "unshare -U -r -m umount -l /proc/version",
            "unshare -U -r -m -p -f mount -t proc proc /mnt",
        ] {
            let output = script(&c, attempt).await;
            assert_ne!(output.code, 0, "{attempt} works");
            assert!(
                REFUSED.iter().any(|r| output.stderr.contains(r)),
                "{attempt}: {output:?}"
            );
        }
        // That namespace can be had, and mount there what is its own.
        let allowed = "unshare -U -r -m sh -c 'mount -t tmpfs x /mnt && grep -c \" /mnt \" /proc/self/mounts'";
        assert_eq!(script(&c, allowed).await.ok(), "1");
        script(&c, "rm -r /tmp/m").await.ok();
        c.kill_and_remove().await;
    });
}

/// Writing to a volume that was given for reading (CVE-2020-28914).
#[test]
fn writing_to_a_read_only_volume() {
    vm_story(async {
        let vm = Vm::shared().await;
        let guest = vm.probe("conf-ro-guest").await;
        guest
            .sh("mkdir -p /mnt/tmp/conf-ro && echo text > /mnt/tmp/conf-ro/file")
            .await
            .ok();
        let volumes = |c: Builder| {
            c.mount("/ro", "/tmp/conf-ro", "bind", &["rbind", "ro"])
                .mount("/rw", "/tmp/conf-ro", "bind", &["rbind", "rw"])
                .mount("/tree", "/dev", "bind", &["rbind", "ro"])
                .mount("/whole", "/dev", "bind", &["rbind", "rro"])
        };
        let c = start(volumes(vm.container("conf-ro"))).await;
        let write = "for f in /ro/file /ro/new /whole/shm/conf /tree/conf; do (echo x > $f) 2>/dev/null && echo wrote $f; done
            rm -f /ro/file 2>/dev/null; chmod 777 /ro 2>/dev/null && echo changed
            cat /ro/file; echo more > /rw/file && cat /ro/file; echo x > /tree/shm/conf && rm /tree/shm/conf && echo below";
        assert_eq!(script(&c, write).await.ok(), "text\nmore\nbelow");
        for attempt in [
            "mount -o remount,rw /ro",
            "mount -o remount,rw,bind /ro",
            "umount /ro",
            "unshare -U -r -m mount -o remount,rw,bind /ro",
            "unshare -U -r -m mount -o remount,rw,bind /whole/shm",
            "unshare -U -r -m umount /ro",
        ] {
            let output = script(&c, &format!("{attempt} && echo x > /ro/file")).await;
            assert_ne!(output.code, 0, "{attempt} works");
            assert!(
                REFUSED.iter().any(|r| output.stderr.contains(r)),
                "{attempt}: {output:?}"
            );
        }
        // Who may mount may undo it for itself, and for nobody else.
        let all = default_and(&["CAP_SYS_ADMIN"]);
        let powerful = start(volumes(vm.container("conf-ro-all").capabilities(&all))).await;
        let undo = script(
            &powerful,
            "mount -o remount,rw,bind /ro && echo powerful > /ro/file && cat /ro/file",
        )
        .await;
        assert_eq!(undo.ok(), "powerful");
        let still = script(&c, "(echo x > /ro/file) 2>/dev/null || cat /ro/file").await;
        assert_eq!(still.ok(), "powerful");
        for container in [c, powerful] {
            container.kill_and_remove().await;
        }
        guest.sh("rm -r /mnt/tmp/conf-ro").await.ok();
        guest.kill_and_remove().await;
    });
}

/// Changing what belongs to the whole guest (CVE-2022-0492 and kin).
#[test]
fn writing_to_settings_of_the_whole_guest() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = start(vm.container("conf-settings")).await;
        let all = default_and(&[
            "CAP_DAC_READ_SEARCH",
            "CAP_SYS_PTRACE",
            "CAP_NET_ADMIN",
            "CAP_SYS_RESOURCE",
        ]);
        let stronger = start(vm.container("conf-settings-more").capabilities(&all)).await;
        let write = "for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/kernel/hostname /proc/sys/kernel/panic \
                /proc/sys/vm/overcommit_memory /proc/sys/vm/drop_caches /proc/sys/fs/file-max /proc/sysrq-trigger /proc/irq/default_smp_affinity \
                /sys/kernel/uevent_helper /sys/kernel/mm/transparent_hugepage/enabled /sys/power/state /sys/fs/cgroup/cgroup.subtree_control \
                /sys/fs/cgroup/memory.max /sys/fs/cgroup/release_agent /proc/1/root/proc/sys/kernel/core_pattern; do
                (echo 1 > $f) 2>/dev/null && echo $f was written
            done
            echo 500 > /proc/self/oom_score_adj && echo name > /proc/self/comm && cat /proc/self/oom_score_adj";
        for container in [&c, &stronger] {
            assert_eq!(script(container, write).await.ok(), "500");
            for attempt in [
                "mount -o remount,rw /proc/sys",
                "umount /proc/sys",
                "mount -o remount,rw /sys",
                "unshare -U -r -m umount /proc/sys",
            ] {
                let output = script(container, attempt).await;
                assert_ne!(output.code, 0, "{attempt} works");
                assert!(
                    !output.stderr.contains("not found"),
                    "{attempt}: {output:?}"
                );
            }
        }
        for container in [c, stronger] {
            container.kill_and_remove().await;
        }
    });
}

/// Taking the root away, to see what it lies on: where the guest runs from an initramfs, that is the guest.
#[test]
fn taking_the_root_away() {
    vm_story(async {
        let vm = Vm::boot(|g| g).await;
        let all = default_and(&["CAP_SYS_ADMIN"]);
        for (number, attempt) in [
            "true",
            "umount -l /",
            "umount /",
            "umount -l / ; umount -l /",
            "mount --bind /tmp /tmp && cd /tmp && pivot_root . . && umount -l .",
            "mkdir -p /tmp/conf-ch && exec 5</ && chroot /tmp/conf-ch /no/such; cd /proc/self/fd/5; cd ../../../..",
        ]
        .into_iter()
        .enumerate()
        {
            let id = format!("conf-root-{number}");
            let look = format!("({attempt}) 2>/dev/null; /bin/probe dig 9 2>/dev/null; echo /*; cd /; echo *; cd ../../..; echo *; sleep 100000");
            let c = vm.container(&id).capabilities(&all).sh(&look).start().await;
            // The shell is looked at from outside: it may not be able to run anything any more.
            let seen = c.exec(&[PROBE, "dig", "9"]).process(|p| p.Capabilities = Some(spec::capabilities(&all)).into());
            if let Ok(process) = seen.try_start().await {
                outside(attempt, &process.output().await.stdout);
            }
            if let Ok(process) = c.exec(&["ls", "/"]).try_start().await {
                outside(attempt, &process.output().await.stdout);
            }
            c.kill_all().await;
            let output = c.output().await;
            outside(attempt, &output.stdout);
            c.remove().await;
        }
        let own = vm
            .container("conf-root-own")
            .capabilities(&all)
            .args(&[PROBE, "dig", "0"]);
        let own = own.run().await.facts();
        own.expect_all(&["result=entered", "root~bin", "root~etc", "root!~init"]);
        vm.expect_power_off().await;
    });
}

/// The guest's root has what the tests' containers have not: `init`.
fn outside(attempt: &str, listing: &str) {
    let names = listing.split(|c: char| c.is_whitespace() || matches!(c, ',' | '/' | '='));
    let guests: Vec<_> = names
        .filter(|name| ["init", "opt", "lib"].contains(name))
        .collect();
    assert!(guests.is_empty(), "{attempt}: the guest is seen: {listing}");
}
