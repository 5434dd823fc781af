// SPDX-License-Identifier: Apache-2.0
//! zig as linker and libc, driven by cargo-zigbuild, in a Python environment of its own inside the cache.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use guest_kernel::command;
use guest_kernel::host::{Need, Provider, What};
use guest_kernel::{Cache, Progress, cache};

use super::ToolchainError;
use super::cargo::cargo_command;

/// The interpreter of the environment.
pub const PYTHON: Need = Need::program("python3", "python3", "to install zig into the cache");

/// What makes environments.
pub const VENV: Need = Need {
    what: What::Answer(&["python3", "-c", "import venv, ensurepip"]),
    provider: Provider::Apt("python3-venv"),
    purpose: "to install zig into the cache",
};

/// What is installed, in the versions that were tried.
const PACKAGES: &[&str] = &["cargo-zigbuild==0.24.0", "ziglang==0.17.0"];

/// The environment's directory. Its name changes with the versions, so that an older one is not taken.
fn place(cache: &Cache) -> PathBuf {
    let key = cache::Key::of("zig")
        .field("packages", PACKAGES.join(" "))
        .finish();
    cache.root().join("tools").join(key.name())
}

/// The file that says that an environment is complete: scripts in one name its path, so it cannot be made elsewhere and renamed.
fn complete(venv: &Path) -> PathBuf {
    venv.join("complete")
}

/// Whether the environment is there.
pub fn is_there(cache: &Cache) -> bool {
    complete(&place(cache)).is_file()
}

/// The environment, made if it is not there.
pub fn ensure(cache: &Cache, progress: &dyn Progress) -> Result<PathBuf, ToolchainError> {
    let venv = place(cache);
    let _lock = cache.lock("zig")?;
    if complete(&venv).is_file() {
        return Ok(venv);
    }
    let mut step = progress.step("zig: installing into the cache");
    cache::remove_tree(&venv)?;
    cache.dir("tools")?;
    command::run_lines(
        Command::new("python3").args(["-m", "venv"]).arg(&venv),
        |line| step.line(line),
    )?;
    let mut pip = Command::new(venv.join("bin/python3"));
    pip.args([
        "-m",
        "pip",
        "install",
        "--no-input",
        "--disable-pip-version-check",
    ])
    .args(PACKAGES);
    command::run_lines(&mut pip, |line| step.line(line))?;
    std::fs::write(complete(&venv), PACKAGES.join("\n")).map_err(|source| ToolchainError::Io {
        action: "write",
        path: complete(&venv),
        source,
    })?;
    step.done(&PACKAGES.join(", "));
    Ok(venv)
}

/// `cargo zigbuild` with `rustc` as the compiler, which compiles the standard library along.
pub fn command(rustc: &Path, venv: &Path, cache: &Cache) -> Result<Command, ToolchainError> {
    let mut command = cargo_command();
    let mut path = venv.join("bin").into_os_string();
    if let Some(old) = env::var_os("PATH") {
        path.push(":");
        path.push(old);
    }
    command
        .args(["zigbuild", "-Z", "build-std=std,panic_abort"])
        .env("PATH", path)
        .env("RUSTC", rustc)
        // Compiling the standard library is an unstable feature; a stable compiler does it when told so.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ZIGBUILD_CACHE_DIR", cache.dir("work/zigbuild")?)
        .env("ZIG_GLOBAL_CACHE_DIR", cache.dir("work/zig")?);
    Ok(command)
}
