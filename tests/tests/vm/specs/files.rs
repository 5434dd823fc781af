// SPDX-License-Identifier: Apache-2.0
//! The root, what is hidden in it and protected, devices.

use protocols::oci;
use tests::container::Builder;
use tests::{Vm, vm_story};

use super::{case, exec_case, tell};

fn propagation(word: &'static str) -> impl FnOnce(Builder) -> Builder + Send + 'static {
    move |c| c.linux(|l| l.RootfsPropagation = word.to_owned())
}

#[test]
fn roots() {
    vm_story(async {
        #[rustfmt::skip]
        let cases = vec![
            case("a writable root", |c| c, &["mount:/:options~rw", "mount:/:propagation=private"]),
            case("a read-only root", |c| c.read_only_root(), &["mount:/:options~ro", "mount:/proc:options~rw", "mount:/dev:options~rw", "dev:/dev/null=c 1:3 666 0:0"]),
            case("a read-only root with another's mount", |c| c.read_only_root().mount("/tmp", "tmpfs", "tmpfs", &[]), &["mount:/:options~ro", "mount:/tmp:options~rw"]),
            case("a shared root", propagation("shared"), &["mount:/:propagation=shared"]),
            case("a root shared with all below", propagation("rshared"), &["mount:/:propagation=shared", "mount:/proc:propagation=shared"]),
            case("a private root", propagation("private"), &["mount:/:propagation=private"]),
            case("a private root with all below", propagation("rprivate"), &["mount:/:propagation=private", "mount:/proc:propagation=private"]),
            case("a slave root", propagation("rslave"), &["mount:/:propagation!=shared"]),
            case("an unbindable root", propagation("unbindable"), &["mount:/:propagation=unbindable", "mount:/proc:propagation=private"]),
            case("an unbindable root with all below", propagation("runbindable"), &["mount:/:propagation=unbindable", "mount:/proc:propagation=unbindable"]),
            case("a propagation that is none", propagation("wild"), &["refused~INVALID_ARGUMENT"]),
            case("a relative root", |c| c.root("opt/image"), &["refused~INVALID_ARGUMENT"]),
            case("a root that is not there", |c| c.root("/no/such/root"), &["refused"]),
            case("a root that is a file", |c| c.root("/proc/version"), &["refused"]),
            exec_case("a process in a read-only root", |c| c.read_only_root(), |e| e, &["mount:/:options~ro", "mount:/proc:options~rw"]),
        ];
        tell(&Vm::shared().await, "roots", cases).await;
    });
}

fn masked(path: &'static str) -> impl FnOnce(Builder) -> Builder + Send + 'static {
    move |c| c.linux(|l| l.MaskedPaths.push(path.to_owned()))
}

fn protected(path: &'static str) -> impl FnOnce(Builder) -> Builder + Send + 'static {
    move |c| c.linux(|l| l.ReadonlyPaths.push(path.to_owned()))
}

#[test]
fn hidden_and_protected_paths() {
    vm_story(async {
        #[rustfmt::skip]
        let cases = vec![
            case("a hidden file", masked("/etc/passwd"), &["mount:/etc/passwd:subtree=/null", "mount:/etc/passwd:fstype=devtmpfs"]),
            case("a hidden directory", masked("/sys/kernel"), &["mount:/sys/kernel:fstype=tmpfs", "mount:/sys/kernel:options~ro", "mount:/sys/kernel:options~nosuid"]),
            case("two hidden directories", |c| masked("/sys/kernel")(masked("/sys/class")(c)), &["mount:/sys/kernel:fstype=tmpfs", "mount:/sys/class:fstype=tmpfs", "mount:/sys/class:options~ro"]),
            case("a hidden file of proc", masked("/proc/version"), &["mount:/proc/version:subtree=/null"]),
            case("hidden, and not there", masked("/no/such/path"), &["!mount:/no/such/path:fstype"]),
            case("hidden below a file", masked("/etc/passwd/x"), &["exit=0"]),
            case("hidden by a relative path", masked("etc/passwd"), &["refused~INVALID_ARGUMENT"]),
            case("hidden by a path that climbs", masked("/proc/../etc/passwd"), &["refused~INVALID_ARGUMENT"]),
            case("nothing hidden", |c| c.linux(|l| l.MaskedPaths.clear()), &["!mount:/proc/keys:fstype", "!mount:/proc/kcore:fstype"]),
            case("a protected directory", protected("/etc"), &["mount:/etc:options~ro", "mount:/:options~rw"]),
            case("protected as usual", |c| c, &["mount:/proc/sys:options~ro", "mount:/proc/sys:options~nosuid", "mount:/proc/sys:options~nodev", "mount:/proc/sys:options~noexec", "mount:/proc/irq:options~ro"]),
            case("a protected file", protected("/etc/hosts"), &["mount:/etc/hosts:options~ro"]),
            case("protected with what is mounted below", |c| protected("/mnt")(c).mount("/mnt/inner", "tmpfs", "tmpfs", &[]), &["mount:/mnt:options~ro", "mount:/mnt/inner:options~ro"]),
            case("protected, and not there", protected("/no/such/path"), &["exit=0"]),
            case("protected by a relative path", protected("etc"), &["refused~INVALID_ARGUMENT"]),
            case("nothing protected", |c| c.linux(|l| l.ReadonlyPaths.clear()), &["!mount:/proc/sys:fstype"]),
            exec_case("what is hidden from a process", masked("/etc/passwd"), |e| e, &["mount:/etc/passwd:subtree=/null", "mount:/proc/sys:options~ro"]),
        ];
        tell(&Vm::shared().await, "paths", cases).await;
    });
}

/// Path, kind, numbers, mode, owner; everything is allowed to be used.
fn device(
    path: &'static str,
    kind: &'static str,
    numbers: (i64, i64),
    mode: u32,
    owner: (u32, u32),
) -> impl FnOnce(Builder) -> Builder + Send + 'static {
    move |c| {
        c.linux(|l| {
            let mut device = oci::LinuxDevice::new();
            device.Path = path.to_owned();
            device.Type = kind.to_owned();
            (device.Major, device.Minor) = numbers;
            device.FileMode = mode;
            (device.UID, device.GID) = owner;
            l.Devices.push(device);
        })
    }
}

#[test]
fn devices() {
    vm_story(async {
        const ROOT: (u32, u32) = (0, 0);
        #[rustfmt::skip]
        let cases = vec![
            case("the default ones", |c| c, &["dev:/dev/null=c 1:3 666 0:0", "dev:/dev/zero=c 1:5 666 0:0", "dev:/dev/full=c 1:7 666 0:0", "dev:/dev/random=c 1:8 666 0:0", "dev:/dev/urandom=c 1:9 666 0:0", "dev:/dev/tty=c 5:0 666 0:0"]),
            case("links", |c| c, &["dev:/dev/fd=link /proc/self/fd", "dev:/dev/stdin=link /proc/self/fd/0", "dev:/dev/stdout=link /proc/self/fd/1", "dev:/dev/stderr=link /proc/self/fd/2", "dev:/dev/ptmx=link pts/ptmx"]),
            case("one more", device("/dev/mine", "c", (1, 5), 0o600, (1000, 1001)), &["dev:/dev/mine=c 1:5 600 1000:1001"]),
            case("one in a directory", device("/dev/a/b/mine", "c", (1, 5), 0o640, ROOT), &["dev:/dev/a/b/mine=c 1:5 640 0:0", "dev:/dev/a=directory 755 0:0"]),
            case("a mode with all bits", device("/dev/mine", "c", (1, 5), 0o777, ROOT), &["dev:/dev/mine=c 1:5 777 0:0"]),
            case("a block device", device("/dev/loop-7", "b", (7, 7), 0o660, (0, 6)), &["dev:/dev/loop-7=b 7:7 660 0:6"]),
            case("a pipe", device("/dev/queue", "p", (0, 0), 0o622, ROOT), &["dev:/dev/queue=p 622 0:0"]),
            case("numbers of many bits", device("/dev/far", "c", (240, 70_000), 0o666, ROOT), &["dev:/dev/far=c 240:70000 666 0:0"]),
            // 0 is "as the guest's node is".
            case("no mode", device("/dev/kmsg", "c", (1, 11), 0, ROOT), &["dev:/dev/kmsg=c 1:11 644 0:0"]),
            case("a default one again", device("/dev/null", "c", (1, 3), 0o666, ROOT), &["dev:/dev/null=c 1:3 666 0:0"]),
            case("a default one with another owner", device("/dev/null", "c", (1, 3), 0o666, (1000, 0)), &["dev:/dev/null=c 1:3 666 1000:0"]),
            case("two with one number", move |c| device("/dev/x", "c", (1, 3), 0o600, ROOT)(device("/dev/y", "c", (1, 3), 0o644, ROOT)(c)), &["dev:/dev/x=c 1:3 600 0:0", "dev:/dev/y=c 1:3 644 0:0"]),
            case("a place outside", device("/etc/null", "c", (1, 3), 0o666, ROOT), &["refused~INVALID_ARGUMENT"]),
            case("a place that climbs out", device("/dev/../etc/null", "c", (1, 3), 0o666, ROOT), &["refused~INVALID_ARGUMENT"]),
            case("a kind that is none", device("/dev/x", "x", (1, 3), 0o666, ROOT), &["refused~INVALID_ARGUMENT"]),
            case("numbers that are none", device("/dev/x", "c", (-2, 3), 0o666, ROOT), &["refused~INVALID_ARGUMENT"]),
        ];
        tell(&Vm::shared().await, "devices", cases).await;
    });
}
