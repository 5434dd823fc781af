// SPDX-License-Identifier: Apache-2.0
//! statx(2) of a path.

use rustix::fs::{AtFlags, CWD, FileType, StatxAttributes, StatxFlags};

use crate::facts::{Error, Facts};
use crate::mounts;

/// What statx(2) says of `path`, links followed, and on what it is mounted.
pub fn statx(path: &str) -> Result<Facts, Error> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let stat = rustix::fs::statx(CWD, path, AtFlags::empty(), wanted)
        .map_err(|error| format!("statx {path}: {error}"))?;
    let mode = u32::from(stat.stx_mode);
    let mut facts = Facts::default();
    facts.add("type", kind(FileType::from_raw_mode(mode)));
    facts.add("mode", format_args!("{:04o}", mode & 0o7777));
    facts.add("uid", stat.stx_uid);
    facts.add("gid", stat.stx_gid);
    facts.add("size", stat.stx_size);
    facts.add("blocks", stat.stx_blocks);
    facts.add(
        "dev",
        format_args!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor),
    );
    facts.add(
        "rdev",
        format_args!("{}:{}", stat.stx_rdev_major, stat.stx_rdev_minor),
    );
    attribute(&mut facts, &stat, "dax", StatxAttributes::DAX);
    attribute(&mut facts, &stat, "verity", StatxAttributes::VERITY);
    attribute(&mut facts, &stat, "mount_root", StatxAttributes::MOUNT_ROOT);
    if StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID) {
        mounts::describe(stat.stx_mnt_id, &mut facts)?;
    }
    Ok(facts)
}

/// An attribute, `true` or `false`. A file system that knows nothing of it has it no more than one that says so.
fn attribute(facts: &mut Facts, stat: &rustix::fs::Statx, name: &str, bit: StatxAttributes) {
    facts.add(name, stat.stx_attributes.contains(bit));
}

fn kind(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "link",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character-device",
        FileType::BlockDevice => "block-device",
        FileType::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_a_device_are_described() {
        let facts = statx("/dev/null").unwrap();
        assert_eq!(facts.get("type"), Some("character-device"));
        assert_eq!(facts.get("rdev"), Some("1:3"));
        assert_eq!(facts.get("dax"), Some("false"));
        let facts = statx("Cargo.toml").unwrap();
        let size = std::fs::metadata("Cargo.toml").unwrap().len();
        assert_eq!(facts.get("type"), Some("file"));
        assert_eq!(facts.get("size"), Some(size.to_string().as_str()));
        assert!(facts.get("mount").is_some() && facts.get("fstype").is_some());
        assert_eq!(statx("/proc").unwrap().get("fstype"), Some("proc"));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = statx("/no/such/file").unwrap_err();
        assert!(error.starts_with("statx /no/such/file: "), "{error}");
    }
}
