// SPDX-License-Identifier: Apache-2.0
//! The process among others: numbers, signals, limits, descriptors, environment, namespaces, cgroups, terminal.
//!
//! What `/proc` tells of any process can be asked of another one by its number.

use std::env;
use std::fs;

use rustix::process::{Resource, getpgrp, getpid, getppid, getrlimit, getsid};
use rustix::termios::{isatty, tcgetpgrp, tcgetsid, tcgetwinsize};

use crate::facts::{Error, Facts, content, list};

/// The value of a line of `/proc/PID/status`.
pub fn status_line(pid: &str, name: &str) -> Option<String> {
    let text = content(&format!("/proc/{pid}/status")).ok()?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.map(|value| value.trim().to_owned())
}

/// All that `/proc` tells of the process `pid`, which may be `self`.
pub fn process(pid: &str) -> Result<Facts, Error> {
    let name = status_line(pid, "Name").ok_or_else(|| format!("no process {pid} is in /proc"))?;
    let mut facts = Facts::default();
    facts.add("name", name);
    for (fact, line) in [("threads", "Threads"), ("rss", "VmRSS")] {
        facts.maybe(fact, status_line(pid, line).ok_or(()));
    }
    for (fact, file) in [
        ("exe", "exe"),
        ("root", "root"),
        ("working_directory", "cwd"),
    ] {
        facts.maybe(fact, link(&format!("/proc/{pid}/{file}")));
    }
    facts.append(signals(pid));
    facts.append(namespaces(pid));
    facts.append(descriptors(pid));
    facts.append(cgroups(pid));
    Ok(facts)
}

fn link(path: &str) -> std::io::Result<String> {
    Ok(fs::read_link(path)?.to_string_lossy().into_owned())
}

/// Numbers of the process and of its relatives.
pub fn numbers() -> Facts {
    let mut facts = Facts::default();
    let raw = |pid: rustix::process::Pid| pid.as_raw_nonzero().get();
    facts.add("pid", raw(getpid()));
    facts.add("ppid", getppid().map_or(0, raw));
    facts.add("pgid", raw(getpgrp()));
    facts.maybe("sid", getsid(None).map(raw));
    // Lossy, and by the system call: a directory outside the root shows as one.
    let cwd = rustix::process::getcwd(Vec::new());
    facts.maybe("cwd", cwd.map(|cwd| cwd.to_string_lossy().into_owned()));
    facts.maybe(
        "args",
        content("/proc/self/cmdline").map(|a| a.trim_end_matches("\0").replace("\0", " ")),
    );
    facts.maybe("oom_score_adj", content("/proc/self/oom_score_adj"));
    facts.maybe("nice", rustix::process::getpriority_process(None));
    facts.maybe("policy", field_of_stat(POLICY));
    facts
}

/// Positions in `/proc/PID/stat`, counted from 1 as in proc(5).
const POLICY: usize = 41;

/// A field behind the name, which is in parentheses and may hold anything.
fn field_of_stat(number: usize) -> Result<String, ()> {
    let text = content("/proc/self/stat").map_err(drop)?;
    let (_, rest) = text.rsplit_once(") ").ok_or(())?;
    let field = rest.split(' ').nth(number - 3);
    field.map(str::to_owned).ok_or(())
}

/// Signals blocked, ignored and caught, as numbers. This program ignores signal 13 by itself: its runtime does.
pub fn signals(pid: &str) -> Facts {
    let mut facts = Facts::default();
    let masks = [
        ("signals:blocked", "SigBlk"),
        ("signals:ignored", "SigIgn"),
        ("signals:caught", "SigCgt"),
    ];
    for (name, line) in masks {
        let mask = status_line(pid, line).and_then(|mask| u64::from_str_radix(&mask, 16).ok());
        let numbers = mask.map(|mask| list((1..=64).filter(|n| mask >> (n - 1) & 1 == 1)));
        facts.maybe(name, numbers.ok_or(()));
    }
    facts
}

/// Every resource limit as `soft:hard`.
pub fn limits() -> Facts {
    let all = [
        ("AS", Resource::As),
        ("CORE", Resource::Core),
        ("CPU", Resource::Cpu),
        ("DATA", Resource::Data),
        ("FSIZE", Resource::Fsize),
        ("LOCKS", Resource::Locks),
        ("MEMLOCK", Resource::Memlock),
        ("MSGQUEUE", Resource::Msgqueue),
        ("NICE", Resource::Nice),
        ("NOFILE", Resource::Nofile),
        ("NPROC", Resource::Nproc),
        ("RSS", Resource::Rss),
        ("RTPRIO", Resource::Rtprio),
        ("RTTIME", Resource::Rttime),
        ("SIGPENDING", Resource::Sigpending),
        ("STACK", Resource::Stack),
    ];
    let shown = |limit: Option<u64>| limit.map_or("infinity".to_owned(), |n| n.to_string());
    let mut facts = Facts::default();
    for (name, resource) in all {
        let limit = getrlimit(resource);
        facts.add(
            &format!("rlimit:{name}"),
            format_args!("{}:{}", shown(limit.current), shown(limit.maximum)),
        );
    }
    facts
}

/// The inode number of each namespace, and the offsets of the clocks.
pub fn namespaces(pid: &str) -> Facts {
    let mut facts = Facts::default();
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"] {
        let target = link(&format!("/proc/{pid}/ns/{kind}"));
        let number = target.map(|target| {
            let number = target.split(['[', ']']).nth(1);
            number.unwrap_or(&target).to_owned()
        });
        facts.maybe(&format!("ns:{kind}"), number);
    }
    let offsets = content(&format!("/proc/{pid}/timens_offsets")).unwrap_or_default();
    for line in offsets.lines() {
        let mut words = line.split_whitespace();
        if let Some(clock) = words.next() {
            facts.add(
                &format!("time:{clock}"),
                words.collect::<Vec<_>>().join(" "),
            );
        }
    }
    facts
}

/// Open descriptors: their numbers, and what each is. The one that reads the list is left out.
pub fn descriptors(pid: &str) -> Facts {
    let mut facts = Facts::default();
    let path = format!("/proc/{pid}/fd");
    let Ok(entries) = fs::read_dir(&path) else {
        return facts;
    };
    let own = format!("/proc/{}/fd", std::process::id());
    let named = entries.flatten().filter_map(|entry| {
        let number: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((number, link(entry.path().to_str()?).ok()?))
    });
    let mut open: Vec<_> = named.filter(|(_, target)| *target != own).collect();
    open.sort_unstable();
    facts.add("fds", list(open.iter().map(|(number, _)| number)));
    for (number, target) in open {
        facts.add(&format!("fd:{number}"), target);
    }
    facts
}

/// The environment: the names in their order, and each value.
pub fn environment() -> Facts {
    let mut facts = Facts::default();
    let all: Vec<_> = env::vars_os().collect();
    facts.add(
        "env",
        list(all.iter().map(|(name, _)| name.to_string_lossy())),
    );
    for (name, value) in all {
        let name = format!("env:{}", name.to_string_lossy());
        facts.add(&name, value.to_string_lossy());
    }
    facts
}

/// The cgroup in each hierarchy: by controllers on v1, `unified` for v2's.
pub fn cgroups(pid: &str) -> Facts {
    let mut facts = Facts::default();
    let text = content(&format!("/proc/{pid}/cgroup")).unwrap_or_default();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        if let (Some(controllers), Some(path)) = (fields.next(), fields.next()) {
            let name = match controllers {
                "" => "unified",
                other => other.strip_prefix("name=").unwrap_or(other),
            };
            facts.add(&format!("cgroup:{name}"), path);
        }
    }
    facts
}

/// Standard input as a terminal, and the session's.
pub fn terminal() -> Facts {
    let mut facts = Facts::default();
    let stdin = std::io::stdin();
    facts.add("tty", isatty(&stdin));
    let controlling = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/tty");
    facts.add("tty:controlling", controlling.is_ok());
    if isatty(&stdin) {
        facts.maybe("tty:name", link("/proc/self/fd/0"));
        let size = tcgetwinsize(&stdin);
        facts.maybe(
            "tty:size",
            size.map(|s| format!("{}x{}", s.ws_row, s.ws_col)),
        );
        let raw = |pid: rustix::process::Pid| pid.as_raw_nonzero().get();
        facts.maybe("tty:sid", tcgetsid(&stdin).map(raw));
        facts.maybe("tty:pgid", tcgetpgrp(&stdin).map(raw));
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_process() {
        let facts = numbers();
        assert_eq!(
            facts.get("pid"),
            Some(std::process::id().to_string().as_str())
        );
        assert!(facts.get("args").is_some() && facts.get("sid").is_some());
        assert_eq!(facts.get("policy"), Some("0"));
        let cwd = env::current_dir().unwrap();
        assert_eq!(facts.get("cwd"), cwd.to_str());
    }

    #[test]
    fn another_process_is_told_of() {
        let facts = process("self").unwrap();
        assert!(facts.get("exe").unwrap().contains("probe"));
        assert!(
            facts
                .get("signals:ignored")
                .unwrap()
                .split(',')
                .any(|n| n == "13")
        );
        assert!(process("no-process").is_err());
    }

    #[test]
    fn every_limit_has_two_values() {
        let text = limits().text();
        assert_eq!(text.lines().count(), 16);
        assert!(
            text.lines().all(|line| line.matches(':').count() == 2),
            "{text}"
        );
    }

    #[test]
    fn namespaces_are_numbers() {
        let facts = namespaces("self");
        for kind in ["mnt", "pid", "user"] {
            let number = facts.get(&format!("ns:{kind}")).unwrap();
            assert!(number.parse::<u64>().is_ok(), "{kind}: {number}");
        }
    }

    #[test]
    fn a_descriptor_is_found_and_the_reading_one_is_not() {
        let file = fs::File::open("Cargo.toml").unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        let facts = descriptors("self");
        let target = facts.get(&format!("fd:{number}")).unwrap();
        assert!(target.ends_with("Cargo.toml"), "{target}");
        assert!(
            facts
                .get("fds")
                .unwrap()
                .split(',')
                .any(|n| n == number.to_string())
        );
        assert!(
            !facts
                .text()
                .contains(&format!("/proc/{}/fd", std::process::id()))
        );
    }

    #[test]
    fn the_environment_is_listed() {
        let facts = environment();
        assert_eq!(facts.get("env:PATH"), env::var("PATH").ok().as_deref());
        assert!(facts.get("env").unwrap().split(',').any(|n| n == "PATH"));
    }
}
