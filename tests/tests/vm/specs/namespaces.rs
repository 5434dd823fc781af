// SPDX-License-Identifier: Apache-2.0
//! Namespaces of every kind: new, joined, absent; id maps, host name, sysctls, cgroup mounts.

use protocols::oci;
use tests::container::Builder;
use tests::{Vm, spec, vm_story};

use super::{case, exec_case, tell};

fn add(linux: &mut oci::Linux, kind: &str, path: &str) {
    let mut namespace = spec::namespace(kind);
    namespace.Path = path.to_owned();
    linux.Namespaces.push(namespace);
}

/// With one more namespace, new if there is no path.
fn with(
    kind: &'static str,
    path: &'static str,
) -> impl FnOnce(Builder) -> Builder + Send + 'static {
    move |c| c.linux(|l| add(l, kind, path))
}

fn without(kind: &'static str) -> impl FnOnce(Builder) -> Builder + Send + 'static {
    move |c| c.linux(|l| l.Namespaces.retain(|n| n.Type != kind))
}

/// A user namespace of its own with root mapped to `first`.
fn mapped(first: u32, count: u32) -> impl FnOnce(Builder) -> Builder + Send + 'static {
    move |c| {
        c.linux(|l| {
            add(l, "user", "");
            add(l, "network", "");
            maps(l, first, count);
        })
    }
}

fn maps(linux: &mut oci::Linux, first: u32, count: u32) {
    let mut map = oci::LinuxIDMapping::new();
    (map.ContainerID, map.HostID, map.Size) = (0, first, count);
    linux.UIDMappings = vec![map.clone()];
    linux.GIDMappings = vec![map];
}

/// The guest's own file system: nothing is mounted, hidden or protected.
fn bare(c: Builder) -> Builder {
    let program = format!("{}/bin/probe", tests::artifacts::ROOTFS);
    c.spec(|s| s.Mounts.clear())
        .linux(|l| {
            l.Namespaces.retain(|n| n.Type != "mount");
            l.MaskedPaths.clear();
            l.ReadonlyPaths.clear();
        })
        .args(&[&program, "facts"])
}

#[test]
fn namespaces() {
    vm_story(async {
        #[rustfmt::skip]
        let cases = vec![
            case("the ordinary ones", |c| c, &["ns:mnt!=@guest", "ns:pid!=@guest", "ns:ipc!=@guest", "ns:uts!=@guest", "ns:cgroup!=@guest", "ns:net=@guest", "ns:user=@guest", "ns:time=@guest"]),
            case("a new network", with("network", ""), &["ns:net!=@guest", "ns:mnt!=@guest"]),
            case("the guest's network by its path", with("network", "/proc/1/ns/net"), &["ns:net=@guest"]),
            case("a new cgroup namespace", with("cgroup", ""), &["ns:cgroup!=@guest", "cgroup:unified=/"]),
            case("new clocks", with("time", ""), &["ns:time!=@guest", "time:monotonic=0 0", "time:boottime=0 0"]),
            case("the guest's clocks by their path", with("time", "/proc/1/ns/time"), &["ns:time=@guest"]),
            case("the guest's processes by their path", with("pid", "/proc/1/ns/pid"), &["ns:pid=@guest", "pid!=1"]),
            case("new processes, said", with("pid", ""), &["ns:pid!=@guest", "pid=1"]),
            case("no mount namespace", bare, &["ns:mnt=@guest", "ns:pid!=@guest"]),
            case("no mount namespace, but mounts", without("mount"), &["refused~INVALID_ARGUMENT"]),
            case("no message queues of its own", without("ipc"), &["ns:ipc=@guest", "ns:uts!=@guest"]),
            case("no name of its own", |c| without("uts")(c).spec(|s| s.Hostname.clear()), &["ns:uts=@guest", "ns:ipc!=@guest"]),
            case("no name of its own, but a name", without("uts"), &["refused~INVALID_ARGUMENT"]),
            case("a kind that is none", with("moon", ""), &["refused~INVALID_ARGUMENT"]),
            case("a kind twice", with("mount", ""), &["refused~INVALID_ARGUMENT"]),
            case("a path that is not there", with("network", "/proc/1/ns/moon"), &["refused"]),
            case("a path of another kind", with("network", "/proc/1/ns/uts"), &["refused"]),
            case("a path that is no namespace", with("network", "/etc/passwd"), &["refused"]),
            case("a relative path", with("network", "proc/1/ns/net"), &["refused~INVALID_ARGUMENT"]),
            exec_case("a process is where the container is", |c| with("network", "")(c), |e| e, &["ns:net!=@guest", "ns:mnt!=@guest", "ns:pid!=@guest", "ns:cgroup!=@guest", "cgroup:unified=/"]),
            exec_case("a process with the container's clocks", with("time", ""), |e| e, &["ns:time!=@guest", "time:monotonic=0 0"]),
        ];
        tell(&Vm::shared().await, "namespaces", cases).await;
    });
}

/// They are the first container's, which a guest that stories share does not have.
#[test]
fn processes_of_the_sandbox() {
    vm_story(async {
        #[rustfmt::skip]
        let cases = vec![
            case("the sandbox's processes", |c| c.sandbox_pids(), &["ns:pid!=@guest", "pid!=1", "ns:mnt!=@guest"]),
            case("in the sandbox's process namespace", |c| c.sandbox_pids(), &["fds=0,1,2", "sid!=0"]),
        ];
        let vm = Vm::boot(|g| g).await;
        vm.create_sandbox(|_| ()).await;
        let pause = vm.container("pause").sandbox_pids();
        let pause = pause.args(&["sleep", "100000"]).start().await;
        tell(&vm, "sharing-pids", cases).await;
        pause.kill_and_remove().await;
    });
}

/// Opens the standard streams by name: what it says arrives by these, and the other end of a stream is not had this way.
const REOPEN: &str = "(: < /dev/stdin) && echo in=opened > /dev/stdout; echo said > /dev/stderr; \
                      (: > /dev/stdin) 2> /dev/null || echo turned-in=no; (: < /dev/stdout) 2> /dev/null || echo turned-out=no";

fn reopening(c: Builder) -> Builder {
    mapped(100_000, 65_536)(c).args(&["sh", "-c", REOPEN])
}

/// Without a sandbox the user namespace owns all the others; with one it shares some that it does not own.
#[test]
fn user_namespaces() {
    vm_story(async {
        let bound = [
            "dev:/dev/null=c 1:3 666 65534:65534",
            "mount:/dev/null:fstype=devtmpfs",
        ];
        #[rustfmt::skip]
        let cases = vec![
            case("one of its own", mapped(100_000, 65_536), &["ns:user!=@guest", "uid_map=0 100000 65536", "gid_map=0 100000 65536", "uid=0", "gid=0", "pid=1"]),
            case("root has its capabilities in it", mapped(100_000, 65_536), &["cap:effective~CAP_KILL", "cap:effective!~CAP_SYS_ADMIN", "no_new_privs=true"]),
            case("a user in it", |c| mapped(100_000, 65_536)(c).process(|p| p.User.mut_or_insert_default().UID = 1000), &["uid=1000", "cap:effective="]),
            case("a user that it does not have", |c| mapped(100_000, 10)(c).process(|p| p.User.mut_or_insert_default().UID = 1000), &["refused"]),
            case("all ids as they are", mapped(0, u32::MAX), &["ns:user!=@guest", "uid_map=0 0 4294967295", "dev:/dev/null=c 1:3 666 0:0"]),
            case("the guest's devices in it", mapped(100_000, 65_536), &bound),
            case("all others in it", mapped(100_000, 65_536), &["ns:net!=@guest", "ns:ipc!=@guest", "ns:uts!=@guest", "nodename=guest", "mount:/sys:fstype=sysfs", "mount:/dev/mqueue:fstype=mqueue"]),
            case("a cgroup namespace in it", mapped(100_000, 65_536), &["ns:cgroup!=@guest", "cgroup:unified=/"]),
            case("its streams by name", reopening, &["in=opened", "stderr=said", "turned-in=no", "turned-out=no"]),
            exec_case("a user's streams by name in it", mapped(100_000, 65_536), |e| e.process(|p| {
                p.User.mut_or_insert_default().UID = 7;
                p.Args = ["sh", "-c", REOPEN].map(str::to_owned).to_vec();
            }), &["in=opened", "stderr=said", "turned-in=no", "turned-out=no"]),
            case("none of its own, but maps", |c| c.linux(|l| maps(l, 0, 10)), &["refused~INVALID_ARGUMENT"]),
            case("one of its own without maps", with("user", ""), &["refused~INVALID_ARGUMENT"]),
            case("one of its own with a map of nobody", mapped(0, 0), &["refused~INVALID_ARGUMENT"]),
            exec_case("a process in it", mapped(100_000, 65_536), |e| e, &["ns:user!=@guest", "uid=0", "uid_map=0 100000 65536", "cap:effective~CAP_KILL"]),
            exec_case("a user's process in it", mapped(100_000, 65_536), |e| e.process(|p| p.User.mut_or_insert_default().UID = 7), &["uid=7", "cap:effective="]),
        ];
        let vm = Vm::boot(|g| g).await;
        tell(&vm, "users-mapped", cases).await;
        vm.expect_power_off().await;
    });
}

/// What the sandbox shares is not the user namespace's, nor is the guest's network; message queues and sysfs need both.
#[test]
fn user_namespaces_in_a_sandbox() {
    vm_story(async {
        let sharing = |c: Builder| {
            let c = c.spec(|s| {
                s.Mounts
                    .retain(|m| !["mqueue", "sysfs", "cgroup"].contains(&m.type_.as_str()))
            });
            c.linux(|l| {
                add(l, "user", "");
                maps(l, 100_000, 65_536);
            })
        };
        #[rustfmt::skip]
        let cases = vec![
            case("one of its own", sharing, &["ns:user!=@guest", "ns:ipc!=@guest", "ns:uts!=@guest", "ns:net=@guest", "nodename=guest", "uid_map=0 100000 65536", "uid=0", "pid=1"]),
            exec_case("a process in it", sharing, |e| e, &["ns:user!=@guest", "ns:ipc!=@guest", "uid=0", "cap:effective~CAP_KILL"]),
        ];
        tell(&Vm::shared().await, "users-sharing", cases).await;
    });
}

fn sysctl(
    name: &'static str,
    value: &'static str,
) -> impl FnOnce(Builder) -> Builder + Send + 'static {
    move |c| {
        c.linux(|l| {
            l.Sysctl.insert(name.to_owned(), value.to_owned());
        })
    }
}

#[test]
fn names_and_sysctls() {
    vm_story(async {
        #[rustfmt::skip]
        let cases = vec![
            // The sandbox has given its name to all containers.
            case("the sandbox's name", |c| c.spec(|s| s.Hostname = "other".to_owned()), &["nodename=guest", "sysctl:kernel.hostname=guest"]),
            case("a domain", sysctl("kernel.domainname", "example"), &["domainname=example"]),
            case("message queues", sysctl("kernel.msgmax", "4096"), &["sysctl:kernel.msgmax=4096"]),
            case("several numbers", sysctl("kernel.sem", "32001 1024000001 501 32001"), &["sysctl:kernel.sem=32001 1024000001 501 32001"]),
            case("posix message queues", sysctl("fs.mqueue.msg_max", "20"), &["sysctl:fs.mqueue.msg_max=20"]),
            case("a network's", |c| with("network", "")(sysctl("net.ipv4.ip_forward", "1")(c)), &["sysctl:net.ipv4.ip_forward=1"]),
            case("a network's, with slashes", |c| with("network", "")(sysctl("net/ipv4/ip_unprivileged_port_start", "80")(c)), &["sysctl:net.ipv4.ip_unprivileged_port_start=80"]),
            case("a new network has its own again", with("network", ""), &["sysctl:net.ipv4.ip_forward=0", "sysctl:net.ipv4.ip_unprivileged_port_start=1024"]),
            case("one that this kernel does not have", sysctl("net.core.no_such_setting", "1"), &["exit=0"]),
            case("a value that it does not take", |c| with("network", "")(sysctl("net.ipv4.ip_forward", "yes")(c)), &["refused"]),
            case("the guest's", sysctl("kernel.core_pattern", "|/bin/x"), &["refused~INVALID_ARGUMENT"]),
            case("the name, which is the spec's", sysctl("kernel.hostname", "x"), &["refused~INVALID_ARGUMENT"]),
            case("one that climbs", sysctl("net/../kernel/core_pattern", "x"), &["refused~INVALID_ARGUMENT"]),
            case("queues without a namespace for them", |c| without("ipc")(sysctl("kernel.msgmax", "4096")(c)), &["refused~INVALID_ARGUMENT"]),
        ];
        tell(&Vm::shared().await, "sysctls", cases).await;
    });
}

/// Without a sandbox a container has a name and message queues of its own.
#[test]
fn cgroup_mounts_and_names_without_a_sandbox_on_cgroup_v1() {
    vm_story(async {
        let vm = Vm::boot(|g| g.words("systemd.unified_cgroup_hierarchy=0")).await;
        let ro = "mount:/sys/fs/cgroup/memory:options~ro";
        #[rustfmt::skip]
        let cases = vec![
            case("a name", |c| c.spec(|s| s.Hostname = "own-name".to_owned()), &["nodename=own-name", "ns:uts!=@guest", "ns:ipc!=@guest"]),
            case("each controller, read-only", |c| c, &["mount:/sys/fs/cgroup:fstype=tmpfs", "mount:/sys/fs/cgroup:options~ro", "mount:/sys/fs/cgroup/memory:fstype=cgroup", ro]),
            case("its own part only", |c| c.sh("cat /sys/fs/cgroup/pids/cgroup.procs | head -n 1 | sed 's/^/first=/'"), &["first=1"]),
            case("each controller, writable", |c| cgroup_mount(c, "rw"), &["mount:/sys/fs/cgroup/memory:options~rw", "mount:/sys/fs/cgroup/pids:options~nosuid"]),
            case("a new cgroup namespace", with("cgroup", ""), &["ns:cgroup!=@guest", "cgroup:memory=/", "cgroup:pids=/"]),
            case("a user namespace", mapped(100_000, 65_536), &["ns:user!=@guest", "uid=0", "mount:/sys/fs/cgroup/memory:fstype=cgroup"]),
            exec_case("a process with a new cgroup namespace", with("cgroup", ""), |e| e, &["ns:cgroup!=@guest", "cgroup:memory=/"]),
            exec_case("a process in the container's cgroup", |c| c, |e| e.process(|p| p.Args = ["sh", "-c", "grep -c \"^$$\\$\" /sys/fs/cgroup/memory/cgroup.procs | sed s/^/found=/"].map(str::to_owned).to_vec()), &["found=1"]),
        ];
        tell(&vm, "cgroup-v1", cases).await;
        vm.expect_power_off().await;
    });
}

/// Mounts the cgroups with `word` instead of `ro`.
fn cgroup_mount(c: Builder, word: &'static str) -> Builder {
    c.spec(|s| {
        for mount in s.Mounts.iter_mut().filter(|m| m.type_ == "cgroup") {
            mount.options.retain(|o| o != "ro");
            mount.options.push(word.to_owned());
        }
    })
}

#[test]
fn cgroup_mounts() {
    vm_story(async {
        #[rustfmt::skip]
        let cases = vec![
            case("read-only", |c| c, &["mount:/sys/fs/cgroup:fstype=cgroup2", "mount:/sys/fs/cgroup:options~ro", "mount:/sys/fs/cgroup:options~nosuid", "mount:/sys/fs/cgroup:options~nodev", "mount:/sys/fs/cgroup:options~noexec", "cgroup:unified=/"]),
            case("writable", |c| cgroup_mount(c, "rw"), &["mount:/sys/fs/cgroup:fstype=cgroup2", "mount:/sys/fs/cgroup:options~rw", "mount:/sys/fs/cgroup:subtree=/"]),
            case("writable for its root", |c| cgroup_mount(c, "rw").sh("mkdir /sys/fs/cgroup/below && rmdir /sys/fs/cgroup/below && echo made=1"), &["made=1"]),
            case("its own part only", |c| c.sh("head -n 1 /sys/fs/cgroup/cgroup.procs | sed 's/^/first=/'"), &["first=1"]),
            case("none", |c| c.spec(|s| s.Mounts.retain(|m| m.type_ != "cgroup")), &["!mount:/sys/fs/cgroup:fstype", "cgroup:unified=/"]),
            case("under the name of the second version", |c| c.mount("/mnt", "cgroup2", "cgroup2", &["ro", "nosuid"]), &["mount:/mnt:fstype=cgroup2", "mount:/mnt:options~ro"]),
            exec_case("a process in the container's cgroup", |c| c, |e| e.process(|p| p.Args = ["sh", "-c", "grep -c \"^$$\\$\" /sys/fs/cgroup/cgroup.procs | sed s/^/found=/"].map(str::to_owned).to_vec()), &["found=1"]),
        ];
        tell(&Vm::shared().await, "cgroups", cases).await;
    });
}

/// A namespace that another container has made, by a path of the guest.
#[test]
fn namespaces_of_another_container_are_joined_by_path() {
    vm_story(async {
        let vm = Vm::shared().await;
        let other = with("network", "")(vm.container("specs-join-other"));
        let other = other.args(&["sleep", "777123"]).start().await;
        let own = other.exec(&["probe", "process", "1"]).run().await.facts();
        let probe = vm.probe("specs-join-probe").await;
        let pid = probe.sh("ps | awk '/[s]leep 777123/ { print $1 }'").await;
        let pid = pid.ok().to_owned();
        for (kind, file) in [("network", "net"), ("ipc", "ipc"), ("pid", "pid")] {
            let path = format!("/proc/{pid}/ns/{file}");
            let joined = vm.container("specs-join").linux(|l| {
                l.Namespaces.retain(|n| n.Type != kind);
                add(l, kind, &path);
            });
            let seen = joined.args(&["probe", "facts"]).run().await.facts();
            let name = format!("ns:{file}");
            assert_eq!(seen.expect(&name), own.expect(&name), "{kind} by {path}");
        }
        probe.kill_and_remove().await;
        other.kill_and_remove().await;
    });
}
