// SPDX-License-Identifier: Apache-2.0
//! What is changed in a Debian after mmdebstrap has made it. Every change is a layer of its own, so that it stays inside the root like
//! any other and the ledger knows of it.

use std::io;
use std::path::Path;

use tar::{Builder, EntryType, Header};

use super::DebianError;
use crate::base::ledger::Ledger;
use crate::base::unpack;
use crate::tree::{Kind, Tree};

/// What is another one each time: the host's own files and settings, keys that must be no two machines', logs, and copies of what was
/// before. A `*` stands for any letters of a name.
const NOT_KEPT: &[&str] = &[
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/hostname",
    "etc/resolv.conf",
    "etc/ssh/ssh_host_*",
    "etc/ssl/certs/ssl-cert-snakeoil.pem",
    "etc/ssl/private/ssl-cert-snakeoil.key",
    "var/cache/apt/*.bin",
    "var/cache/debconf/*-old",
    "var/cache/ldconfig/aux-cache",
    "var/lib/dbus/machine-id",
    "var/lib/dpkg/*-old",
    "var/lib/systemd/credential.secret",
    "var/lib/systemd/random-seed",
    "var/log/*.log",
    "var/log/apt/*.log",
    "var/log/apt/eipp.log.xz",
];

/// Removes what would make two roots differ.
pub fn tidy(root: &Path, ledger: &mut Ledger) -> Result<(), DebianError> {
    let unwanted = ledger
        .paths()
        .filter_map(|path| str::from_utf8(path).ok())
        .filter(|path| NOT_KEPT.iter().any(|pattern| matches(pattern, path)))
        .map(str::to_owned);
    let mut layer = Layer::new();
    for path in unwanted.collect::<Vec<_>>() {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
        layer.add(EntryType::Regular, &format!("{dir}/.wh.{name}"), 0o644, "")?;
    }
    layer.apply(root, ledger)
}

/// Whether `path` is what `pattern` says; its `*` does not reach into another directory.
fn matches(pattern: &str, path: &str) -> bool {
    let Some((start, end)) = pattern.split_once('*') else {
        return pattern == path;
    };
    path.strip_prefix(start)
        .and_then(|rest| rest.strip_suffix(end))
        .is_some_and(|middle| !middle.contains('/'))
}

/// Files that base-passwd's and base-files' scripts copy: from where, to where.
const COPIES: &[(&str, &str)] = &[
    ("usr/share/base-passwd/passwd.master", "etc/passwd"),
    ("usr/share/base-passwd/group.master", "etc/group"),
    ("usr/share/base-files/profile", "etc/profile"),
    ("usr/share/base-files/motd", "etc/motd"),
    ("usr/share/base-files/nsswitch.conf", "etc/nsswitch.conf"),
    ("usr/share/libc-bin/nsswitch.conf", "etc/nsswitch.conf"),
    ("usr/share/base-files/dot.bashrc", "root/.bashrc"),
    ("usr/share/base-files/dot.profile", "root/.profile"),
];

/// Links that scripts make, some in place of an empty directory: the name, the target, and what must be there for it to make sense.
const LINKS: &[(&str, &str, &str)] = &[
    ("usr/bin/awk", "mawk", "usr/bin/mawk"),
    (
        "usr/bin/which",
        "which.debianutils",
        "usr/bin/which.debianutils",
    ),
    ("var/lock", "/run/lock", "run"),
    ("var/run", "/run", "run"),
];

/// Adds to a root whose packages were only unpacked what no program does without: the users, and a few links.
pub fn complete(root: &Path, ledger: &mut Ledger) -> Result<(), DebianError> {
    let tree = ledger.tree(root)?;
    let mut layer = Layer::new();
    for (from, to) in COPIES {
        if tree.get(to).is_none()
            && let Some(text) = text(&tree, from)?
        {
            layer.add(EntryType::Regular, to, 0o644, &text)?;
        }
    }
    for (name, target, needed) in LINKS {
        if is_free(&tree, name) && tree.get(needed).is_some() {
            layer.add(EntryType::Symlink, name, 0o777, target)?;
        }
    }
    layer.apply(root, ledger)
}

/// Whether nothing would be lost by something else at `path`.
fn is_free(tree: &Tree, path: &str) -> bool {
    match tree.get(path) {
        None => true,
        Some(entry) => {
            entry.kind == Kind::Directory
                && !tree
                    .entries()
                    .any(|(other, _)| other.parent() == Some(Path::new(path)))
        }
    }
}

fn text(tree: &Tree, path: &str) -> Result<Option<String>, DebianError> {
    let Some(Kind::File(content)) = tree.get(path).map(|entry| &entry.kind) else {
        return Ok(None);
    };
    let text =
        io::read_to_string(content.open()?).map_err(super::io_error("read", Path::new(path)))?;
    Ok(Some(text))
}

/// A layer made here, of root's files.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Layer {
        Layer(Builder::new(Vec::new()))
    }

    /// Adds a file with this content, or a link to this target.
    fn add(
        &mut self,
        kind: EntryType,
        path: &str,
        mode: u32,
        content: &str,
    ) -> Result<(), DebianError> {
        let failed = super::io_error("add", Path::new(path));
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(super::EPOCH);
        let path = path.trim_start_matches('/');
        if kind == EntryType::Symlink {
            header.set_size(0);
            return self
                .0
                .append_link(&mut header, path, content)
                .map_err(failed);
        }
        header.set_size(content.len() as u64);
        let added = self.0.append_data(&mut header, path, content.as_bytes());
        added.map_err(failed)
    }

    fn apply(self, root: &Path, ledger: &mut Ledger) -> Result<(), DebianError> {
        let bytes = self.0.into_inner().map_err(super::io_error("end", root))?;
        unpack::whiteouts(&bytes[..], root, ledger)?;
        unpack::layer(&bytes[..], root, ledger)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Content, Entry};
    use std::fs;

    /// A root of these files, and its ledger.
    fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, Ledger) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        let mut layer = Layer::new();
        for (path, content) in files {
            layer.add(EntryType::Regular, path, 0o640, content).unwrap();
        }
        let mut ledger = Ledger::default();
        layer.apply(&dir.path().join("root"), &mut ledger).unwrap();
        (dir, ledger)
    }

    #[test]
    fn what_differs_each_time_is_removed_and_its_neighbours_are_kept() {
        let kept = [
            "etc/hosts",
            "etc/ssh/ssh_config",
            "var/lib/dpkg/status",
            "var/log/apt/x/a.log",
            "var/log/wtmp",
        ];
        let gone = [
            "etc/hostname",
            "etc/ssh/ssh_host_rsa_key.pub",
            "var/lib/dpkg/status-old",
            "var/log/dpkg.log",
        ];
        let files: Vec<_> = kept.iter().chain(&gone).map(|path| (*path, "x")).collect();
        let (dir, mut ledger) = root(&files);
        tidy(&dir.path().join("root"), &mut ledger).unwrap();
        for path in kept {
            assert!(dir.path().join("root").join(path).exists(), "{path}");
            assert!(ledger.get(path.as_bytes()).is_some(), "{path}");
        }
        for path in gone {
            assert!(!dir.path().join("root").join(path).exists(), "{path}");
            assert!(ledger.get(path.as_bytes()).is_none(), "{path}");
        }
    }

    #[test]
    fn an_unpacked_root_gets_users_and_links_but_keeps_what_it_has() {
        let (dir, mut ledger) = root(&[
            ("usr/share/base-passwd/passwd.master", "root:*:0:0\n"),
            ("usr/share/base-files/motd", "hello\n"),
            ("etc/motd", "mine\n"),
            ("usr/bin/mawk", ""),
        ]);
        let root = dir.path().join("root");
        let mut layer = Layer::new();
        for path in ["run", "var/run", "var/lock"] {
            layer.add(EntryType::Directory, path, 0o755, "").unwrap();
        }
        layer
            .add(EntryType::Regular, "var/lock/held", 0o644, "")
            .unwrap();
        layer.apply(&root, &mut ledger).unwrap();
        complete(&root, &mut ledger).unwrap();
        let tree = ledger.tree(&root).unwrap();
        let passwd = tree.get("etc/passwd").unwrap();
        assert_eq!((passwd.mode, passwd.uid, passwd.gid), (0o644, 0, 0));
        assert_eq!(text(&tree, "etc/passwd").unwrap().unwrap(), "root:*:0:0\n");
        assert_eq!(text(&tree, "etc/motd").unwrap().unwrap(), "mine\n");
        assert_eq!(
            tree.get("usr/bin/awk"),
            Some(&Entry::new(Kind::Symlink("mawk".into()), 0o777))
        );
        assert!(tree.get("usr/bin/which").is_none());
        assert_eq!(
            tree.get("var/run").unwrap().kind,
            Kind::Symlink("/run".into())
        );
        assert_eq!(tree.get("var/lock").unwrap().kind, Kind::Directory);
        assert!(matches!(
            tree.get("etc/motd").unwrap().kind,
            Kind::File(Content::File(_))
        ));
    }
}
