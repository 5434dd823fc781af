// SPDX-License-Identifier: Apache-2.0
//! Images by their first bytes and manifests, and the roots that they become.

use super::*;
use crate::image::verity::Verity;
use clap::Parser;

#[derive(Debug, Parser)]
struct Program {
    #[command(flatten)]
    args: BootArgs,
}

fn args(words: &[&str]) -> BootArgs {
    let words = [&["run", "--image", "x"], words].concat();
    Program::try_parse_from(words).unwrap().args
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

/// A file with a superblock's magic, 4 MiB long.
fn device(fstype: &str) -> Vec<u8> {
    let mut bytes = vec![0; 4 << 20];
    match fstype {
        "erofs" => bytes[1024..1028].copy_from_slice(&[0xe2, 0xe1, 0xf5, 0xe0]),
        "ext4" => {
            bytes[1024 + 24] = 2;
            bytes[1024 + 56..1024 + 58].copy_from_slice(&[0x53, 0xef]);
        }
        _ => bytes[..4].copy_from_slice(b"XFSB"),
    }
    bytes
}

fn look(bytes: &[u8]) -> Result<GuestImage, GuestImageError> {
    GuestImage::look(file(bytes).path())
}

#[test]
fn the_first_bytes_tell_what_it_is() {
    for magic in ARCHIVES {
        assert!(
            matches!(look(magic), Ok(GuestImage::Initramfs(_))),
            "{magic:?}"
        );
    }
    for fstype in ["erofs", "ext4", "xfs"] {
        match look(&device(fstype)).unwrap() {
            GuestImage::Disk(disk) => assert_eq!((disk.fstype, disk.mappable), (fstype, true)),
            other => panic!("{other:?}"),
        }
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        GuestImage::look(dir.path()),
        Ok(GuestImage::Directory(_))
    ));
    for nonsense in [&b""[..], b"MZ", &[0; 8192]] {
        assert!(matches!(
            look(nonsense),
            Err(GuestImageError::Unknown { .. })
        ));
    }
    let gone = GuestImage::look(&dir.path().join("gone")).unwrap_err();
    assert!(gone.to_string().ends_with("gone"), "{gone}");
}

#[test]
fn small_blocks_cannot_be_mapped() {
    let mut bytes = device("ext4");
    bytes[1024 + 24] = 0;
    match look(&bytes).unwrap() {
        GuestImage::Disk(disk) => assert!(!disk.can_map(RootDevice::VirtioPmem)),
        other => panic!("{other:?}"),
    }
}

fn some_verity() -> Verity {
    Verity {
        root_hash: [7; 32],
        salt: vec![1],
        data_blocks: 1,
        data_block_size: 4096,
        hash_block_size: 4096,
    }
}

#[test]
fn words_about_the_root_are_our_own() {
    for word in [
        "root=/dev/vda1",
        "ro",
        "rootflags=dax",
        "dm-mod.create=\"x\"",
    ] {
        assert!(is_about_root(word), "{word}");
    }
    assert!(!is_about_root("agent.log=debug") && !is_about_root("rooted"));
}

fn disk(dax_header: bool) -> GuestImage {
    GuestImage::Disk(DiskImage {
        path: "/x".into(),
        dax_header,
        fstype: "erofs",
        mappable: true,
        verity: None,
    })
}

#[test]
fn the_device_follows_from_image_and_machine() {
    let how = |image: &GuestImage, words: &[&str], arch| {
        let root = image.root(&args(words), arch).unwrap().unwrap();
        (root.how, root.dax)
    };
    use RootDevice::{Nvdimm, VirtioBlk, VirtioFs, VirtioPmem};
    let (x86, arm) = (Arch::X86_64, Arch::Aarch64);
    assert_eq!(how(&disk(true), &[], x86), (Nvdimm, true));
    assert_eq!(how(&disk(false), &[], x86), (VirtioBlk, false));
    assert_eq!(how(&disk(true), &[], arm), (VirtioBlk, false));
    assert_eq!(
        how(&disk(true), &["--firmware", "uefi"], arm),
        (Nvdimm, true)
    );
    assert_eq!(
        how(&disk(true), &["--machine", "microvm"], x86),
        (VirtioBlk, false)
    );
    let pmem = ["--root-device", "virtio-pmem"];
    assert_eq!(how(&disk(false), &pmem, x86), (VirtioPmem, true));
    // Without the header an nvdimm's pages cannot be mapped, and the kernel would not mount the root.
    assert_eq!(
        how(&disk(false), &["--root-device", "nvdimm"], x86),
        (Nvdimm, false)
    );
    let directory = GuestImage::Directory("/x".into());
    assert_eq!(how(&directory, &[], x86), (VirtioFs, false));
    assert_eq!(how(&directory, &["--dax"], x86), (VirtioFs, true));
}

#[test]
fn measured_roots_are_not_mapped() {
    let verity = RootVerity {
        verity: some_verity(),
        hashes: None,
    };
    let GuestImage::Disk(disk) = disk(true) else {
        panic!("not a disk")
    };
    let disk = DiskImage {
        verity: Some(verity.clone()),
        ..disk
    };
    let root = GuestImage::Disk(disk).root(&args(&[]), Arch::X86_64);
    let root = root.unwrap().unwrap();
    assert_eq!((root.dax, root.verity), (false, Some(verity)));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let error = |image: GuestImage, words: &[&str]| {
        image
            .root(&args(words), Arch::X86_64)
            .unwrap_err()
            .to_string()
    };
    let initramfs = || GuestImage::Initramfs("/x".into());
    assert!(error(initramfs(), &["--overlay"]).starts_with("--overlay is for roots"));
    assert!(error(initramfs(), &["--root-device", "nvdimm"]).starts_with("--root-device is"));
    let directory = GuestImage::Directory("/".into());
    let text = error(directory, &["--root-device", "virtio-blk"]);
    assert_eq!(
        text,
        "The image / is a directory, which --root-device virtio-blk cannot offer"
    );
    assert!(error(disk(true), &["--root-device", "virtio-fs"]).contains("is a file"));
}

#[test]
fn a_shell_is_found_through_links() {
    let dir = tempfile::tempdir().unwrap();
    let has = || GuestImage::look(dir.path()).unwrap().has_shell().unwrap();
    assert!(!has());
    std::fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
    std::os::unix::fs::symlink("usr/bin", dir.path().join("bin")).unwrap();
    std::os::unix::fs::symlink("dash", dir.path().join("usr/bin/sh")).unwrap();
    assert!(!has());
    std::fs::write(dir.path().join("usr/bin/dash"), "").unwrap();
    assert!(has());
}

/// An image with a manifest beside it that has a hash tree's parameters.
#[test]
fn the_manifest_says_what_a_root_is_measured_by() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().canonicalize().unwrap().join("image");
    std::fs::write(&image, device("erofs")).unwrap();
    let text = format!(
        r#"{{"schema": 1, "name": "n", "tool": {{"name": "t", "version": "1"}}, "arch": "x86_64", "profile": null,
        "format": "erofs", "filesystem": null, "epoch": 0, "image": {{"file": "image", "size": 1, "sha256": ""}},
        "verity": {}, "kernel_words": ["root=/dev/dm-0", "ro", "agent.log=debug"], "kernel": null, "inputs": [],
        "tree": {{"sha256": "", "directories": 0, "files": 0, "symlinks": 0, "devices": 0, "pipes": 0, "bytes": 0}},
        "packages": []}}"#,
        serde_json::to_string(&some_verity()).unwrap()
    );
    std::fs::write(Manifest::path_for(&image), text).unwrap();
    let error = GuestImage::look(&image).unwrap_err();
    assert!(matches!(error, GuestImageError::NoHashes { .. }), "{error}");
    std::fs::write(hash_file(&image), "").unwrap();
    let looked = GuestImage::look(&image).unwrap();
    assert_eq!(looked.words().unwrap(), ["agent.log=debug"]);
    let root = looked.root(&args(&[]), Arch::X86_64).unwrap().unwrap();
    let measured = RootVerity {
        verity: some_verity(),
        hashes: Some(hash_file(&image)),
    };
    assert_eq!(root.verity, Some(measured));
    std::fs::write(Manifest::path_for(&image), "{}").unwrap();
    let error = GuestImage::look(&image).unwrap_err();
    assert!(matches!(error, GuestImageError::Manifest { .. }), "{error}");
}

#[test]
fn an_image_layout_is_no_guests_root() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        GuestImage::look(dir.path()),
        Ok(GuestImage::Directory(_))
    ));
    std::fs::write(dir.path().join("oci-layout"), "{}").unwrap();
    let error = GuestImage::look(dir.path()).unwrap_err();
    assert!(matches!(error, GuestImageError::Unknown { .. }), "{error}");
}
