// SPDX-License-Identifier: Apache-2.0
//! The kernel takes the filters and does what they say, in threads that end with their filter.

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::*;

/// In a thread of its own, under the filter. A thread needs no privilege besides `no_new_privs`, and the others are not touched.
fn under<T: Send + 'static>(profile: LinuxSeccomp, deed: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::spawn(move || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        compile(&profile).unwrap().install().unwrap();
        deed()
    })
    .join()
    .unwrap()
}

fn vsock() -> Result<(), Errno> {
    let flags = SockFlag::empty();
    socket(AddressFamily::Vsock, SockType::Stream, flags, None).map(drop)
}

#[test]
fn defaults_are_taken_and_bite() {
    for profile in [
        docker(),
        defaults::containerd(false),
        defaults::docker(true),
    ] {
        under(profile, || std::fs::read("/proc/self/stat").unwrap());
    }
    let (family, unshared) = under(docker(), || {
        let unshared = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS);
        (vsock(), unshared)
    });
    assert_eq!(family, Err(Errno::EPERM));
    assert_eq!(unshared, Err(Errno::EPERM));
    let seen = under(docker(), || {
        std::fs::read_to_string("/proc/thread-self/status").unwrap()
    });
    assert!(seen.contains("Seccomp:\t2"), "{seen}");
}

fn docker() -> LinuxSeccomp {
    defaults::docker(false)
}

#[test]
fn an_errno_arrives_and_an_argument_decides() {
    let deny = rule(
        &["socket"],
        Word::ScmpActErrno,
        &[arg(0, Operator::ScmpCmpEq, 40, 0)],
    );
    let profile = profile(Word::ScmpActAllow, &[errno(deny, 95)]);
    let (vsock, other) = under(profile, || {
        let flags = SockFlag::empty();
        let other = socket(AddressFamily::Unix, SockType::Stream, flags, None);
        (vsock(), other.map(drop))
    });
    assert_eq!((vsock, other), (Err(Errno::EOPNOTSUPP), Ok(())));
}

#[test]
fn flags_are_taken() {
    let mut profile = docker();
    profile.set_flags(Some(vec![
        Flag::SeccompFilterFlagLog,
        Flag::SeccompFilterFlagSpecAllow,
    ]));
    assert_eq!(under(profile, vsock), Err(Errno::EPERM));
}

/// A filter at the very limit.
#[test]
fn the_longest_filter_is_taken() {
    let deny = |i: u64| arg(0, Operator::ScmpCmpEq, i << 32, 0);
    let rules: Vec<_> = (0..1005)
        .map(|i| rule(&["acct"], Word::ScmpActErrno, &[deny(i)]))
        .collect();
    let mut profile = profile(Word::ScmpActAllow, &rules);
    profile.set_architectures(None);
    let length = compile(&profile).unwrap().filter.len();
    assert!(length > 4000, "{length}");
    under(profile, || ());
}
