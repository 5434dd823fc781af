// SPDX-License-Identifier: Apache-2.0
//! What an archive says of its entries: owners, modes, devices and attributes, kept in a file beside the directory that the archive was
//! unpacked into.
//!
//! An ordinary user's directory cannot show these, so an image made from it would depend on who unpacked it. The directory says what
//! there is and holds the contents; the ledger says whose it is, and has the last word on all that it has a record of.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::tree::{Entry, Kind, Tree, TreeError};

/// The ledger's name in the entry of the cache that has the directory.
const FILE: &str = "ledger.jsonl";

/// Why a directory cannot be read together with its ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
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
    /// A line is no record.
    #[error("Line {line} of {path} is no record", path = path.display())]
    Line {
        /// The ledger.
        path: PathBuf,
        /// Which line, counted from 1.
        line: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The directory cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError::Io {
        action,
        path,
        source,
    }
}

/// A device's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// A character device, major and minor.
    Char(u32, u32),
    /// A block device, major and minor.
    Block(u32, u32),
}

/// What an archive says of one entry, its content aside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Permission bits, with set-id and sticky bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The owning group.
    pub gid: u32,
    /// Set for devices, which may be a placeholder on the disk.
    pub device: Option<Device>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Records by path, relative to the directory. Every link on the way is resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    records: BTreeMap<Vec<u8>, Record>,
}

impl Ledger {
    /// Takes what is said of the entry at `path`, in place of what was said before.
    pub fn set(&mut self, path: &[u8], record: Record) {
        self.records.insert(path.to_vec(), record);
    }

    /// What is said of the entry at `path`.
    pub fn get(&self, path: &[u8]) -> Option<&Record> {
        self.records.get(path)
    }

    /// Every path that something is said of, sorted.
    pub fn paths(&self) -> impl Iterator<Item = &[u8]> {
        self.records.keys().map(Vec::as_slice)
    }

    /// Forgets the entry at `path` and all below it.
    pub fn remove(&mut self, path: &[u8]) {
        self.records.remove(path);
        self.empty(path);
    }

    /// Forgets all below the directory at `path`, which is empty for the root.
    pub fn empty(&mut self, path: &[u8]) {
        let prefix = match path {
            b"" => Vec::new(),
            path => [path, b"/"].concat(),
        };
        let below = self.records.range(prefix.clone()..);
        let gone: Vec<Vec<u8>> = below
            .map(|(path, _)| path)
            .take_while(|path| path.starts_with(&prefix))
            .cloned()
            .collect();
        for path in gone {
            self.records.remove(&path);
        }
    }

    /// Writes the ledger of the directory `root`, beside it.
    pub fn write(&self, root: &Path) -> Result<(), LedgerError> {
        let path = root.with_file_name(FILE);
        let written = File::create(&path).and_then(|file| {
            let mut out = BufWriter::new(file);
            for (path, record) in &self.records {
                serde_json::to_writer(&mut out, &Line::of(path, record))?;
                out.write_all(b"\n")?;
            }
            out.flush()
        });
        written.map_err(io_error("write", &path))
    }

    /// Reads the ledger of the directory `root`.
    pub fn read(root: &Path) -> Result<Ledger, LedgerError> {
        let path = root.with_file_name(FILE);
        let file = File::open(&path).map_err(io_error("open", &path))?;
        let mut ledger = Ledger::default();
        for (index, line) in BufReader::new(file).lines().enumerate() {
            let text = line.map_err(io_error("read", &path))?;
            let line: Line = serde_json::from_str(&text).map_err(|source| LedgerError::Line {
                path: path.clone(),
                line: index + 1,
                source,
            })?;
            let (path, record) = line.record();
            ledger.records.insert(path, record);
        }
        Ok(ledger)
    }

    /// The tree of the directory `root`: what is there, as this ledger says it is.
    pub fn tree(&self, root: &Path) -> Result<Tree, LedgerError> {
        let mut tree = Tree::default();
        for (path, entry) in Tree::from_dir(root, false)?.entries() {
            tree.insert(path, self.applied(path, entry.clone()))?;
        }
        Ok(tree)
    }

    fn applied(&self, path: &Path, entry: Entry) -> Entry {
        match self.get(path.as_os_str().as_bytes()) {
            Some(record) => Entry {
                mode: record.mode,
                uid: record.uid,
                gid: record.gid,
                kind: match record.device {
                    Some(Device::Char(major, minor)) => Kind::CharDevice(major, minor),
                    Some(Device::Block(major, minor)) => Kind::BlockDevice(major, minor),
                    None => entry.kind,
                },
                xattrs: record.xattrs.clone(),
            },
            // No archive has named a directory that was made because something lies in it; its mode here depends on the umask.
            None if entry.kind == Kind::Directory => Entry::directory(0o755),
            None => entry,
        }
    }
}

/// One line of the file. What most entries do not have is left out.
#[derive(Deserialize, Serialize)]
struct Line {
    path: Bytes,
    mode: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    uid: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    gid: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<Device>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    xattrs: Vec<(Bytes, Bytes)>,
}

// serde hands over a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Line {
    fn of(path: &[u8], record: &Record) -> Line {
        let pair = |(name, value): (&Vec<u8>, &Vec<u8>)| (Bytes::of(name), Bytes::of(value));
        Line {
            path: Bytes::of(path),
            mode: record.mode,
            uid: record.uid,
            gid: record.gid,
            device: record.device,
            xattrs: record.xattrs.iter().map(pair).collect(),
        }
    }

    fn record(self) -> (Vec<u8>, Record) {
        let pair = |(name, value): (Bytes, Bytes)| (name.into_vec(), value.into_vec());
        let record = Record {
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            device: self.device,
            xattrs: self.xattrs.into_iter().map(pair).collect(),
        };
        (self.path.into_vec(), record)
    }
}

/// Bytes that are nearly always text.
#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Bytes {
    Text(String),
    Raw(Vec<u8>),
}

impl Bytes {
    fn of(bytes: &[u8]) -> Bytes {
        match str::from_utf8(bytes) {
            Ok(text) => Bytes::Text(text.to_owned()),
            Err(_) => Bytes::Raw(bytes.to_vec()),
        }
    }

    fn into_vec(self) -> Vec<u8> {
        match self {
            Bytes::Text(text) => text.into_bytes(),
            Bytes::Raw(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn record() -> impl Strategy<Value = Record> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..6);
        let device = prop_oneof![
            Just(None),
            (0..4096u32, 0..99u32).prop_map(|(a, b)| Some(Device::Char(a, b))),
            (0..4096u32, 0..99u32).prop_map(|(a, b)| Some(Device::Block(a, b))),
        ];
        let xattrs = proptest::collection::btree_map(bytes(), bytes(), 0..3);
        (0..0o10_000u32, any::<u32>(), any::<u32>(), device, xattrs).prop_map(
            |(mode, uid, gid, device, xattrs)| Record {
                mode,
                uid,
                gid,
                device,
                xattrs,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(records in proptest::collection::btree_map(proptest::collection::vec(any::<u8>(), 0..9), record(), 0..9)) {
            let dir = tempfile::tempdir().unwrap();
            let ledger = Ledger { records };
            ledger.write(&dir.path().join("root")).unwrap();
            prop_assert_eq!(Ledger::read(&dir.path().join("root")).unwrap(), ledger);
        }
    }

    #[test]
    fn what_is_forgotten_goes_with_what_is_below() {
        let mut ledger = Ledger::default();
        for path in ["a", "a-b", "a/b", "a/b/c", "ab"] {
            ledger.set(path.as_bytes(), Record::default());
        }
        let paths = |ledger: &Ledger| -> Vec<String> {
            let names = ledger.records.keys();
            names
                .map(|name| String::from_utf8_lossy(name).into_owned())
                .collect()
        };
        ledger.empty(b"a/b");
        assert_eq!(paths(&ledger), ["a", "a-b", "a/b", "ab"]);
        ledger.remove(b"a");
        assert_eq!(paths(&ledger), ["a-b", "ab"]);
        ledger.empty(b"");
        assert_eq!(ledger, Ledger::default());
    }

    #[test]
    fn what_nothing_is_said_of_is_roots_and_no_umask_shows() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("made")).unwrap();
        fs::write(dir.path().join("made/f"), "x").unwrap();
        for (path, mode) in [("made", 0o700), ("made/f", 0o604)] {
            fs::set_permissions(dir.path().join(path), PermissionsExt::from_mode(mode)).unwrap();
        }
        let tree = Ledger::default().tree(dir.path()).unwrap();
        assert_eq!(tree.get("made").unwrap(), &Entry::directory(0o755));
        let file = tree.get("made/f").unwrap();
        assert_eq!((file.mode, file.uid, file.gid), (0o604, 0, 0));
    }

    #[test]
    fn a_broken_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::write(
            dir.path().join(FILE),
            "{\"path\":\"a\",\"mode\":420}\n{\"path\":\n",
        )
        .unwrap();
        let error = Ledger::read(&root).unwrap_err().to_string();
        assert!(
            error.starts_with("Line 2 of ") && error.contains(FILE),
            "{error}"
        );
        fs::remove_file(dir.path().join(FILE)).unwrap();
        let error = Ledger::read(&root).unwrap_err().to_string();
        assert!(error.starts_with("Cannot open "), "{error}");
    }
}
