// SPDX-License-Identifier: Apache-2.0
//! OCI seccomp profiles as BPF filters of the kernel.

use oci_spec::runtime::LinuxSeccomp;
use serde::{Deserialize, Serialize};

/// A compiled filter, with the flags to install it with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// `struct sock_filter` entries: code, jump if true, jump if false, operand.
    filter: Vec<(u16, u8, u8, u32)>,
    /// `SECCOMP_FILTER_FLAG_*`.
    flags: u32,
}

/// A profile that cannot be compiled.
#[derive(Debug, thiserror::Error)]
#[error("Invalid seccomp profile: {0}")]
pub struct SeccompError(String);

/// Compiles a profile for this architecture.
///
/// # Errors
/// [`SeccompError`] naming the rule.
pub fn compile(_: &LinuxSeccomp) -> Result<Program, SeccompError> {
    Err(SeccompError("not supported yet".to_owned()))
}

impl Program {
    /// Puts the filter in force for this process.
    ///
    /// # Errors
    /// The errno of `seccomp(2)`.
    pub fn install(&self) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}
