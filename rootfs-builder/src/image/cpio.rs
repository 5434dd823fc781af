// SPDX-License-Identifier: Apache-2.0
//! The initramfs format: a cpio archive in the "new ASCII" form, see the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`.
//!
//! The same tree gives the same bytes: entries are sorted, inodes numbered in that order, and all times are one time.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::tree::{Content, Entry, Kind, Tree};

/// Why an archive could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CpioError {
    /// A file is larger than the format can say (4 GiB).
    #[error("{path} is too large for a cpio archive", path = path.display())]
    TooLarge {
        /// Its path in the tree.
        path: PathBuf,
    },
    /// The kernel would leave the entry out without a word: its name or its target is too long, or the name is the one that ends an archive.
    #[error("{path} cannot be in an initramfs: the kernel would leave it out", path = path.display())]
    Unwritable {
        /// Its path in the tree.
        path: PathBuf,
    },
    /// A file of the host changed its size while it was read.
    #[error("{source_path} changed while it was read", source_path = source_path.display())]
    Changed {
        /// The file.
        source_path: PathBuf,
    },
    /// A file of the host cannot be read.
    #[error("Cannot read {source_path}", source_path = source_path.display())]
    Read {
        /// The file.
        source_path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error("Cannot write the archive")]
    Write(#[from] io::Error),
}

/// The name that ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// The longest path of Linux, with its NUL.
const PATH_MAX: usize = 4096;
/// Archives end on a multiple of this, as cpio(1) writes them.
const BLOCK: u64 = 512;

/// Writes the tree as an archive in which every entry was changed at `mtime`, in seconds since the epoch.
pub fn write(tree: &Tree, mtime: u32, out: &mut dyn Write) -> Result<(), CpioError> {
    let mut archive = Archive { out, written: 0 };
    for (index, (path, entry)) in tree.entries().enumerate() {
        // The kernel takes equal inode numbers of files with several links for hard links; nothing here has several.
        let inode = u32::try_from(index + 1).map_err(|_| CpioError::TooLarge {
            path: path.to_owned(),
        })?;
        archive.entry(path, entry, inode, mtime)?;
    }
    archive.header(
        TRAILER.as_bytes(),
        &Header {
            links: 1,
            ..Header::default()
        },
    )?;
    archive.pad(BLOCK)
}

/// The numbers of an entry's header, in the order of the format where they differ from entry to entry.
#[derive(Default)]
struct Header {
    inode: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    links: u32,
    mtime: u32,
    size: u32,
    device: (u32, u32),
}

struct Archive<'a> {
    out: &'a mut dyn Write,
    written: u64,
}

impl Archive<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), CpioError> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self, to: u64) -> Result<(), CpioError> {
        while !self.written.is_multiple_of(to) {
            self.put(&[0])?;
        }
        Ok(())
    }

    fn header(&mut self, name: &[u8], header: &Header) -> Result<(), CpioError> {
        let (major, minor) = header.device;
        let name_size = name.len() as u32 + 1;
        let fields = [
            header.inode,
            header.mode,
            header.uid,
            header.gid,
            header.links,
            header.mtime,
            header.size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ];
        self.put(b"070701")?;
        for field in fields {
            self.put(format!("{field:08x}").as_bytes())?;
        }
        self.put(name)?;
        self.put(&[0])?;
        self.pad(4)
    }

    fn entry(
        &mut self,
        path: &Path,
        entry: &Entry,
        inode: u32,
        mtime: u32,
    ) -> Result<(), CpioError> {
        let mut header = Header {
            inode,
            mode: entry.kind.type_bits() | entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            links: 1,
            mtime,
            ..Header::default()
        };
        let size = |length: u64| {
            u32::try_from(length).map_err(|_| CpioError::TooLarge {
                path: path.to_owned(),
            })
        };
        let name = path.as_os_str().as_bytes();
        if !fits(name, &entry.kind) {
            let path = path.to_owned();
            return Err(CpioError::Unwritable { path });
        }
        match &entry.kind {
            Kind::Directory => header.links = 2,
            Kind::Fifo => {}
            Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
                header.device = (*major, *minor)
            }
            Kind::Symlink(target) => {
                let target = target.as_os_str().as_bytes();
                header.size = size(target.len() as u64)?;
                self.header(name, &header)?;
                self.put(target)?;
                return self.pad(4);
            }
            Kind::File(Content::Bytes(bytes)) => {
                header.size = size(bytes.len() as u64)?;
                self.header(name, &header)?;
                self.put(bytes)?;
                return self.pad(4);
            }
            Kind::File(Content::File(source)) => {
                let mut file = open(source)?;
                header.size = size(file.metadata().map_err(read_error(source))?.len())?;
                self.header(name, &header)?;
                self.copy(&mut file, source, header.size.into())?;
                return self.pad(4);
            }
        }
        self.header(name, &header)
    }

    fn copy(&mut self, file: &mut File, source_path: &Path, size: u64) -> Result<(), CpioError> {
        let mut left = size;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = file.read(&mut buffer).map_err(read_error(source_path))?;
            // The size stands in the header already; a file that grew or shrank would shift everything after it.
            if count as u64 > left || (count == 0 && left > 0) {
                return Err(CpioError::Changed {
                    source_path: source_path.to_owned(),
                });
            }
            if count == 0 {
                return Ok(());
            }
            self.put(&buffer[..count])?;
            left -= count as u64;
        }
    }
}

/// Whether the kernel takes an entry (`init/initramfs.c`: `PATH_MAX`, with the name's NUL).
fn fits(name: &[u8], kind: &Kind) -> bool {
    let target = match kind {
        Kind::Symlink(target) => (1..=PATH_MAX).contains(&target.as_os_str().len()),
        _ => true,
    };
    target && name.len() < PATH_MAX && name != TRAILER.as_bytes()
}

fn open(source_path: &Path) -> Result<File, CpioError> {
    File::open(source_path).map_err(read_error(source_path))
}

fn read_error(source_path: &Path) -> impl FnOnce(io::Error) -> CpioError {
    let source_path = source_path.to_owned();
    move |source| CpioError::Read {
        source_path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn example() -> Tree {
        let mut tree = Tree::default();
        tree.insert("init", Entry::bytes("#!/bin/x\n", 0o755))
            .unwrap();
        tree.insert("dev/console", Entry::new(Kind::CharDevice(5, 1), 0o600))
            .unwrap();
        tree.insert("lib", Entry::new(Kind::Symlink("usr/lib".into()), 0o777))
            .unwrap();
        tree.insert("tmp", Entry::directory(0o1777)).unwrap();
        tree.insert(
            "etc/passwd",
            Entry {
                uid: 7,
                gid: 8,
                ..Entry::bytes("root", 0o640)
            },
        )
        .unwrap();
        tree
    }

    fn archive(tree: &Tree) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(tree, 1_000_000_000, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_first_entry_is_as_the_format_says() {
        let bytes = archive(&example());
        let expected = "070701\
            00000001000041ed000000000000000000000002\
            3b9aca00000000000000000000000000000000000000000000000004\
            00000000dev\0";
        assert_eq!(
            std::str::from_utf8(&bytes[..expected.len()]).unwrap(),
            expected
        );
        assert_eq!(bytes.len() % 512, 0);
    }

    #[test]
    fn two_writings_are_equal() {
        assert_eq!(archive(&example()), archive(&example()));
    }

    #[test]
    fn a_file_that_changes_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "12345").unwrap();
        for size in [4, 6] {
            let mut out = Vec::new();
            let mut archive = Archive {
                out: &mut out,
                written: 0,
            };
            let error = archive
                .copy(&mut open(&path).unwrap(), &path, size)
                .unwrap_err();
            assert!(matches!(error, CpioError::Changed { .. }));
        }
    }

    #[test]
    fn what_the_kernel_would_leave_out_is_refused() {
        let link = |length: usize| Kind::Symlink("x".repeat(length).into());
        for (name, kind) in [
            (TRAILER, Kind::Fifo),
            (&"d/".repeat(2048)[..4095], link(4097)),
            ("link", link(4097)),
            (&"d/".repeat(2049), Kind::Fifo),
        ] {
            let mut tree = Tree::default();
            tree.insert(name, Entry::new(kind, 0o644)).unwrap();
            let error = write(&tree, 0, &mut Vec::new()).unwrap_err();
            assert!(matches!(error, CpioError::Unwritable { .. }), "{error}");
        }
        let mut tree = Tree::default();
        tree.insert("link", Entry::new(link(4096), 0o777)).unwrap();
        write(&tree, 0, &mut Vec::new()).unwrap();
    }

    #[test]
    fn a_missing_file_is_named() {
        let mut tree = Tree::default();
        tree.insert("f", Entry::file("/no/such/file", 0o644))
            .unwrap();
        let error = write(&tree, 0, &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "Cannot read /no/such/file");
    }

    /// cpio(1) as an oracle.
    #[test]
    fn cpio_lists_what_was_written() {
        let mut command = Command::new("cpio");
        command
            .args(["--quiet", "-itvn"])
            .env("TZ", "UTC")
            .env("LC_ALL", "C");
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("this test needs cpio");
        child
            .stdin
            .take()
            .unwrap()
            .write_all(&archive(&example()))
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let modes: Vec<&str> = lines.iter().map(|words| words[0]).collect();
        assert_eq!(
            modes,
            [
                "drwxr-xr-x",
                "crw-------",
                "drwxr-xr-x",
                "-rw-r-----",
                "-rwxr-xr-x",
                "lrwxrwxrwx",
                "drwxrwxrwt"
            ]
        );
        assert_eq!(&lines[3][2..5], ["7", "8", "4"]);
        assert!(text.contains("lib -> usr/lib"));
    }
}
