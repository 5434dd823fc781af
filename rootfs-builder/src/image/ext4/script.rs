// SPDX-License-Identifier: Apache-2.0
//! The commands that make `debugfs` put a tree into an empty file system.
//!
//! Files of the host are given to it as links with short names in a directory of ours, so what they are called does not matter.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::tree::{Content, Entry, Kind, Tree};

use super::{Ext4Error, io_error};

/// The name of the file with the commands.
pub(super) const SCRIPT: &str = "script";
/// The name of the configuration of mke2fs.
pub(super) const CONFIG: &str = "mke2fs.conf";

/// How much `debugfs` reads at once; what is longer would become two commands.
const LINE_MAX: usize = 8000;
/// The directory that e2fsck wants to find.
const LOST_FOUND: &str = "lost+found";

/// The commands so far, and what they refer to.
pub(super) struct Script<'a> {
    staging: &'a Path,
    text: Vec<u8>,
    staged: usize,
    values: HashMap<&'a [u8], String>,
}

impl<'a> Script<'a> {
    /// Writes the commands for a tree, and what they need, to the staging directory.
    pub(super) fn write(tree: &'a Tree, staging: &'a Path) -> Result<(), Ext4Error> {
        let mut script = Script {
            staging,
            text: Vec::new(),
            staged: 0,
            values: HashMap::new(),
        };
        // By directory: `debugfs` looks every name up, and one name is quicker than a path.
        let mut directories: BTreeMap<&Path, Vec<(&Path, &Entry)>> = BTreeMap::new();
        for (path, entry) in tree.entries() {
            let above = path.parent().unwrap_or(Path::new(""));
            directories.entry(above).or_default().push((path, entry));
        }
        for (directory, entries) in directories {
            let slash = [b"/", directory.as_os_str().as_bytes()].concat();
            script.line(directory, &[b"cd", &slash])?;
            for (path, entry) in entries {
                script.entry(path, entry)?;
            }
        }
        let file = staging.join(SCRIPT);
        fs::write(&file, script.text).map_err(io_error("write", &file))
    }

    /// One command. A quote within quotes is doubled.
    fn line(&mut self, path: &Path, words: &[&[u8]]) -> Result<(), Ext4Error> {
        let start = self.text.len();
        for word in words {
            self.text.push(b'"');
            for byte in *word {
                if *byte == b'"' {
                    self.text.push(b'"');
                }
                self.text.push(*byte);
            }
            self.text.extend(b"\" ");
        }
        let line = &self.text[start..];
        if line.len() > LINE_MAX || line.iter().any(|byte| b"\n\r\0".contains(byte)) {
            return Err(Ext4Error::Unwritable {
                path: path.to_owned(),
            });
        }
        self.text.push(b'\n');
        Ok(())
    }

    fn entry(&mut self, path: &'a Path, entry: &'a Entry) -> Result<(), Ext4Error> {
        let name = path.file_name().unwrap_or_default().as_bytes();
        self.make(path, name, entry)?;
        // A bare name in angle brackets would be taken for an inode's number.
        let name = [b"./", name].concat();
        let mode = format!("0{:o}", entry.kind.type_bits() | entry.mode);
        self.line(path, &[b"sif", &name, b"mode", mode.as_bytes()])?;
        for (field, id) in [("uid", entry.uid), ("gid", entry.gid)] {
            if id != 0 {
                let id = id.to_string();
                self.line(path, &[b"sif", &name, field.as_bytes(), id.as_bytes()])?;
            }
        }
        for (attribute, value) in &entry.xattrs {
            let value = self.value(value)?;
            self.line(
                path,
                &[b"ea_set", b"-f", value.as_bytes(), &name, attribute],
            )?;
        }
        Ok(())
    }

    /// Makes an entry with the kind and content it shall have.
    fn make(&mut self, path: &'a Path, name: &[u8], entry: &'a Entry) -> Result<(), Ext4Error> {
        if path == Path::new(LOST_FOUND) {
            return match entry.kind {
                Kind::Directory => Ok(()),
                _ => Err(Ext4Error::Reserved {
                    path: path.to_owned(),
                }),
            };
        }
        match &entry.kind {
            Kind::Directory => self.line(path, &[b"mkdir", name]),
            Kind::File(content) => {
                let source = self.stage(content)?;
                self.line(path, &[b"write", source.as_bytes(), name])
            }
            Kind::Symlink(target) => {
                self.line(path, &[b"symlink", name, target.as_os_str().as_bytes()])
            }
            Kind::CharDevice(major, minor) => self.device(path, name, b"c", *major, *minor),
            Kind::BlockDevice(major, minor) => self.device(path, name, b"b", *major, *minor),
            Kind::Fifo => self.line(path, &[b"mknod", name, b"p"]),
        }
    }

    fn device(
        &mut self,
        path: &Path,
        name: &[u8],
        kind: &[u8],
        major: u32,
        minor: u32,
    ) -> Result<(), Ext4Error> {
        let [major, minor] = [major, minor].map(|number| number.to_string());
        let numbers = [major.as_bytes(), minor.as_bytes()];
        self.line(path, &[b"mknod", name, kind, numbers[0], numbers[1]])
    }

    /// Puts a content into the staging directory; its name there is returned.
    fn stage(&mut self, content: &Content) -> Result<String, Ext4Error> {
        let name = self.staged.to_string();
        self.staged += 1;
        let place = self.staging.join(&name);
        match content {
            Content::Bytes(bytes) => fs::write(&place, bytes),
            Content::File(source) => {
                // Errors of `debugfs` would not say which file it was.
                content.open()?;
                std::path::absolute(source).and_then(|source| symlink(source, &place))
            }
        }
        .map_err(io_error("write", &place))?;
        Ok(name)
    }

    /// As [`Script::stage`], for an attribute's value; equal ones are put there once.
    fn value(&mut self, value: &'a [u8]) -> Result<String, Ext4Error> {
        if let Some(name) = self.values.get(value) {
            return Ok(name.clone());
        }
        let name = self.stage(&Content::Bytes(value.to_vec()))?;
        self.values.insert(value, name.clone());
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(tree: &Tree) -> Result<String, Ext4Error> {
        let dir = tempfile::tempdir().unwrap();
        Script::write(tree, dir.path())?;
        Ok(fs::read_to_string(dir.path().join(SCRIPT)).unwrap())
    }

    #[test]
    fn names_are_quoted_and_never_inode_numbers() {
        let mut tree = Tree::default();
        let mut owned = Entry::directory(0o700);
        owned.uid = 7;
        tree.insert("<2>", owned).unwrap();
        tree.insert("<2>/a \"b\"", Entry::bytes("", 0o4755))
            .unwrap();
        let expected = r#""cd" "/" 
"mkdir" "<2>" 
"sif" "./<2>" "mode" "040700" 
"sif" "./<2>" "uid" "7" 
"cd" "/<2>" 
"write" "0" "a ""b""" 
"sif" "./a ""b""" "mode" "0104755" 
"#;
        assert_eq!(script(&tree).unwrap(), expected);
    }

    #[test]
    fn what_would_be_two_commands_is_refused() {
        for (name, target) in [
            ("a\nb", "t".to_owned()),
            ("a\rb", "t".to_owned()),
            ("a", "t\nunlink x".to_owned()),
            ("a", "\"".repeat(4095)),
        ] {
            let mut tree = Tree::default();
            tree.insert(name, Entry::new(Kind::Symlink(target.into()), 0o777))
                .unwrap();
            let error = script(&tree).unwrap_err();
            assert!(matches!(error, Ext4Error::Unwritable { .. }), "{error}");
        }
    }
}
