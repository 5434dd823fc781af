// SPDX-License-Identifier: Apache-2.0
//! Our own kernel, built from a distributor's source package with our fragments.
//!
//! Two builds from the same inputs give the same bytes: the clock, user and host that the kernel records are fixed, and everything
//! that goes in is part of the cache key.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use crate::arch::Arch;
use crate::cache::{Cache, CacheError, Key};
use crate::command::{self, CommandError};
use crate::config::{BadLine, Config, Missing as MissingOption, check_config};
use crate::fragments::{self, Concern, FragmentError};
use crate::host::{self, Missing, Need};
use crate::progress::Progress;
use crate::source::{self, SourceError, SourceTree};
use crate::store::StoreError;
use crate::{Kernel, Source};

/// What every kernel build needs of the host, besides a compiler for the architecture.
pub const NEEDS: &[Need] = &[
    Need::program("apt-get", "apt", "to download the kernel source"),
    Need::program("apt-cache", "apt", "to look the kernel source up"),
    Need::program("dpkg-deb", "dpkg", "to unpack the kernel source"),
    Need::program("tar", "tar", "to unpack the kernel source"),
    Need::program("xz", "xz-utils", "to unpack the kernel source"),
    Need::program("make", "make", "to build the kernel"),
    Need::program("gcc", "gcc", "to build the kernel's own tools"),
    Need::program("flex", "flex", "to build the kernel's own tools"),
    Need::program("bison", "bison", "to build the kernel's own tools"),
    Need::program("bc", "bc", "to build the kernel"),
    Need::program("perl", "perl", "to build the kernel"),
    Need::program("lz4", "lz4", "to compress the kernel image"),
    Need::file(
        &["/usr/include/stdio.h"],
        "libc6-dev",
        "to build the kernel's own tools",
    ),
    Need::file(
        &["/usr/include/gelf.h"],
        "libelf-dev",
        "to build the kernel's own tools",
    ),
    Need::file(
        &["/usr/include/openssl/ssl.h"],
        "libssl-dev",
        "to build the kernel's own tools",
    ),
];

const CROSS_X86_64: &[Need] = &[Need::program(
    "x86_64-linux-gnu-gcc",
    "gcc-x86-64-linux-gnu",
    "to compile for x86_64",
)];
const CROSS_AARCH64: &[Need] = &[Need::program(
    "aarch64-linux-gnu-gcc",
    "gcc-aarch64-linux-gnu",
    "to compile for aarch64",
)];

/// Counts up when the layout of an entry, or the way it is made, changes.
const FORMAT: &str = "1";

/// About how many lines a build prints, for the progress bar; the real number depends on version and options.
const EXPECTED_LINES: u64 = 2850;

/// The file of an entry that a debugger takes.
const SYMBOLS: &str = "vmlinux.debug";

/// Variables of the caller's that would change what is built.
const FOREIGN_VARIABLES: &[&str] = &[
    "ARCH",
    "CROSS_COMPILE",
    "KCFLAGS",
    "KCPPFLAGS",
    "KAFLAGS",
    "KBUILD_OUTPUT",
    "KBUILD_BUILD_VERSION",
    "KCONFIG_CONFIG",
    "KCONFIG_ALLCONFIG",
    "LLVM",
    "LOCALVERSION",
    "MAKEFLAGS",
    "MAKELEVEL",
    "MFLAGS",
    "O",
    "W",
    "V",
    "CFLAGS",
    "LDFLAGS",
];

impl Kernel {
    /// The uncompressed ELF with what a debugger needs, if the kernel was built with it ([`Concern::Debug`]).
    pub fn symbols(&self) -> Option<PathBuf> {
        let path = self.vmlinux.as_ref()?.with_file_name(SYMBOLS);
        path.is_file().then_some(path)
    }
}

/// How to build.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// Parallel jobs; as many as there are processors if not given.
    pub jobs: Option<usize>,
    /// What the kernel has besides what every one has.
    pub with: Vec<Concern>,
    /// The user's own fragments, merged last.
    pub extra: Vec<PathBuf>,
    /// Go on although options asked for did not survive; they are reported as a note.
    pub allow_missing: bool,
    /// Look for a newer source package even if one was taken before.
    pub refresh: bool,
}

/// Why a kernel could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Host programs are missing.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The source could not be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A fragment is wrong.
    #[error(transparent)]
    Fragment(#[from] FragmentError),
    /// A step of the build failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The cache entry could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Kconfig wrote a configuration that cannot be read.
    #[error("The configuration Kconfig wrote cannot be read")]
    Config(#[from] BadLine),
    /// Options that were asked for did not survive Kconfig.
    #[error("{} of the options asked for did not survive in {version}:{}", missing.len(), list(missing))]
    Options {
        /// The source's version.
        version: String,
        /// The options.
        missing: Vec<MissingOption>,
    },
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
}

fn list(missing: &[MissingOption]) -> String {
    missing.iter().map(|m| format!("\n    {m}")).collect()
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BuildError {
    let path = path.to_owned();
    move |source| BuildError::Io {
        action,
        path,
        source,
    }
}

/// What building for `arch` needs on this host.
pub fn needs(arch: Arch) -> Vec<Need> {
    let cross = match arch {
        _ if Arch::host() == Some(arch) => &[],
        Arch::X86_64 => CROSS_X86_64,
        Arch::Aarch64 => CROSS_AARCH64,
    };
    [NEEDS, cross].concat()
}

/// The kernel for `arch`, built from source with our fragments, or taken from the cache if it was built from the same inputs before.
pub fn build(
    arch: Arch,
    options: &BuildOptions,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<Kernel, BuildError> {
    host::check(&needs(arch), cache)?;
    let request = fragments::request(arch, &options.with, &options.extra)?;
    let tree = source::tree(options.refresh, cache, progress)?;
    let toolchain = Toolchain::of(arch)?;
    let timestamp = timestamp();
    let key = Key::of(&format!("built-{arch}-{}", tree.version))
        .field("format", FORMAT)
        .field("source", &tree.version)
        .field("request", request.to_text())
        .field("compiler", &toolchain.version)
        .field("timestamp", &timestamp)
        .finish();
    let dir = cache.entry("kernel", &key, |dir| {
        let work = format!("linux-{arch}");
        let _lock = cache.lock(&work)?;
        let build = Build {
            arch,
            toolchain: &toolchain,
            tree: &tree,
            out: cache.dir(&format!("work/{work}"))?,
            timestamp: &timestamp,
            progress,
        };
        build.configure(&request, options.allow_missing)?;
        build.compile(options.jobs)?;
        build.collect(dir)
    })?;
    Ok(Kernel::load(&dir)?)
}

/// The compiler for an architecture on this host.
struct Toolchain {
    /// `CROSS_COMPILE`; empty for the host's own.
    prefix: &'static str,
    /// What compiler and linker call themselves, for the key.
    version: String,
}

impl Toolchain {
    fn of(arch: Arch) -> Result<Toolchain, CommandError> {
        let native = Arch::host() == Some(arch);
        let prefix = if native { "" } else { arch.gnu_prefix() };
        let mut version = String::new();
        for tool in ["gcc", "ld"] {
            let text = command::output(
                Command::new(format!("{prefix}{tool}"))
                    .arg("--version")
                    .env("LC_ALL", "C"),
            )?;
            version.extend(text.lines().next());
            version.push('\n');
        }
        Ok(Toolchain { prefix, version })
    }
}

/// The time the kernel says it was built at, as `date -d` reads it: `SOURCE_DATE_EPOCH`, else the epoch.
fn timestamp() -> String {
    let seconds = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|v| v.parse::<u64>().ok());
    format!("@{}", seconds.unwrap_or(0))
}

/// One build in its output directory, which is kept so that a change of a few options compiles only what depends on them.
struct Build<'a> {
    arch: Arch,
    toolchain: &'a Toolchain,
    tree: &'a SourceTree,
    out: PathBuf,
    timestamp: &'a str,
    progress: &'a dyn Progress,
}

impl Build<'_> {
    fn make(&self) -> Command {
        let mut make = Command::new("make");
        for name in FOREIGN_VARIABLES {
            make.env_remove(name);
        }
        make.arg("-C").arg(&self.tree.dir);
        make.arg(format!("O={}", self.out.display()));
        make.arg(format!("ARCH={}", self.arch.kbuild()));
        make.arg(format!("CROSS_COMPILE={}", self.toolchain.prefix));
        make.env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("KBUILD_BUILD_TIMESTAMP", self.timestamp)
            .env("KBUILD_BUILD_USER", "keelson")
            .env("KBUILD_BUILD_HOST", "keelson")
            // Otherwise each build in a kept directory counts up, and no two are equal.
            .env("KBUILD_BUILD_VERSION", "1");
        make
    }

    fn configure(&self, request: &Config, allow_missing: bool) -> Result<(), BuildError> {
        let mut step = self
            .progress
            .step(&format!("Kernel for {}: configuring", self.arch));
        let fragment = self.out.join("keelson.config");
        fs::write(&fragment, request.to_text()).map_err(io_error("write", &fragment))?;
        let mut make = self.make();
        make.env("KCONFIG_ALLCONFIG", &fragment).arg("allnoconfig");
        command::run_lines(&mut make, |line| step.line(line))?;
        let path = self.out.join(".config");
        let text = fs::read_to_string(&path).map_err(io_error("read", &path))?;
        let missing = check_config(request, &Config::parse(&text)?);
        if missing.is_empty() {
            step.done(&format!(
                "all {} options survived",
                request.options().count()
            ));
            return Ok(());
        }
        let version = self.tree.version.clone();
        let error = BuildError::Options { version, missing };
        if !allow_missing {
            return Err(error);
        }
        self.progress.note(&error.to_string());
        step.done("options missing");
        Ok(())
    }

    fn compile(&self, jobs: Option<usize>) -> Result<(), BuildError> {
        let mut step = self.progress.step(&format!(
            "Kernel for {}: compiling {}",
            self.arch, self.tree.version
        ));
        let jobs = jobs
            .or_else(|| Some(thread::available_parallelism().ok()?.get()))
            .unwrap_or(1);
        let mut make = self.make();
        make.arg(format!("-j{jobs}"))
            .args(["vmlinux", self.image_target()]);
        let mut lines = 0;
        command::run_lines(&mut make, |line| {
            lines += 1;
            step.position(lines, EXPECTED_LINES.max(lines));
            step.line(line.trim());
        })?;
        step.done("");
        Ok(())
    }

    fn image_target(&self) -> &'static str {
        match self.arch {
            Arch::X86_64 => "bzImage",
            Arch::Aarch64 => "Image",
        }
    }

    fn collect(&self, dir: &Path) -> Result<(), BuildError> {
        let kernel = Kernel {
            image: dir.join("image"),
            vmlinux: Some(dir.join("vmlinux")),
            config: dir.join("config"),
            release: self.release()?,
            modules: Vec::new(),
            source: Source::Built,
        };
        let boot = match self.arch {
            Arch::X86_64 => "arch/x86/boot",
            Arch::Aarch64 => "arch/arm64/boot",
        };
        let image = self.out.join(boot).join(self.image_target());
        for (from, to) in [
            (&image, &kernel.image),
            (&self.out.join(".config"), &kernel.config),
        ] {
            fs::copy(from, to).map_err(io_error("copy", from))?;
        }
        // Symbols are half of the file, and a VMM loads it whole.
        let mut strip = Command::new(format!("{}strip", self.toolchain.prefix));
        strip
            .arg("-o")
            .arg(dir.join("vmlinux"))
            .arg(self.out.join("vmlinux"));
        command::run(&mut strip)?;
        if self.has_symbols(&kernel.config)? {
            let from = self.out.join("vmlinux");
            fs::copy(&from, dir.join(SYMBOLS)).map_err(io_error("copy", &from))?;
        }
        kernel.save(dir)?;
        Ok(())
    }

    /// Whether somebody asked for what a debugger reads.
    fn has_symbols(&self, config: &Path) -> Result<bool, BuildError> {
        let text = fs::read_to_string(config).map_err(io_error("read", config))?;
        Ok(Config::parse(&text)?.value("DEBUG_INFO").is_some())
    }

    fn release(&self) -> Result<String, BuildError> {
        let path = self.out.join("include/config/kernel.release");
        let text = fs::read_to_string(&path).map_err(io_error("read", &path))?;
        Ok(text.trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_architecture_needs_its_compiler() {
        let foreign = match Arch::host() {
            Some(Arch::X86_64) => Arch::Aarch64,
            _ => Arch::X86_64,
        };
        let compiler = format!("{}gcc", foreign.gnu_prefix());
        assert!(needs(foreign).iter().any(|need| need.name() == compiler));
        if let Some(host) = Arch::host() {
            assert_eq!(needs(host).len(), NEEDS.len());
        }
    }

    #[test]
    fn lost_options_are_listed_one_per_line() {
        let missing = vec![MissingOption {
            option: "A".to_owned(),
            requested: "y".to_owned(),
            actual: None,
        }];
        let version = "6.12".to_owned();
        let text = BuildError::Options { version, missing }.to_string();
        assert_eq!(
            text,
            "1 of the options asked for did not survive in 6.12:\n    CONFIG_A=y (is not set)"
        );
    }
}
