// SPDX-License-Identifier: Apache-2.0
//! What Docker and containerd send by default, as of moby 28 and containerd 1.7: names and values are theirs.

use super::*;

/// Calls that both allow whatever their arguments, by stems: `a{b,c}` is `ab` and `ac`.
const ALLOWED: &str = "\
    accept{,4} access adjtimex alarm bind brk cap{get,set} {,f}chdir {,f}chmod {,f,l}chown{,32} clock_adjtime{,64} \
    clock_getres{,_time64} clock_gettime{,64} clock_nanosleep{,_time64} close{,_range} connect copy_file_range creat \
    dup{,2,3} epoll_create{,1} epoll_ctl{,_old} epoll_pwait{,2} epoll_wait{,_old} eventfd{,2} execve{,at} \
    exit{,_group} faccessat{,2} fadvise64{,_64} fallocate fanotify_mark fch{mod,own}at fcntl{,64} fdatasync \
    {,f,l}getxattr {,f,l}listxattr {,f,l}removexattr {,f,l}setxattr {,f,l}stat{,64} {,f}statfs{,64} fstatat64 flock \
    fork fsync {,f}truncate{,64} futex{,_time64,_waitv} futimesat get{cpu,cwd} getdents{,64} get{,e}{g,u}id{,32} \
    getgroups{,32} getitimer getpeername getpgid getpgrp get{p,pp}id getpriority getrandom getres{g,u}id{,32} \
    {get,set}rlimit {get,set}_robust_list getrusage getsid getsockname {get,set}sockopt {get,set}_thread_area gettid \
    gettimeofday inotify_{add_watch,init,init1,rm_watch} io_{cancel,destroy,getevents,setup,submit} \
    io_pgetevents{,_time64} io_uring_{enter,register,setup} ioctl ioprio_{get,set} ipc kill \
    landlock_{add_rule,create_ruleset,restrict_self} link{,at} listen lseek _llseek madvise membarrier \
    memfd_{create,secret} mincore mkdir{,at} mknod{,at} mlock{,2,all} mmap{,2} mprotect mq_{getsetattr,notify,open,unlink} \
    mq_timed{receive,send}{,_time64} mremap msg{ctl,get,rcv,snd} msync munlock{,all} munmap nanosleep newfstatat \
    _newselect open{,at,at2} pause pidfd_{open,send_signal} pipe{,2} poll ppoll{,_time64} prctl p{read,write}64 \
    p{read,write}v{,2} prlimit64 process_mrelease pselect6{,_time64} read readahead readlink{,at} readv \
    recv{,from,mmsg,mmsg_time64,msg} remap_file_pages rename{,at,at2} restart_syscall rmdir rseq \
    rt_sig{action,pending,procmask,queueinfo,return,suspend} rt_sigtimedwait{,_time64} rt_tgsigqueueinfo \
    sched_get{affinity,attr,param,scheduler,_priority_max,_priority_min} sched_set{affinity,attr,param,scheduler} \
    sched_rr_get_interval{,_time64} sched_yield seccomp select sem{ctl,get,op} semtimedop{,_time64} \
    send{,file,file64,mmsg,msg,to} setfs{g,u}id{,32} set{g,u}id{,32} setgroups{,32} setitimer setpgid setpriority \
    setre{,s}{g,u}id{,32} setsid set_tid_address shm{at,ctl,dt,get} shutdown sigaltstack signalfd{,4} \
    sig{procmask,return} socket{call,pair} splice statx symlink{,at} sync{,fs,_file_range} sysinfo tee {t,tg}kill time \
    timer_{create,delete,getoverrun} timer_{get,set}time{,64} timerfd_create timerfd_{get,set}time{,64} times ugetrlimit \
    umask uname unlink{,at} utime{,s} utimensat{,_time64} vfork vmsplice wait{4,id,pid} write{,v} ptrace \
    arch_prctl modify_ldt arm_{fadvise64_64,sync_file_range} sync_file_range2 breakpoint cacheflush set_tls";

/// What Docker allows besides.
const DOCKER: &str = "name_to_handle_at pkey_{alloc,free,mprotect} process_vm_{read,write}v";

/// With CAP_SYS_ADMIN.
const ADMIN: &str = "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr \
    move_mount name_to_handle_at open_tree perf_event_open quotactl{,_fd} setdomainname sethostname setns syslog \
    umount{,2} unshare";

/// CLONE_NEW* but NEWTIME.
const NAMESPACES: u64 = 0x7e02_0000;

fn expand(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let mut all = vec![String::new()];
        let mut rest = word;
        while let Some((stem, (group, after))) = rest
            .split_once('{')
            .and_then(|(stem, tail)| Some((stem, tail.split_once('}')?)))
        {
            let add = |base: &String| -> Vec<String> {
                group
                    .split(',')
                    .map(|end| format!("{base}{stem}{end}"))
                    .collect()
            };
            all = all.iter().flat_map(add).collect();
            rest = after;
        }
        words.extend(all.into_iter().map(|base| base + rest));
    }
    words
}

fn allow(text: &str) -> LinuxSyscall {
    let names = expand(text);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    rule(&names, Word::ScmpActAllow, &[])
}

fn allow_if(name: &str, op: Operator, value: u64) -> LinuxSyscall {
    rule(&[name], Word::ScmpActAllow, &[arg(0, op, value, 0)])
}

fn default_profile(rules: Vec<LinuxSyscall>, admin: bool) -> LinuxSeccomp {
    let mut rules = rules;
    for value in [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        rules.push(allow_if("personality", Operator::ScmpCmpEq, value));
    }
    if admin {
        rules.push(allow(ADMIN));
    } else {
        rules.push(allow_if("clone", Operator::ScmpCmpMaskedEq, NAMESPACES));
        rules.push(errno(rule(&["clone3"], Word::ScmpActErrno, &[]), 38));
    }
    let mut profile = profile(Word::ScmpActErrno, &rules);
    profile.set_architectures(Some(vec![
        Arch::ScmpArchX86_64,
        Arch::ScmpArchX86,
        Arch::ScmpArchX32,
        Arch::ScmpArchAarch64,
        Arch::ScmpArchArm,
    ]));
    profile
}

pub fn docker(admin: bool) -> LinuxSeccomp {
    let vsock = allow_if("socket", Operator::ScmpCmpNe, 40);
    default_profile(vec![allow(ALLOWED), allow(DOCKER), vsock], admin)
}

pub fn containerd(admin: bool) -> LinuxSeccomp {
    default_profile(vec![allow(ALLOWED), allow("socket")], admin)
}

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;

#[test]
fn stems_are_expanded() {
    assert_eq!(expand("a{,b}c{1,2} d"), ["ac1", "ac2", "abc1", "abc2", "d"]);
    assert_eq!(expand(ALLOWED).len() + expand(DOCKER).len(), 360);
}

#[test]
fn well_known_decisions() {
    for machine in MACHINES {
        for profile in [docker(false), containerd(false)] {
            let program = compile_for(&profile, machine).unwrap();
            interpreter::check(&program.filter);
            for abi in [machine.native(), machine.compat()] {
                let said = |name, args: &[u64]| answer(&program, abi, name, args);
                for name in ["read", "execve", "openat", "futex", "exit_group", "seccomp"] {
                    assert_eq!(said(name, &[u64::MAX; 6]), ALLOW, "{name}");
                }
                for name in [
                    "bpf",
                    "mount",
                    "unshare",
                    "setns",
                    "reboot",
                    "kexec_load",
                    "init_module",
                    "keyctl",
                    "syslog",
                ] {
                    assert_eq!(said(name, &[]), EPERM, "{name}");
                }
                assert_eq!(said("clone3", &[]), ENOSYS);
                assert_eq!(said("clone", &[0x0100_0011]), ALLOW);
                for namespace in [
                    0x0002_0000,
                    0x0200_0000,
                    0x1000_0000,
                    0x2000_0000,
                    0x4000_0000,
                ] {
                    assert_eq!(said("clone", &[0x11 | namespace]), EPERM, "{namespace:#x}");
                }
                for (value, wanted) in [
                    (0, ALLOW),
                    (8, ALLOW),
                    (0x2_0008, ALLOW),
                    (0xffff_ffff, ALLOW),
                    (0x0040_0000, EPERM),
                ] {
                    assert_eq!(said("personality", &[value]), wanted, "{value:#x}");
                }
            }
        }
    }
}

#[test]
fn docker_keeps_vsock_and_containerd_does_not() {
    for machine in MACHINES {
        for abi in [machine.native(), machine.compat()] {
            let said = |profile, family| {
                answer(
                    &compile_for(&profile, machine).unwrap(),
                    abi,
                    "socket",
                    &[family],
                )
            };
            assert_eq!(
                [said(docker(false), 40), said(docker(false), 2)],
                [EPERM, ALLOW]
            );
            assert_eq!(
                [said(containerd(false), 40), said(containerd(false), 2)],
                [ALLOW, ALLOW]
            );
        }
    }
}

#[test]
fn capabilities_open_what_they_open() {
    for machine in MACHINES {
        let program = compile_for(&docker(true), machine).unwrap();
        for name in ["bpf", "mount", "clone3", "unshare"] {
            assert_eq!(
                answer(&program, machine.native(), name, &[]),
                ALLOW,
                "{name}"
            );
        }
        assert_eq!(
            answer(&program, machine.native(), "clone", &[0x1000_0000]),
            ALLOW
        );
    }
}

/// Half of what a linear list would take at least, and an answer after a dozen steps instead of hundreds.
#[test]
fn defaults_are_short_and_quick() {
    for machine in MACHINES {
        for profile in [docker(false), containerd(false), docker(true)] {
            let program = compile_for(&profile, machine).unwrap();
            assert!(program.filter.len() < 300, "{}", program.filter.len());
            let steps = |abi: &'static Abi| {
                let all = (0..600).chain([0x4000_0000, u32::MAX]);
                all.map(|number| {
                    let asked = Asked {
                        number,
                        token: abi.token,
                        args: [u64::MAX; 6],
                    };
                    interpreter::run(&program.filter, &asked).1
                })
            };
            let most = steps(machine.native()).chain(steps(machine.compat())).max();
            assert!(most.unwrap() <= 28, "{most:?}");
            let mean = steps(machine.native()).sum::<usize>() / 602;
            assert!(mean <= 12, "{mean}");
            println!(
                "{machine:?}: {} instructions, mean {mean}, most {most:?}",
                program.filter.len()
            );
        }
    }
}
