// SPDX-License-Identifier: Apache-2.0
//! The tree of a definition: a base, the guest binary, what a root must have (the mount points of init and agent among it, since a
//! read-only root cannot get them later), modules, a shell, and what the definition adds.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use guest_kernel::{Arch, Cache, Kernel, Progress, host};

use super::elf;
use super::place::{Circle, PutError, parent_of, put, put_directory, target_of};
use super::{AssembleError, add_modules};
use crate::base::{self, RootSource};
use crate::definition::{BaseChoice, Definition, FileContent, FileEntry, Format, Owner};
use crate::tree::{Entry, Kind, Tree};

/// What every root has: mounted over by init, written into by the agent, or looked for by programs (protocol section 7.2).
const DIRECTORIES: &[(&str, u32)] = &[
    ("/dev", 0o755),
    ("/etc", 0o755),
    ("/proc", 0o555),
    ("/root", 0o700),
    ("/run", 0o755),
    ("/sys", 0o555),
    ("/tmp", 0o1777),
    ("/var", 0o755),
];

/// What the shell is called by; the rest of its programs by `busybox NAME`.
const APPLETS: &[&str] = &[
    "sh", "cat", "chmod", "cp", "df", "dmesg", "du", "env", "find", "free", "grep", "head",
    "hexdump", "id", "ip", "kill", "less", "ln", "ls", "lsmod", "mkdir", "mount", "mv", "ping",
    "ps", "readlink", "rm", "sed", "sleep", "stat", "sync", "tail", "tar", "top", "tr", "umount",
    "uname", "vi", "wc", "wget", "xargs",
];

/// Why a definition makes no tree.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A file to be added cannot be read.
    #[error("Cannot read {path}, which is to become {target}", path = path.display(), target = target.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// Its place in the image.
        target: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file to be added is no file.
    #[error("{path} is neither a file nor a directory", path = path.display())]
    Special {
        /// What it is.
        path: PathBuf,
    },
    /// A directory to be added cannot have a mode, since what is in it has its own.
    #[error("{path} is a directory: what is in it is executable or not as it is, and one mode for all cannot be given", path = path.display())]
    DirectoryMode {
        /// The directory.
        path: PathBuf,
    },
    /// There is no shell for this guest.
    #[error("There is no static busybox for {arch} on this machine")]
    NoShell {
        /// The architecture.
        arch: Arch,
    },
    /// The guest binary is for another machine.
    #[error("{path} is no program for {arch}: {found}", path = path.display())]
    WrongBinary {
        /// The guest binary.
        path: PathBuf,
        /// The guest's architecture.
        arch: Arch,
        /// What it is.
        found: &'static str,
    },
}

/// What goes into a tree besides what the definition names.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts<'a> {
    /// The guest binary; an extension has none.
    pub binary: Option<&'a Path>,
    /// The kernel whose modules go in.
    pub kernel: Option<&'a Kernel>,
}

/// The tree of a definition, and the base it began with for whoever keeps account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// All that goes into the image.
    pub tree: Tree,
    /// The base by its name, if there is one.
    pub base: Option<(String, Tree)>,
}

/// Makes the tree of a definition.
pub fn root(
    definition: &Definition,
    parts: Parts<'_>,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<Root, AssembleError> {
    let base = base_of(definition, cache, progress)?;
    let mut tree = base
        .as_ref()
        .map_or_else(Tree::default, |(_, tree)| tree.clone());
    if definition.format.is_root() {
        skeleton(&mut tree, definition)?;
    }
    if let Some(binary) = parts.binary {
        add_binary(&mut tree, binary, definition)?;
    }
    if let Some(kernel) = parts.kernel {
        add_modules(&mut tree, kernel)?;
    }
    if definition.shell {
        add_shell(&mut tree, definition.arch, cache)?;
    }
    for directory in &definition.directories {
        let place = target_of(&tree, &directory.target).map_err(PutError::from)?;
        let mode = directory.mode.map_or(0o755, |mode| mode.0);
        let entry = owned(Entry::directory(mode), directory.owner);
        tree.insert(place, entry)?;
    }
    for file in &definition.files {
        add_file(&mut tree, file)?;
    }
    Ok(Root { tree, base })
}

/// Where a definition's base comes from; none for no base.
pub fn source_of(definition: &Definition) -> Result<Option<RootSource>, AssembleError> {
    Ok(match &definition.base {
        BaseChoice::None => None,
        BaseChoice::Debian => Some(RootSource::Debian {
            suite: definition.suite.clone(),
            packages: definition.packages.clone(),
        }),
        BaseChoice::Path(path) => Some(RootSource::at(path)?),
    })
}

fn base_of(
    definition: &Definition,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<Option<(String, Tree)>, AssembleError> {
    let Some(source) = source_of(definition)? else {
        return Ok(None);
    };
    let tree = base::tree(&source, definition.arch, cache, progress)?;
    Ok(Some((source.name(definition.arch), tree)))
}

/// What init and agent expect to find, where the base has not got it.
fn skeleton(tree: &mut Tree, definition: &Definition) -> Result<(), AssembleError> {
    for (path, mode) in DIRECTORIES {
        put_directory(tree, path, Entry::directory(*mode))?;
    }
    // A device node needs root to be made on a host's file system; there init mounts over it anyway.
    if definition.format != Format::Directory {
        put(
            tree,
            "/dev/console",
            Entry::new(Kind::CharDevice(5, 1), 0o600),
        )?;
    }
    // What an image's own /var/run holds is nothing that a running system could use.
    if kind_at(tree, "/var/run")?.is_none_or(|kind| !matches!(kind, Kind::Symlink(_))) {
        put(
            tree,
            "/var/run",
            Entry::new(Kind::Symlink("../run".into()), 0o777),
        )?;
    }
    // The sandbox's is mounted over it: a link would lead elsewhere.
    if kind_at(tree, "/etc/resolv.conf")?.is_none_or(|kind| !matches!(kind, Kind::File(_))) {
        put(tree, "/etc/resolv.conf", Entry::bytes("", 0o644))?;
    }
    if let Some(hostname) = &definition.hostname {
        put(
            tree,
            "/etc/hostname",
            Entry::bytes(format!("{hostname}\n"), 0o644),
        )?;
    }
    Ok(())
}

fn kind_at<'a>(tree: &'a Tree, path: &str) -> Result<Option<&'a Kind>, PutError> {
    let place = parent_of(tree, Path::new(path))?;
    Ok(tree.get(place).map(|entry| &entry.kind))
}

/// An initramfs is started at `/init`, any other root at `/sbin/init`.
fn add_binary(
    tree: &mut Tree,
    binary: &Path,
    definition: &Definition,
) -> Result<(), AssembleError> {
    if let Some(found) =
        elf::unfit(binary, definition.arch).map_err(|source| AssembleError::Io {
            action: "read",
            path: binary.to_owned(),
            source,
        })?
    {
        let path = binary.to_owned();
        let arch = definition.arch;
        return Err(RootError::WrongBinary { path, arch, found }.into());
    }
    let path = match definition.format {
        Format::Initramfs => "/init",
        _ => "/sbin/init",
    };
    Ok(put(tree, path, Entry::file(binary, 0o755))?)
}

/// A static busybox of this machine's, unless the base has a shell of its own.
fn add_shell(tree: &mut Tree, arch: Arch, cache: &Cache) -> Result<(), AssembleError> {
    let shell = target_of(tree, Path::new("/bin/sh")).map_err(PutError::from)?;
    if tree.get(shell).is_some() {
        return Ok(());
    }
    let fits = |path: &PathBuf| matches!(elf::unfit(path, arch), Ok(None)) && elf::is_elf(path);
    let Some(busybox) = host::find_program("busybox", cache).filter(fits) else {
        return Err(RootError::NoShell { arch }.into());
    };
    put(tree, "/bin/busybox", Entry::file(busybox, 0o755))?;
    for applet in APPLETS {
        let link = Entry::new(Kind::Symlink("busybox".into()), 0o777);
        put(tree, format!("/bin/{applet}"), link)?;
    }
    Ok(())
}

fn add_file(tree: &mut Tree, file: &FileEntry) -> Result<(), AssembleError> {
    let target = &file.target;
    let entry = match &file.what {
        FileContent::Text(text) => {
            Entry::bytes(text.as_str(), file.mode.map_or(0o644, |mode| mode.0))
        }
        FileContent::Link(link) => Entry::new(Kind::Symlink(link.clone()), 0o777),
        FileContent::Source(path) => {
            let failed = |source| RootError::Source {
                path: path.clone(),
                target: target.clone(),
                source,
            };
            let path = path.canonicalize().map_err(failed)?;
            let metadata = fs::metadata(&path).map_err(failed)?;
            if metadata.is_dir() {
                return add_directory(tree, &path, file);
            }
            if !metadata.is_file() {
                return Err(RootError::Special { path }.into());
            }
            let mode = file
                .mode
                .map_or_else(|| plain_mode(metadata.mode()), |mode| mode.0);
            Entry::file(path, mode)
        }
    };
    Ok(put(tree, target, owned(entry, file.owner))?)
}

/// Lays a directory of the host over a place in the tree. Directories that are there keep their owner and mode.
fn add_directory(tree: &mut Tree, path: &Path, file: &FileEntry) -> Result<(), AssembleError> {
    if file.mode.is_some() {
        let path = path.to_owned();
        return Err(RootError::DirectoryMode { path }.into());
    }
    let directory = || owned(Entry::directory(0o755), file.owner);
    put_directory(tree, &file.target, directory())?;
    for (inside, entry) in Tree::from_dir(path, false)?.entries() {
        let target = file.target.join(inside);
        if entry.kind == Kind::Directory {
            put_directory(tree, &target, directory())?;
            continue;
        }
        let mut entry = owned(entry.clone(), file.owner);
        if matches!(entry.kind, Kind::File(_)) {
            entry.mode = plain_mode(entry.mode);
        }
        put(tree, &target, entry)?;
    }
    Ok(())
}

fn owned(mut entry: Entry, owner: Option<Owner>) -> Entry {
    let owner = owner.unwrap_or_default();
    (entry.uid, entry.gid) = (owner.uid, owner.gid);
    entry
}

/// What a file of the host is in an image: executable or not. The rest of its mode says more about the host's umask than about the file.
fn plain_mode(mode: u32) -> u32 {
    match mode & 0o100 {
        0 => 0o644,
        _ => 0o755,
    }
}

impl From<Circle> for AssembleError {
    fn from(circle: Circle) -> AssembleError {
        AssembleError::Put(circle.into())
    }
}

#[cfg(test)]
mod tests;
