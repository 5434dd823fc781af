// SPDX-License-Identifier: Apache-2.0
//! A directory of the host as a base.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::fs::{lgetxattr, llistxattr};
use rustix::io::Errno;

use crate::tree::{Entry, Kind, Tree, TreeError};

/// The most bytes that the names or a value of a file's attributes take (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const MAX: usize = 1 << 16;

/// The directory's tree, with file capabilities and users' attributes as far as they can be read. Owners are kept where this process is
/// root and could have unpacked them; a directory of an ordinary user's is root's inside the image.
pub fn tree(dir: &Path) -> Result<Tree, TreeError> {
    let mut tree = Tree::from_dir(dir, guest_kernel::host::is_root())?;
    let mut changed = Vec::new();
    for (path, entry) in tree.entries() {
        if matches!(entry.kind, Kind::File(_) | Kind::Directory) {
            let xattrs = attributes(&dir.join(path));
            if !xattrs.is_empty() {
                let entry = entry.clone();
                changed.push((path.to_owned(), Entry { xattrs, ..entry }));
            }
        }
    }
    for (path, entry) in changed {
        tree.insert(path, entry)?;
    }
    Ok(tree)
}

/// What means the same on every machine; labels and lists of the host's users do not.
fn is_portable(name: &[u8]) -> bool {
    name == b"security.capability" || name.starts_with(b"user.")
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut buffer = vec![0; MAX];
    // A file system without attributes, or attributes that this user may not read: there are none to take.
    let Ok(count) = llistxattr(path, &mut buffer[..]) else {
        return BTreeMap::new();
    };
    let names = buffer[..count].split(|byte| *byte == 0);
    names
        .filter(|name| is_portable(name))
        .filter_map(|name| Some((name.to_vec(), value(path, name).ok()?)))
        .collect()
}

fn value(path: &Path, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; MAX];
    let count = lgetxattr(path, name, &mut buffer[..])?;
    buffer.truncate(count);
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{XattrFlags, setxattr};
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn a_users_attributes_and_owner_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("d/f");
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(&file, "text").unwrap();
        symlink("f", dir.path().join("d/l")).unwrap();
        setxattr(&file, "user.one", b"1", XattrFlags::empty()).expect(
            "the temporary directory's file system has no user attributes; set TMPDIR to one that does",
        );
        setxattr(dir.path().join("d"), "user.dir", b"", XattrFlags::empty()).unwrap();
        // An access list, which names a user of the host: owner, user 4321, group, mask, others; see acl(5).
        let entry =
            |tag: u8, rights: u8, id: u32| [&[tag, 0, rights, 0], &id.to_le_bytes()[..]].concat();
        let list = [
            (1, 6, u32::MAX),
            (2, 4, 4321),
            (4, 4, u32::MAX),
            (16, 4, u32::MAX),
            (32, 4, u32::MAX),
        ];
        let list = list
            .map(|(tag, rights, id)| entry(tag, rights, id))
            .concat();
        let list = [&2u32.to_le_bytes()[..], &list].concat();
        setxattr(&file, "system.posix_acl_access", &list, XattrFlags::empty())
            .expect("the temporary directory's file system has no access lists; set TMPDIR to one that does");
        let tree = tree(dir.path()).unwrap();
        let entry = tree.get("d/f").unwrap();
        let pair = (b"user.one".to_vec(), b"1".to_vec());
        assert_eq!(entry.xattrs, BTreeMap::from([pair]));
        let directory = tree.get("d").unwrap();
        assert_eq!(directory.xattrs.keys().collect::<Vec<_>>(), [b"user.dir"]);
        assert!(tree.get("d/l").unwrap().xattrs.is_empty());
        let me = fs::metadata("/proc/self").unwrap();
        let owner = if me.uid() == 0 { me.gid() } else { 0 };
        assert_eq!((entry.uid, entry.gid), (0, owner));
    }

    #[test]
    fn what_belongs_to_the_host_stays_there() {
        for name in ["security.capability", "user.", "user.a"] {
            assert!(is_portable(name.as_bytes()), "{name}");
        }
        for name in [
            "",
            "security.selinux",
            "system.posix_acl_access",
            "trusted.x",
            "username",
        ] {
            assert!(!is_portable(name.as_bytes()), "{name}");
        }
    }
}
