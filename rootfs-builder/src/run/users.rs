// SPDX-License-Identifier: Apache-2.0
//! Turns a user as people and image configurations write it into numbers, by the container's own `/etc/passwd` and `/etc/group`.
//!
//! The container's root is not trusted: its files are opened confined to it, and their size is limited.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use crate::spec::User;

/// More than this is not a user database.
const SIZE_LIMIT: u64 = 4 << 20;

/// What can go wrong with a user.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// Neither a number nor a name in the container's database.
    #[error("{kind} {name:?} is not in the container's /etc/{database}")]
    Unknown {
        /// `User` or `Group`.
        kind: &'static str,
        /// What was given.
        name: String,
        /// Where it was looked for.
        database: &'static str,
    },
    /// A file of the container could not be read.
    #[error("Cannot read {path} of the container", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A user found, with what its entry in `/etc/passwd` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Ids.
    pub user: User,
    /// The home directory; empty if there is no entry.
    pub home: String,
}

/// Finds `text` (`user`, `user:group`, each a name or a number; empty for root) in the databases of the container root at `root`.
///
/// As container engines do: a named or known user brings its primary group and, unless a group is given, its supplementary groups;
/// an unknown number is taken as it is, with group 0.
pub fn find(root: &Path, text: &str) -> Result<Found, UserError> {
    let passwd = read(root, "etc/passwd")?;
    let group = read(root, "etc/group")?;
    find_in(&passwd, &group, text)
}

fn find_in(passwd: &str, group: &str, text: &str) -> Result<Found, UserError> {
    let (user, group_word) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let mut found = match entry(passwd, user, 7) {
        Some(fields) => Found {
            user: User {
                uid: number(fields[2]),
                gid: number(fields[3]),
                groups: Vec::new(),
            },
            home: fields[5].into(),
        },
        None => Found {
            user: User {
                uid: numeric("User", user, "passwd")?,
                ..User::default()
            },
            home: String::new(),
        },
    };
    match group_word {
        Some(word) => {
            found.user.gid = match entry(group, word, 4) {
                Some(fields) => number(fields[2]),
                None => numeric("Group", word, "group")?,
            };
        }
        None => {
            if let Some(fields) = entry(passwd, user, 7) {
                found.user.groups = supplementary(group, fields[0], found.user.gid);
            }
        }
    }
    Ok(found)
}

/// The well-formed line whose name (first field) or number (third field) is `wanted`; a name wins over a number.
fn entry<'a>(database: &'a str, wanted: &str, fields: usize) -> Option<Vec<&'a str>> {
    let lines = || {
        database
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .filter(move |line| line.len() >= fields && line[2].parse::<u32>().is_ok())
    };
    lines()
        .find(|line| line[0] == wanted)
        .or_else(|| lines().find(|line| line[2] == wanted))
}

/// A field that [`entry`] has checked, or a group that nobody set, which is root's.
fn number(field: &str) -> u32 {
    field.parse().unwrap_or_default()
}

fn numeric(kind: &'static str, word: &str, database: &'static str) -> Result<u32, UserError> {
    word.parse().map_err(|_| UserError::Unknown {
        kind,
        name: word.to_owned(),
        database,
    })
}

fn supplementary(group: &str, name: &str, primary: u32) -> Vec<u32> {
    let mut groups: Vec<u32> = group
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(4, ':').skip(2);
            let gid = fields.next()?.parse().ok()?;
            let member = fields.next()?.split(',').any(|m| m.trim() == name);
            (member && gid != primary).then_some(gid)
        })
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// A file below `root`, never above it, whatever links lie on the way; empty if it does not exist.
fn read(root: &Path, file: &str) -> Result<String, UserError> {
    let error = |source: io::Error| UserError::Io {
        path: Path::new("/").join(file),
        source,
    };
    let dir = openat(
        CWD,
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| error(e.into()))?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = match openat2(
        &dir,
        file,
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    ) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(e) => return Err(error(e.into())),
    };
    let mut bytes = Vec::new();
    opened
        .take(SIZE_LIMIT)
        .read_to_end(&mut bytes)
        .map_err(error)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken:x:y\nweb:x:33:33::/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:33:web\nadm:x:4:root,web\nadm2:x:4:web\nnobody:x\n";

    fn ids(text: &str) -> Result<(u32, u32, Vec<u32>), UserError> {
        find_in(PASSWD, GROUP, text).map(|f| (f.user.uid, f.user.gid, f.user.groups))
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(ids("").unwrap(), (0, 0, vec![4]));
        assert_eq!(ids("web").unwrap(), (33, 33, vec![4]));
        assert_eq!(ids("33").unwrap(), (33, 33, vec![4]));
        assert_eq!(ids("web:adm").unwrap(), (33, 4, vec![]));
        assert_eq!(ids("1000:1001").unwrap(), (1000, 1001, vec![]));
        assert_eq!(ids("1000").unwrap(), (1000, 0, vec![]));
        assert_eq!(find_in(PASSWD, GROUP, "web").unwrap().home, "/var/www");
    }

    #[test]
    fn unknown_names_are_errors() {
        assert_eq!(
            ids("alice").unwrap_err().to_string(),
            "User \"alice\" is not in the container's /etc/passwd"
        );
        assert_eq!(
            ids("web:alice").unwrap_err().to_string(),
            "Group \"alice\" is not in the container's /etc/group"
        );
        assert!(ids("-1").is_err() && ids("4294967296").is_err());
    }

    #[test]
    fn links_do_not_lead_out_of_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(dir.path().join("secret"), "host:x:7:7::/:/bin/sh\n").unwrap();
        std::os::unix::fs::symlink("../../../secret", root.join("etc/passwd")).unwrap();
        assert!(find(&root, "host").is_err());
        std::fs::write(root.join("secret"), "inside:x:8:8::/:/bin/sh\n").unwrap();
        assert_eq!(find(&root, "inside").unwrap().user.uid, 8);
    }

    proptest! {
        #[test]
        fn any_database_is_survived(passwd in "[a-z0-9:,\n]{0,200}", group in "[a-z0-9:,\n]{0,200}", text in "[a-z0-9:]{0,12}") {
            let _ = find_in(&passwd, &group, &text);
        }
    }
}
