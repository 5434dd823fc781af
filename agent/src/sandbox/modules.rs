// SPDX-License-Identifier: Apache-2.0
//! Kernel modules that CreateSandbox asks for, loaded by the guest's modprobe.

use std::io;

use crate::children::Children;
use crate::program::{self, Call};

const MODPROBE: &str = "/sbin/modprobe";

/// A module and its parameters, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelModule {
    name: String,
    parameters: Vec<String>,
}

/// A module that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// Not a name modprobe could be given.
    #[error("Invalid kernel module name '{0}'")]
    Name(String),
    /// modprobe did not run.
    #[error("{MODPROBE} could not be run for kernel module '{name}'")]
    Run {
        /// The module.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// modprobe failed.
    #[error("Kernel module '{name}' could not be loaded: exit status {code}: {output}")]
    Failed {
        /// The module.
        name: String,
        /// Exit status, 128+N for death by signal N.
        code: i32,
        /// What modprobe said.
        output: String,
    },
}

impl KernelModule {
    /// Checks the name: it becomes an argument, so it may not look like an option.
    ///
    /// # Errors
    /// [`ModuleError::Name`].
    pub fn new(name: &str, parameters: Vec<String>) -> Result<Self, ModuleError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || name.starts_with('-') || !name.chars().all(plain) {
            return Err(ModuleError::Name(crate::container::plan::id::shorten(name)));
        }
        Ok(Self {
            name: name.to_owned(),
            parameters,
        })
    }
}

/// Loads one module.
///
/// # Errors
/// [`ModuleError::Run`] or [`ModuleError::Failed`].
pub async fn load(children: &Children, module: &KernelModule) -> Result<(), ModuleError> {
    let mut arguments = vec!["-v", "--", &module.name];
    arguments.extend(module.parameters.iter().map(String::as_str));
    let call = Call {
        program: MODPROBE,
        arguments: &arguments,
        input: &[],
        most: 0,
    };
    let ended = program::run(children, call).await;
    let ended = ended.map_err(|source| ModuleError::Run {
        name: module.name.clone(),
        source,
    })?;
    match ended.code {
        0 => Ok(()),
        code => Err(ModuleError::Failed {
            name: module.name.clone(),
            code,
            output: ended.complaint,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_smuggle_an_option_or_a_path() {
        assert!(KernelModule::new("nf_tables", vec![]).is_ok());
        for name in ["", "-r", "a b", "../x", "a/b", "x\n"] {
            assert!(KernelModule::new(name, vec![]).is_err(), "{name:?}");
        }
    }
}
