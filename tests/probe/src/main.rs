// SPDX-License-Identifier: Apache-2.0
//! A program for the inside of a guest: it reports what a container sees there, as lines `key=value` on stdout, and tries what a
//! container should not be able to do.
//!
//! For the tests only, and never part of an image. It judges nothing: what a fact should be is the test's business. A fact that the
//! kernel does not tell is left out; an attempt that fails is a fact. Ends with 0, or with 1 and a line on stderr if a fact could not
//! be had, 2 if it was called wrongly.

mod attempts;
mod calls;
mod devices;
mod facts;
mod identity;
mod load;
mod mounts;
mod process;
mod stat;
mod system;

use std::env;
use std::process::ExitCode;

use facts::{Error, Facts};

/// A subcommand.
struct Command {
    name: &'static str,
    /// What its arguments are called, for the usage and to count them: `[X]` may be left out, `[X...]` may be repeated.
    args: &'static [&'static str],
    about: &'static str,
    run: fn(&[String]) -> Result<Facts, Error>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "facts",
        args: &[],
        about: "all that the following tell of this process and its surroundings",
        run: |_| Ok(all_facts()),
    },
    Command {
        name: "ids",
        args: &[],
        about: "users, groups, the file mode mask",
        run: |_| Ok(identity::ids()),
    },
    Command {
        name: "caps",
        args: &[],
        about: "the five capability sets",
        run: |_| Ok(identity::caps()),
    },
    Command {
        name: "limits",
        args: &[],
        about: "resource limits, soft:hard",
        run: |_| Ok(process::limits()),
    },
    Command {
        name: "mounts",
        args: &[],
        about: "every mount point",
        run: |_| Ok(mounts::all()),
    },
    Command {
        name: "devices",
        args: &[],
        about: "what is in /dev",
        run: |_| Ok(devices::devices()),
    },
    Command {
        name: "process",
        args: &["PID"],
        about: "another process, or self: signals, namespaces, descriptors, cgroups",
        run: |args| process::process(&args[0]),
    },
    Command {
        name: "statx",
        args: &["PATH"],
        about: "a file: size, mode, devices, whether it is mapped without a page cache (dax), its mount",
        run: |args| stat::statx(&args[0]),
    },
    Command {
        name: "lstat",
        args: &["PATH"],
        about: "mode and device number of a file, links not followed, or why not",
        run: |args| attempts::lstat(&args[0]),
    },
    Command {
        name: "mount",
        args: &["PATH"],
        about: "the mount a path lies on: file system, source, options",
        run: |args| mounts::mount(&args[0]),
    },
    Command {
        name: "uname",
        args: &[],
        about: "the kernel",
        run: |_| Ok(system::uname()),
    },
    Command {
        name: "syscall",
        args: &["NAME|NUMBER", "[ARG...]"],
        about: "makes a system call; an argument is a number or a text to point to",
        run: calls::call,
    },
    Command {
        name: "catch",
        args: &["NAME|NUMBER", "[ARG...]"],
        about: "the same with a handler for SIGSYS",
        run: calls::caught_call,
    },
    Command {
        name: "open",
        args: &["PATH", "MODE"],
        about: "opens: r, w, rw, a (append), c (create), path, directory",
        run: |args| attempts::try_open(&args[0], &args[1]),
    },
    Command {
        name: "reopen",
        args: &["PATH", "MODE"],
        about: "the same by way of a descriptor that has no rights",
        run: |args| attempts::reopen(&args[0], &args[1]),
    },
    Command {
        name: "mknod",
        args: &["PATH", "c|b", "MAJOR", "MINOR"],
        about: "makes a device node",
        run: attempts::mknod,
    },
    Command {
        name: "disks",
        args: &["DIRECTORY"],
        about: "makes a node there for every block device of the guest, and opens it",
        run: |args| attempts::disks(&args[0]),
    },
    Command {
        name: "dig",
        args: &["TIMES"],
        about: "enters its own mount namespace anew, lists its root, takes it away, and again",
        run: |args| attempts::dig(&args[0]),
    },
    Command {
        name: "vsock",
        args: &["CID", "PORT", "[HEX]"],
        about: "connects to a vsock port, sends bytes and counts the answer's",
        run: calls::vsock,
    },
    Command {
        name: "swap-race",
        args: &["PATH", "PATH", "SECONDS"],
        about: "exchanges two paths over and over",
        run: |args| attempts::swap(&args[0], &args[1], &args[2]),
    },
    Command {
        name: "eat-memory",
        args: &["MIB", "[hold]"],
        about: "uses memory; with hold until standard input ends",
        run: load::eat_memory,
    },
    Command {
        name: "spin",
        args: &["SECONDS"],
        about: "keeps a processor busy",
        run: |args| load::spin(&args[0]),
    },
    Command {
        name: "fork",
        args: &["NUMBER", "[hold]"],
        about: "makes idle children",
        run: load::fork,
    },
    Command {
        name: "write",
        args: &["PATH", "BYTES", "[direct]"],
        about: "writes to a file, with direct past the cache",
        run: load::write,
    },
    Command {
        name: "hold-fd",
        args: &["PATH"],
        about: "keeps a file open until standard input ends",
        run: |args| load::hold_fd(&args[0]),
    },
];

/// Everything about this process.
fn all_facts() -> Facts {
    let mut all = identity::ids();
    for more in [
        identity::caps(),
        identity::privileges(),
        identity::id_maps(),
        process::numbers(),
        process::signals("self"),
        process::limits(),
        process::namespaces("self"),
        process::descriptors("self"),
        process::environment(),
        process::cgroups("self"),
        process::terminal(),
        system::uname(),
        system::sysctls(),
        mounts::all(),
        devices::devices(),
    ] {
        all.append(more);
    }
    all
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let Some(command) = chosen(&args) else {
        eprint!("{}", usage());
        return ExitCode::from(2);
    };
    match (command.run)(&args[1..]) {
        Ok(facts) => {
            print!("{}", facts.text());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("probe: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The subcommand named, if it has as many arguments as it takes.
fn chosen(args: &[String]) -> Option<&'static Command> {
    let (name, rest) = args.split_first()?;
    let command = COMMANDS.iter().find(|c| c.name == name)?;
    let required = command.args.iter().filter(|arg| !arg.starts_with('['));
    let repeats = command.args.iter().any(|arg| arg.ends_with("...]"));
    let enough = rest.len() >= required.count();
    (enough && (repeats || rest.len() <= command.args.len())).then_some(command)
}

fn usage() -> String {
    let line = |c: &Command| {
        let call = [&[c.name], c.args].concat().join(" ");
        format!("  probe {call:<30} {}\n", c.about)
    };
    COMMANDS.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_taken_with_its_arguments_only() {
        let args = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        let name = |words: &[&str]| chosen(&args(words)).map(|c| c.name);
        assert_eq!(name(&["uname"]), Some("uname"));
        assert_eq!(name(&["statx", "/"]), Some("statx"));
        assert_eq!(name(&["syscall", "getpid"]), Some("syscall"));
        assert_eq!(name(&["syscall", "kill", "1", "9", "0"]), Some("syscall"));
        assert_eq!(name(&["fork", "1", "hold"]), Some("fork"));
        assert_eq!(name(&["fork", "1", "hold", "x"]), None);
        for words in [&[][..], &["statx"], &["uname", "x"], &["what"]] {
            assert_eq!(name(words), None, "{words:?}");
        }
    }

    #[test]
    fn the_facts_are_of_every_kind() {
        let facts = all_facts();
        for name in [
            "uid",
            "cap:bounding",
            "rlimit:CPU",
            "ns:mnt",
            "fd:0",
            "mount:/proc:fstype",
            "dev:/dev/null",
            "tty",
        ] {
            assert!(facts.get(name).is_some(), "{name}");
        }
    }

    #[test]
    fn every_command_is_in_the_usage() {
        let usage = usage();
        assert!(
            COMMANDS
                .iter()
                .all(|c| usage.contains(c.name) && usage.contains(c.about))
        );
    }
}
