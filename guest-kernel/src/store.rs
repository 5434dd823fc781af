// SPDX-License-Identifier: Apache-2.0
//! How a kernel lies in the cache: one directory with `kernel.json` and the files it names, by paths relative to the directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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
}

#[derive(Debug, Deserialize, Serialize)]
struct ManifestModule {
    path: PathBuf,
    params: Vec<String>,
}

impl Kernel {
    /// Reads the kernel in a directory that [`Kernel::save`] wrote.
    pub fn load(dir: &Path) -> Result<Kernel, StoreError> {
        let path = dir.join(MANIFEST);
        let text = fs::read(&path).map_err(|source| StoreError::Io {
            action: "read",
            path: path.clone(),
            source,
        })?;
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|source| StoreError::Manifest { path, source })?;
        let module = |m: ManifestModule| Module {
            path: dir.join(m.path),
            params: m.params,
        };
        Ok(Kernel {
            image: dir.join(manifest.image),
            vmlinux: manifest.vmlinux.map(|path| dir.join(path)),
            config: dir.join(manifest.config),
            release: manifest.release,
            modules: manifest.modules.into_iter().map(module).collect(),
            source: manifest.source,
        })
    }

    /// Writes the manifest into `dir`. Paths below `dir` are written relative to it, so that the directory can be moved.
    pub fn save(&self, dir: &Path) -> Result<(), StoreError> {
        let relative = |path: &Path| path.strip_prefix(dir).unwrap_or(path).to_owned();
        let module = |m: &Module| ManifestModule {
            path: relative(&m.path),
            params: m.params.clone(),
        };
        let manifest = Manifest {
            release: self.release.clone(),
            source: self.source,
            image: relative(&self.image),
            vmlinux: self.vmlinux.as_deref().map(relative),
            config: relative(&self.config),
            modules: self.modules.iter().map(module).collect(),
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
}
