// SPDX-License-Identifier: Apache-2.0
//! Builds the guest binary, and other programs of the workspace that run in guests, static, for either architecture, with whatever
//! compiler the host can offer.
//!
//! Three ways, tried in this order: a musl target that rustup has installed; one that rustup can add; a compiler with its library
//! source (Debian's) and zig as linker and libc. On every way the standard library is compiled along, for size and without what
//! prints backtraces, which is a quarter of the binary; only where rustup cannot have the library's source, the ready-made library
//! is linked. Which way was taken, and why, is reported in one line. Nothing outside the cache, the
//! workspace's `target` directory and rustup's own is written.

mod cargo;
mod zig;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use guest_kernel::command::{self, CommandError};
use guest_kernel::host::{self, Missing, Need};
use guest_kernel::progress::Silent;
use guest_kernel::{Arch, Cache, Progress, cache::CacheError};

pub use cargo::cargo_command;

/// The package of the guest binary and the binary in it.
const PACKAGE: &str = "agent";
/// See [`PACKAGE`].
const BINARY: &str = "keelson";
/// The cargo profile of what runs in guests.
const PROFILE: &str = "guest";

/// How long a failed `rustup target add` is remembered before it is tried again.
const REFUSAL_LASTS: Duration = Duration::from_secs(24 * 3600);

/// Flags every route builds with. Unwind tables are a fifth of a binary that never unwinds; relocations of a position-independent
/// one are a tenth, and applying them at the start touches memory (docs/adr/0006-guest-binary.md).
const FLAGS: &[&str] = &[
    "-C",
    "force-unwind-tables=no",
    "-C",
    "relocation-model=static",
];

/// Compiles the standard library along, for size and without what prints backtraces: a stripped binary has no names for them.
/// Stable compilers take it with `RUSTC_BOOTSTRAP=1` only.
const STD_FLAGS: &[&str] = &[
    "-Z",
    "build-std=std,panic_abort",
    "-Z",
    "build-std-features=optimize_for_size",
];

/// What the third way needs of the host.
pub const BUILD_STD_NEEDS: &[Need] = &[
    Need::file(
        &["/usr/bin/rustc"],
        "rustc-web",
        "to compile the guest binary, since rustup cannot add its target",
    ),
    Need::file(
        &["/usr/lib/rustlib/src/rust/library/Cargo.toml"],
        "rust-web-src",
        "to compile the standard library for the guest binary",
    ),
    zig::PYTHON,
    zig::VENV,
];

/// Why the guest binary could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ToolchainError {
    /// The source is nowhere to be found.
    #[error("Cannot find the source of the guest binary: neither {built_in} nor the current directory is inside its workspace", built_in = built_in.display())]
    NoWorkspace {
        /// Where this program was built from.
        built_in: PathBuf,
    },
    /// None of the ways works on this host.
    #[error("No way to compile for {target} on this host:{}", reasons.iter().map(|r| format!("\n    {r}")).collect::<String>())]
    NoRoute {
        /// The target.
        target: &'static str,
        /// Why each way was not taken.
        reasons: Vec<String>,
        /// What the third way lacks.
        missing: Missing,
    },
    /// A program failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A file operation failed.
    #[error("Cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Cargo succeeded but named no binary.
    #[error("Cargo built no {binary} binary in {workspace}", workspace = workspace.display())]
    NoBinary {
        /// The binary.
        binary: String,
        /// Where it built.
        workspace: PathBuf,
    },
}

/// A way to compile for a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// The default compiler has the target.
    Installed {
        /// It has the source of the standard library too, which is compiled along.
        with_source: bool,
    },
    /// The standard library is compiled along, with this compiler, and zig links.
    BuildStd {
        /// The compiler.
        rustc: PathBuf,
    },
}

/// Builds the guest binary for `arch` and returns its path, `target/<triple>/guest/keelson`. Cargo decides what must be compiled;
/// with nothing changed that takes about a second.
pub fn guest_binary(
    arch: Arch,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<PathBuf, ToolchainError> {
    guest_binary_in(&workspace()?, arch, cache, progress)
}

/// As [`guest_binary`], from the source in `workspace`.
pub fn guest_binary_in(
    workspace: &Path,
    arch: Arch,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<PathBuf, ToolchainError> {
    let program = Program {
        package: PACKAGE,
        binary: BINARY,
        title: format!("Guest binary for {arch}"),
    };
    compile(&program, workspace, arch, cache, progress)
}

/// Builds the program `binary` of the workspace's package `package` for `arch`, the same way as the guest binary, and returns its path,
/// `target/<triple>/guest/<binary>`.
pub fn static_binary(
    package: &str,
    binary: &str,
    arch: Arch,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<PathBuf, ToolchainError> {
    let program = Program {
        package,
        binary,
        title: format!("Program {binary} for {arch}"),
    };
    compile(&program, &workspace()?, arch, cache, progress)
}

/// What is to be built.
struct Program<'a> {
    package: &'a str,
    binary: &'a str,
    title: String,
}

fn compile(
    program: &Program<'_>,
    workspace: &Path,
    arch: Arch,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<PathBuf, ToolchainError> {
    let (route, why) = choose(arch, workspace, cache, progress)?;
    let mut step = progress.step(&program.title);
    step.line(&format!("by {why}"));
    let flags = rustflags(&route, arch, workspace);
    let mut command = match &route {
        Route::Installed { with_source } => {
            let mut command = cargo_command();
            command.arg("build");
            if *with_source {
                command.args(STD_FLAGS).env("RUSTC_BOOTSTRAP", "1");
            }
            command
        }
        Route::BuildStd { rustc } => {
            let venv = zig::ensure(cache, progress)?;
            zig::command(rustc, &venv, cache)?
        }
    };
    command
        .args([
            "--profile",
            PROFILE,
            "--target",
            arch.rust_target(),
            "--package",
            program.package,
            "--bin",
            program.binary,
        ])
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .current_dir(workspace);
    let built = cargo::build(command, program.binary, |line| step.line(line))?;
    let path = built.ok_or_else(|| ToolchainError::NoBinary {
        binary: program.binary.to_owned(),
        workspace: workspace.to_owned(),
    })?;
    let size = fs::metadata(&path).map_or(0, |m| m.len());
    step.done(&format!("{size} bytes, by {why}"));
    Ok(path)
}

/// Gets the compiler's parts that can be had without root's rights, without building anything.
pub fn prepare(arch: Arch, cache: &Cache, progress: &dyn Progress) -> Result<(), ToolchainError> {
    let (route, why) = choose(arch, &workspace()?, cache, progress)?;
    progress.note(&format!("Guest binary for {arch}: {why}"));
    if let Route::BuildStd { .. } = route {
        zig::ensure(cache, progress)?;
    }
    Ok(())
}

/// What building the guest binary needs of the host and does not have; empty if some way is open. To know that, lets rustup try to
/// add the target, once a day at most.
pub fn needs(arch: Arch, cache: &Cache) -> Vec<Need> {
    // Every failure here shows again, with its reason, when the binary is built.
    let workspace = workspace().unwrap_or_default();
    if choose(arch, &workspace, cache, &Silent).is_ok() {
        Vec::new()
    } else {
        BUILD_STD_NEEDS.to_vec()
    }
}

/// The workspace with the guest binary's source: the one this program was built from, else the one around the current directory.
pub fn workspace() -> Result<PathBuf, ToolchainError> {
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = std::env::current_dir().unwrap_or_default();
    let is_ours = |dir: &&Path| {
        dir.join("Cargo.toml").is_file() && dir.join(PACKAGE).join("Cargo.toml").is_file()
    };
    let found = built_in
        .ancestors()
        .skip(1)
        .take(1)
        .chain(here.ancestors())
        .find(is_ours);
    found
        .map(Path::to_owned)
        .ok_or_else(|| ToolchainError::NoWorkspace {
            built_in: built_in.to_owned(),
        })
}

/// Chooses the way and says why, in one line.
fn choose(
    arch: Arch,
    workspace: &Path,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<(Route, String), ToolchainError> {
    let target = arch.rust_target();
    if has_target(arch) {
        let why = format!("the installed target {target}");
        return Ok(with_source(why, cache, progress));
    }
    let refusal = if !rustup_is_there(cache) {
        "rustup is not there to add the target".to_owned()
    } else if refused_lately(arch, cache) {
        format!("rustup could not add {target} lately")
    } else {
        match add_target(arch, workspace, cache, progress)? {
            None => {
                let why = format!("the target {target}, added by rustup");
                return Ok(with_source(why, cache, progress));
            }
            Some(refusal) => refusal,
        }
    };
    match build_std_compiler(cache) {
        Ok(rustc) => {
            let why = format!(
                "{} with its library source, and zig ({refusal})",
                rustc.display()
            );
            Ok((Route::BuildStd { rustc }, why))
        }
        Err((reason, missing)) => Err(ToolchainError::NoRoute {
            target,
            reasons: vec![refusal, reason],
            missing,
        }),
    }
}

/// Completes the first two ways: with the source of the standard library if the compiler has it or rustup can add it.
fn with_source(why: String, cache: &Cache, progress: &dyn Progress) -> (Route, String) {
    let with_source = has_source() || (rustup_is_there(cache) && add_source(progress));
    let std = if with_source {
        "its standard library compiled along"
    } else {
        "ready-made standard library: without its source the binary is about 0.4 MB larger"
    };
    (Route::Installed { with_source }, format!("{why}, {std}"))
}

fn has_source() -> bool {
    sysroot("rustc").is_some_and(|root| {
        root.join("lib/rustlib/src/rust/library/Cargo.toml")
            .is_file()
    })
}

fn add_source(progress: &dyn Progress) -> bool {
    let mut step = progress.step("Source of Rust's standard library");
    let mut command = Command::new("rustup");
    command.args(["component", "add", "rust-src"]);
    cargo::clean(&mut command);
    let added = command::run_lines(&mut command, |line| step.line(line)).is_ok();
    step.done(if added {
        "added by rustup"
    } else {
        "cannot be added"
    });
    added && has_source()
}

/// Whether the default compiler has the target's standard library.
fn has_target(arch: Arch) -> bool {
    let Some(sysroot) = sysroot("rustc") else {
        return false;
    };
    let dir = sysroot
        .join("lib/rustlib")
        .join(arch.rust_target())
        .join("lib");
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    names
        .map(|entry| entry.file_name())
        .any(|name| name.to_string_lossy().starts_with("libstd-"))
}

fn sysroot(rustc: &str) -> Option<PathBuf> {
    let mut command = Command::new(rustc);
    command.args(["--print", "sysroot"]);
    cargo::clean(&mut command);
    command::output(&mut command)
        .ok()
        .map(|text| PathBuf::from(text.trim()))
}

fn rustup_is_there(cache: &Cache) -> bool {
    host::find_program("rustup", cache).is_some()
}

/// Lets rustup add the target; returns the reason if it could not.
fn add_target(
    arch: Arch,
    workspace: &Path,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<Option<String>, ToolchainError> {
    let target = arch.rust_target();
    let mut step = progress.step(&format!("Rust target {target}"));
    let mut command = Command::new("rustup");
    command
        .args(["target", "add", target])
        .current_dir(workspace);
    cargo::clean(&mut command);
    match command::run_lines(&mut command, |line| step.line(line)) {
        Ok(()) => {
            step.done("added by rustup");
            Ok(None)
        }
        Err(error) => {
            step.done("cannot be added");
            let marker = refusal_marker(arch, cache)?;
            fs::write(&marker, error.to_string()).map_err(|source| ToolchainError::Io {
                action: "write",
                path: marker,
                source,
            })?;
            Ok(Some(format!("rustup cannot add {target}")))
        }
    }
}

fn refusal_marker(arch: Arch, cache: &Cache) -> Result<PathBuf, CacheError> {
    Ok(cache.dir("tools")?.join(format!("no-rustup-target-{arch}")))
}

fn refused_lately(arch: Arch, cache: &Cache) -> bool {
    let modified = refusal_marker(arch, cache)
        .ok()
        .and_then(|path| path.metadata().ok()?.modified().ok());
    modified.is_some_and(|time| {
        SystemTime::now()
            .duration_since(time)
            .is_ok_and(|age| age < REFUSAL_LASTS)
    })
}

/// The compiler that has its library source, and can run with zig; else why not and what is missing.
fn build_std_compiler(cache: &Cache) -> Result<PathBuf, (String, Missing)> {
    let missing = match host::check(BUILD_STD_NEEDS, cache) {
        Ok(()) => return Ok(PathBuf::from("/usr/bin/rustc")),
        // The venv is made once; after that the modules that make it are of no matter.
        Err(missing) if zig::is_there(cache) => {
            let needs: Vec<Need> = missing
                .needs
                .into_iter()
                .filter(|n| *n != zig::PYTHON && *n != zig::VENV)
                .collect();
            if needs.is_empty() {
                return Ok(PathBuf::from("/usr/bin/rustc"));
            }
            Missing { needs }
        }
        Err(missing) => missing,
    };
    let names: Vec<_> = missing.needs.iter().map(Need::name).collect();
    Err((
        format!(
            "a compiler with its library source lacks {}",
            names.join(", ")
        ),
        missing,
    ))
}

/// The flags of a build. Paths of this machine are mapped away, so that builds in two directories give the same bytes.
fn rustflags(route: &Route, arch: Arch, workspace: &Path) -> Vec<String> {
    let mut flags: Vec<String> = FLAGS.iter().map(|&flag| flag.to_owned()).collect();
    match route {
        // zig brings its own startup objects and unwinder; rustc's would be linked besides them.
        Route::BuildStd { .. } => {
            flags.extend(["-C".to_owned(), "link-self-contained=no".to_owned()])
        }
        // The target brings its libc; all that is missing for a foreign architecture is a linker.
        Route::Installed { .. } if Arch::host() != Some(arch) => {
            flags.extend(["-C".to_owned(), "linker=rust-lld".to_owned()]);
        }
        Route::Installed { .. } => {}
    }
    let mut remap =
        |from: &Path, to: &str| flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    if let Some(home) = cargo::home() {
        remap(&home, "/cargo");
    }
    // The last one that matches wins, so the target directory, which is usually inside the workspace, comes after it.
    remap(workspace, "/keelson");
    remap(&cargo::target_dir(workspace), "/keelson/target");
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_the_one_this_was_built_from() {
        let found = workspace().unwrap();
        assert_eq!(
            found,
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
        );
    }

    #[test]
    fn flags_follow_the_route() {
        let std = Route::BuildStd {
            rustc: "/usr/bin/rustc".into(),
        };
        let flags = |route: &Route, arch| rustflags(route, arch, Path::new("/w")).join(" ");
        assert!(flags(&std, Arch::Aarch64).starts_with(
            "-C force-unwind-tables=no -C relocation-model=static -C link-self-contained=no --remap"
        ));
        assert!(flags(&std, Arch::Aarch64).contains(" --remap-path-prefix=/w=/keelson "));
        let installed = Route::Installed { with_source: true };
        let linkers = Arch::ALL.map(|arch| flags(&installed, arch).contains("linker=rust-lld"));
        if Arch::host().is_some() {
            assert_eq!(linkers.iter().filter(|&&lld| lld).count(), 1);
        }
    }

    #[test]
    fn a_refusal_is_remembered_for_its_architecture() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        assert!(!refused_lately(Arch::Aarch64, &cache));
        fs::write(refusal_marker(Arch::Aarch64, &cache).unwrap(), "").unwrap();
        assert!(refused_lately(Arch::Aarch64, &cache));
        assert!(!refused_lately(Arch::X86_64, &cache));
    }
}
