// SPDX-License-Identifier: Apache-2.0
//! Namespaces of every kind: new ones, those that a container joins by path, and what an execution finds there.

use protocols::oci;
use tests::{Container, Vm, spec, vm_story};

const KINDS: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "uts"];

/// The namespaces of a process of `c`, as `kind=inode`.
async fn namespaces(c: &Container, pid: &str) -> String {
    let script = format!("cd /proc/{pid}/ns; for n in *; do echo $n=$(readlink $n); done");
    let exec = c.exec(&["sh", "-c", &script]).process(|p| {
        p.Capabilities = Some(spec::capabilities(&spec::ALL_CAPABILITIES)).into();
    });
    exec.run().await.ok().to_owned()
}

fn namespace<'a>(all: &'a str, kind: &str) -> &'a str {
    let found = all
        .lines()
        .find_map(|l| l.strip_prefix(kind)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("{kind} is not in {all}"))
}

fn with_path(kind: &str, path: &str) -> oci::LinuxNamespace {
    let mut namespace = spec::namespace(kind);
    namespace.Path = path.to_owned();
    namespace
}

/// The process in the guest whose arguments end in `word`.
async fn pid_in_guest(probe: &Container, word: &str) -> String {
    let script = format!(
        "for p in /proc/[0-9]*; do
            case \"$(tr '\\0' ' ' < $p/cmdline)\" in 'sleep {word} ') echo ${{p#/proc/}};; esac
        done"
    );
    probe.sh(&script).await.ok().to_owned()
}

#[test]
fn new_namespaces_are_a_container_s_own_and_its_executions_join_them() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("ns-new")
            .linux(|l| {
                for kind in ["network", "cgroup", "time"] {
                    l.Namespaces.push(spec::namespace(kind));
                }
            })
            .args(&["sleep", "100000"])
            .start()
            .await;
        let probe = vm.probe("ns-new-probe").await;
        let guest = namespaces(&probe, "1").await;
        let (init, exec) = (namespaces(&c, "1").await, namespaces(&c, "self").await);
        for kind in KINDS {
            let own = namespace(&init, kind);
            assert_ne!(own, namespace(&guest, kind), "{kind}");
            assert_eq!(own, namespace(&exec, kind), "{kind}");
        }
        assert_eq!(namespace(&init, "user"), namespace(&guest, "user"));
        assert_eq!(c.sh("ls /sys/class/net").await.ok(), "lo");
        probe.kill_and_remove().await;
        c.kill_and_remove().await;
    });
}

#[test]
fn namespaces_are_joined_by_path() {
    vm_story(async {
        let vm = Vm::shared().await;
        let kinds = [("network", "net"), ("cgroup", "cgroup"), ("time", "time")];
        let first = vm
            .container("ns-first")
            .linux(|l| {
                l.Namespaces
                    .extend(kinds.map(|(kind, _)| spec::namespace(kind)))
            })
            .args(&["sleep", "123123"])
            .start()
            .await;
        let probe = vm.probe("ns-path-probe").await;
        let pid = pid_in_guest(&probe, "123123").await;
        let path = |file: &str| format!("/proc/{pid}/ns/{file}");
        let second = vm
            .container("ns-second")
            .linux(|l| {
                for (kind, file) in kinds {
                    l.Namespaces.push(with_path(kind, &path(file)));
                }
            })
            .args(&["sleep", "100000"])
            .start()
            .await;
        let wanted = namespaces(&first, "1").await;
        for seen in [
            namespaces(&second, "1").await,
            namespaces(&second, "self").await,
        ] {
            for (_, file) in kinds {
                assert_eq!(namespace(&seen, file), namespace(&wanted, file), "{file}");
            }
        }
        // The mount namespace of another container is the whole of its root.
        let third = vm
            .container("ns-third")
            .spec(|s| s.Mounts.clear())
            .linux(|l| {
                l.MaskedPaths.clear();
                l.ReadonlyPaths.clear();
                l.Namespaces.retain(|n| n.Type != "mount");
                l.Namespaces.push(with_path("mount", &path("mnt")));
            })
            .args(&["sleep", "100000"])
            .start()
            .await;
        first.sh("echo here > /dev/shm/letter").await.ok();
        assert_eq!(third.sh("cat /dev/shm/letter").await.ok(), "here");
        for c in [third, second, first, probe] {
            c.kill_and_remove().await;
        }
    });
}

fn maps(l: &mut oci::Linux) {
    let mut map = oci::LinuxIDMapping::new();
    (map.HostID, map.ContainerID, map.Size) = (100_000, 0, 65_536);
    l.UIDMappings.push(map.clone());
    l.GIDMappings.push(map);
    l.Namespaces.push(spec::namespace("user"));
}

async fn user_namespace(vm: &Vm, id: &str) {
    let c = vm
        .container(id)
        .linux(maps)
        .args(&["sleep", "321321"])
        .start()
        .await;
    let facts = "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups | tr -s ' '
        id -u; stat -c '%t:%T %a' /dev/null /dev/tty; echo x > /dev/null; head -c 2 /dev/zero | wc -c
        test -e /proc/self/status && test -d /sys/class && echo kernel
        mount -t tmpfs t /mnt && echo mounts; mknod /tmp/x c 1 3 2>&1 | grep -c 'not permitted'
        cat /proc/1/oom_score_adj";
    let output = c
        .exec(&["sh", "-c", facts])
        .process(|p| p.Capabilities = Some(spec::capabilities(&spec::ALL_CAPABILITIES)).into())
        .run()
        .await;
    assert_eq!(
        output.ok(),
        " 0 100000 65536\n 0 100000 65536\nallow\n0\n1:3 666\n5:0 666\n2\nkernel\nmounts\n1\n0"
    );
    let user = c
        .exec(&["sh", "-c", "id -u; id -g; id -G"])
        .process(|p| {
            let user = p.User.mut_or_insert_default();
            (user.UID, user.GID) = (1000, 1000);
            user.AdditionalGids = vec![7];
        })
        .run()
        .await;
    assert_eq!(user.ok(), "1000\n1000\n1000 7");
    // Another container joins it by its path, with everything else of its own.
    let probe = vm.probe(&format!("{id}-probe")).await;
    let pid = pid_in_guest(&probe, "321321").await;
    let second = vm
        .container(&format!("{id}-second"))
        .linux(|l| {
            l.Namespaces
                .push(with_path("user", &format!("/proc/{pid}/ns/user")));
            l.Namespaces.push(spec::namespace("time"));
        })
        .args(&["sleep", "100000"])
        .start()
        .await;
    let (own, other) = (namespaces(&c, "1").await, namespaces(&second, "1").await);
    assert_eq!(namespace(&own, "user"), namespace(&other, "user"));
    for kind in ["ipc", "mnt", "pid", "time", "uts"] {
        let shared = namespace(&own, kind) == namespace(&other, kind);
        assert!(!shared, "{kind}: {own} and {other}");
    }
    assert_eq!(namespaces(&second, "self").await, other);
    assert_eq!(second.sh("id -u; hostname").await.ok(), "0\nguest");
    probe.kill_and_remove().await;
    second.kill_and_remove().await;
    c.kill_and_remove().await;
}

#[test]
fn a_user_namespace_has_its_own_ids() {
    vm_story(async {
        let vm = Vm::shared().await;
        user_namespace(&vm, "ns-user").await;
        // For a systemd inside: its root may divide its cgroup.
        let script = "mount -t cgroup2 c /mnt && mkdir /mnt/part && echo $$ > /mnt/part/cgroup.procs && cat /proc/self/cgroup";
        let output = vm
            .container("ns-user-cgroup")
            .linux(maps)
            .capabilities(&spec::ALL_CAPABILITIES)
            .sh(script)
            .run()
            .await;
        assert_eq!(output.ok(), "0::/part");
    });
}

#[test]
fn a_user_namespace_has_its_own_ids_on_cgroup_v1() {
    vm_story(async {
        let vm = Vm::boot(|g| g.words("systemd.unified_cgroup_hierarchy=0")).await;
        vm.create_sandbox(|_| ()).await;
        user_namespace(&vm, "ns-user-v1").await;
    });
}

/// The guest's whole hierarchies would be what a bind of "my own part" shows inside a cgroup namespace.
#[test]
fn a_container_sees_its_own_part_of_cgroup_v1() {
    vm_story(async {
        let vm = Vm::boot(|g| g.words("systemd.unified_cgroup_hierarchy=0")).await;
        vm.create_sandbox(|_| ()).await;
        let script = "cd /sys/fs/cgroup/memory && wc -l < cgroup.procs && ls -d */ 2>/dev/null | wc -l
            touch /sys/fs/cgroup/x 2>/dev/null; echo 1 > notify_on_release; grep -c ' /sys/fs/cgroup/' /proc/self/mounts";
        for (id, own) in [("v1-plain", false), ("v1-ns", true)] {
            let output = vm
                .container(id)
                .linux(|l| {
                    if own {
                        l.Namespaces.push(spec::namespace("cgroup"));
                    }
                })
                .sh(script)
                .run()
                .await;
            let lines: Vec<_> = output.stdout.lines().collect();
            // The shell and wc.
            assert_eq!(&lines[..2], ["2", "0"], "{id}: {output:?}");
            assert_eq!(output.stderr.matches("Read-only").count(), 1, "{output:?}");
            assert!(lines[2].parse::<u32>().is_ok_and(|n| n > 5), "{output:?}");
        }
    });
}

/// A hierarchy that one container has made (a systemd does) belongs to no other: nobody joined it there, so all of it would be seen.
#[test]
fn a_hierarchy_that_another_container_made_is_not_shown() {
    vm_story(async {
        let vm = Vm::boot(|g| g.words("systemd.unified_cgroup_hierarchy=0")).await;
        vm.create_sandbox(|_| ()).await;
        let mount = "mkdir /tmp/foreign && mount -t cgroup -o none,name=foreign foreign /tmp/foreign && sleep 100000";
        let maker = vm
            .container("v1-maker")
            .capabilities(&spec::ALL_CAPABILITIES)
            .sh(&format!("({mount}) & until grep -q /tmp/foreign /proc/self/mounts; do sleep 0.01; done; echo made; wait"))
            .start()
            .await;
        maker.expect("made").await;
        let look = "grep -c name=foreign:/$ /proc/self/cgroup; ls /sys/fs/cgroup | grep -c foreign";
        for own in [false, true] {
            let c = vm.container(&format!("v1-other-{own}"));
            let c = c.linux(|l| {
                if own {
                    l.Namespaces.push(spec::namespace("cgroup"));
                }
            });
            assert_eq!(c.sh(look).run().await.stdout, "1\n0\n", "{own}");
        }
    });
}

/// A container that may unmount takes its own root off, and the kernel shows the next process whatever is below. That was the
/// guest's initramfs, with everything in it.
async fn below_the_root(vm: &Vm, id: &str, shape: fn(&mut oci::Linux)) {
    let c = vm
        .container(id)
        .linux(shape)
        .capabilities(&spec::ALL_CAPABILITIES)
        .args(&["sleep", "100000"])
        .start()
        .await;
    let shell = format!("{}/bin/busybox", vm.rootfs());
    let all = |p: &mut oci::Process| {
        p.Capabilities = Some(spec::capabilities(&spec::ALL_CAPABILITIES)).into();
    };
    c.exec(&["umount", "-l", "/"]).process(all).run().await.ok();
    for program in [shell.as_str(), "/init", "/bin/true"] {
        let found = c.exec(&[program, "true"]).process(all).try_start().await;
        let refusal = found
            .err()
            .unwrap_or_else(|| panic!("{program} of the guest is in reach"));
        assert!(refusal.text.contains("not found"), "{refusal}");
    }
    c.kill_and_remove().await;
}

#[test]
fn nothing_of_the_guest_is_below_a_root_that_was_taken_off() {
    vm_story(async {
        let vm = Vm::shared().await;
        below_the_root(&vm, "ns-below", |_| ()).await;
        below_the_root(&vm, "ns-below-user", maps).await;
    });
}
