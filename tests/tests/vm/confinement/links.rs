// SPDX-License-Identifier: Apache-2.0
//! Links where the agent mounts and writes.

use std::time::{Duration, Instant};

use protocols::oci;
use tests::container::Builder;
use tests::rootfs::PROBE;
use tests::{Vm, vm_story};

use super::{probe, script, spoilt_root, start};

/// Writing outside by a link where something is to be mounted, exchanged while that is done (CVE-2019-19921, CVE-2021-30465,
/// CVE-2023-27561, CVE-2024-45310): one container swaps a directory and a link in a volume in which another's mounts are.
#[test]
fn mounting_through_a_link_that_is_being_swapped() {
    vm_story(async {
        let vm = Vm::shared().await;
        let guest = vm.probe("conf-swap-guest").await;
        let listing = "ls -A /mnt /mnt/etc /mnt/opt /mnt/tmp | grep -v '^conf-'; grep -v kata-containers /mnt/proc/1/mountinfo | wc -l";
        guest.sh("mkdir -p /mnt/tmp/conf-volume").await.ok();
        let before = guest.sh(listing).await.ok().to_owned();
        let attacker = start(vm.container("conf-swap").bind("/vol", "/tmp/conf-volume")).await;
        for target in ["/", "../../../../../..", "/proc/1/root", "/../../etc"] {
            let prepare = format!("rm -rf /vol/*; mkdir -p /vol/a/made && ln -s {target} /vol/b");
            script(&attacker, &prepare).await.ok();
            let race = attacker.exec(&[PROBE, "swap-race", "/vol/a", "/vol/b", "5"]);
            let race = race.start().await;
            race.expect("swapping=1").await;
            let end = Instant::now() + Duration::from_secs(2);
            let (mut round, mut created) = (0, 0);
            while Instant::now() < end || round < 10 {
                round += 1;
                created += i32::from(victim(&vm, round).await);
            }
            assert!(
                created > 0,
                "none of {round} containers was created with {target}"
            );
            race.signal(9).await;
            race.wait().await;
            assert_eq!(guest.sh(listing).await.ok(), before, "with {target}");
        }
        script(&attacker, "rm -rf /vol/*").await.ok();
        attacker.kill_and_remove().await;
        guest
            .sh("rm -rf /mnt/tmp/conf-volume /mnt/opt/image/escaped* /mnt/opt/image/made")
            .await
            .ok();
        guest.kill_and_remove().await;
    });
}

/// A container with mounts in the volume; whether it was created. If it was, all of them are below its root.
async fn victim(vm: &Vm, round: u32) -> bool {
    let builder = vm
        .container("conf-victim")
        .bind("/vol", "/tmp/conf-volume")
        .mount(&format!("/vol/a/escaped-{round}"), "tmpfs", "tmpfs", &[])
        .mount(
            &format!("/vol/a/escaped-file-{round}"),
            "/proc/version",
            "bind",
            &["bind"],
        )
        .mount("/vol/a/made", "tmpfs", "tmpfs", &["ro"]);
    let Ok(container) = builder.args(&[PROBE, "mounts"]).try_create().await else {
        return false;
    };
    container.start().await;
    let seen = container.output().await.facts();
    container.remove().await;
    let name = format!("escaped-{round}:fstype");
    assert!(
        seen.starting_with("mount:/")
            .iter()
            .any(|(n, _)| n.ends_with(&name)),
        "{seen:?}"
    );
    true
}

/// An ordinary container on another root, where `/dev` is the image's.
fn with_own_dev(vm: &Vm, id: &str, root: &str) -> Builder {
    let without = |s: &mut oci::Spec| s.Mounts.retain(|m| !m.destination.starts_with("/dev"));
    vm.container(id).root(root).spec(without)
}

/// Writing where a link in the place of the null device leads (CVE-2025-31133): what masks is the guest's own device.
#[test]
fn masking_with_a_null_device_that_is_a_link() {
    vm_story(async {
        let vm = Vm::shared().await;
        let guest = vm.probe("conf-null-guest").await;
        let spoil = "rm -rf dev && mkdir dev && ln -s /proc/sys/kernel/core_pattern dev/null && ln -s /etc/group dev/zero";
        let root = spoilt_root(&guest, "conf-null", spoil).await;
        let c = with_own_dev(&vm, "conf-null", &root);
        let c = start(c.linux(|l| l.MaskedPaths.push("/etc/passwd".to_owned()))).await;
        let facts = probe(&c, &["facts"]).await;
        facts.expect_all(&[
            "dev:/dev/null=c 1:3 666 0:0",
            "dev:/dev/zero=c 1:5 666 0:0",
            "mount:/etc/passwd:subtree=/null",
            "mount:/etc/passwd:fstype=devtmpfs",
        ]);
        assert_eq!(
            script(
                &c,
                "cat /etc/passwd; echo x > /dev/null && cat /etc/group | wc -l"
            )
            .await
            .ok(),
            "2"
        );
        c.kill_and_remove().await;
        guest.sh(&format!("rm -rf /mnt{root}")).await.ok();
        guest.kill_and_remove().await;
    });
}

/// Mounting the terminal where a link leads (CVE-2025-52565): neither the console nor the terminals are looked for by a path that
/// the image has made.
#[test]
fn a_console_that_is_a_link() {
    vm_story(async {
        let vm = Vm::shared().await;
        let guest = vm.probe("conf-tty-guest").await;
        let spoil = "rm -rf dev && mkdir -p dev/pts && ln -s ../../../../../../etc/marker dev/console && echo text > etc/marker; echo fake > dev/pts/ptmx; echo fake > dev/pts/0";
        let root = spoilt_root(&guest, "conf-tty", spoil).await;
        let listing = "ls -lA /mnt/etc /mnt/dev | grep -v ' pts$'; ls -A /mnt";
        let before = guest.sh(listing).await.ok().to_owned();
        let c = with_own_dev(&vm, "conf-tty", &root).tty();
        // It is refused, or it has a real terminal.
        if let Ok(c) = c.args(&[PROBE, "facts"]).try_create().await {
            c.start().await;
            c.output()
                .await
                .facts()
                .expect_all(&["tty=true", "tty:controlling=true", "fds=0,1,2"]);
            c.remove().await;
        }
        assert_eq!(guest.sh(listing).await.ok(), before);
        let text = guest
            .sh(&format!(
                "cat /mnt{root}/etc/marker /mnt{root}/dev/pts/ptmx"
            ))
            .await;
        assert_eq!(text.ok(), "text\nfake");
        let own = vm
            .container("conf-tty-own")
            .tty()
            .args(&[PROBE, "facts"])
            .run()
            .await;
        own.facts().expect_all(&["tty=true", "dev:/dev/console"]);
        guest.sh(&format!("rm -rf /mnt{root}")).await.ok();
        guest.kill_and_remove().await;
    });
}

/// Having the agent write where the image wants instead of into proc (CVE-2019-16884, CVE-2025-52881): settings and labels go to the
/// kernel or nowhere.
#[test]
fn writes_for_proc_that_are_redirected() {
    vm_story(async {
        let vm = Vm::shared().await;
        let guest = vm.probe("conf-proc-guest").await;
        let spoil = "mkdir -p proc/sys/kernel proc/sys/fs/mqueue proc/self/attr proc/thread-self/attr
            echo text > etc/victim; echo text > proc/sys/kernel/msgmax; ln -s /etc/victim proc/sys/kernel/msgmnb
            ln -s /etc/victim proc/self/attr/exec; ln -s /etc/victim proc/thread-self/attr/exec; ln -s /etc/victim proc/self/oom_score_adj";
        let root = spoilt_root(&guest, "conf-proc", spoil).await;
        let victims = format!("cd /mnt{root}; cat etc/victim proc/sys/kernel/msgmax");
        for setting in ["kernel.msgmax", "kernel.msgmnb"] {
            let c = vm.container("conf-proc").root(&root);
            let c = c.spec(|s| s.Mounts.retain(|m| m.destination != "/proc"));
            let c = c.linux(|l| drop(l.Sysctl.insert(setting.to_owned(), "4096".to_owned())));
            // It is refused, or it is the kernel that was told.
            if let Ok(c) = c.args(&["true"]).try_create().await {
                c.start().await;
                let read = format!("cat /proc/sys/{}", setting.replace('.', "/"));
                let told = vm.sh("conf-proc-told", &read).await;
                assert_eq!(told.ok(), "4096", "{setting} was written to something else");
                c.wait().await;
                c.remove().await;
            }
            assert_eq!(guest.sh(&victims).await.ok(), "text\ntext", "{setting}");
        }
        for label in [true, false] {
            let c = vm.container("conf-proc").root(&root);
            let c = c.spec(|s| s.Mounts.retain(|m| m.destination != "/proc"));
            let c = c.process(|p| match label {
                true => p.SelinuxLabel = "system_u:system_r:container_t:s0".to_owned(),
                false => p.ApparmorProfile = "unconfined".to_owned(),
            });
            if let Ok(c) = c.args(&["true"]).try_create().await {
                c.start().await;
                c.wait().await;
                c.remove().await;
            }
            assert_eq!(guest.sh(&victims).await.ok(), "text\ntext");
        }
        let own = vm.container("conf-proc-own").root(&root);
        let own = own.linux(|l| {
            drop(
                l.Sysctl
                    .insert("kernel.msgmnb".to_owned(), "16000".to_owned()),
            )
        });
        assert_eq!(
            own.sh("cat /proc/sys/kernel/msgmnb").run().await.ok(),
            "16000"
        );
        guest.sh(&format!("rm -rf /mnt{root}")).await.ok();
        guest.kill_and_remove().await;
    });
}

/// A proc that is not where it seems (CVE-2023-27561, CVE-2023-28642): `/proc` and `/sys` of the image are links. Either that is
/// refused, or what is masked and protected is so where the links lead.
#[test]
fn a_proc_that_is_a_link() {
    vm_story(async {
        let vm = Vm::shared().await;
        let guest = vm.probe("conf-link-guest").await;
        let spoil = "rmdir proc sys && mkdir real-proc real-sys && ln -s real-proc proc && ln -s /real-sys sys";
        let root = spoilt_root(&guest, "conf-link", spoil).await;
        let c = vm.container("conf-link").root(&root);
        let c = c.linux(|l| l.MaskedPaths.push("/proc/version".to_owned()));
        let look = "for d in /proc /real-proc; do
                test -z \"$(cat $d/version 2>/dev/null)\" || echo $d/version shows something
                (echo 1 > $d/sys/vm/swappiness) 2>/dev/null && echo $d/sys is writable
            done; echo looked";
        if let Ok(c) = c.sh(look).try_create().await {
            c.start().await;
            assert_eq!(c.output().await.ok(), "looked");
            c.remove().await;
        }
        let own = vm
            .sh(
                "conf-link-own",
                "test -n \"$(cat /proc/version)\" && echo real",
            )
            .await;
        assert_eq!(own.ok(), "real");
        guest.sh(&format!("rm -rf /mnt{root}")).await.ok();
        guest.kill_and_remove().await;
    });
}
