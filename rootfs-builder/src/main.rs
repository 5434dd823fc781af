// SPDX-License-Identifier: Apache-2.0
//! The `rootfs-builder` program: see `rootfs-builder --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    rootfs_builder::cli::main()
}
