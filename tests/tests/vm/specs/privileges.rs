// SPDX-License-Identifier: Apache-2.0
//! Users and groups, capabilities, `no_new_privs`.

use protocols::oci;
use tests::container::Builder;
use tests::{Vm, spec, vm_story};

use super::{Case, case, exec_case, tell};

/// The capabilities of an ordinary container in the order of their numbers.
const DEFAULT: &str = "CAP_CHOWN,CAP_DAC_OVERRIDE,CAP_FOWNER,CAP_FSETID,CAP_KILL,CAP_SETGID,CAP_SETUID,CAP_SETPCAP,\
    CAP_NET_BIND_SERVICE,CAP_NET_RAW,CAP_SYS_CHROOT,CAP_MKNOD,CAP_AUDIT_WRITE,CAP_SETFCAP";

fn user(process: &mut oci::Process, uid: u32, gid: u32, groups: &[u32]) {
    let user = process.User.mut_or_insert_default();
    (user.UID, user.GID) = (uid, gid);
    user.AdditionalGids = groups.to_vec();
}

/// Sets of capabilities, by their first letters.
fn sets(process: &mut oci::Process, sets: &str, names: &[&str]) {
    let caps = process.Capabilities.mut_or_insert_default();
    let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
    for set in sets.chars() {
        let target = match set {
            'b' => &mut caps.Bounding,
            'e' => &mut caps.Effective,
            'p' => &mut caps.Permitted,
            'i' => &mut caps.Inheritable,
            'a' => &mut caps.Ambient,
            other => panic!("no capability set begins with {other}"),
        };
        target.clone_from(&names);
    }
}

fn only(process: &mut oci::Process, which: &str, names: &[&str]) {
    process.Capabilities = Some(oci::LinuxCapabilities::new()).into();
    sets(process, which, names);
}

#[test]
fn users_and_groups() {
    vm_story(async {
        let groups: Vec<u32> = (1..=40).collect();
        let all = (1..=40)
            .map(|g: u32| g.to_string())
            .collect::<Vec<_>>()
            .join(",");
        #[rustfmt::skip]
        let cases = vec![
            case("root, as an ordinary container", |c| c, &["uid=0", "euid=0", "gid=0", "egid=0", "groups=", "umask=022", "env:HOME=/root"]),
            case("a user", |c| c.process(|p| user(p, 1000, 1000, &[])), &["uid=1000", "euid=1000", "gid=1000", "egid=1000", "groups=", "env:HOME=/home"]),
            case("a user with groups", |c| c.process(|p| user(p, 1000, 1001, &[1002, 5])), &["uid=1000", "gid=1001", "groups=5,1002"]),
            case("a user that no file knows", |c| c.process(|p| user(p, 4_000_000, 4_000_001, &[])), &["uid=4000000", "gid=4000001", "env:HOME=/"]),
            case("root with another group", |c| c.process(|p| user(p, 0, 7, &[8])), &["uid=0", "gid=7", "groups=8"]),
            case("more groups than fit on a line", move |c| c.process(move |p| user(p, 1, 1, &groups)), &[&format!("groups={all}")]),
            case("a user id that is none", |c| c.process(|p| user(p, u32::MAX, 0, &[])), &["refused"]),
            exec_case("another user in a container of root's", |c| c, |e| e.process(|p| user(p, 1000, 1001, &[6])), &["uid=1000", "gid=1001", "groups=6", "cap:effective=", "umask=022"]),
            exec_case("root in a container of a user's", |c| c.process(|p| user(p, 1000, 1001, &[6])), |e| e, &["uid=0", "gid=0", "groups=", "umask=022"]),
        ];
        tell(&Vm::shared().await, "users", cases).await;
    });
}

/// The first argument of an ambient case: whose it is.
fn ambient(name: &str, uid: u32, inheritable: &[&str], expected: &[&str]) -> Case {
    let inheritable: Vec<String> = inheritable.iter().map(|&n| n.to_owned()).collect();
    let shape = move |c: Builder| {
        c.process(move |p| {
            user(p, uid, 0, &[]);
            sets(p, "a", &["CAP_KILL"]);
            p.Capabilities.mut_or_insert_default().Inheritable = inheritable;
        })
    };
    case(name, shape, expected)
}

#[test]
fn capability_sets() {
    vm_story(async {
        let default = |set: &str| format!("cap:{set}={DEFAULT}");
        #[rustfmt::skip]
        let cases = vec![
            case("the default ones", |c| c, &[&default("bounding"), &default("effective"), &default("permitted"), "cap:inheritable=", "cap:ambient="]),
            case("none", |c| c.capabilities(&[]), &["cap:bounding=", "cap:effective=", "cap:permitted=", "cap:inheritable=", "cap:ambient="]),
            case("no capabilities at all in the request", |c| c.process(|p| p.Capabilities.clear()), &["cap:bounding=", "cap:effective=", "cap:permitted=", "cap:ambient="]),
            case("all", |c| c.capabilities(&spec::ALL_CAPABILITIES), &["cap:bounding~CAP_CHECKPOINT_RESTORE", "cap:effective~CAP_SYS_ADMIN", "cap:permitted~CAP_CHOWN"]),
            case("one", |c| c.capabilities(&["CAP_SYS_ADMIN"]), &["cap:bounding=CAP_SYS_ADMIN", "cap:effective=CAP_SYS_ADMIN", "cap:permitted=CAP_SYS_ADMIN"]),
            case("names without their prefix", |c| c.capabilities(&["KILL", "CHOWN"]), &["cap:effective=CAP_CHOWN,CAP_KILL"]),
            case("a name that nobody knows", |c| c.capabilities(&["CAP_FLY"]), &["refused~INVALID_ARGUMENT"]),
            case("bounding only, no new privileges", |c| c.process(|p| only(p, "b", &["CAP_KILL"])), &["cap:bounding=CAP_KILL", "cap:effective=", "cap:permitted="]),
            // Execution gives root all of the bounding set unless new privileges are ruled out.
            case("bounding only", |c| c.process(|p| { only(p, "b", &["CAP_KILL"]); p.NoNewPrivileges = false }), &["cap:bounding=CAP_KILL", "cap:effective=CAP_KILL"]),
            case("more bounding than permitted", |c| c.process(|p| { only(p, "b", &["CAP_KILL", "CAP_CHOWN"]); sets(p, "pe", &["CAP_KILL"]) }), &["cap:bounding=CAP_CHOWN,CAP_KILL", "cap:permitted=CAP_KILL"]),
            case("inheritable", |c| c.process(|p| sets(p, "i", &["CAP_KILL"])), &["cap:inheritable=CAP_KILL", &default("permitted")]),
            case("a user has them bounding only", |c| c.process(|p| user(p, 1000, 0, &[])), &[&default("bounding"), "cap:effective=", "cap:permitted=", "cap:ambient="]),
            ambient("ambient for a user", 1000, &["CAP_KILL"], &["cap:ambient=CAP_KILL", "cap:effective=CAP_KILL", "cap:permitted=CAP_KILL", "cap:inheritable=CAP_KILL"]),
            ambient("ambient for root", 0, &["CAP_KILL"], &["cap:ambient=CAP_KILL", &default("effective")]),
            ambient("ambient that is not inheritable", 1000, &[], &["cap:ambient=", "cap:effective="]),
            exec_case("a process with fewer", |c| c, |e| e.process(|p| only(p, "bpe", &["CAP_KILL"])), &["cap:bounding=CAP_KILL", "cap:effective=CAP_KILL", "cap:permitted=CAP_KILL"]),
            exec_case("a process that says none has the container's", |c| c.capabilities(&["CAP_KILL"]), |e| e.process(|p| p.Capabilities.clear()), &["cap:bounding=CAP_KILL", "cap:effective=CAP_KILL"]),
            exec_case("a process with more", |c| c.capabilities(&[]), |e| e.process(|p| only(p, "bpe", &["CAP_SYS_ADMIN"])), &["cap:effective=CAP_SYS_ADMIN"]),
            exec_case("a user's process with an ambient one", |c| c, |e| e.process(|p| { user(p, 1000, 0, &[]); only(p, "bpeia", &["CAP_KILL"]) }), &["cap:ambient=CAP_KILL", "cap:effective=CAP_KILL"]),
        ];
        tell(&Vm::shared().await, "capabilities", cases).await;
    });
}

#[test]
fn privileges() {
    vm_story(async {
        #[rustfmt::skip]
        let cases = vec![
            case("no new privileges", |c| c.process(|p| p.NoNewPrivileges = true), &["no_new_privs=true"]),
            case("new privileges", |c| c.process(|p| p.NoNewPrivileges = false), &["no_new_privs=false"]),
            exec_case("a process without new privileges", |c| c.process(|p| p.NoNewPrivileges = false), |e| e.process(|p| p.NoNewPrivileges = true), &["no_new_privs=true"]),
            exec_case("a process with new privileges", |c| c, |e| e.process(|p| p.NoNewPrivileges = false), &["no_new_privs=false"]),
            case("nothing is left of how it was made", |c| c, &["seccomp=0", "securebits=0x0", "parent_death_signal=0", "signals:blocked="]),
            exec_case("nor of how a process was", |c| c, |e| e, &["seccomp=0", "securebits=0x0", "parent_death_signal=0", "signals:blocked="]),
        ];
        tell(&Vm::shared().await, "privileges", cases).await;
    });
}
