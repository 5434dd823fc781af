// SPDX-License-Identifier: Apache-2.0
//! The kernel's source, from the distributor's source package, unpacked into the cache.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{self, Apt, AptError};
use crate::arch::Arch;
use crate::cache::{self, Cache, CacheError, Key};
use crate::command::{self, CommandError};
use crate::progress::Progress;

/// The source packages to look for, best first.
const SOURCE_PACKAGES: &[&str] = &["linux-source-6.12", "linux-source"];

/// Why there is no kernel source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The package could not be had.
    #[error(transparent)]
    Apt(#[from] AptError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// It could not be unpacked.
    #[error("Cannot unpack the kernel source")]
    Unpack(#[from] CommandError),
    /// The package holds no source.
    #[error("Package {package} holds no kernel source tarball")]
    NoTarball {
        /// The package.
        package: String,
    },
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

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SourceError {
    let path = path.to_owned();
    move |source| SourceError::Io {
        action,
        path,
        source,
    }
}

/// The unpacked kernel source.
#[derive(Clone, Debug)]
pub struct SourceTree {
    /// The directory with the kernel's top Makefile. Nothing is ever written into it.
    pub dir: PathBuf,
    /// The package's version.
    pub version: String,
}

/// The kernel source in the cache: what was taken before, unless `refresh` asks for the newest, else the package's content.
pub fn tree(
    refresh: bool,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<SourceTree, SourceError> {
    let recipe = Key::of("linux")
        // Earlier choices may be of lists that were too old to know the best package.
        .field("chosen", "best of all lists")
        .field("packages", SOURCE_PACKAGES.join(" "))
        .finish();
    let found = if refresh {
        None
    } else {
        cache.current("source", &recipe)
    };
    let entry = match found {
        Some(entry) => entry,
        None => {
            let names: Vec<String> = SOURCE_PACKAGES
                .iter()
                .map(|&name| name.to_owned())
                .collect();
            // The package is the same for every architecture; the host's lists are the most likely to know it.
            let arch = Arch::host().unwrap_or(Arch::X86_64);
            let (apt, mut package) = Apt::knowing(&names, arch, cache, progress)?;
            // A release's default is a package that only depends on the one of a version.
            if let Some(name) = package
                .depends
                .iter()
                .find(|name| name.starts_with("linux-source-"))
            {
                package = apt.show(name)?;
            }
            let key = Key::of(&format!("linux-{}", package.version))
                .field("package", &package.name)
                .finish();
            let entry = cache.entry("source", &key, |dir| unpack(&apt, &package, dir, progress))?;
            cache.set_current("source", &recipe, &key)?;
            entry
        }
    };
    let path = entry.join("version");
    let version = fs::read_to_string(&path).map_err(io_error("read", &path))?;
    Ok(SourceTree {
        dir: entry.join("linux"),
        version,
    })
}

fn unpack(
    apt: &Apt,
    package: &apt::Package,
    dir: &Path,
    progress: &dyn Progress,
) -> Result<(), SourceError> {
    let mut step = progress.step("Kernel source: downloading");
    let work = dir.join("work");
    fs::create_dir(&work).map_err(io_error("create", &work))?;
    let file = apt.download(package, &work, |line| step.line(line))?;
    step.line("unpacking");
    apt::unpack(&file, &work)?;
    let place = work.join("usr/src");
    let tarball = fs::read_dir(&place)
        .map_err(io_error("read", &place))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().contains(".tar."))
        .ok_or_else(|| SourceError::NoTarball {
            package: package.name.clone(),
        })?;
    let tree = dir.join("linux");
    fs::create_dir(&tree).map_err(io_error("create", &tree))?;
    let mut tar = Command::new("tar");
    tar.arg("-xf")
        .arg(&tarball)
        .arg("--strip-components=1")
        .arg("-C")
        .arg(&tree);
    command::run(&mut tar)?;
    let path = dir.join("version");
    fs::write(&path, &package.version).map_err(io_error("write", &path))?;
    cache::remove_tree(&work)?;
    step.done(&format!("{} {}", package.name, package.version));
    Ok(())
}
