// SPDX-License-Identifier: Apache-2.0
//! The mount a path lies on, and all mounts, as `/proc/self/mountinfo` tells them; see proc(5).

use std::fs;

use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::facts::{Error, Facts};

const TABLE: &str = "/proc/self/mountinfo";

/// A line of the table.
#[derive(Debug, PartialEq, Eq)]
struct Mount<'a> {
    id: u64,
    device: &'a str,
    root: String,
    point: String,
    options: &'a str,
    /// `shared`, `slave`, both, `unbindable`, or `private`.
    propagation: String,
    fstype: &'a str,
    source: String,
    /// The options of the file system as a whole.
    super_options: &'a str,
}

/// The mount that `path` lies on.
pub fn mount(path: &str) -> Result<Facts, Error> {
    let stat = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)
        .map_err(|error| format!("statx {path}: {error}"))?;
    let mut facts = Facts::default();
    describe(stat.stx_mnt_id, &mut facts)?;
    Ok(facts)
}

/// Adds what the table says of the mount with this number.
pub fn describe(id: u64, facts: &mut Facts) -> Result<(), Error> {
    let text = fs::read_to_string(TABLE).map_err(|error| format!("read {TABLE}: {error}"))?;
    let mount = find(&text, id).ok_or_else(|| format!("{TABLE} has no mount {id}"))?;
    facts.add("mount", &mount.point);
    facts.add("mount_device", mount.device);
    facts.add("mount_subtree", &mount.root);
    facts.add("mount_options", mount.options);
    facts.add("fstype", mount.fstype);
    facts.add("source", &mount.source);
    facts.add("fs_options", mount.super_options);
    Ok(())
}

/// Every mount point; of mounts that are stacked on one the topmost, which is the last.
pub fn all() -> Facts {
    let text = fs::read_to_string(TABLE).unwrap_or_default();
    let mut facts = Facts::default();
    let mounts: Vec<_> = text.lines().filter_map(parse).collect();
    for (at, mount) in mounts.iter().enumerate() {
        if mounts[at + 1..]
            .iter()
            .any(|later| later.point == mount.point)
        {
            continue;
        }
        let mut add = |name: &str, value: &str| {
            facts.add(&format!("mount:{}:{name}", mount.point), value);
        };
        add("fstype", mount.fstype);
        add("source", &mount.source);
        add("subtree", &mount.root);
        add("options", mount.options);
        add("fs_options", mount.super_options);
        add("propagation", &mount.propagation);
    }
    facts
}

fn find(text: &str, id: u64) -> Option<Mount<'_>> {
    text.lines().filter_map(parse).find(|m| m.id == id)
}

/// Reads a line: six fields, any number of optional ones, `-`, three more.
fn parse(line: &str) -> Option<Mount<'_>> {
    let (first, last) = line.split_once(" - ")?;
    let mut first = first.split(' ');
    let id = first.next()?.parse().ok()?;
    let _parent = first.next()?;
    let (device, root, point) = (first.next()?, first.next()?, first.next()?);
    let options = first.next()?;
    // `shared:1`, `master:2`, `propagate_from:3`, `unbindable`.
    let words = first.filter_map(|field| match field.split(':').next()? {
        "master" => Some("slave"),
        "propagate_from" => None,
        other => Some(other),
    });
    let propagation = words.collect::<Vec<_>>().join(",");
    let mut last = last.splitn(3, ' ');
    Some(Mount {
        id,
        device,
        root: unescaped(root),
        point: unescaped(point),
        options,
        propagation: if propagation.is_empty() {
            "private".to_owned()
        } else {
            propagation
        },
        fstype: last.next()?,
        source: unescaped(last.next()?),
        super_options: last.next()?,
    })
}

/// A field with its escapes (blank, tab, newline and backslash as `\` and three octal digits) undone.
fn unescaped(field: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(field.to_owned(), |text, (code, plain)| {
            text.replace(code, plain)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 259:1 / / ro,noatime - ext4 /dev/root ro,dax=always
36 35 98:0 /mnt1 /mnt2\\040x rw,noatime master:1 propagate_from:2 - virtiofs kata\\134Shared rw,dax
garbage
";

    #[test]
    fn a_line_is_found_by_its_number() {
        let root = find(TABLE, 22).unwrap();
        assert_eq!((root.point.as_str(), root.fstype), ("/", "ext4"));
        assert_eq!(
            (root.options, root.super_options),
            ("ro,noatime", "ro,dax=always")
        );
        let other = find(TABLE, 36).unwrap();
        assert_eq!(
            (other.root.as_str(), other.point.as_str()),
            ("/mnt1", "/mnt2 x")
        );
        assert_eq!(
            (other.source.as_str(), other.device),
            ("kata\\Shared", "98:0")
        );
        assert_eq!(find(TABLE, 23), None);
        assert_eq!(
            (root.propagation.as_str(), other.propagation.as_str()),
            ("private", "slave")
        );
    }

    #[test]
    fn all_mounts_are_listed() {
        assert_eq!(all().get("mount:/proc:fstype"), Some("proc"));
    }

    #[test]
    fn the_mount_of_a_path_is_described() {
        let facts = mount("/proc/self").unwrap();
        assert_eq!(facts.get("mount"), Some("/proc"));
        assert_eq!(facts.get("fstype"), Some("proc"));
    }
}
