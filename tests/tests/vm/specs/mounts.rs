// SPDX-License-Identifier: Apache-2.0
//! Mounts of every kind and every option word.

use tests::{Vm, vm_story};

use super::{Case, case, tell};

#[test]
fn kinds_of_mounts() {
    vm_story(async {
        #[rustfmt::skip]
        let cases = vec![
            case("proc", |c| c, &["mount:/proc:fstype=proc", "mount:/proc:options~rw", "mount:/proc:options~nosuid", "mount:/proc:options~nodev", "mount:/proc:options~noexec"]),
            case("proc with parameters", |c| c.mount("/mnt", "proc", "proc", &["hidepid=2"]), &["mount:/mnt:fs_options~hidepid=invisible"]),
            case("dev", |c| c, &["mount:/dev:fstype=tmpfs", "mount:/dev:options~nosuid", "mount:/dev:options!~relatime", "mount:/dev:fs_options~mode=755", "mount:/dev:fs_options~size=65536k"]),
            case("a read-only dev", |c| c.spec(|s| s.Mounts[1].options.push("ro".to_owned())), &["mount:/dev:options~ro", "dev:/dev/null=c 1:3 666 0:0", "dev:/dev/ptmx=link pts/ptmx"]),
            case("the guest's dev", |c| c.spec(|s| s.Mounts.retain(|m| !m.destination.starts_with("/dev"))).bind("/dev", "/dev"), &["mount:/dev:fstype=devtmpfs", "mount:/dev/pts:fstype=devpts", "dev:/dev/kmsg"]),
            case("devpts", |c| c, &["mount:/dev/pts:fstype=devpts", "mount:/dev/pts:fs_options~ptmxmode=666", "mount:/dev/pts:fs_options~mode=620", "mount:/dev/pts:fs_options~gid=5"]),
            case("shm", |c| c, &["mount:/dev/shm:fstype=tmpfs", "mount:/dev/shm:options~noexec", "dev:/dev/shm=directory 1777 0:0"]),
            case("mqueue", |c| c, &["mount:/dev/mqueue:fstype=mqueue", "mount:/dev/mqueue:options~nosuid"]),
            case("sysfs", |c| c, &["mount:/sys:fstype=sysfs", "mount:/sys:options~ro", "mount:/sys:options~nosuid", "mount:/sys:options~noexec"]),
            case("tmpfs", |c| c.mount("/mnt", "disk", "tmpfs", &["size=64k", "mode=700", "uid=1000", "gid=1001", "nr_inodes=10"]), &["mount:/mnt:fstype=tmpfs", "mount:/mnt:source=disk", "mount:/mnt:fs_options~size=64k", "mount:/mnt:fs_options~mode=700", "mount:/mnt:fs_options~uid=1000", "mount:/mnt:fs_options~gid=1001", "mount:/mnt:fs_options~nr_inodes=10"]),
            case("a directory is made for it", |c| c.mount("/tmp/made/for/it", "tmpfs", "tmpfs", &[]), &["mount:/tmp/made/for/it:fstype=tmpfs"]),
            case("one on another", |c| c.mount("/mnt", "below", "tmpfs", &[]).mount("/mnt", "above", "tmpfs", &["ro"]), &["mount:/mnt:source=above", "mount:/mnt:options~ro"]),
            case("one in another", |c| c.mount("/mnt", "tmpfs", "tmpfs", &[]).mount("/mnt/inner", "tmpfs", "tmpfs", &["ro"]), &["mount:/mnt:options~rw", "mount:/mnt/inner:options~ro"]),
            case("a destination with parts to be left out", |c| c.mount("/mnt/./x//y/", "tmpfs", "tmpfs", &[]), &["mount:/mnt/x/y:fstype=tmpfs"]),
            case("a name with two dots in it", |c| c.mount("/tmp/a..b", "tmpfs", "tmpfs", &[]), &["mount:/tmp/a..b:fstype=tmpfs"]),
            case("a bound directory", |c| c.mount("/mnt", "/proc/sys", "bind", &["bind"]), &["mount:/mnt:fstype=proc", "mount:/mnt:subtree=/sys"]),
            case("a bound file", |c| c.mount("/etc/hosts", "/proc/version", "bind", &["bind", "ro"]), &["mount:/etc/hosts:subtree=/version", "mount:/etc/hosts:options~ro"]),
            case("a bound file, to be made", |c| c.mount("/tmp/bound", "/proc/version", "bind", &["rbind"]), &["mount:/tmp/bound:subtree=/version"]),
            case("bound, not of the type but by a word", |c| c.mount("/mnt", "/proc/sys", "none", &["rbind"]), &["mount:/mnt:subtree=/sys"]),
            case("bound, of the type only", |c| c.mount("/mnt", "/proc/sys", "bind", &[]), &["mount:/mnt:subtree=/sys"]),
            case("without what is mounted below", |c| c.mount("/mnt", "/dev", "bind", &["bind"]), &["mount:/mnt:fstype=devtmpfs", "!mount:/mnt/pts:fstype"]),
            case("with what is mounted below", |c| c.bind("/mnt", "/dev"), &["mount:/mnt:fstype=devtmpfs", "mount:/mnt/pts:fstype=devpts"]),
            case("a file of proc that may be bound", |c| c.mount("/proc/uptime", "/proc/version", "bind", &["bind"]), &["mount:/proc/uptime:subtree=/version"]),
            case("one that may not", |c| c.mount("/proc/kallsyms", "/proc/version", "bind", &["bind"]), &["refused~INVALID_ARGUMENT"]),
            case("something else in the place of proc", |c| c.mount("/proc", "/tmp", "bind", &["rbind"]), &["refused~INVALID_ARGUMENT"]),
            case("a relative destination", |c| c.mount("mnt", "tmpfs", "tmpfs", &[]), &["refused~INVALID_ARGUMENT"]),
            case("a destination that climbs", |c| c.mount("/mnt/../../x", "tmpfs", "tmpfs", &[]), &["refused~INVALID_ARGUMENT"]),
            case("the root for a destination", |c| c.mount("/", "tmpfs", "tmpfs", &[]), &["refused~INVALID_ARGUMENT"]),
            case("a source that is not there", |c| c.bind("/mnt", "/no/such/source"), &["refused"]),
            case("a type that is none", |c| c.mount("/mnt", "x", "moonfs", &[]), &["refused"]),
            case("no type", |c| c.mount("/mnt", "x", "", &[]), &["refused~INVALID_ARGUMENT"]),
            case("a parameter that it does not take", |c| c.mount("/mnt", "x", "tmpfs", &["colour=red"]), &["refused"]),
            case("a loop device", |c| c.mount("/mnt", "/x", "ext4", &["loop"]), &["refused"]),
        ];
        tell(&Vm::shared().await, "mounts", cases).await;
    });
}

/// A word, and what the mount is expected to have or lack (`options` for the mount, `fs_options` for its file system).
const WORDS: [(&str, &str); 36] = [
    ("ro", "options~ro"),
    ("rw", "options~rw"),
    ("nosuid", "options~nosuid"),
    ("suid", "options!~nosuid"),
    ("nodev", "options~nodev"),
    ("dev", "options!~nodev"),
    ("noexec", "options~noexec"),
    ("exec", "options!~noexec"),
    ("noatime", "options~noatime"),
    ("atime", "options~relatime"),
    ("nodiratime", "options~nodiratime"),
    ("diratime", "options!~nodiratime"),
    ("relatime", "options~relatime"),
    ("norelatime", "options~relatime"),
    ("strictatime", "options!~relatime"),
    ("nostrictatime", "options~relatime"),
    ("sync", "fs_options~sync"),
    ("async", "fs_options!~sync"),
    ("dirsync", "fs_options~dirsync"),
    ("lazytime", "fs_options~lazytime"),
    ("nolazytime", "fs_options!~lazytime"),
    ("mand", "options~rw"),
    ("nomand", "options~rw"),
    ("iversion", "options~rw"),
    ("noiversion", "options~rw"),
    ("acl", "options~rw"),
    ("noacl", "options~rw"),
    ("silent", "options~rw"),
    ("loud", "options~rw"),
    ("defaults", "options~rw"),
    ("rro", "options~ro"),
    ("rnosuid", "options~nosuid"),
    ("rnodev", "options~nodev"),
    ("rnoexec", "options~noexec"),
    ("rnoatime", "options~noatime"),
    ("rnosymfollow", "options~nosymfollow"),
];

#[test]
fn every_word_for_a_file_system() {
    vm_story(async {
        let mut cases: Vec<Case> = WORDS
            .iter()
            .map(|&(word, expected)| {
                let expected = format!("mount:/mnt:{expected}");
                let shape =
                    move |c: tests::container::Builder| c.mount("/mnt", "tmpfs", "tmpfs", &[word]);
                case(word, shape, &["mount:/mnt:fstype=tmpfs", &expected])
            })
            .collect();
        #[rustfmt::skip]
        cases.extend([
            case("the last of two that contradict", |c| c.mount("/mnt", "tmpfs", "tmpfs", &["ro", "noexec", "rw", "exec"]), &["mount:/mnt:options~rw", "mount:/mnt:options!~noexec"]),
            case("the other way round", |c| c.mount("/mnt", "tmpfs", "tmpfs", &["rw", "ro"]), &["mount:/mnt:options~ro"]),
            case("several in one", |c| c.mount("/mnt", "tmpfs", "tmpfs", &["ro,nosuid,size=64k"]), &["mount:/mnt:options~ro", "mount:/mnt:options~nosuid", "mount:/mnt:fs_options~size=64k"]),
            case("a plain word and its whole-tree kin", |c| c.mount("/mnt", "tmpfs", "tmpfs", &["ro", "rrw"]), &["mount:/mnt:options~rw"]),
        ]);
        tell(&Vm::shared().await, "words", cases).await;
    });
}

/// The guest's `/dev`, which has mounts below it, bound with one word: the bound mount itself, and one below it.
const BOUND: [(&str, &str, &str); 30] = [
    ("ro", "options~ro", "options~rw"),
    ("rro", "options~ro", "options~ro"),
    ("rrw", "options~rw", "options~rw"),
    ("nosuid", "options~nosuid", "options~nosuid"),
    ("suid", "options!~nosuid", "options~nosuid"),
    ("rsuid", "options!~nosuid", "options!~nosuid"),
    ("rnosuid", "options~nosuid", "options~nosuid"),
    ("noexec", "options~noexec", "options~noexec"),
    ("exec", "options!~noexec", "options~noexec"),
    ("rexec", "options!~noexec", "options!~noexec"),
    ("rnoexec", "options~noexec", "options~noexec"),
    ("nodev", "options~nodev", "options!~nodev"),
    ("rnodev", "options~nodev", "options~nodev"),
    ("rdev", "options!~nodev", "options!~nodev"),
    ("noatime", "options~noatime", "options!~noatime"),
    ("rnoatime", "options~noatime", "options~noatime"),
    ("ratime", "options!~noatime", "options!~noatime"),
    ("nodiratime", "options~nodiratime", "options!~nodiratime"),
    ("rnodiratime", "options~nodiratime", "options~nodiratime"),
    ("rdiratime", "options!~nodiratime", "options!~nodiratime"),
    ("strictatime", "options!~relatime", "options~relatime"),
    ("rstrictatime", "options!~relatime", "options!~relatime"),
    ("rrelatime", "options~relatime", "options~relatime"),
    ("rnosymfollow", "options~nosymfollow", "options~nosymfollow"),
    ("rsymfollow", "options!~nosymfollow", "options!~nosymfollow"),
    ("shared", "propagation=shared", "propagation=private"),
    ("rshared", "propagation=shared", "propagation=shared"),
    ("private", "propagation=private", "propagation=private"),
    (
        "unbindable",
        "propagation=unbindable",
        "propagation=private",
    ),
    (
        "runbindable",
        "propagation=unbindable",
        "propagation=unbindable",
    ),
];

#[test]
fn every_word_for_a_bound_tree() {
    vm_story(async {
        let mut cases: Vec<Case> = BOUND
            .iter()
            .map(|&(word, outer, inner)| {
                let expected = [
                    format!("mount:/mnt:{outer}"),
                    format!("mount:/mnt/pts:{inner}"),
                ];
                let shape = move |c: tests::container::Builder| {
                    c.mount("/mnt", "/dev", "bind", &["rbind", word])
                };
                case(word, shape, &expected.each_ref().map(String::as_str))
            })
            .collect();
        #[rustfmt::skip]
        cases.extend([
            // A slave of what shares with nobody is private.
            case("slave", |c| c.mount("/mnt", "/dev", "bind", &["rbind", "slave"]), &["mount:/mnt:propagation=private"]),
            case("a shared one's slave", |c| c.mount("/mnt", "/dev", "bind", &["rbind", "shared", "slave"]), &["mount:/mnt:propagation!=shared"]),
            case("shared and read-only", |c| c.mount("/mnt", "/dev", "bind", &["rbind", "rro", "rshared"]), &["mount:/mnt:options~ro", "mount:/mnt:propagation=shared", "mount:/mnt/pts:options~ro", "mount:/mnt/pts:propagation=shared"]),
            case("shared for a new file system", |c| c.mount("/mnt", "tmpfs", "tmpfs", &["shared"]), &["mount:/mnt:propagation=shared"]),
        ]);
        tell(&Vm::shared().await, "bound", cases).await;
    });
}
