// SPDX-License-Identifier: Apache-2.0
//! The verb `verify`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use guest_kernel::Arch;

use super::Context;
use crate::image::verity::Verity;
use crate::verify::{self, Options};

/// Check an image against its manifest, its format, its hash tree, and whether a guest can start from it
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The image: a file of any format that `build` writes, or a directory
    image: PathBuf,
    /// The root hash of the dm-verity tree, in place of the one in the manifest beside the image
    #[arg(long, value_name = "HEX", value_parser = root_hash)]
    root_hash: Option<[u8; 32]>,
    /// The parameters of the dm-verity tree: root_hash=…,salt=…,data_blocks=…,data_block_size=…,hash_block_size=…
    #[arg(long, value_name = "PARAMS", conflicts_with = "root_hash")]
    verity: Option<String>,
    /// The guest's architecture: x86_64 or aarch64; the manifest's if not given
    #[arg(long, value_name = "ARCH")]
    arch: Option<Arch>,
}

fn root_hash(text: &str) -> Result<[u8; 32], String> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| digit.to_digit(16).map(|value| value as u8))
        .collect();
    let bytes: Option<Vec<u8>> = digits.filter(|digits| digits.len() == 64).map(|digits| {
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()
    });
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| "a root hash has 64 hexadecimal digits".to_owned())
}

/// `verify`: prints one line for each check.
pub fn verify(args: &VerifyArgs, context: &Context<'_>) -> Result<()> {
    let options = Options {
        root_hash: args.root_hash,
        verity: args
            .verity
            .as_deref()
            .map(Verity::parse_params)
            .transpose()?,
        arch: args.arch,
    };
    let verification = verify::verify(&args.image, &options)?;
    context.report(&verification)?;
    match verification.failed() {
        0 => Ok(()),
        1 => bail!("A check failed"),
        failed => bail!("{failed} checks failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_hash_has_64_digits() {
        assert_eq!(root_hash(&"aB".repeat(32)).unwrap(), [0xab; 32]);
        for bad in [
            "",
            "ab",
            &"ag".repeat(32),
            &"é".repeat(32),
            &"ab".repeat(33),
        ] {
            assert!(root_hash(bad).is_err());
        }
    }
}
