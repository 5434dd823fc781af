// SPDX-License-Identifier: Apache-2.0
//! Resource limits, the out-of-memory score, arguments, environment, working directory, signals, descriptors: what a process is born with.

use protocols::oci;
use tests::{Vm, vm_story};

use super::{Case, case, exec_case, tell};

/// Every kind with a soft and a hard limit under which the probe still runs.
const KINDS: [(&str, u64, u64); 16] = [
    ("AS", 1 << 30, 2 << 30),
    ("CORE", 0, 4096),
    ("CPU", 100, 200),
    ("DATA", 1 << 30, 2 << 30),
    ("FSIZE", 1_000_000, 2_000_000),
    ("LOCKS", 10, 20),
    ("MEMLOCK", 65_536, 131_072),
    ("MSGQUEUE", 1000, 2000),
    ("NICE", 5, 10),
    ("NOFILE", 123, 456),
    ("NPROC", 1000, 2000),
    ("RSS", 1 << 30, 2 << 30),
    ("RTPRIO", 1, 2),
    ("RTTIME", 1_000_000, 2_000_000),
    ("SIGPENDING", 50, 60),
    ("STACK", 4 << 20, 16 << 20),
];

/// What the wire has for no limit.
const INFINITY: u64 = u64::MAX;

fn limit(process: &mut oci::Process, kind: &str, soft: u64, hard: u64) {
    let mut limit = oci::POSIXRlimit::new();
    limit.Type = kind.to_owned();
    (limit.Soft, limit.Hard) = (soft, hard);
    process.Rlimits.push(limit);
}

#[test]
fn resource_limits() {
    vm_story(async {
        let mut cases: Vec<Case> = KINDS
            .into_iter()
            .map(|(kind, soft, hard)| {
                let name = format!("RLIMIT_{kind}");
                let expected = format!("rlimit:{kind}={soft}:{hard}");
                let word = name.clone();
                case(
                    name,
                    move |c| c.process(|p| limit(p, &word, soft, hard)),
                    &[&expected],
                )
            })
            .collect();
        #[rustfmt::skip]
        cases.extend([
            case("no limit", |c| c.process(|p| limit(p, "RLIMIT_STACK", INFINITY, INFINITY)), &["rlimit:STACK=infinity:infinity"]),
            case("a hard limit of none", |c| c.process(|p| limit(p, "RLIMIT_CORE", 5, INFINITY)), &["rlimit:CORE=5:infinity"]),
            case("above the agent's own", |c| c.process(|p| limit(p, "RLIMIT_NICE", 40, 40)), &["rlimit:NICE=40:40"]),
            case("several", |c| c.process(|p| { limit(p, "RLIMIT_CORE", 1, 2); limit(p, "RLIMIT_NOFILE", 30, 40) }), &["rlimit:CORE=1:2", "rlimit:NOFILE=30:40"]),
            case("a soft limit above the hard one", |c| c.process(|p| limit(p, "RLIMIT_CORE", 2, 1)), &["refused~INVALID_ARGUMENT"]),
            case("more descriptors than a kernel gives", |c| c.process(|p| limit(p, "RLIMIT_NOFILE", INFINITY, INFINITY)), &["refused"]),
            case("a kind that is none", |c| c.process(|p| limit(p, "RLIMIT_FUN", 1, 1)), &["refused~INVALID_ARGUMENT"]),
            exec_case("a process's own", |c| c.process(|p| limit(p, "RLIMIT_NOFILE", 50, 60)), |e| e.process(|p| limit(p, "RLIMIT_NOFILE", 70, 80)), &["rlimit:NOFILE=70:80"]),
            exec_case("no limit for a process", |c| c, |e| e.process(|p| limit(p, "RLIMIT_CORE", INFINITY, INFINITY)), &["rlimit:CORE=infinity:infinity"]),
        ]);
        tell(&Vm::shared().await, "rlimits", cases).await;
    });
}

#[test]
fn scores_and_priorities() {
    vm_story(async {
        #[rustfmt::skip]
        let cases = vec![
            case("no score is nobody's protection", |c| c, &["oom_score_adj=0", "nice=0", "policy=0"]),
            case("a score", |c| c.process(|p| p.OOMScoreAdj = 77), &["oom_score_adj=77"]),
            case("the worst score", |c| c.process(|p| p.OOMScoreAdj = 1000), &["oom_score_adj=1000"]),
            case("a score of the protected", |c| c.process(|p| p.OOMScoreAdj = -500), &["oom_score_adj=-500"]),
            case("a score that is none", |c| c.process(|p| p.OOMScoreAdj = 1001), &["refused~INVALID_ARGUMENT"]),
            exec_case("a process's own score", |c| c.process(|p| p.OOMScoreAdj = 5), |e| e.process(|p| p.OOMScoreAdj = 6), &["oom_score_adj=6", "nice=0", "policy=0"]),
            exec_case("a process without a score", |c| c.process(|p| p.OOMScoreAdj = 5), |e| e, &["oom_score_adj=0"]),
        ];
        tell(&Vm::shared().await, "scores", cases).await;
    });
}

fn env(process: &mut oci::Process, entries: &[&str]) {
    process.Env = entries.iter().map(|&e| e.to_owned()).collect();
}

#[test]
fn arguments_environment_and_directory() {
    vm_story(async {
        let cwd = |at: &'static str| move |p: &mut oci::Process| p.Cwd = at.to_owned();
        #[rustfmt::skip]
        let cases = vec![
            case("arguments", |c| c.args(&["/bin/probe", "facts"]), &["args=/bin/probe facts"]),
            case("a program by the search path", |c| c.args(&["probe", "facts"]), &["args=probe facts"]),
            case("a program that is not there", |c| c.args(&["no-such-program"]), &["refused"]),
            case("a program that is a directory", |c| c.args(&["/etc"]), &["refused"]),
            case("no program", |c| c.args(&[]), &["refused~INVALID_ARGUMENT"]),
            case("an environment", |c| c.process(|p| env(p, &["PATH=/bin", "A=1=2", "EMPTY=", "HOME=/x"])), &["env=PATH,A,EMPTY,HOME", "env:A=1=2", "env:EMPTY=", "env:HOME=/x"]),
            case("entries that assign nothing", |c| c.process(|p| env(p, &["PATH=/bin", "NOTHING", "=x"])), &["env=PATH,HOME"]),
            case("an environment of many lines", |c| c.process(|p| env(p, &["PATH=/bin", "TEXT=a\nb"])), &["env:TEXT=a\\nb"]),
            case("a working directory", move |c| c.process(cwd("/tmp")), &["cwd=/tmp"]),
            case("a working directory to be made", move |c| c.process(cwd("/tmp/made/up")), &["cwd=/tmp/made/up"]),
            case("no working directory", move |c| c.process(cwd("")), &["cwd=/"]),
            case("a relative working directory", move |c| c.process(cwd("tmp")), &["refused~INVALID_ARGUMENT"]),
            case("a file for a working directory", move |c| c.process(cwd("/etc/passwd")), &["refused"]),
            exec_case("a process's working directory", |c| c, |e| e.process(|p| p.Cwd = "/tmp".to_owned()), &["cwd=/tmp"]),
            exec_case("a process's working directory is not made", |c| c, |e| e.process(|p| p.Cwd = "/tmp/not/made".to_owned()), &["refused"]),
            exec_case("a process's environment", |c| c.env("OTHERS=1"), |e| e.process(|p| env(p, &["PATH=/bin", "OWN=1"])), &["env=PATH,OWN,HOME"]),
        ];
        tell(&Vm::shared().await, "arguments", cases).await;
    });
}

#[test]
fn sessions_signals_and_descriptors() {
    vm_story(async {
        // The probe ignores SIGPIPE by itself, a shell SIGQUIT; sed ignores nothing.
        let masks = [
            "sed",
            "-n",
            "s/^Sig\\(Blk\\|Ign\\):\\t/\\1=/p",
            "/proc/self/status",
        ];
        let none = ["Blk=0000000000000000", "Ign=0000000000000000"];
        #[rustfmt::skip]
        let cases = vec![
            case("the first process", |c| c, &["pid=1", "ppid=0", "pgid=1", "sid=1", "fds=0,1,2", "fd:0"]),
            case("no terminal", |c| c, &["tty=false", "tty:controlling=false", "!dev:/dev/console"]),
            case("signals", move |c| c.args(&masks), &none),
            exec_case("a process has no other descriptors", |c| c, |e| e, &["fds=0,1,2", "ppid=0", "tty=false", "tty:controlling=false"]),
            exec_case("a process's signals", |c| c, move |e| e.process(|p| p.Args = masks.map(str::to_owned).to_vec()), &none),
        ];
        tell(&Vm::shared().await, "descriptors", cases).await;
    });
}

fn console(process: &mut oci::Process, rows: u32, columns: u32) {
    process.Terminal = true;
    let size = process.ConsoleSize.mut_or_insert_default();
    (size.Height, size.Width) = (rows, columns);
}

#[test]
fn terminals() {
    vm_story(async {
        #[rustfmt::skip]
        let cases = vec![
            case("a terminal", |c| c.tty(), &["tty=true", "tty:controlling=true", "tty:name=/dev/pts/0", "tty:sid=1", "tty:pgid=1", "fds=0,1,2", "dev:/dev/console"]),
            case("a terminal of a size", |c| c.process(|p| console(p, 24, 80)), &["tty:size=24x80"]),
            case("a terminal of a size beyond all terminals", |c| c.process(|p| console(p, 70_000, 80)), &["tty:size=65535x80"]),
            case("a user's terminal", |c| c.tty().process(|p| p.User.mut_or_insert_default().UID = 1000), &["uid=1000", "tty:controlling=true"]),
            exec_case("a process's terminal", |c| c, |e| e.tty(), &["tty=true", "tty:controlling=true", "tty:name=/dev/pts/0", "fds=0,1,2"]),
            exec_case("a process's terminal of a size", |c| c.tty(), |e| e.process(|p| console(p, 30, 100)), &["tty:size=30x100", "tty:name=/dev/pts/1"]),
            exec_case("a process without one in a container that has one", |c| c.tty(), |e| e, &["tty=false", "tty:controlling=false"]),
        ];
        tell(&Vm::shared().await, "terminals", cases).await;
    });
}
