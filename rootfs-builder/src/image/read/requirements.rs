// SPDX-License-Identifier: Apache-2.0
//! Which options a kernel must have to boot from an image and to read what is in it. What the guest needs besides, whatever it boots
//! from, is in the kernel crate's fragments.

use std::collections::BTreeMap;

use super::{Format, Image};

/// Options, without `CONFIG_`, that the image needs, each with its reason; sorted, each once.
pub fn requirements(image: &Image) -> Vec<(&'static str, String)> {
    let mut needs = BTreeMap::new();
    let all = [
        initramfs(image),
        disk(image),
        filesystem(image),
        contents(image),
    ];
    for (option, reason) in all.into_iter().flatten() {
        needs.entry(option).or_insert(reason);
    }
    needs.into_iter().collect()
}

type Needs = Vec<(&'static str, String)>;

fn initramfs(image: &Image) -> Needs {
    if image.format != Format::Cpio {
        return Vec::new();
    }
    let mut needs = vec![("BLK_DEV_INITRD", "the image is an initramfs".to_owned())];
    if let Some(option) = image.compression.kernel_option() {
        let name = image.compression;
        needs.push((option, format!("the initramfs is compressed with {name}")));
    }
    needs
}

fn disk(image: &Image) -> Needs {
    let mut needs = Vec::new();
    if image.format.is_device() {
        needs.push(("BLOCK", "the root is on a block device".to_owned()));
    }
    let Some(disk) = &image.disk else {
        return needs;
    };
    needs.push(("MSDOS_PARTITION", "the disk has an MBR".to_owned()));
    if disk.dax.is_some() {
        let reason = "the disk has a DAX info block, for nvdimm and virtio-pmem";
        for option in [
            "LIBNVDIMM",
            "BLK_DEV_PMEM",
            "NVDIMM_PFN",
            "ZONE_DEVICE",
            "FS_DAX",
        ] {
            needs.push((option, reason.to_owned()));
        }
    }
    if disk.partitions.len() > 1 {
        let reason = "the second partition holds dm-verity hashes";
        for option in ["MD", "BLK_DEV_DM", "DM_VERITY", "DM_INIT"] {
            needs.push((option, reason.to_owned()));
        }
    }
    needs
}

fn filesystem(image: &Image) -> Needs {
    let Some(filesystem) = &image.filesystem else {
        return Vec::new();
    };
    let mut needs = Vec::new();
    let attributes = |prefix: &[u8]| {
        let mut items = image.listing.entries.values();
        items.any(|item| item.xattrs.keys().any(|name| name.starts_with(prefix)))
    };
    let (any, lists, labels) = (
        attributes(b""),
        attributes(b"system.posix_acl"),
        attributes(b"security."),
    );
    let options: [(&'static str, &'static str, bool, &str); 4] = [
        ("EROFS_FS", "EXT4_FS", true, "the root is"),
        (
            "EROFS_FS_XATTR",
            "",
            any,
            "files have extended attributes on",
        ),
        (
            "EROFS_FS_POSIX_ACL",
            "EXT4_FS_POSIX_ACL",
            lists,
            "files have access control lists on",
        ),
        (
            "EROFS_FS_SECURITY",
            "EXT4_FS_SECURITY",
            labels,
            "files have capabilities or labels on",
        ),
    ];
    for (erofs, ext4, needed, reason) in options {
        let option = if filesystem.kind == "erofs" {
            erofs
        } else {
            ext4
        };
        if needed && !option.is_empty() {
            needs.push((option, format!("{reason} {}", filesystem.kind)));
        }
    }
    needs
}

fn contents(image: &Image) -> Needs {
    let mut needs = Vec::new();
    if let Some((name, path, elf)) = image.init() {
        let (option, what) = match elf {
            Some(_) => ("BINFMT_ELF", "a program"),
            None if image.kept.get(&path).is_some_and(|b| b.starts_with(b"#!")) => {
                ("BINFMT_SCRIPT", "a script")
            }
            None => return needs,
        };
        needs.push((option, format!("{name} is {what}")));
    }
    if !image.modules().is_empty() {
        needs.push(("MODULES", "init loads kernel modules".to_owned()));
    }
    needs
}
