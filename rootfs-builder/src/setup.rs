// SPDX-License-Identifier: Apache-2.0
//! What each verb needs of the host, and installing it: Debian packages where this process is root, crates and Python packages into the
//! cache for anyone.

use std::path::PathBuf;
use std::process::Command;

use guest_kernel::command::{self, CommandError};
use guest_kernel::host::{self, Missing, Need, Provider, What};
use guest_kernel::{Arch, Cache, Progress, cache::CacheError, compile, fetch};

use crate::toolchain::{self, cargo_command};

/// Boots x86_64 guests.
const QEMU_X86_64: Need = Need::program(
    "qemu-system-x86_64",
    "qemu-system-x86",
    "to run x86_64 guests",
);
/// Boots aarch64 guests.
const QEMU_AARCH64: Need = Need::program(
    "qemu-system-aarch64",
    "qemu-system-arm",
    "to run aarch64 guests",
);
/// Starts x86_64 guests by UEFI.
const OVMF: Need = Need::file(
    &["/usr/share/qemu/OVMF.fd", "/usr/share/ovmf/OVMF.fd"],
    "ovmf",
    "to start x86_64 guests by UEFI",
);
/// Starts aarch64 guests by UEFI.
const QEMU_EFI: Need = Need::file(
    &["/usr/share/qemu-efi-aarch64/QEMU_EFI.fd"],
    "qemu-efi-aarch64",
    "to start aarch64 guests by UEFI",
);
/// The guest's socket to the host, without support of the host's kernel.
const VSOCK: Need = Need {
    what: What::Program("vhost-device-vsock"),
    provider: Provider::Cargo {
        name: "vhost-device-vsock",
        version: "0.3.0",
        needs: &[],
    },
    purpose: "to reach the guest's agent",
};
/// Shares the container's root with the guest.
const VIRTIOFSD: Need = Need {
    what: What::Program("virtiofsd"),
    provider: Provider::Cargo {
        name: "virtiofsd",
        version: "1.14.0",
        needs: &["libcap-ng-dev", "libseccomp-dev"],
    },
    purpose: "to share directories with the guest",
};
/// Makes Debian root file systems.
const MMDEBSTRAP: Need = Need::program(
    "mmdebstrap",
    "mmdebstrap",
    "to make Debian root file systems",
);

/// Lets mmdebstrap work in a user namespace.
const UIDMAP: Need = Need::program(
    "newuidmap",
    "uidmap",
    "to make Debian root file systems without root's rights",
);

/// What [`crate::base::debian`] needs of this user.
pub fn debian_base() -> Vec<Need> {
    let mut needs = DEBIAN_BASE.to_vec();
    if !host::is_root() {
        needs.push(UIDMAP);
    }
    needs
}

/// What [`crate::base::debian`] needs of any user; see [`debian_base`].
pub const DEBIAN_BASE: &[Need] = &[
    MMDEBSTRAP,
    Need::program("apt-get", "apt", "to make Debian root file systems"),
];

/// What the `run` verb needs for a VM, besides a kernel and the guest binary.
pub fn vm(arch: Arch) -> [Need; 3] {
    let qemu = match arch {
        Arch::X86_64 => QEMU_X86_64,
        Arch::Aarch64 => QEMU_AARCH64,
    };
    [qemu, VSOCK, VIRTIOFSD]
}

/// What a VM that starts by UEFI needs besides.
pub fn firmware(arch: Arch) -> Need {
    match arch {
        Arch::X86_64 => OVMF,
        Arch::Aarch64 => QEMU_EFI,
    }
}

/// Where the host has that.
pub fn firmware_file(arch: Arch) -> Option<PathBuf> {
    let What::File(places) = firmware(arch).what else {
        return None;
    };
    let mut places = places.iter().map(PathBuf::from);
    places.find(|path| path.exists())
}

/// What a kernel needs to be had.
pub fn kernel(arch: Arch, built: bool) -> Vec<Need> {
    if built {
        compile::needs(arch)
    } else {
        fetch::NEEDS.to_vec()
    }
}

/// All that the verbs `build` and `run` may need for `arch`: an initramfs with a fetched kernel, a VM, and a Debian container.
pub fn everything(arch: Arch, cache: &Cache) -> Vec<Need> {
    let mut needs = toolchain::needs(arch, cache);
    needs.extend(kernel(arch, false));
    needs.extend(vm(arch));
    if arch == Arch::Aarch64 {
        // Without ACPI an aarch64 guest has no nvdimm. An x86_64 guest gains nothing by UEFI.
        needs.push(firmware(arch));
    }
    needs.extend(debian_base());
    needs
}

/// Why the host is not ready.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Things are missing, and installing them was not asked for or is not possible for this user.
    #[error("{missing}")]
    Missing {
        /// What.
        missing: Missing,
        /// The commands that install it.
        commands: Vec<String>,
    },
    /// Something is still missing after it was installed.
    #[error("Still missing after the installation: {}", missing.needs.iter().map(Need::name).collect::<Vec<_>>().join(", "))]
    Still {
        /// What.
        missing: Missing,
    },
    /// An installer failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Makes sure that the host has all of `needs`; installs what it lacks if `install` says so, else names all of it at once.
pub fn ensure(
    needs: &[Need],
    install: bool,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<(), SetupError> {
    let Err(missing) = host::check(needs, cache) else {
        return Ok(());
    };
    if !install {
        let commands = missing.commands(cache);
        return Err(SetupError::Missing { missing, commands });
    }
    install_packages(&missing, cache, progress)?;
    for need in &missing.needs {
        if let Provider::Cargo { name, version, .. } = need.provider {
            install_crate(name, version, cache, progress)?;
        }
    }
    host::check(needs, cache).map_err(|missing| SetupError::Still { missing })
}

fn install_packages(
    missing: &Missing,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<(), SetupError> {
    let lacking: Vec<&str> = missing
        .packages()
        .into_iter()
        .filter(|package| !is_installed(package))
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    if !host::is_root() || host::find_program("apt-get", cache).is_none() {
        let commands = missing.commands(cache);
        return Err(SetupError::Missing {
            missing: missing.clone(),
            commands,
        });
    }
    let known = lacking.iter().all(|package| is_known(package));
    if !known {
        update_lists(progress)?;
    }
    match apt_install(&lacking, progress) {
        // Lists older than the archive name files that are gone.
        Err(_) if known => {
            update_lists(progress)?;
            apt_install(&lacking, progress)
        }
        result => result,
    }
}

fn update_lists(progress: &dyn Progress) -> Result<(), SetupError> {
    let mut step = progress.step("Package lists");
    command::run_lines(apt_get().arg("update"), |line| step.line(line))?;
    step.done("fetched");
    Ok(())
}

fn apt_install(packages: &[&str], progress: &dyn Progress) -> Result<(), SetupError> {
    let mut step = progress.step(&format!("Installing {}", packages.join(" ")));
    let mut install = apt_get();
    install
        .args(["install", "-y", "--no-install-recommends"])
        .args(packages);
    command::run_lines(&mut install, |line| step.line(line))?;
    step.done("");
    Ok(())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    // Nobody is there to answer a package's questions.
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C");
    command
}

/// Whether dpkg has the package installed and configured.
fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f=${db:Status-Status}\n", package]);
    command::output(&mut query).is_ok_and(|text| text.lines().any(|line| line == "installed"))
}

/// Whether the host's package lists have the package.
fn is_known(package: &str) -> bool {
    let mut show = Command::new("apt-cache");
    show.args(["show", "--no-all-versions", package]);
    command::output(&mut show).is_ok()
}

fn install_crate(
    name: &str,
    version: &str,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<(), SetupError> {
    let root = cache.dir("tools")?;
    let _lock = cache.lock(&format!("install-{name}"))?;
    let mut step = progress.step(&format!("Installing {name} {version}"));
    let mut command = cargo_command();
    command.args(["install", "--locked", "--root"]).arg(&root);
    command.arg(format!("{name}@{version}"));
    // A workspace's target directory is no place for another program's objects, and a temporary one leaves nothing behind.
    command.env_remove("CARGO_TARGET_DIR").current_dir(&root);
    command::run_lines(&mut command, |line| step.line(line))?;
    step.done("");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_kernel::progress::Silent;

    #[test]
    fn what_is_missing_is_named_all_at_once_with_its_commands() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let needs = [
            Need::program("no-such-program-a", "package-a", "for this"),
            Need::program("no-such-program-b", "package-b", "for that"),
        ];
        let error = ensure(&needs, false, &cache, &Silent).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("no-such-program-a") && text.contains("for that"),
            "{text}"
        );
        let SetupError::Missing { commands, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(commands.len(), 1);
        assert!(commands[0].ends_with("package-a package-b"));
    }

    #[test]
    fn each_architecture_has_its_machine() {
        assert_ne!(vm(Arch::X86_64)[0], vm(Arch::Aarch64)[0]);
        assert_ne!(firmware(Arch::X86_64), firmware(Arch::Aarch64));
    }

    #[test]
    fn a_host_with_everything_needs_no_installation() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        ensure(&[Need::program("sh", "dash", "")], true, &cache, &Silent).unwrap();
    }
}
