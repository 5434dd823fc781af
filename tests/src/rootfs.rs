// SPDX-License-Identifier: Apache-2.0
//! The container root file system of the tests: a static busybox, its applets, the probe, and the handful of files a root needs.
//!
//! Owns only what is inside the directory it is given. How it reaches the guest (in the initramfs, by virtio-fs, on a disk) is the
//! caller's business.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use guest_kernel::apt::{self, Apt};
use guest_kernel::{Arch, Cache, Progress};
use rootfs_builder::cache::Key;

/// The package of the static busybox.
const PACKAGE: &str = "busybox-static";

/// Where distributions put the static busybox.
const PLACES: [&str; 3] = [
    "/bin/busybox",
    "/usr/bin/busybox",
    "/usr/lib/busybox/busybox-static",
];

const DIRECTORIES: [&str; 12] = [
    "bin", "dev", "etc", "home", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "var",
];

const FILES: [(&str, &str); 4] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\ntester:x:1000:1000:tester:/home:/bin/sh\n",
    ),
    ("etc/group", "root:x:0:\ntester:x:1000:\n"),
    ("etc/hostname", "image\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
];

/// A static busybox for `arch`: the host's own, or for another architecture Debian's, in the cache.
pub fn busybox(arch: Arch, cache: &Cache, progress: &dyn Progress) -> Result<PathBuf> {
    if Some(arch) != Arch::host() {
        return foreign_busybox(arch, cache, progress);
    }
    for place in PLACES.map(Path::new) {
        if place.exists() && is_static(place)? {
            return Ok(place.to_owned());
        }
    }
    bail!(
        "No static busybox in {}\n  Hint: cargo run --release -p tests -- --setup, or apt-get install {PACKAGE}",
        PLACES.join(", ")
    )
}

/// Debian's package, unpacked and never installed. What was fetched once is taken again.
fn foreign_busybox(arch: Arch, cache: &Cache, progress: &dyn Progress) -> Result<PathBuf> {
    let key = Key::of(&format!("busybox-{arch}")).finish();
    let entry = cache.entry("test-base", &key, |dir| -> Result<()> {
        let mut step = progress.step(&format!("busybox for {arch}"));
        let (apt, package) = Apt::knowing(&[PACKAGE.to_owned()], arch, cache, progress)?;
        let file = apt.download(&package, dir, |line| step.line(line))?;
        apt::unpack(&file, dir)?;
        step.done(&package.version);
        Ok(())
    })?;
    let places = PLACES.map(|place| entry.join(place.trim_start_matches('/')));
    let found = places.into_iter().find(|place| place.is_file());
    found.with_context(|| format!("Debian's {PACKAGE} for {arch} has no busybox"))
}

/// Where the program that reports what a container sees lies.
pub const PROBE: &str = "/bin/probe";

/// Makes the tests' root file system in `root`, which is created, with a busybox and a probe for `arch`.
pub fn make(root: &Path, arch: Arch, busybox: &Path, probe: &Path) -> Result<()> {
    for name in DIRECTORIES {
        let path = root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("Cannot create {}", path.display()))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    for (name, text) in FILES {
        fs::write(root.join(name), text).with_context(|| format!("Cannot write {name}"))?;
    }
    for (program, inside) in [(busybox, "/bin/busybox"), (probe, PROBE)] {
        let inside = root.join(inside.trim_start_matches('/'));
        fs::copy(program, &inside).with_context(|| format!("Cannot copy {}", program.display()))?;
        fs::set_permissions(&inside, fs::Permissions::from_mode(0o755))?;
    }
    for applet in applets(arch, busybox)? {
        if applet != "busybox" {
            symlink("busybox", root.join("bin").join(&applet))
                .with_context(|| format!("Cannot link the applet {applet}"))?;
        }
    }
    Ok(())
}

fn applets(arch: Arch, busybox: &Path) -> Result<Vec<String>> {
    let output = command(arch, busybox)
        .arg("--list")
        .output()
        .with_context(|| format!("Cannot run {}", busybox.display()))?;
    ensure!(
        output.status.success(),
        "{} --list failed",
        busybox.display()
    );
    Ok(String::from_utf8(output.stdout)?
        .lines()
        .map(str::to_owned)
        .collect())
}

/// A command that runs a static program for `arch` on this host, emulated where it must be.
pub fn command(arch: Arch, program: &Path) -> Command {
    if Some(arch) == Arch::host() {
        return Command::new(program);
    }
    let mut emulator = Command::new(format!("qemu-{arch}-static"));
    emulator.arg(program);
    emulator
}

/// Whether an ELF file asks for no interpreter (no `PT_INTERP` program header), as in elf(5).
pub fn is_static(path: &Path) -> Result<bool> {
    let bytes = fs::read(path).with_context(|| format!("Cannot read {}", path.display()))?;
    let half = |at: usize| {
        bytes
            .get(at..at + 2)
            .map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])))
    };
    let header = (|| {
        let at: [u8; 8] = bytes.get(32..40)?.try_into().ok()?;
        Some((
            usize::try_from(u64::from_le_bytes(at)).ok()?,
            half(54)?,
            half(56)?,
        ))
    })();
    let Some((start, size, count)) = header.filter(|_| bytes.starts_with(b"\x7fELF\x02\x01"))
    else {
        bail!("{} is not a 64-bit ELF file", path.display());
    };
    const PT_INTERP: usize = 3;
    Ok((0..count).all(|n| half(start + n * size) != Some(PT_INTERP)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rootfs_builder::progress::Silent;

    #[test]
    fn an_ordinary_program_is_not_static() {
        assert!(!is_static(Path::new("/bin/ls")).unwrap());
        assert!(is_static(Path::new("/etc/passwd")).is_err());
    }

    #[test]
    fn the_root_has_a_shell_and_the_usual_directories() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let host = Arch::host().unwrap();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let busybox = busybox(host, &cache, &Silent).unwrap();
        let probe = dir.path().join("probe");
        fs::write(&probe, "a program").unwrap();
        make(&root, host, &busybox, &probe).unwrap();
        assert_eq!(
            fs::read_link(root.join("bin/sh")).unwrap(),
            Path::new("busybox")
        );
        assert_eq!(fs::read(root.join("bin/probe")).unwrap(), b"a program");
        assert!(root.join("proc").is_dir());
        let mode = fs::metadata(root.join("tmp")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o1777);
    }
}
