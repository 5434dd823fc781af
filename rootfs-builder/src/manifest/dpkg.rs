// SPDX-License-Identifier: Apache-2.0
//! Reads which packages a Debian root has: dpkg's status file, or the directory of such files that images without dpkg have.

use std::io::{self, Read};
use std::path::Path;

use crate::tree::{Content, Kind, Tree};

use super::{ManifestError, io_error};

/// Where dpkg keeps the list.
const STATUS: &str = "var/lib/dpkg/status";
/// Where images made without dpkg keep one file for each package.
const STATUS_DIR: &str = "var/lib/dpkg/status.d";

/// What is known of a package, see deb-control(5).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stanza {
    /// Its name.
    pub package: String,
    /// Its architecture, `all` if it has none.
    pub architecture: String,
    /// Its version.
    pub version: String,
    /// The source package and its version where these are others.
    pub source: Option<String>,
    /// Who maintains it.
    pub maintainer: Option<String>,
}

/// The packages whose files a tree has, sorted, each once.
pub fn installed(tree: &Tree) -> Result<Vec<Stanza>, ManifestError> {
    let mut stanzas = Vec::new();
    for (path, entry) in tree.entries() {
        let is_list = path == Path::new(STATUS)
            || (path.parent() == Some(Path::new(STATUS_DIR))
                && path.extension().is_none_or(|ending| ending != "md5sums"));
        if let Kind::File(content) = &entry.kind
            && is_list
        {
            stanzas.extend(parse(&text(content, path)?));
        }
    }
    stanzas.sort();
    stanzas.dedup();
    Ok(stanzas)
}

/// A file's text; what is not UTF-8 in it is replaced.
pub(crate) fn text(content: &Content, path: &Path) -> Result<String, ManifestError> {
    let mut bytes = Vec::new();
    let read: io::Result<usize> = content.open()?.read_to_end(&mut bytes);
    read.map_err(io_error("read", path))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The packages of a status file that are there; what is removed, or was never there, is passed over.
fn parse(text: &str) -> Vec<Stanza> {
    let mut stanzas = Vec::new();
    for paragraph in text.split("\n\n") {
        let (mut stanza, mut present) = (Stanza::default(), true);
        for line in paragraph.lines() {
            // A line that goes on with the one before begins with a blank, so its name is none of these.
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let value = || value.trim().to_owned();
            match name {
                "Package" => stanza.package = value(),
                "Version" => stanza.version = value(),
                "Architecture" => stanza.architecture = value(),
                "Source" => stanza.source = Some(value()),
                "Maintainer" => stanza.maintainer = Some(value()),
                "Status" => present = is_present(&value()),
                _ => {}
            }
        }
        if present && !stanza.package.is_empty() && !stanza.version.is_empty() {
            stanzas.push(stanza);
        }
    }
    stanzas
}

/// Whether a package with this status has its files in place; the third word says it, see dpkg(1).
fn is_present(status: &str) -> bool {
    let state = status.split_whitespace().nth(2);
    !matches!(
        state,
        Some("not-installed" | "config-files" | "half-installed")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Entry;
    use proptest::prelude::*;

    const TEXT: &str = "Package: zlib1g\nStatus: install ok installed\nArchitecture: arm64\nSource: zlib (1:1.2)\n\
        Version: 1:1.2.13+b1\nMaintainer: Mark Brown <b@example.org>\nDescription: compression\n Version: not this\n .\n more\n\n\
        Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
        Package: fresh\nStatus: install ok unpacked\nVersion: 2\nArchitecture: all\n\nStatus: nothing\n";

    #[test]
    fn packages_that_are_there_are_listed() {
        let mut tree = Tree::default();
        tree.insert(STATUS, Entry::bytes(TEXT, 0o644)).unwrap();
        let list = installed(&tree).unwrap();
        let names: Vec<_> = list.iter().map(|stanza| &stanza.package[..]).collect();
        assert_eq!(names, ["fresh", "zlib1g"]);
        assert_eq!(list[1].version, "1:1.2.13+b1");
        assert_eq!(list[1].source.as_deref(), Some("zlib (1:1.2)"));
        assert_eq!(
            list[1].maintainer.as_deref(),
            Some("Mark Brown <b@example.org>")
        );
    }

    #[test]
    fn a_directory_of_lists_is_read_too_and_each_package_counts_once() {
        let mut tree = Tree::default();
        let one = "Package: base\nVersion: 1\nArchitecture: all\n";
        for (name, text) in [
            ("base", one),
            ("base.md5sums", "abc  file: x\n"),
            ("c", one),
        ] {
            let path = format!("{STATUS_DIR}/{name}");
            tree.insert(path, Entry::bytes(text, 0o644)).unwrap();
        }
        assert_eq!(installed(&tree).unwrap().len(), 1);
        assert!(installed(&Tree::default()).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(Package|Version|Status|:| |\n|a){0,40}") {
            for stanza in parse(&text) {
                prop_assert!(!stanza.package.is_empty() && !stanza.version.is_empty());
            }
        }
    }
}
