// SPDX-License-Identifier: Apache-2.0
//! What is checked besides tests: format, lints, and the static binaries of both architectures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use guest_kernel::Arch;
use guest_kernel::host::Need;
use rootfs_builder::cache::Cache;
use rootfs_builder::image::ext4;
use rootfs_builder::progress::Progress;
use rootfs_builder::{setup, toolchain};

use super::tally::Tally;

/// What only the tests need of the host, besides what booting a guest does.
const NEEDS: &[Need] = &[
    Need::file(
        &["/bin/busybox", "/usr/bin/busybox"],
        "busybox-static",
        "to make the tests' containers",
    ),
    Need::program("mkfs.ext4", "e2fsprogs", "to make the tests' disks"),
    Need::program("mkfs.xfs", "xfsprogs", "to make the tests' disks"),
    Need::program("mkfs.erofs", "erofs-utils", "to make the tests' layers"),
    Need::program("sfdisk", "fdisk", "to make the tests' partitions"),
    Need::program("mkswap", "util-linux", "to make the tests' swap"),
    Need::program("unshare", "util-linux", "to run the agent without a VM"),
    Need::program("ip", "iproute2", "to make links for the agent without a VM"),
    Need::program("iptables-restore", "iptables", "to have packet filters set"),
    Need::program(
        "qemu-aarch64-static",
        "qemu-user-static",
        "to run the aarch64 binary",
    ),
    Need::program("fsck.erofs", "erofs-utils", JUDGE),
    Need::program("veritysetup", "cryptsetup-bin", JUDGE),
    Need::program("cpio", "cpio", JUDGE),
    Need::program("gzip", "gzip", JUDGE),
    Need::program("zstd", "zstd", JUDGE),
    Need::program("lz4", "lz4", JUDGE),
];

/// Images are read back by programs that we did not write.
const JUDGE: &str = "to judge what the image writers write";

/// Makes sure that the host has all that the tests need; names all of what is missing, or installs it.
pub fn host(install: bool, cache: &Cache, progress: &dyn Progress) -> Result<()> {
    let own = Arch::host().context("Guests cannot have this machine's architecture")?;
    let mut needs = setup::everything(own, cache);
    needs.extend(
        Arch::ALL
            .into_iter()
            .filter(|&arch| arch != own)
            .flat_map(|arch| toolchain::needs(arch, cache)),
    );
    // Both architectures' guests are booted, by either firmware, under our own kernel, and from every kind of root.
    for arch in Arch::ALL {
        needs.extend(setup::vm(arch));
        needs.extend(setup::kernel(arch, true));
        needs.push(setup::firmware(arch));
    }
    needs.extend(ext4::NEEDS);
    needs.extend(NEEDS);
    setup::ensure(&needs, install, cache, progress).context("The host is not ready for the tests")
}

/// A cargo command in the workspace.
pub fn cargo() -> Command {
    let mut command = toolchain::cargo_command();
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command
}

fn succeed(mut command: Command) -> Result<()> {
    let name = format!("{command:?}");
    let status = command
        .status()
        .with_context(|| format!("Cannot run {name}"))?;
    ensure!(status.success(), "{name} ended with {status}");
    Ok(())
}

/// `cargo fmt --check`.
pub fn format() -> Result<()> {
    let mut command = cargo();
    command.args(["fmt", "--all", "--check"]);
    succeed(command)
}

/// `cargo clippy`, warnings being errors.
pub fn clippy() -> Result<()> {
    let mut command = cargo();
    command.args([
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]);
    succeed(command)
}

/// Builds the guest binary for every architecture and runs each. Gives those that are as they should be.
pub fn guest_binaries(
    cache: &Cache,
    progress: &dyn Progress,
    tally: &mut Tally,
) -> BTreeMap<Arch, PathBuf> {
    let mut good = BTreeMap::new();
    for arch in Arch::ALL {
        let built = toolchain::guest_binary(arch, cache, progress).map_err(anyhow::Error::from);
        let name = format!("guest binary for {arch}");
        match built.and_then(|path| says_its_version(arch, &path).map(|()| path)) {
            Ok(path) => {
                tally.check(&name, Ok(()));
                good.insert(arch, path);
            }
            Err(error) => tally.check(&name, Err(error)),
        }
    }
    good
}

/// A static binary is one that runs with nothing else there: no interpreter, no libraries.
fn says_its_version(arch: Arch, path: &Path) -> Result<()> {
    ensure!(
        tests::rootfs::is_static(path)?,
        "{} is not a static binary",
        path.display()
    );
    let mut command = tests::rootfs::command(arch, path);
    let output = command.arg("--version").output().with_context(|| {
        format!("Cannot run {command:?}\n  Hint: --setup installs what is missing, such as qemu-user-static")
    })?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}",
        output.status
    );
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        text.contains(env!("CARGO_PKG_VERSION")),
        "{command:?} printed {text:?}"
    );
    Ok(())
}
