// SPDX-License-Identifier: Apache-2.0
//! What the tools need of the host: programs and headers, where each comes from, and which of them are missing.
//!
//! Only looks; installing is the business of the `setup` verb.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::Cache;
use crate::command;

/// How the presence of a needed thing shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// A program in the cache's tools, in `PATH`, or in the `sbin` directories.
    Program(&'static str),
    /// A file at one of these absolute paths, for libraries and data.
    File(&'static [&'static str]),
    /// A command that succeeds, for what only the program itself can tell, such as a Python module.
    Answer(&'static [&'static str]),
}

/// Who provides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Provider {
    /// A Debian package.
    Apt(&'static str),
    /// A crate, installed by `cargo install` into the cache.
    Cargo {
        /// The crate's name.
        name: &'static str,
        /// Its version, exactly.
        version: &'static str,
        /// Debian packages it needs to be compiled.
        needs: &'static [&'static str],
    },
}

/// One thing that is needed of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// How its presence shows.
    pub what: What,
    /// Where to get it.
    pub provider: Provider,
    /// What it is used for, in a few words.
    pub purpose: &'static str,
}

impl Need {
    /// A program out of a Debian package.
    pub const fn program(name: &'static str, package: &'static str, purpose: &'static str) -> Need {
        Need {
            what: What::Program(name),
            provider: Provider::Apt(package),
            purpose,
        }
    }

    /// A file out of a Debian package, at any of several places.
    pub const fn file(
        paths: &'static [&'static str],
        package: &'static str,
        purpose: &'static str,
    ) -> Need {
        Need {
            what: What::File(paths),
            provider: Provider::Apt(package),
            purpose,
        }
    }

    /// What it is called in messages.
    pub fn name(&self) -> &'static str {
        match self.what {
            What::Program(name) => name,
            What::File(paths) | What::Answer(paths) => paths.last().copied().unwrap_or("a file"),
        }
    }

    /// Whether the host has it.
    pub fn present(&self, cache: &Cache) -> bool {
        match self.what {
            What::Program(name) => find_program(name, cache).is_some(),
            What::File(paths) => paths.iter().any(|path| Path::new(path).exists()),
            What::Answer([program, args @ ..]) => {
                command::output(Command::new(program).args(args)).is_ok()
            }
            What::Answer([]) => true,
        }
    }
}

/// Things the host lacks, with the commands that get them.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", self.text())]
pub struct Missing {
    /// What is missing, never empty.
    pub needs: Vec<Need>,
}

impl Missing {
    /// The commands that install all of it, one per line, as the present user would type them.
    pub fn commands(&self, cache: &Cache) -> Vec<String> {
        let mut commands = Vec::new();
        let packages = self.packages();
        if !packages.is_empty() {
            let sudo = if is_root() { "" } else { "sudo " };
            let list: Vec<_> = packages.into_iter().collect();
            commands.push(format!(
                "{sudo}apt-get install -y --no-install-recommends {}",
                list.join(" ")
            ));
        }
        for need in &self.needs {
            if let Provider::Cargo { name, version, .. } = need.provider {
                let root = cache.root().join("tools");
                commands.push(format!(
                    "cargo install --locked --root {} {name}@{version}",
                    root.display()
                ));
            }
        }
        commands
    }

    /// The Debian packages to install, those that crates need for their compilation included.
    pub fn packages(&self) -> BTreeSet<&'static str> {
        let mut packages = BTreeSet::new();
        for need in &self.needs {
            match need.provider {
                Provider::Apt(package) => packages.extend([package]),
                Provider::Cargo { needs, .. } => packages.extend(needs),
            }
        }
        packages
    }

    fn text(&self) -> String {
        let mut text = String::from("The host lacks:");
        for need in &self.needs {
            // Writing into a String cannot fail.
            let _ = write!(text, "\n    {:<24} {}", need.name(), need.purpose);
        }
        text
    }
}

/// Which of `needs` the host lacks, each once; `Ok` if it has them all.
pub fn check(needs: &[Need], cache: &Cache) -> Result<(), Missing> {
    let mut missing: Vec<Need> = Vec::new();
    for need in needs {
        if !need.present(cache) && !missing.iter().any(|m| m.what == need.what) {
            missing.push(*need);
        }
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Missing { needs: missing })
    }
}

/// Where a program lies: the cache's tools first, then `PATH`, then where cargo installs to and the `sbin` directories that an
/// ordinary user's `PATH` omits.
pub fn find_program(name: &str, cache: &Cache) -> Option<PathBuf> {
    let mut path = env::var_os("PATH").unwrap_or_default();
    if let Some(home) = env::home_dir() {
        path.push(":");
        path.push(home.join(".cargo/bin"));
    }
    find_program_in(name, &cache.root().join("tools/bin"), &path)
}

fn find_program_in(name: &str, tools: &Path, path: &OsStr) -> Option<PathBuf> {
    let places = std::iter::once(tools.to_owned())
        .chain(env::split_paths(path))
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    places
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Whether this process has the rights of root on the host, as far as its user id says.
pub fn is_root() -> bool {
    // The owner of /proc/self is the process's effective user; this needs neither libc nor unsafe code.
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_SUCH: Need = Need::program("no-such-program-here", "no-package", "nothing");
    const CRATE: Need = Need {
        what: What::Program("no-such-daemon-here"),
        provider: Provider::Cargo {
            name: "daemon",
            version: "1.2.3",
            needs: &["libdaemon-dev"],
        },
        purpose: "nothing either",
    };

    #[test]
    fn one_message_and_one_command_name_everything() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let here = Need::program("sh", "dash", "is always there");
        let missing = check(&[here, NO_SUCH, CRATE, NO_SUCH], &cache).unwrap_err();
        assert_eq!(missing.needs, [NO_SUCH, CRATE]);
        let commands = missing.commands(&cache);
        assert_eq!(commands.len(), 2);
        assert!(
            commands[0]
                .ends_with("apt-get install -y --no-install-recommends libdaemon-dev no-package")
        );
        assert!(commands[1].ends_with("/tools daemon@1.2.3"));
        let text = missing.to_string();
        assert!(text.contains("no-such-program-here") && text.contains("nothing either"));
        assert!(check(&[here], &cache).is_ok());
    }

    #[test]
    fn the_tools_of_the_cache_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let tools = dir.path().join("tools");
        std::fs::create_dir(&tools).unwrap();
        let found = || find_program_in("sh", &tools, OsStr::new("/bin"));
        assert_eq!(found().unwrap(), Path::new("/bin/sh"));
        std::os::unix::fs::symlink("/bin/sh", tools.join("sh")).unwrap();
        assert_eq!(found().unwrap(), tools.join("sh"));
    }
}
