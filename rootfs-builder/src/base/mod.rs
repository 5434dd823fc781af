// SPDX-License-Identifier: Apache-2.0
//! Where the files of a root come from: nowhere (our binary alone), a directory, Debian, or an OCI image.
//!
//! A base is either a [`Tree`] that an image is written from, or a directory that a container's root is shared from. Directories made
//! here lie in the cache, each with a ledger of what its archives say, and are never written to again.

pub mod debian;
pub mod dir;
pub mod ledger;
pub mod none;
pub mod oci;
pub mod unpack;

use std::io;
use std::path::{Path, PathBuf};

use guest_kernel::{Arch, Cache, Progress};

use crate::tree::{Tree, TreeError};
use ledger::{Ledger, LedgerError};
pub use oci::ImageConfig;

/// Where a container's root comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootSource {
    /// A small Debian, made here.
    Debian {
        /// The release's code name; the host's own, or a default, if not given.
        suite: Option<String>,
        /// Packages besides the essential ones.
        packages: Vec<String>,
    },
    /// A directory that is the root.
    Dir(PathBuf),
    /// An OCI image layout: a directory with `oci-layout` and `index.json`.
    OciLayout(PathBuf),
    /// An archive of `docker save`, or of an OCI image layout.
    Archive(PathBuf),
}

/// Why there is no container root.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The path cannot be looked at.
    #[error("Cannot look at {path}", path = path.display())]
    Look {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Debian's root could not be made.
    #[error(transparent)]
    Debian(#[from] debian::DebianError),
    /// The image could not be unpacked.
    #[error(transparent)]
    Oci(#[from] oci::OciError),
    /// The root in the cache cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The directory cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

impl RootSource {
    /// What a path given by the user is: a file is an archive, a directory with an `oci-layout` file an image layout, any other
    /// directory a root.
    pub fn at(path: &Path) -> Result<RootSource, BaseError> {
        let look = |source| BaseError::Look {
            path: path.to_owned(),
            source,
        };
        let path = path.canonicalize().map_err(look)?;
        Ok(if !path.is_dir() {
            RootSource::Archive(path)
        } else if path.join("oci-layout").is_file() {
            RootSource::OciLayout(path)
        } else {
            RootSource::Dir(path)
        })
    }

    /// What it is for `arch`, without any path of this host's.
    pub fn name(&self, arch: Arch) -> String {
        match self {
            RootSource::Debian { suite, .. } => {
                let suite = debian::suite(suite.as_deref());
                match debian::Depth::of(arch) {
                    debian::Depth::Configured => format!("debian {suite}"),
                    debian::Depth::Unpacked => format!("debian {suite}, packages not configured"),
                }
            }
            RootSource::Dir(_) => "directory".to_owned(),
            RootSource::OciLayout(_) | RootSource::Archive(_) => "oci".to_owned(),
        }
    }
}

/// A directory to share as a container's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRoot {
    /// The directory.
    pub dir: PathBuf,
    /// What the image says about its process; none if the root is no image's.
    pub image_config: Option<ImageConfig>,
}

/// Gets a container's root as a directory, making it in the cache where it is not one already.
pub fn container_root(
    source: &RootSource,
    arch: Arch,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<ContainerRoot, BaseError> {
    Ok(match source {
        RootSource::Dir(dir) => ContainerRoot {
            dir: dir.clone(),
            image_config: None,
        },
        RootSource::Debian { suite, packages } => ContainerRoot {
            dir: debian::root(suite.as_deref(), packages, arch, cache, progress)?,
            image_config: None,
        },
        RootSource::OciLayout(dir) => oci::root_of_layout(dir, arch, cache, progress)?,
        RootSource::Archive(file) => oci::root_of_archive(file, arch, cache, progress)?,
    })
}

/// Gets a root as a tree, with owners, modes, devices and attributes as its archive has them, whoever unpacks it.
pub fn tree(
    source: &RootSource,
    arch: Arch,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<Tree, BaseError> {
    if let RootSource::Dir(dir) = source {
        return Ok(dir::tree(dir)?);
    }
    let root = container_root(source, arch, cache, progress)?.dir;
    Ok(Ledger::read(&root)?.tree(&root)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_shows_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        assert_eq!(
            RootSource::at(&path).unwrap(),
            RootSource::Dir(path.clone())
        );
        std::fs::write(path.join("oci-layout"), "{}").unwrap();
        assert_eq!(
            RootSource::at(&path).unwrap(),
            RootSource::OciLayout(path.clone())
        );
        let file = path.join("oci-layout");
        assert_eq!(RootSource::at(&file).unwrap(), RootSource::Archive(file));
        let error = RootSource::at(&path.join("gone")).unwrap_err();
        assert!(error.to_string().ends_with("gone"));
    }
}
