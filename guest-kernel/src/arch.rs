// SPDX-License-Identifier: Apache-2.0
//! The two guest architectures and what each is called by the parties that have to be talked to.

use std::fmt;
use std::str::FromStr;

/// A guest architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

/// A word that names no architecture we build for.
#[derive(Debug, thiserror::Error)]
#[error("Unknown architecture {0:?}: x86_64 and aarch64 are supported")]
pub struct UnknownArch(pub String);

impl Arch {
    /// Every architecture, in the order of the documentation.
    pub const ALL: [Arch; 2] = [Arch::X86_64, Arch::Aarch64];

    /// The architecture this program runs on, where it is one of ours.
    pub fn host() -> Option<Arch> {
        std::env::consts::ARCH.parse().ok()
    }

    /// The name of `uname -m` and of Rust's targets: `x86_64`, `aarch64`.
    pub fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }

    /// Debian's name: `amd64`, `arm64`.
    pub fn debian(self) -> &'static str {
        match self {
            Arch::X86_64 => "amd64",
            Arch::Aarch64 => "arm64",
        }
    }

    /// The kernel's `ARCH=`: `x86_64`, `arm64`.
    pub fn kbuild(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "arm64",
        }
    }

    /// The name in OCI image indexes (GOARCH): `amd64`, `arm64`.
    pub fn oci(self) -> &'static str {
        self.debian()
    }

    /// Rust's static target: `x86_64-unknown-linux-musl`, `aarch64-unknown-linux-musl`.
    pub fn rust_target(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64-unknown-linux-musl",
            Arch::Aarch64 => "aarch64-unknown-linux-musl",
        }
    }

    /// The prefix of Debian's compiler for this architecture, as in `aarch64-linux-gnu-gcc`.
    pub fn gnu_prefix(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64-linux-gnu-",
            Arch::Aarch64 => "aarch64-linux-gnu-",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Arch {
    type Err = UnknownArch;

    fn from_str(word: &str) -> Result<Self, UnknownArch> {
        match word {
            "x86_64" | "amd64" => Ok(Arch::X86_64),
            "aarch64" | "arm64" => Ok(Arch::Aarch64),
            other => Err(UnknownArch(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back() {
        for arch in Arch::ALL {
            assert_eq!(arch.name().parse::<Arch>().unwrap(), arch);
            assert_eq!(arch.debian().parse::<Arch>().unwrap(), arch);
        }
        assert!("riscv64".parse::<Arch>().is_err());
    }
}
