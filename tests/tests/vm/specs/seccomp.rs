// SPDX-License-Identifier: Apache-2.0
//! Filters of system calls: every action, every comparison, a list of what is allowed.

use protocols::oci;
use tests::container::Builder;
use tests::{Vm, spec, vm_story};

use super::{Case, case, exec_case, tell};

/// A system call that neither the probe nor its C library makes by itself.
const CALL: &str = "getcpu";

fn rule(names: &[&str], action: &str, errno: Option<u32>) -> oci::LinuxSyscall {
    let mut rule = oci::LinuxSyscall::new();
    rule.Names = names.iter().map(|&n| n.to_owned()).collect();
    rule.Action = action.to_owned();
    rule.ErrnoRet = errno.map(oci::linux_syscall::ErrnoRet::Errnoret);
    rule
}

fn profile(default: &str, rules: Vec<oci::LinuxSyscall>) -> oci::LinuxSeccomp {
    let mut profile = oci::LinuxSeccomp::new();
    profile.DefaultAction = default.to_owned();
    profile.Syscalls = rules;
    profile
}

fn filter(profile: oci::LinuxSeccomp) -> impl FnOnce(Builder) -> Builder + Send + 'static {
    move |c| c.linux(|l| l.Seccomp = Some(profile).into())
}

/// Everything is allowed but [`CALL`], which the probe makes.
fn on_call(
    action: &'static str,
    errno: Option<u32>,
    program: &'static str,
) -> impl FnOnce(Builder) -> Builder + Send + 'static {
    let profile = profile("SCMP_ACT_ALLOW", vec![rule(&[CALL], action, errno)]);
    move |c| filter(profile)(c).args(&["probe", program, CALL, "0", "0", "0"])
}

/// What a small static program needs, on either architecture.
const ALLOWED: [&str; 66] = [
    "arch_prctl",
    "brk",
    "capget",
    "clock_gettime",
    "clone",
    "close",
    "dup",
    "dup2",
    "dup3",
    "execve",
    "exit",
    "exit_group",
    "faccessat",
    "fchdir",
    "fcntl",
    "fstat",
    "fstatfs",
    "futex",
    "getcwd",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getgroups",
    "getpgid",
    "getpgrp",
    "getpid",
    "getppid",
    "getpriority",
    "getrandom",
    "getrlimit",
    "getsid",
    "gettid",
    "getuid",
    "ioctl",
    "lseek",
    "lstat",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "newfstatat",
    "no_such_system_call",
    "open",
    "openat",
    "poll",
    "ppoll",
    "prctl",
    "prlimit64",
    "read",
    "readlink",
    "readlinkat",
    "readv",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "set_tid_address",
    "sigaltstack",
    "stat",
    "statx",
    "umask",
    "uname",
    "write",
    "writev",
];

fn allow_list(default: &str) -> oci::LinuxSeccomp {
    profile(default, vec![rule(&ALLOWED, "SCMP_ACT_ALLOW", None)])
}

#[test]
fn every_action() {
    vm_story(async {
        let both = ["seccomp=2", "seccomp_filters=1"];
        let with_flags = |flags: &[&str]| {
            let mut profile = profile(
                "SCMP_ACT_ALLOW",
                vec![rule(&[CALL], "SCMP_ACT_ERRNO", None)],
            );
            profile.Flags = flags.iter().map(|&f| f.to_owned()).collect();
            profile.Architectures = [
                "SCMP_ARCH_X86_64",
                "SCMP_ARCH_X86",
                "SCMP_ARCH_X32",
                "SCMP_ARCH_AARCH64",
                "SCMP_ARCH_ARM",
            ]
            .map(str::to_owned)
            .to_vec();
            filter(profile)
        };
        #[rustfmt::skip]
        let cases = vec![
            case("no filter", |c| c, &["seccomp=0", "seccomp_filters=0"]),
            case("a filter", filter(profile("SCMP_ACT_ALLOW", vec![rule(&[CALL], "SCMP_ACT_ERRNO", None)])), &both),
            case("a filter with new privileges", |c| filter(profile("SCMP_ACT_ALLOW", vec![rule(&[CALL], "SCMP_ACT_ERRNO", None)]))(c).process(|p| p.NoNewPrivileges = false), &["seccomp=2", "no_new_privs=false", "cap:effective~CAP_KILL", "cap:effective!~CAP_SYS_ADMIN"]),
            case("a user's filter with new privileges", |c| filter(profile("SCMP_ACT_ALLOW", vec![rule(&[CALL], "SCMP_ACT_ERRNO", None)]))(c).process(|p| { p.NoNewPrivileges = false; p.User.mut_or_insert_default().UID = 1000 }), &["seccomp=2", "uid=1000", "cap:effective="]),
            case("the call without a filter", |c| c.args(&["probe", "syscall", CALL, "0", "0", "0"]), &["result=0"]),
            case("allow", on_call("SCMP_ACT_ALLOW", None, "syscall"), &["result=0"]),
            case("an error", on_call("SCMP_ACT_ERRNO", None, "syscall"), &["errno=EPERM"]),
            case("a certain error", on_call("SCMP_ACT_ERRNO", Some(13), "syscall"), &["errno=EACCES"]),
            case("the error of a kernel without it", on_call("SCMP_ACT_ERRNO", Some(38), "syscall"), &["errno=ENOSYS"]),
            case("no error at all", on_call("SCMP_ACT_ERRNO", Some(0), "syscall"), &["result=0"]),
            case("an error beyond all errors", on_call("SCMP_ACT_ERRNO", Some(70_000), "syscall"), &["refused~INVALID_ARGUMENT"]),
            case("the end of the process", on_call("SCMP_ACT_KILL_PROCESS", None, "syscall"), &["exit=159", "!result", "!errno"]),
            case("the end", on_call("SCMP_ACT_KILL", None, "syscall"), &["exit=159", "!result", "!errno"]),
            case("the end of the thread", on_call("SCMP_ACT_KILL_THREAD", None, "syscall"), &["exit=159", "!result", "!errno"]),
            case("no handler for the end", on_call("SCMP_ACT_KILL_PROCESS", None, "catch"), &["exit=159", "!caught"]),
            case("a signal", on_call("SCMP_ACT_TRAP", None, "syscall"), &["exit=159", "!result"]),
            case("a signal, caught", on_call("SCMP_ACT_TRAP", None, "catch"), &["caught=31"]),
            case("a line in the log", on_call("SCMP_ACT_LOG", None, "syscall"), &["result=0"]),
            case("a tracer that is not there", on_call("SCMP_ACT_TRACE", None, "syscall"), &["errno=ENOSYS"]),
            case("an action that is none", on_call("SCMP_ACT_MAYBE", None, "syscall"), &["refused~INVALID_ARGUMENT"]),
            case("flags and architectures", with_flags(&["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"]), &both),
            case("a flag that is none", with_flags(&["SECCOMP_FILTER_FLAG_FUN"]), &["refused~INVALID_ARGUMENT"]),
            exec_case("the container's filter for a process", on_call("SCMP_ACT_ERRNO", Some(13), "syscall"), |e| e.process(|p| p.Args = ["probe", "syscall", CALL, "0", "0", "0"].map(str::to_owned).to_vec()), &["errno=EACCES"]),
            exec_case("once, not twice", on_call("SCMP_ACT_ERRNO", None, "syscall"), |e| e, &both),
            exec_case("for a process with new privileges", on_call("SCMP_ACT_ERRNO", None, "syscall"), |e| e.process(|p| p.NoNewPrivileges = false), &["seccomp=2", "no_new_privs=false"]),
        ];
        tell(&Vm::shared().await, "seccomp", cases).await;
    });
}

#[test]
fn lists_of_what_is_allowed() {
    vm_story(async {
        let listed = |default: &'static str, args: &'static [&'static str]| {
            move |c: Builder| filter(allow_list(default))(c).args(args)
        };
        #[rustfmt::skip]
        let cases = vec![
            case("what is listed", listed("SCMP_ACT_ERRNO", &["probe", "facts"]), &["seccomp=2", "uid=0", "fds=0,1,2"]),
            case("what is not", listed("SCMP_ACT_ERRNO", &["probe", "syscall", CALL, "0", "0", "0"]), &["errno=EPERM"]),
            case("what no table knows", listed("SCMP_ACT_ERRNO", &["probe", "syscall", "900"]), &["errno=EPERM"]),
            case("what is not, and ends it", listed("SCMP_ACT_KILL_PROCESS", &["probe", "syscall", CALL, "0", "0", "0"]), &["exit=159"]),
            case("what no table knows, and ends it", listed("SCMP_ACT_KILL_PROCESS", &["probe", "syscall", "900"]), &["exit=159"]),
            case("with new privileges", move |c| listed("SCMP_ACT_ERRNO", &["probe", "facts"])(c).process(|p| p.NoNewPrivileges = false), &["seccomp=2", "no_new_privs=false", "cap:effective~CAP_KILL"]),
            case("a terminal under it", move |c| listed("SCMP_ACT_ERRNO", &["probe", "facts"])(c).tty(), &["seccomp=2", "tty=true"]),
            exec_case("a process under it", |c| filter(allow_list("SCMP_ACT_LOG"))(c), |e| e, &["seccomp=2", "fds=0,1,2"]),
        ];
        tell(&Vm::shared().await, "allowed", cases).await;
    });
}

/// A comparison of an argument: operator, first and second value, the argument, and whether the rule is met.
const COMPARISONS: [(&str, u64, u64, &str, bool); 18] = [
    ("EQ", 5, 0, "5", true),
    ("EQ", 5, 0, "6", false),
    ("EQ", 5, 0, "0x100000005", false),
    ("EQ", 0x1_0000_0005, 0, "0x100000005", true),
    ("NE", 5, 0, "5", false),
    ("NE", 5, 0, "6", true),
    ("NE", 5, 0, "0x100000005", true),
    ("LT", 5, 0, "4", true),
    ("LT", 5, 0, "5", false),
    ("LE", 5, 0, "5", true),
    ("LE", 5, 0, "0x100000000", false),
    ("GT", 5, 0, "5", false),
    ("GT", 5, 0, "0x100000000", true),
    ("GE", 5, 0, "5", true),
    ("GE", 5, 0, "4", false),
    ("GE", u64::MAX, 0, "-1", true),
    ("MASKED_EQ", 0xf0, 0x20, "0x2f", true),
    ("MASKED_EQ", 0xf0, 0x20, "0x3f", false),
];

#[test]
fn comparisons_of_arguments() {
    vm_story(async {
        let cases: Vec<Case> = COMPARISONS
            .iter()
            .map(|&(operator, value, second, argument, met)| {
                let mut rule = rule(&[CALL], "SCMP_ACT_ERRNO", Some(13));
                let mut compared = oci::LinuxSeccompArg::new();
                // The third argument, which this call takes no notice of.
                compared.Index = 2;
                compared.Op = format!("SCMP_CMP_{operator}");
                (compared.Value, compared.ValueTwo) = (value, second);
                rule.Args = vec![compared];
                let shape = filter(profile("SCMP_ACT_ALLOW", vec![rule]));
                let shape = move |c: Builder| {
                    shape(c).args(&["probe", "syscall", CALL, "0", "0", argument])
                };
                let expected = if met { "errno=EACCES" } else { "result=0" };
                case(
                    format!("{argument} {operator} {value} {second}"),
                    shape,
                    &[expected],
                )
            })
            .collect();
        tell(&Vm::shared().await, "compared", cases).await;
    });
}

/// What the filter forbids is forbidden to one who could do it otherwise.
#[test]
fn a_filter_binds_the_powerful() {
    vm_story(async {
        let powerful = |c: Builder| {
            c.capabilities(&spec::ALL_CAPABILITIES)
                .args(&["probe", "syscall", "umount2", "/dev/shm", "2"])
        };
        let forbidden = profile(
            "SCMP_ACT_ALLOW",
            vec![rule(&["umount2"], "SCMP_ACT_ERRNO", None)],
        );
        #[rustfmt::skip]
        let cases = vec![
            case("without it", powerful, &["result=0"]),
            case("with it", move |c| powerful(filter(forbidden)(c)), &["errno=EPERM"]),
        ];
        tell(&Vm::shared().await, "powerful", cases).await;
    });
}
