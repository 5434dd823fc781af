// SPDX-License-Identifier: Apache-2.0
//! Gets Debian packages with the host's apt client, without installing anything and without touching the host's apt state.
//!
//! Where the host's package lists do not know a package (a foreign architecture, or lists never fetched), lists of our own are kept
//! in the cache, fetched from the very sources the host is configured with. That works for ordinary users too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::arch::Arch;
use crate::cache::{Cache, CacheError};
use crate::command::{self, CommandError};
use crate::host::{self, Missing, Need};
use crate::progress::Progress;

/// The programs this module runs.
pub const NEEDS: &[Need] = &[
    Need::program("apt-get", "apt", "to download packages"),
    Need::program("apt-cache", "apt", "to look packages up"),
    Need::program("dpkg-deb", "dpkg", "to unpack packages"),
];

/// Lists of our own older than this are fetched anew before they are asked.
const LISTS_LAST: Duration = Duration::from_secs(24 * 3600);

/// Why a package could not be had.
#[derive(Debug, thiserror::Error)]
pub enum AptError {
    /// apt's programs are not there.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// A program failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// No source knows any of the packages.
    #[error("No package source of this host knows {packages} for {arch}")]
    Unknown {
        /// The packages looked for.
        packages: String,
        /// For which architecture.
        arch: Arch,
    },
    /// A downloaded package is not where apt says it is.
    #[error("Cannot find the downloaded package {package} in {dir}", dir = dir.display())]
    NotDownloaded {
        /// The package.
        package: String,
        /// Where it should be.
        dir: PathBuf,
        /// Why, if the directory could not be read.
        source: io::Error,
    },
}

/// A package as the sources describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its newest version.
    pub version: String,
    /// The names of the packages it depends on, alternatives and version bounds left out.
    pub depends: Vec<String>,
}

/// An apt client with a set of package lists for one architecture.
#[derive(Clone, Debug)]
pub struct Apt {
    arch: Arch,
    options: Vec<String>,
}

impl Apt {
    /// The client whose lists know the best of `packages`, and that package; they are given best first. The host's lists are
    /// taken where they know the first of them. Else lists of our own are asked too: the host's may be older than the best package,
    /// and must not make a lesser one of it. Where ours cannot be fetched, what the host knows has to do.
    pub fn knowing(
        packages: &[String],
        arch: Arch,
        cache: &Cache,
        progress: &dyn Progress,
    ) -> Result<(Apt, Package), AptError> {
        host::check(NEEDS, cache)?;
        let host = Apt {
            arch,
            options: Vec::new(),
        };
        let known = host.first_known(packages)?;
        if let Some(package) = &known
            && packages.first() == Some(&package.name)
        {
            return Ok((host, package.clone()));
        }
        let own = Apt::with_own_lists(arch, cache, progress)
            .and_then(|own| Ok(own.first_known(packages)?.map(|package| (own, package))));
        match (own, known) {
            (Ok(Some(found)), _) => Ok(found),
            (_, Some(package)) => Ok((host, package)),
            (Err(error), None) => Err(error),
            (Ok(None), None) => Err(AptError::Unknown {
                packages: packages.join(", "),
                arch,
            }),
        }
    }

    fn with_own_lists(arch: Arch, cache: &Cache, progress: &dyn Progress) -> Result<Apt, AptError> {
        let dir = cache.dir(&format!("apt/{}", arch.debian()))?;
        for sub in ["lists/partial", "archives/partial"] {
            cache.dir(&format!("apt/{}/{sub}", arch.debian()))?;
        }
        let apt = Apt {
            arch,
            options: own_list_options(arch, &dir),
        };
        let _lock = cache.lock(&format!("apt-{}", arch.debian()))?;
        let status = dir.join("status");
        let fresh = |path: &Path| {
            let age = path.metadata().and_then(|m| m.modified());
            age.is_ok_and(|t| {
                SystemTime::now()
                    .duration_since(t)
                    .is_ok_and(|age| age < LISTS_LAST)
            })
        };
        if !fresh(&status) {
            let mut step = progress.step(&format!("Package lists for {arch}"));
            let _ = fs::write(&status, "");
            command::run_lines(apt.client("apt-get").arg("update"), |line| step.line(line))
                .inspect_err(|_| {
                    // The file's age is the age of the lists; lists that were not fetched have none.
                    let _ = fs::remove_file(&status);
                })?;
            step.done("fetched");
        }
        Ok(apt)
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // apt speaks the user's language otherwise, and its answers are parsed here.
        command.env("LC_ALL", "C").args(&self.options);
        command
    }

    fn first_known(&self, packages: &[String]) -> Result<Option<Package>, AptError> {
        for name in packages {
            let spec = format!("{name}:{}", self.arch.debian());
            let mut command = self.client("apt-cache");
            command.args(["show", "--no-all-versions", &spec]);
            match command::output(&mut command) {
                Ok(text) => {
                    if let Some(package) = parse_record(&text) {
                        return Ok(Some(package));
                    }
                }
                // apt-cache fails when it knows no such package.
                Err(CommandError::Failed { .. }) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Ok(None)
    }

    /// What the lists say of a package.
    pub fn show(&self, name: &str) -> Result<Package, AptError> {
        self.first_known(&[name.to_owned()])?
            .ok_or_else(|| AptError::Unknown {
                packages: name.to_owned(),
                arch: self.arch,
            })
    }

    /// Downloads a package into the empty directory `dir` and returns the file.
    pub fn download(
        &self,
        package: &Package,
        dir: &Path,
        line: impl FnMut(&str),
    ) -> Result<PathBuf, AptError> {
        let spec = format!(
            "{}:{}={}",
            package.name,
            self.arch.debian(),
            package.version
        );
        let mut command = self.client("apt-get");
        command.args(["download", "-q", &spec]).current_dir(dir);
        if host::is_root() {
            // apt drops root's rights for downloads, and then cannot write into a directory of root's cache.
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        command::run_lines(&mut command, line)?;
        let missing = |source| AptError::NotDownloaded {
            package: package.name.clone(),
            dir: dir.to_owned(),
            source,
        };
        let files = fs::read_dir(dir).map_err(missing)?;
        files
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|e| e == "deb"))
            .ok_or_else(|| missing(io::ErrorKind::NotFound.into()))
    }
}

/// Unpacks a package's files into `dir`.
pub fn unpack(package: &Path, dir: &Path) -> Result<(), AptError> {
    command::run(Command::new("dpkg-deb").arg("-x").arg(package).arg(dir))?;
    Ok(())
}

fn own_list_options(arch: Arch, dir: &Path) -> Vec<String> {
    let dir = dir.display();
    let mut options = Vec::new();
    for option in [
        format!("APT::Architecture={}", arch.debian()),
        format!("APT::Architectures::={}", arch.debian()),
        format!("Dir::State={dir}"),
        format!("Dir::State::Lists={dir}/lists"),
        format!("Dir::State::status={dir}/status"),
        format!("Dir::Cache={dir}"),
        format!("Dir::Cache::archives={dir}/archives"),
        // A hook or a sandbox user of the host's configuration has no business with lists in a user's cache.
        "APT::Sandbox::User=".to_owned(),
        "APT::Update::Post-Invoke-Success=".to_owned(),
        "Acquire::Languages=none".to_owned(),
    ] {
        options.extend(["-o".to_owned(), option]);
    }
    options
}

/// Reads the first record of `apt-cache show`: deb822 fields, one per line, continuation lines indented.
fn parse_record(text: &str) -> Option<Package> {
    let field = |name: &str| {
        text.lines()
            .take_while(|line| !line.is_empty())
            .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
    };
    let first_word = |dependency: &str| {
        let name = dependency
            .split(['|', '(', ':'])
            .next()
            .unwrap_or_default()
            .trim();
        (!name.is_empty()).then(|| name.to_owned())
    };
    Some(Package {
        name: field("Package")?.to_owned(),
        version: field("Version")?.to_owned(),
        depends: field("Depends")
            .unwrap_or_default()
            .split(',')
            .filter_map(first_word)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read() {
        let text = "Package: linux-image-x\nSource: linux\nVersion: 6.12.1-1\nPre-Depends: dpkg\n\
                    Depends: linux-image-6.12.1 (= 6.12.1-1), kmod | module-init-tools, python3:any\nSize: 1\n\n\
                    Package: other\nVersion: 2\n";
        let package = parse_record(text).unwrap();
        assert_eq!(
            (package.name.as_str(), package.version.as_str()),
            ("linux-image-x", "6.12.1-1")
        );
        assert_eq!(package.depends, ["linux-image-6.12.1", "kmod", "python3"]);
    }

    #[test]
    fn records_without_a_version_are_none() {
        assert_eq!(parse_record(""), None);
        assert_eq!(parse_record("Package: x\n\nVersion: 1\n"), None);
    }
}
