// SPDX-License-Identifier: Apache-2.0
//! How a kernel lies in the cache: one directory with `kernel.json` and the files it names, by paths relative to the directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::modules::Purpose;
use crate::{Kernel, Module, Source};

const MANIFEST: &str = "kernel.json";

/// Why a kernel's directory could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
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
    /// The manifest is not what this version writes.
    #[error("{path} is not a kernel manifest", path = path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

#[derive(Debug, Deserialize, Serialize)]
struct Manifest {
    release: String,
    source: Source,
    image: PathBuf,
    vmlinux: Option<PathBuf>,
    config: PathBuf,
    modules: Vec<ManifestModule>,
    /// Those of other purposes than every guest's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    more: Vec<ManifestModule>,
}

#[derive(Debug, Deserialize, Serialize)]
struct ManifestModule {
    path: PathBuf,
    params: Vec<String>,
    #[serde(default)]
    purpose: Purpose,
}

impl ManifestModule {
    fn new(dir: &Path, purpose: Purpose, module: &Module) -> ManifestModule {
        ManifestModule {
            path: relative(dir, &module.path),
            params: module.params.clone(),
            purpose,
        }
    }

    fn at(self, dir: &Path) -> Module {
        Module {
            path: dir.join(self.path),
            params: self.params,
        }
    }
}

fn relative(dir: &Path, path: &Path) -> PathBuf {
    path.strip_prefix(dir).unwrap_or(path).to_owned()
}

fn read(dir: &Path) -> Result<Manifest, StoreError> {
    let path = dir.join(MANIFEST);
    let text = fs::read(&path).map_err(|source| StoreError::Io {
        action: "read",
        path: path.clone(),
        source,
    })?;
    serde_json::from_slice(&text).map_err(|source| StoreError::Manifest { path, source })
}

impl Kernel {
    /// Reads the kernel in a directory that [`Kernel::save`] wrote.
    pub fn load(dir: &Path) -> Result<Kernel, StoreError> {
        let manifest = read(dir)?;
        let modules = manifest.modules.into_iter();
        Ok(Kernel {
            image: dir.join(manifest.image),
            vmlinux: manifest.vmlinux.map(|path| dir.join(path)),
            config: dir.join(manifest.config),
            release: manifest.release,
            modules: modules.map(|m| m.at(dir)).collect(),
            source: manifest.source,
        })
    }

    /// The modules to load for some purposes, in load order; those of every guest ([`Kernel::modules`]) are always among them. The
    /// others are found by the manifest in the kernel's directory; a kernel that has none, such as a file of the user's, has no others.
    pub fn modules_for(&self, purposes: &[Purpose]) -> Result<Vec<Module>, StoreError> {
        let mut modules = self.modules.clone();
        let Some(dir) = self.image.parent() else {
            return Ok(modules);
        };
        if self.source == Source::Fetched && dir.join(MANIFEST).is_file() {
            let more = read(dir)?.more.into_iter();
            let chosen = more.filter(|m| purposes.contains(&m.purpose));
            modules.extend(chosen.map(|m| m.at(dir)));
        }
        Ok(modules)
    }

    /// Writes the manifest into `dir`. Paths below `dir` are written relative to it, so that the directory can be moved.
    pub fn save(&self, dir: &Path) -> Result<(), StoreError> {
        self.save_with(dir, &[])
    }

    /// As [`Kernel::save`], with modules of further purposes.
    pub fn save_with(&self, dir: &Path, more: &[(Purpose, Module)]) -> Result<(), StoreError> {
        let every = self.modules.iter();
        let manifest = Manifest {
            release: self.release.clone(),
            source: self.source,
            image: relative(dir, &self.image),
            vmlinux: self.vmlinux.as_deref().map(|path| relative(dir, path)),
            config: relative(dir, &self.config),
            modules: every
                .map(|m| ManifestModule::new(dir, Purpose::Guest, m))
                .collect(),
            more: more
                .iter()
                .map(|(purpose, m)| ManifestModule::new(dir, *purpose, m))
                .collect(),
        };
        let path = dir.join(MANIFEST);
        let text = serde_json::to_vec_pretty(&manifest).map_err(|source| StoreError::Manifest {
            path: path.clone(),
            source,
        })?;
        fs::write(&path, text).map_err(|source| StoreError::Io {
            action: "write",
            path,
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_kernel_loads_from_where_it_was_moved() {
        let root = tempfile::tempdir().unwrap();
        let (old, new) = (root.path().join("old"), root.path().join("new"));
        fs::create_dir(&old).unwrap();
        let kernel = |dir: &Path| Kernel {
            image: dir.join("image"),
            vmlinux: None,
            config: dir.join("config"),
            release: "6.0".to_owned(),
            modules: vec![Module {
                path: dir.join("modules/a.ko"),
                params: vec!["x=1".to_owned()],
            }],
            source: Source::Fetched,
        };
        kernel(&old).save(&old).unwrap();
        fs::rename(&old, &new).unwrap();
        assert_eq!(Kernel::load(&new).unwrap(), kernel(&new));
        assert!(matches!(Kernel::load(&old), Err(StoreError::Io { .. })));
    }

    #[test]
    fn modules_are_chosen_by_purpose() {
        let dir = tempfile::tempdir().unwrap();
        let module = |name: &str| Module {
            path: dir.path().join("modules").join(name),
            params: Vec::new(),
        };
        let kernel = Kernel {
            image: dir.path().join("image"),
            vmlinux: None,
            config: dir.path().join("config"),
            release: "6.0".to_owned(),
            modules: vec![module("sock.ko")],
            source: Source::Fetched,
        };
        assert_eq!(kernel.modules_for(&Purpose::ALL).unwrap(), kernel.modules);
        let more = [(Purpose::Disk, module("erofs.ko"))];
        kernel.save_with(dir.path(), &more).unwrap();
        let loaded = Kernel::load(dir.path()).unwrap();
        assert_eq!(loaded, kernel);
        assert_eq!(loaded.modules_for(&[]).unwrap(), [module("sock.ko")]);
        assert_eq!(
            loaded.modules_for(&[Purpose::Disk]).unwrap(),
            [module("sock.ko"), module("erofs.ko")]
        );
    }
}
