// SPDX-License-Identifier: Apache-2.0
//! Kernels as the builder's verbs see them: what a given kernel lacks.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use guest_kernel::config::{BadLine, Config, Missing, check_config};
use guest_kernel::fragments::{self, FragmentError};

pub use guest_kernel::{Arch, BuildOptions, Kernel, Module, Source, build, fetch, fetch_newest};

/// Why a kernel could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The configuration cannot be read.
    #[error("Cannot read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration is none.
    #[error("{path} is no kernel configuration", path = path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The line that is no option.
        source: BadLine,
    },
    /// The fragments asked for cannot be read.
    #[error(transparent)]
    Fragment(#[from] FragmentError),
}

/// Which of the options that our guest asks for (or of those in `own`, if any are given) the kernel configuration in a file lacks.
pub fn lacking(config: &Path, arch: Arch, own: &[PathBuf]) -> Result<Vec<Missing>, CheckError> {
    let actual = read(config)?;
    let request = if own.is_empty() {
        fragments::request(arch, &[])?
    } else {
        fragments::merge(own)?
    };
    Ok(check_config(&request, &actual))
}

fn read(path: &Path) -> Result<Config, CheckError> {
    let text = fs::read_to_string(path).map_err(|source| CheckError::Read {
        path: path.to_owned(),
        source,
    })?;
    Config::parse(&text).map_err(|source| CheckError::Config {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_lacks_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (config, fragment) = (dir.path().join("config"), dir.path().join("fragment"));
        fs::write(&config, "CONFIG_A=y\n# CONFIG_B is not set\n").unwrap();
        fs::write(&fragment, "CONFIG_A=y\nCONFIG_B=y\n").unwrap();
        let missing = lacking(&config, Arch::X86_64, &[fragment]).unwrap();
        assert_eq!(
            missing
                .iter()
                .map(|m| m.option.as_str())
                .collect::<Vec<_>>(),
            ["B"]
        );
        assert!(lacking(&config, Arch::X86_64, &[]).unwrap().len() > 300);
        fs::write(&config, "not a kernel's\n").unwrap();
        assert!(matches!(
            lacking(&config, Arch::X86_64, &[]),
            Err(CheckError::Config { .. })
        ));
    }
}
