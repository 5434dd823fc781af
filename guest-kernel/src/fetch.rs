// SPDX-License-Identifier: Apache-2.0
//! A distributor's prebuilt kernel: Debian's cloud kernel package, unpacked into the cache, never installed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::apt::{self, Apt, AptError, Package};
use crate::arch::Arch;
use crate::cache::{self, Cache, CacheError, Key};
use crate::host::{self, Missing, Need};
use crate::modules::{GUEST_MODULES, ModuleError, ModuleTree, Purpose, Wanted};
use crate::progress::Progress;
use crate::store::StoreError;
use crate::{Kernel, Module, Source};

/// The programs this needs besides apt's.
pub const NEEDS: &[Need] = &[
    Need::program("apt-get", "apt", "to download the kernel package"),
    Need::program("apt-cache", "apt", "to look the kernel package up"),
    Need::program("dpkg-deb", "dpkg", "to unpack the kernel package"),
    Need::program("xz", "xz-utils", "to decompress kernel modules"),
];

/// Counts up when the layout of an entry changes, so that entries of older versions are not taken.
const FORMAT: &str = "2";

/// Why no prebuilt kernel could be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Host programs are missing.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The package could not be had.
    #[error(transparent)]
    Apt(#[from] AptError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The package's modules are not what the guest needs.
    #[error(transparent)]
    Modules(#[from] ModuleError),
    /// The cache entry could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The package depends on no kernel image.
    #[error("Package {package} {version} leads to no kernel image")]
    NoImage {
        /// The package.
        package: String,
        /// Its version.
        version: String,
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

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::Io {
        action,
        path,
        source,
    }
}

/// The prebuilt kernel for `arch`: the one fetched before, if there is one, else the newest the host's package sources offer.
pub fn fetch(arch: Arch, cache: &Cache, progress: &dyn Progress) -> Result<Kernel, FetchError> {
    if let Some(dir) = cache.current("kernel", &recipe(arch)) {
        return Ok(Kernel::load(&dir)?);
    }
    fetch_newest(arch, cache, progress)
}

/// The newest prebuilt kernel that the host's package sources offer for `arch`, even if an older one was fetched before.
pub fn fetch_newest(
    arch: Arch,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<Kernel, FetchError> {
    host::check(NEEDS, cache)?;
    let step = progress.step(&format!("Kernel for {arch}: looking it up"));
    let (apt, package) = resolve(arch, cache, progress)?;
    step.done(&format!("{} {}", package.name, package.version));
    let key = Key::of(&format!("fetched-{arch}-{}", package.version))
        .field("format", FORMAT)
        .field("package", &package.name)
        .field("version", &package.version)
        .field("arch", arch.name())
        .field("modules", module_recipe())
        .finish();
    let dir = cache.entry("kernel", &key, |dir| {
        fill(&apt, &package, arch, dir, progress)
    })?;
    cache.set_current("kernel", &recipe(arch), &key)?;
    Ok(Kernel::load(&dir)?)
}

/// The packages to look for, best first: a version of its own where a release has several, else the release's default.
fn candidates(arch: Arch) -> Vec<String> {
    let arch = arch.debian();
    vec![
        format!("linux-image-6.12-cloud-{arch}"),
        format!("linux-image-cloud-{arch}"),
    ]
}

/// Follows the metapackage to the package that holds the kernel.
fn resolve(
    arch: Arch,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<(Apt, Package), FetchError> {
    let (apt, meta) = Apt::knowing(&candidates(arch), arch, cache, progress)?;
    match meta
        .depends
        .iter()
        .find(|name| name.starts_with("linux-image-"))
    {
        Some(name) => {
            let package = apt.show(name)?;
            Ok((apt, package))
        }
        None => Err(FetchError::NoImage {
            package: meta.name,
            version: meta.version,
        }),
    }
}

fn fill(
    apt: &Apt,
    package: &Package,
    arch: Arch,
    dir: &Path,
    progress: &dyn Progress,
) -> Result<(), FetchError> {
    let mut step = progress.step(&format!("Kernel for {arch}: downloading"));
    let work = dir.join("work");
    fs::create_dir(&work).map_err(io_error("create", &work))?;
    let file = apt.download(package, &work, |line| step.line(line))?;
    step.line("unpacking");
    let tree = work.join("tree");
    apt::unpack(&file, &tree)?;
    let (kernel, more) = arrange(&tree, package, dir)?;
    kernel.save_with(dir, &more)?;
    cache::remove_tree(&work)?;
    step.done(&format!(
        "{} with {} modules",
        kernel.release,
        kernel.modules.len() + more.len()
    ));
    Ok(())
}

/// Moves what is wanted out of the unpacked package into the entry. The second part are the modules that not every guest loads.
fn arrange(
    tree: &Path,
    package: &Package,
    dir: &Path,
) -> Result<(Kernel, Vec<(Purpose, Module)>), FetchError> {
    let no_image = || FetchError::NoImage {
        package: package.name.clone(),
        version: package.version.clone(),
    };
    let boot = tree.join("boot");
    let names = fs::read_dir(&boot).map_err(io_error("read", &boot))?;
    let release = names
        .filter_map(|entry| {
            Some(
                entry
                    .ok()?
                    .file_name()
                    .to_str()?
                    .strip_prefix("vmlinuz-")?
                    .to_owned(),
            )
        })
        .next()
        .ok_or_else(no_image)?;
    let moved = |from: PathBuf, name: &str| {
        let to = dir.join(name);
        fs::rename(&from, &to)
            .map_err(io_error("move", &from))
            .map(|()| to)
    };
    let image = moved(boot.join(format!("vmlinuz-{release}")), "image")?;
    let config = moved(boot.join(format!("config-{release}")), "config")?;
    // Newer releases keep modules below /usr, where /lib is a link to it.
    let places = ["lib/modules", "usr/lib/modules"].map(|place| tree.join(place).join(&release));
    let source = places
        .iter()
        .find(|place| place.is_dir())
        .ok_or_else(no_image)?;
    let target = dir.join("modules");
    fs::create_dir(&target).map_err(io_error("create", &target))?;
    let files = ModuleTree::open(source)?.unpack(GUEST_MODULES, &target)?;
    let modules = files.into_iter().map(|(purpose, path)| {
        let params = Vec::new();
        (purpose, Module { path, params })
    });
    let (every, more): (Vec<_>, Vec<_>) =
        modules.partition(|(purpose, _)| *purpose == Purpose::Guest);
    let kernel = Kernel {
        image,
        vmlinux: None,
        config,
        release,
        modules: every.into_iter().map(|(_, module)| module).collect(),
        source: Source::Fetched,
    };
    Ok((kernel, more))
}

/// The wanted modules as an input of the key.
fn module_recipe() -> String {
    let word = |w: &Wanted| {
        let mark = if w.required { "!" } else { "" };
        format!("{}{mark}:{}", w.name, w.purpose)
    };
    GUEST_MODULES.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// What the fetched kernel answers to. It depends on the modules wanted: another version of this program looks anew.
fn recipe(arch: Arch) -> Key {
    Key::of(&format!("fetched-{arch}"))
        .field("format", FORMAT)
        .field("modules", module_recipe())
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fetched_kernel_is_taken_again_without_asking_anyone() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path()).unwrap();
        let key = Key::of("entry").finish();
        let dir = cache.dir(&format!("kernel/{}", key.name())).unwrap();
        let kernel = Kernel {
            image: dir.join("image"),
            vmlinux: None,
            config: dir.join("config"),
            release: "6.0".to_owned(),
            modules: Vec::new(),
            source: Source::Fetched,
        };
        kernel.save(&dir).unwrap();
        cache
            .set_current("kernel", &recipe(Arch::X86_64), &key)
            .unwrap();
        let found = fetch(Arch::X86_64, &cache, &crate::progress::Silent).unwrap();
        assert_eq!(found, kernel);
    }
}
