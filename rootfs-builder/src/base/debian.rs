// SPDX-License-Identifier: Apache-2.0
//! A small Debian, made by mmdebstrap: the essential packages and those asked for, without documentation and translations.
//!
//! mmdebstrap writes an archive, which is unpacked here: so the result belongs to the user who made it and can be removed again, also
//! where mmdebstrap worked in a user namespace. Two runs with the same packages give the same tree, whoever made it.
//!
//! Packages are configured by scripts of their own, which are programs for the guest's architecture. Where the host executes none, the
//! packages are unpacked only, and the few files are added without which no program finds its way.

mod finish;
mod sources;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use guest_kernel::cache::{CacheError, Key};
use guest_kernel::command::{self, CommandError};
use guest_kernel::host::{self, Missing};
use guest_kernel::{Arch, Cache, Progress};

use super::ledger::{Ledger, LedgerError};
use super::unpack::{self, UnpackError};
use crate::setup;
use crate::tree::TreeError;
use sources::Host;

/// Taken where the host is no Debian.
const DEFAULT_SUITE: &str = "trixie";
/// Counts up when the way a root is made changes.
const FORMAT: &str = "2";
/// The time of what mmdebstrap makes, since a tree has none: the first of 1980, before which zip archives know no time.
const EPOCH: u64 = 315_532_800;

/// What nobody reads inside a container.
const LEFT_OUT: &[&str] = &[
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/lintian/*",
];

/// Keeps perl out of the releases whose essential packages can do without it once `/bin` is a link to `/usr/bin`.
const MERGED_USR: &str = "/usr/share/mmdebstrap/hooks/maybe-merged-usr";
/// What dpkg would write down of packages that it has unpacked, made from the packages themselves. The shell's `$1` is the root.
const STATUS: &str = r#"for deb in "$1"/var/cache/apt/archives/*.deb; do
    dpkg-deb -f "$deb" && printf 'Status: install ok unpacked\n\n' || exit 1
done > "$1"/var/lib/dpkg/status"#;

/// Why there is no Debian root.
#[derive(Debug, thiserror::Error)]
pub enum DebianError {
    /// Host programs are missing.
    #[error("Cannot make a Debian root file system")]
    Missing(#[from] Missing),
    /// mmdebstrap failed.
    #[error("Cannot make a Debian root file system")]
    Command(#[from] CommandError),
    /// What it made cannot be unpacked.
    #[error("Cannot unpack the Debian root file system")]
    Unpack(#[from] UnpackError),
    /// What the archive says of its entries could not be kept.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// What was unpacked cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A file operation failed.
    #[error("Cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// How far packages are installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Unpacked and configured by their scripts.
    Configured,
    /// Unpacked only.
    Unpacked,
}

impl Depth {
    /// How far this host can go for `arch`: its scripts run where the host is of that architecture, or where the kernel was told to
    /// run such programs by an emulator that it has open already (one it would have to find inside of the new root is not there).
    pub fn of(arch: Arch) -> Depth {
        let handler = format!("/proc/sys/fs/binfmt_misc/qemu-{}", arch.name());
        let emulated = || fs::read_to_string(handler).is_ok_and(|text| is_open_handler(&text));
        if Arch::host() == Some(arch) || emulated() {
            Depth::Configured
        } else {
            Depth::Unpacked
        }
    }
}

/// Reads an entry of binfmt_misc, see the kernel's `admin-guide/binfmt-misc.rst`.
fn is_open_handler(text: &str) -> bool {
    let mut lines = text.lines();
    lines.next() == Some("enabled")
        && lines.any(|line| {
            line.strip_prefix("flags:")
                .is_some_and(|flags| flags.contains('F'))
        })
}

/// The release that is taken: the one asked for, else the host's own, else a default.
pub fn suite(asked: Option<&str>) -> String {
    let own = || Host::read().suite;
    asked
        .map(str::to_owned)
        .or_else(own)
        .unwrap_or_else(|| DEFAULT_SUITE.to_owned())
}

/// A Debian root for `arch` as a directory in the cache. What was made once is taken again; remove it from the cache for newer packages.
pub fn root(
    asked: Option<&str>,
    packages: &[String],
    arch: Arch,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<PathBuf, DebianError> {
    let own = Host::read();
    let suite = suite(asked);
    let wanted = Wanted {
        sources: own.sources(&suite),
        config: own.apt_config(),
        depth: Depth::of(arch),
        suite,
        packages,
        arch,
    };
    let entry = cache.entry("root", &wanted.key(), |dir| {
        host::check(&setup::debian_base(), cache)?;
        wanted.make(dir, progress)
    })?;
    Ok(entry.join("root"))
}

/// All that makes a root what it is.
struct Wanted<'a> {
    suite: String,
    packages: &'a [String],
    arch: Arch,
    depth: Depth,
    /// Lines of sources.list(5); empty for mmdebstrap's own.
    sources: String,
    /// apt's settings, which leave no trace.
    config: String,
}

impl Wanted<'_> {
    fn key(&self) -> Key {
        Key::of(&format!("debian-{}-{}", self.suite, self.arch))
            .field("format", FORMAT)
            .field("suite", &self.suite)
            .field("packages", self.packages.join(","))
            .field("arch", self.arch.name())
            .field("depth", format!("{:?}", self.depth))
            .field("sources", &self.sources)
            // Who made it shows in the owners of its files.
            .field("root", if host::is_root() { "yes" } else { "no" })
            .finish()
    }

    /// Makes the directory `root` in `dir`, with its ledger.
    fn make(&self, dir: &Path, progress: &dyn Progress) -> Result<(), DebianError> {
        let (suite, arch) = (&self.suite, self.arch);
        let mut step = progress.step(&format!("Debian {suite} root file system"));
        let archive = dir.join("root.tar");
        let (config, list) = (dir.join("apt.conf"), dir.join("sources.list"));
        write(&config, &self.config)?;
        write(&list, &self.sources)?;
        let mut command = mmdebstrap(self.packages, arch, self.depth);
        command.arg(format!("--aptopt={}", config.display()));
        command.arg(suite).arg(&archive);
        if !self.sources.is_empty() {
            command.arg(&list);
        }
        command::run_lines(&mut command, |line| step.line(line))?;
        step.line("unpacking");
        unpack_root(&archive, &dir.join("root"), self.depth)?;
        for path in [&archive, &config, &list] {
            fs::remove_file(path).map_err(io_error("remove", path))?;
        }
        step.done("made");
        if self.depth == Depth::Unpacked {
            progress.note(&format!(
                "The packages of the {arch} root are unpacked but not configured: this host runs no programs for {arch} \
                 (it would with qemu-user-static and binfmt-support)"
            ));
        }
        Ok(())
    }
}

fn unpack_root(archive: &Path, root: &Path, depth: Depth) -> Result<(), DebianError> {
    fs::create_dir(root).map_err(io_error("create", root))?;
    let file = File::open(archive).map_err(io_error("open", archive))?;
    let mut ledger = Ledger::default();
    unpack::layer(io::BufReader::new(file), root, &mut ledger)?;
    if depth == Depth::Unpacked {
        finish::complete(root, &mut ledger)?;
    }
    finish::tidy(root, &mut ledger)?;
    Ok(ledger.write(root)?)
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DebianError {
    let path = path.to_owned();
    move |source| DebianError::Io {
        action,
        path,
        source,
    }
}

fn write(path: &Path, text: &str) -> Result<(), DebianError> {
    let written = File::create(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(io_error("write", path))
}

fn mmdebstrap(packages: &[String], arch: Arch, depth: Depth) -> Command {
    let mut command = Command::new("mmdebstrap");
    let mut include: Vec<&str> = packages.iter().map(String::as_str).collect();
    match depth {
        Depth::Configured => {
            command.arg("--variant=essential");
            command.arg(format!("--hook-dir={MERGED_USR}"));
            if Arch::host() != Some(arch) {
                // It would ask one more program what the kernel has said already.
                command.arg("--skip=check/qemu");
            }
        }
        Depth::Unpacked => {
            command.arg("--variant=extract");
            command.arg(format!("--setup-hook={MERGED_USR}/setup00.sh"));
            command.arg(format!("--extract-hook={STATUS}"));
            include.insert(0, "?essential");
        }
    }
    command.arg("--format=tar");
    command.arg(format!("--architectures={}", arch.debian()));
    for option in LEFT_OUT {
        command.arg(format!("--dpkgopt={option}"));
    }
    if !include.is_empty() {
        command.arg(format!("--include={}", include.join(",")));
    }
    command
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("SOURCE_DATE_EPOCH", EPOCH.to_string());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulator_counts_if_the_kernel_has_it_open() {
        let text =
            |flags| format!("enabled\ninterpreter /usr/bin/qemu\nflags: {flags}\noffset 0\n");
        assert!(is_open_handler(&text("POCF")));
        assert!(!is_open_handler(&text("POC")));
        assert!(!is_open_handler(&text("F").replace("enabled", "disabled")));
        assert!(!is_open_handler(""));
    }

    #[test]
    fn the_hosts_architecture_is_configured_and_every_other_at_least_unpacked() {
        let words = |arch, depth| {
            let command = mmdebstrap(&["curl".to_owned()], arch, depth);
            let words = command
                .get_args()
                .map(|arg| arg.to_string_lossy().into_owned());
            words.collect::<Vec<_>>()
        };
        let arch = Arch::host().unwrap();
        assert_eq!(Depth::of(arch), Depth::Configured);
        let configured = words(arch, Depth::Configured);
        assert!(configured.contains(&"--variant=essential".to_owned()));
        assert!(configured.contains(&"--include=curl".to_owned()));
        assert!(!configured.contains(&"--skip=check/qemu".to_owned()));
        for other in Arch::ALL.into_iter().filter(|other| *other != arch) {
            assert!(words(other, Depth::Configured).contains(&"--skip=check/qemu".to_owned()));
            let unpacked = words(other, Depth::Unpacked);
            assert!(unpacked.contains(&"--variant=extract".to_owned()));
            assert!(unpacked.contains(&"--include=?essential,curl".to_owned()));
        }
    }
}
