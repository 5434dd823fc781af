// SPDX-License-Identifier: Apache-2.0
//! One small tree or file copied from a host's directory into memory and kept
//! like it. Owns how changes are seen and in which order they show up in the
//! copy; never decides when to look, and never follows a link on either side.
//!
//! A Kubernetes volume is a directory with a link `..data` to a directory with
//! a time in its name, and a link through `..data` for each key. What is new is
//! therefore complete before that one link is exchanged, and what is old goes
//! only then: no reader sees half of an update.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag};
use nix::fcntl::{open, openat, openat2, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, fchown, fchownat, symlinkat};

use super::mount::{errno, proc_path};
use crate::files::remove_all;

/// A tree with more in it than this is not copied; directories count.
const MAX_ENTRIES: usize = 16;
/// Nor is one with more bytes than this.
const MAX_BYTES: u64 = 1 << 20;
/// A tree that changes while it is read is read again this often.
const ATTEMPTS: usize = 5;
/// The link that Kubernetes exchanges.
const DATA: &str = "..data";

const O_DIR: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);
const O_FIND: OFlag = OFlag::O_PATH
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// What tells one state of a file from another. A clock that was set back or a
/// file that was replaced by an older one are changes, too.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    mode: u32,
    uid: u32,
    gid: u32,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Dir,
    File {
        size: u64,
        inode: u64,
        modified: (i64, i64),
        changed: (i64, i64),
    },
    Link(OsString),
}

/// Everything in a source by its path below it; the source itself has the empty one.
type Tree = BTreeMap<PathBuf, Node>;
/// What is in the files that differ.
type Contents = BTreeMap<PathBuf, Vec<u8>>;

/// What there is to do after a look at the source.
#[derive(Debug)]
pub(super) enum Seen {
    Same,
    /// Too large to be copied.
    TooLarge,
    Changed(Change),
}

/// One whole state of the source that the copy does not have yet.
#[derive(Debug)]
pub(super) struct Change {
    tree: Tree,
    contents: Contents,
}

impl Change {
    pub(super) fn is_dir(&self) -> bool {
        let root = self.tree.get(Path::new(""));
        root.is_some_and(|node| node.kind == Kind::Dir)
    }
}

/// A copy in a file system of its own.
#[derive(Debug)]
pub(super) struct Copy {
    /// Where files are written before they are moved to their place; no
    /// container sees that.
    workshop: OwnedFd,
    temporary: String,
    target: OwnedFd,
    applied: Tree,
}

impl Copy {
    /// An empty copy at `target`, a directory or a file open for writing.
    pub(super) fn new(workshop: OwnedFd, temporary: String, target: OwnedFd) -> Self {
        Self {
            workshop,
            temporary,
            target,
            applied: Tree::new(),
        }
    }

    pub(super) fn target(&self) -> &OwnedFd {
        &self.target
    }

    /// What the source has that the copy has not. Blocks.
    pub(super) fn look(&self, source: &Path) -> nix::Result<Seen> {
        look(source, &self.applied)
    }

    /// Takes a change over. After an error the same change may come again.
    pub(super) fn apply(&mut self, change: Change) -> nix::Result<()> {
        let Change { tree, contents } = change;
        let new = |(path, node): &(&PathBuf, &Node)| self.applied.get(*path) != Some(*node);
        let (mut links, mut dirs) = (Vec::new(), Vec::new());
        for (path, node) in tree.iter().filter(new) {
            match &node.kind {
                Kind::Dir => {
                    self.make_dir(path)?;
                    dirs.push((path, node));
                }
                Kind::File { .. } => {
                    let content = contents.get(path).ok_or(Errno::ESTALE)?;
                    self.put_file(path, node, content)?;
                }
                Kind::Link(to) => links.push((path, node, to)),
            }
        }
        for (path, node) in dirs {
            own(&self.dir(path)?, node)?;
        }
        links.sort_by_key(|(path, ..)| path.file_name() != Some(OsStr::new(DATA)));
        for (path, node, to) in links {
            self.put_link(path, node, to)?;
        }
        // What lies deeper comes later in the map.
        for path in self.applied.keys().rev() {
            if !tree.contains_key(path) {
                self.remove(path)?;
            }
        }
        self.applied = tree;
        Ok(())
    }

    /// A directory of the copy. The container may write there: no links.
    fn dir(&self, path: &Path) -> nix::Result<OwnedFd> {
        beneath(&self.target, path, O_DIR)
    }

    fn place<'a>(&self, path: &'a Path) -> nix::Result<(OwnedFd, &'a OsStr)> {
        let (parent, name) = path.parent().zip(path.file_name()).ok_or(Errno::EISDIR)?;
        Ok((self.dir(parent)?, name))
    }

    fn make_dir(&self, path: &Path) -> nix::Result<()> {
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let (dir, name) = self.place(path)?;
        let make = || mkdirat(&dir, name, Mode::from_bits_truncate(0o755));
        match make() {
            Err(Errno::EEXIST)
                if openat(&dir, name, O_DIR | OFlag::O_NOFOLLOW, Mode::empty()).is_ok() =>
            {
                Ok(())
            }
            Err(Errno::EEXIST) => {
                remove_all(&dir, name)?;
                make()
            }
            other => other,
        }
    }

    fn put_file(&self, path: &Path, node: &Node, content: &[u8]) -> nix::Result<()> {
        if path.as_os_str().is_empty() {
            // A container has this very file, not its name: what is moved over
            // it would never be seen.
            let file = File::from(self.target.try_clone().map_err(|e| errno(&e))?);
            file.write_all_at(content, 0).map_err(|e| errno(&e))?;
            file.set_len(content.len() as u64).map_err(|e| errno(&e))?;
            return own(&file, node);
        }
        self.clear_temporary()?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o600);
        let file = openat(&self.workshop, self.temporary.as_str(), flags, mode)?;
        let file = File::from(file);
        file.write_all_at(content, 0).map_err(|e| errno(&e))?;
        own(&file, node)?;
        self.move_to(path)
    }

    fn put_link(&self, path: &Path, node: &Node, to: &OsStr) -> nix::Result<()> {
        self.clear_temporary()?;
        let name = self.temporary.as_str();
        symlinkat(to, &self.workshop, name)?;
        let (uid, gid) = owner(node);
        fchownat(&self.workshop, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        self.move_to(path)
    }

    fn clear_temporary(&self) -> nix::Result<()> {
        remove_all(&self.workshop, OsStr::new(&self.temporary))
    }

    /// Moves the temporary file over what is there.
    fn move_to(&self, path: &Path) -> nix::Result<()> {
        let (dir, name) = self.place(path)?;
        let rename = || renameat(&self.workshop, self.temporary.as_str(), &dir, name);
        match rename() {
            Err(Errno::EISDIR) => {
                remove_all(&dir, name)?;
                rename()
            }
            other => other,
        }
    }

    fn remove(&self, path: &Path) -> nix::Result<()> {
        match self.place(path) {
            Ok((dir, name)) => remove_all(&dir, name),
            // Gone with what it was in, or the container has moved it.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Looks at a source, and reads what differs from `known`. Blocks.
fn look(source: &Path, known: &Tree) -> nix::Result<Seen> {
    for _ in 0..ATTEMPTS {
        let root = open_source(source)?;
        let tree = match survey(&root) {
            Ok(Some(tree)) => tree,
            Ok(None) => return Ok(Seen::TooLarge),
            Err(error) if is_change(error) => continue,
            Err(error) => return Err(error),
        };
        if tree == *known {
            return Ok(Seen::Same);
        }
        match fetch(&root, &tree, known) {
            Err(error) if is_change(error) => continue,
            Err(error) => return Err(error),
            // Whole only if nothing has happened since the beginning.
            Ok(contents) => match survey(&root) {
                Ok(again) if again.as_ref() == Some(&tree) => {
                    return Ok(Seen::Changed(Change { tree, contents }));
                }
                Err(error) if !is_change(error) => return Err(error),
                _ => {}
            },
        }
    }
    Err(Errno::EAGAIN)
}

/// The first look at a source, of which nothing is known.
pub(super) fn first_look(source: &Path) -> nix::Result<Seen> {
    look(source, &Tree::new())
}

/// Errors of a tree that is being changed.
fn is_change(error: Errno) -> bool {
    matches!(
        error,
        Errno::EAGAIN | Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ESTALE
    )
}

pub(super) fn open_source(source: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(O_FIND)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(AT_FDCWD, source, how)
}

fn beneath(root: &OwnedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let path = match path.as_os_str().is_empty() {
        true => Path::new("."),
        false => path,
    };
    let how = OpenHow::new()
        .flags(flags)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(root, path, how)
}

/// Lists a source; none if it is too large.
fn survey(root: &OwnedFd) -> nix::Result<Option<Tree>> {
    let mut tree = Tree::new();
    let mut bytes = 0;
    let Some(node) = node_of(&fstat(root)?, || Err(Errno::ELOOP))? else {
        return Err(Errno::EINVAL);
    };
    let mut below = match node.kind {
        Kind::Dir => vec![PathBuf::new()],
        _ => Vec::new(),
    };
    bytes += node.bytes();
    tree.insert(PathBuf::new(), node);
    while let Some(path) = below.pop() {
        let dir = beneath(root, &path, O_DIR)?;
        let listing = openat(&dir, c".", O_DIR, Mode::empty())?;
        for entry in Dir::from_fd(listing)?.iter() {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let stat = fstatat(&dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            // Pipes, sockets and devices hold nothing that could be copied.
            let Some(node) = node_of(&stat, || readlinkat(&dir, name))? else {
                continue;
            };
            bytes += node.bytes();
            if tree.len() > MAX_ENTRIES || bytes > MAX_BYTES {
                return Ok(None);
            }
            if node.kind == Kind::Dir {
                below.push(path.join(name));
            }
            tree.insert(path.join(name), node);
        }
    }
    Ok((bytes <= MAX_BYTES).then_some(tree))
}

impl Node {
    fn bytes(&self) -> u64 {
        match self.kind {
            Kind::File { size, .. } => size.min(MAX_BYTES + 1),
            _ => 0,
        }
    }
}

fn node_of(
    stat: &FileStat,
    link: impl FnOnce() -> nix::Result<OsString>,
) -> nix::Result<Option<Node>> {
    let kind = match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => Kind::Dir,
        SFlag::S_IFLNK => Kind::Link(link()?),
        SFlag::S_IFREG => Kind::File {
            size: u64::try_from(stat.st_size).unwrap_or(u64::MAX),
            inode: stat.st_ino,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        },
        _ => return Ok(None),
    };
    Ok(Some(Node {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        kind,
    }))
}

fn fetch(root: &OwnedFd, tree: &Tree, known: &Tree) -> nix::Result<Contents> {
    let mut contents = Contents::new();
    for (path, node) in tree {
        let Kind::File { size, .. } = node.kind else {
            continue;
        };
        if known.get(path) == Some(node) {
            continue;
        }
        let content = read_file(root, path, size)?;
        if content.len() as u64 != size {
            return Err(Errno::ESTALE);
        }
        contents.insert(path.clone(), content);
    }
    Ok(contents)
}

fn read_file(root: &OwnedFd, path: &Path, size: u64) -> nix::Result<Vec<u8>> {
    let found = match path.as_os_str().is_empty() {
        true => root.try_clone().map_err(|e| errno(&e))?,
        false => beneath(root, path, O_FIND)?,
    };
    // Before it is opened: a pipe would wait, and a device do something.
    let mode = fstat(&found)?.st_mode & SFlag::S_IFMT.bits();
    if mode != SFlag::S_IFREG.bits() {
        return Err(Errno::ESTALE);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = File::from(open(proc_path(&found).as_str(), flags, Mode::empty())?);
    let mut content = Vec::new();
    let read = file.take(size + 1).read_to_end(&mut content);
    read.map_err(|e| errno(&e))?;
    Ok(content)
}

fn owner(node: &Node) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)))
}

/// Owner first: changing it clears bits of the mode.
fn own(file: &impl AsFd, node: &Node) -> nix::Result<()> {
    let (uid, gid) = owner(node);
    fchown(file, uid, gid)?;
    fchmod(file, Mode::from_bits_truncate(node.mode))
}

#[cfg(test)]
mod tests;
