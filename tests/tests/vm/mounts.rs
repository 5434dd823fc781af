// SPDX-License-Identifier: Apache-2.0
//! Mounts of a container that take more than one entry, or a hostile image.

use protocols::oci;
use tests::{Code, Container, Vm, expect_refusal, spec, vm_story};

/// A container whose root is a copy in the guest's memory, to which `script` was applied.
async fn image(vm: &Vm, probe: &Container, name: &str, script: &str) -> String {
    let path = format!("/run/{name}");
    let make = format!(
        "cd /mnt{path} 2>/dev/null || {{ mkdir /mnt{path} && cp -a /mnt{}/. /mnt{path} && cd /mnt{path}; }} && {script}",
        vm.rootfs()
    );
    let all = |p: &mut oci::Process| {
        p.Capabilities = Some(spec::capabilities(&spec::ALL_CAPABILITIES)).into();
    };
    let made = probe.exec(&["sh", "-c", &make]).process(all).run().await;
    made.ok();
    path
}

#[test]
fn a_later_entry_changes_an_earlier_mount() {
    vm_story(async {
        let vm = Vm::shared().await;
        let output = vm
            .container("mnt-again")
            .mount("/mnt", "tmpfs", "tmpfs", &["size=64k", "nosuid"])
            .bind("/home", "/tmp")
            .mount("/home", "", "", &["bind", "remount", "ro", "noexec"])
            .mount("/mnt", "tmpfs", "tmpfs", &["remount", "size=128k", "nodev"])
            .sh("grep -E ' (/mnt|/home) ' /proc/self/mounts | cut -d ' ' -f 2,4; touch /home/x")
            .run()
            .await;
        for line in output.stdout.lines() {
            let (path, options) = line.split_once(' ').expect("two fields");
            let wanted: &[&str] = match path {
                "/mnt" => &["rw", "size=128k", "nosuid", "nodev"],
                _ => &["ro", "noexec"],
            };
            for word in wanted {
                assert!(options.split(',').any(|o| o == *word), "{word}: {line}");
            }
        }
        assert_eq!(output.stdout.lines().count(), 2, "{output:?}");
        assert!(output.stderr.contains("Read-only"), "{output:?}");

        let nothing = vm
            .container("mnt-nothing")
            .mount("/home", "", "", &["bind", "remount", "ro"])
            .args(&["true"])
            .try_create()
            .await;
        expect_refusal(nothing.map(drop), Code::INVALID_ARGUMENT, "remount");
    });
}

/// CVE-2020-28914: engines say `rw` of every volume that is not `ro`.
#[test]
fn a_read_only_volume_of_the_guest_stays_read_only() {
    vm_story(async {
        let vm = Vm::shared().await;
        let probe = vm.probe("mnt-ro-probe").await;
        let all = |p: &mut oci::Process| {
            p.Capabilities = Some(spec::capabilities(&spec::ALL_CAPABILITIES)).into();
        };
        let enter = |script: &str| {
            probe
                .exec(&["/bin/nsenter", "-t", "1", "-m", "sh", "-c", script])
                .process(all)
        };
        enter("mkdir -p /run/ro && mount -t tmpfs t /run/ro && mkdir /run/ro/below && mount -t tmpfs t /run/ro/below && mount -o remount,bind,ro /run/ro")
            .process(|p| p.Env = vec![format!("PATH={}/bin", vm.rootfs())])
            .run()
            .await
            .ok();
        let script = "touch /mnt/x 2>/dev/null && echo wrote; touch /mnt/below/y 2>/dev/null && echo below; true";
        for (id, words, wrote) in [
            ("mnt-rw", ["rbind", "rw"].as_slice(), "below"),
            ("mnt-exec", &["rbind", "rw", "exec", "nosuid"], "below"),
            ("mnt-rro", &["rbind", "rro"], ""),
            ("mnt-ro", &["rbind", "ro"], "below"),
        ] {
            let output = vm
                .container(id)
                .mount("/mnt", "/run/ro", "bind", words)
                .sh(script)
                .run()
                .await;
            assert_eq!(output.ok(), wrote, "{words:?}");
        }
        enter("umount /run/ro/below && umount /run/ro && rmdir /run/ro")
            .process(|p| p.Env = vec![format!("PATH={}/bin", vm.rootfs())])
            .run()
            .await
            .ok();
        probe.kill_and_remove().await;
    });
}

/// CVE-2019-19921 and CVE-2023-27561: a container's masks go by path, and an image's symlink would lead them elsewhere.
#[test]
fn a_symlink_in_an_image_moves_neither_proc_nor_the_masks() {
    vm_story(async {
        let vm = Vm::shared().await;
        let probe = vm.probe("mnt-link-probe").await;
        for (name, script) in [
            (
                "link-proc",
                "rmdir proc && mkdir elsewhere && ln -s elsewhere proc",
            ),
            (
                "link-sys",
                "rmdir sys && mkdir elsewhere && ln -s /elsewhere sys",
            ),
        ] {
            let root = image(&vm, &probe, name, script).await;
            let refused = vm
                .container(name)
                .root(&root)
                .args(&["true"])
                .try_create()
                .await;
            expect_refusal(refused.map(drop), Code::INVALID_ARGUMENT, "ymbolic link");
        }
        // A mask by the name of a link hides what the link leads to; one at a link that leads nowhere hides nothing.
        let root = image(
            &vm,
            &probe,
            "link-mask",
            "echo secret > etc/secret && ln -s ../etc/secret root/link && ln -s /nowhere root/nowhere",
        )
        .await;
        let output = vm
            .container("link-mask")
            .root(&root)
            .linux(|l| {
                l.MaskedPaths
                    .extend(["/root/link", "/root/nowhere"].map(str::to_owned))
            })
            .sh("cat /etc/secret /root/link; echo looked")
            .run()
            .await;
        assert_eq!(output.ok(), "looked");
        probe.sh("rm -rf /mnt/run/link-*").await;
        probe.kill_and_remove().await;
    });
}

/// A FIFO in the place of a file that the child reads would hold it for ever.
#[test]
fn a_hostile_passwd_does_not_hold_a_process() {
    vm_story(async {
        let vm = Vm::shared().await;
        let probe = vm.probe("mnt-fifo-probe").await;
        let root = image(&vm, &probe, "fifo", "rm etc/passwd && mkfifo etc/passwd").await;
        let c = vm
            .container("mnt-fifo")
            .root(&root)
            .args(&["sleep", "100000"])
            .start()
            .await;
        assert_eq!(c.sh("echo $HOME").await.ok(), "/");
        c.kill_and_remove().await;
        probe.sh("rm -rf /mnt/run/fifo").await;
        probe.kill_and_remove().await;
    });
}

fn rule(action: &str, names: &[&str]) -> oci::LinuxSyscall {
    let mut rule = oci::LinuxSyscall::new();
    rule.Action = action.to_owned();
    rule.Names = names.iter().map(|&n| n.to_owned()).collect();
    rule
}

/// What the child does on its way is not the program's doing: a profile need not allow it.
#[test]
fn a_filter_needs_to_allow_nothing_for_the_agent() {
    vm_story(async {
        let vm = Vm::shared().await;
        let ours = [
            "sendmsg",
            "recvmsg",
            "sendto",
            "recvfrom",
            "capset",
            "capget",
            "close_range",
            "seccomp",
            "keyctl",
            "openat2",
            "mount_setattr",
            "setresuid",
            "setresgid",
            "setgroups",
            "setsid",
            "fchdir",
            "chdir",
            "getcwd",
        ];
        for (id, no_new_privs) in [("filter-nnp", true), ("filter-privs", false)] {
            let c = vm
                .container(id)
                .linux(|l| {
                    let seccomp = l.Seccomp.mut_or_insert_default();
                    seccomp.DefaultAction = "SCMP_ACT_ALLOW".to_owned();
                    seccomp.Architectures.push("SCMP_ARCH_X86_64".to_owned());
                    seccomp.Syscalls.push(rule("SCMP_ACT_KILL_PROCESS", &ours));
                })
                .process(|p| p.NoNewPrivileges = no_new_privs)
                .args(&["sleep", "100000"])
                .start()
                .await;
            let exec = c
                .exec(&[
                    "sed",
                    "-n",
                    "s/^\\(CapEff\\|CapPrm\\|Seccomp\\|NoNewPrivs\\):\\t/\\1=/p",
                    "/proc/self/status",
                ])
                .process(|p| {
                    p.NoNewPrivileges = no_new_privs;
                    p.User.mut_or_insert_default().UID = 1000;
                });
            let nnp = u8::from(no_new_privs);
            let none = "0000000000000000";
            let wanted = format!("CapPrm={none}\nCapEff={none}\nNoNewPrivs={nnp}\nSeccomp=2");
            assert_eq!(exec.run().await.ok(), wanted, "{id}");
            let bound = c.exec(&["sed", "-n", "s/^CapPrm:\\t//p", "/proc/self/status"]);
            let bound = bound
                .process(|p| p.NoNewPrivileges = no_new_privs)
                .run()
                .await;
            let granted = spec::capability_mask(&spec::DEFAULT_CAPABILITIES);
            assert_eq!(u64::from_str_radix(bound.ok(), 16), Ok(granted), "{id}");
            // The filter is in force, and the container's first process under it too.
            assert_eq!(
                c.exec(&["sh", "-c", "cd /"]).run().await.code,
                128 + 31,
                "{id}"
            );
            let first = c.exec(&["sed", "-n", "s/^Seccomp:\\t//p", "/proc/1/status"]);
            assert_eq!(first.run().await.ok(), "2");
            c.kill_and_remove().await;
        }
    });
}

/// The directory is the container's own business, and made before its root becomes read-only.
#[test]
fn a_working_directory_is_made_on_a_read_only_root() {
    vm_story(async {
        let vm = Vm::shared().await;
        let output = vm
            .container("mnt-cwd")
            .read_only_root()
            .process(|p| p.Cwd = "/root/made/for/it".to_owned())
            .sh("pwd; stat -c '%a %u' .; touch x")
            .run()
            .await;
        assert_eq!(output.stdout, "/root/made/for/it\n755 0\n");
        assert!(output.stderr.contains("Read-only"), "{output:?}");
        vm.sh("mnt-cwd-gone", "rm -r /root/made").await.ok();
    });
}

/// Engines name a profile for guests that have never heard of it; a guest that has it not loaded is one of them.
#[test]
fn an_apparmor_profile_that_the_guest_does_not_have_is_left_out() {
    vm_story(async {
        let vm = Vm::shared().await;
        let output = vm
            .container("label-profile")
            .process(|p| p.ApparmorProfile = "cri-containerd.apparmor.d".to_owned())
            .sh("cat /proc/self/attr/current 2>/dev/null; echo ran")
            .run()
            .await;
        assert!(output.ok().ends_with("ran"), "{output:?}");
        let label = "system_u:system_r:container_t:s0:c1,c2";
        let selinux = vm
            .container("label-selinux")
            .process(|p| p.SelinuxLabel = label.to_owned())
            .args(&["true"])
            .try_create()
            .await;
        expect_refusal(selinux.map(drop), Code::INVALID_ARGUMENT, "SELinux off");
        let mounts = vm
            .container("label-mounts")
            .linux(|l| l.MountLabel = label.to_owned())
            .args(&["true"])
            .try_create()
            .await;
        expect_refusal(mounts.map(drop), Code::INVALID_ARGUMENT, "linux.mountLabel");
    });
}
