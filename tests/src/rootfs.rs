// SPDX-License-Identifier: Apache-2.0
//! The container root file system of the tests: a static busybox, its applets, and the handful of files a root needs.
//!
//! Owns only what is inside the directory it is given. How it reaches the guest (in the initramfs, by virtio-fs, on a disk) is the
//! caller's business.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

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

/// The host's static busybox. An error names the package to install.
pub fn busybox() -> Result<PathBuf> {
    for place in PLACES.map(Path::new) {
        if place.exists() && is_static(place)? {
            return Ok(place.to_owned());
        }
    }
    bail!(
        "No static busybox in {}\n  Hint: cargo run --release -p tests -- --setup, or apt-get install busybox-static",
        PLACES.join(", ")
    )
}

/// Makes the tests' root file system in `root`, which is created.
pub fn make(root: &Path) -> Result<()> {
    for name in DIRECTORIES {
        let path = root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("Cannot create {}", path.display()))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    for (name, text) in FILES {
        fs::write(root.join(name), text).with_context(|| format!("Cannot write {name}"))?;
    }
    let busybox = busybox()?;
    let inside = root.join("bin/busybox");
    fs::copy(&busybox, &inside).with_context(|| format!("Cannot copy {}", busybox.display()))?;
    fs::set_permissions(&inside, fs::Permissions::from_mode(0o755))?;
    for applet in applets(&busybox)? {
        if applet != "busybox" {
            symlink("busybox", root.join("bin").join(&applet))
                .with_context(|| format!("Cannot link the applet {applet}"))?;
        }
    }
    Ok(())
}

fn applets(busybox: &Path) -> Result<Vec<String>> {
    let output = Command::new(busybox)
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

    #[test]
    fn an_ordinary_program_is_not_static() {
        assert!(!is_static(Path::new("/bin/ls")).unwrap());
        assert!(is_static(Path::new("/etc/passwd")).is_err());
    }

    #[test]
    fn the_root_has_a_shell_and_the_usual_directories() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        make(&root).unwrap();
        assert_eq!(
            fs::read_link(root.join("bin/sh")).unwrap(),
            Path::new("busybox")
        );
        assert!(root.join("proc").is_dir());
        let mode = fs::metadata(root.join("tmp")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o1777);
    }
}
