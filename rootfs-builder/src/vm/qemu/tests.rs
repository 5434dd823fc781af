// SPDX-License-Identifier: Apache-2.0
//! Command lines, word by word.

use std::path::PathBuf;

use guest_kernel::Arch;

use super::*;
use crate::image::verity::Verity;
use crate::vm::tests::config;
use crate::vm::tools::Dax;
use crate::vm::{Machine, Root, RootDevice, RootVerity, Share};

fn try_text(config: &VmConfig) -> Result<String, VmError> {
    let shares: Vec<_> = config.all_shares().collect();
    let sockets = Sockets {
        vsock: Path::new("/d/v"),
        shares: (shares.iter())
            .map(|(tag, share)| ShareSocket {
                tag,
                path: Path::new("/d/a,b"),
                dax: share.dax,
            })
            .collect(),
        qmp: Path::new("/d/q"),
        status: Path::new("/d/s"),
    };
    let words = arguments(config, &sockets)?;
    let words: Vec<_> = words.iter().map(|w| w.to_str().unwrap()).collect();
    Ok(words.join(" "))
}

fn text(config: &VmConfig) -> String {
    try_text(config).unwrap()
}

#[track_caller]
fn assert_has(line: &str, all: &[&str]) {
    for wanted in all {
        assert!(line.contains(wanted), "{wanted} is not in {line}");
    }
}

fn share(dax: bool) -> Share {
    Share {
        path: "/s".into(),
        readonly: true,
        dax,
    }
}

/// An image of 2 MiB, with a partition table or without.
struct Image {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Image {
    fn new(partitioned: bool) -> Image {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let mut bytes = vec![0; PMEM_ALIGN as usize];
        if partitioned {
            // One Linux partition: sectors 2048 to 4095.
            bytes[450] = 0x83;
            bytes[454..458].copy_from_slice(&2048u32.to_le_bytes());
            bytes[458..462].copy_from_slice(&2048u32.to_le_bytes());
            bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        }
        std::fs::write(&path, bytes).unwrap();
        Image { _dir: dir, path }
    }

    fn root(&self, how: RootDevice) -> Option<Root> {
        Some(Root {
            fstype: Some("erofs".into()),
            ..Root::new(how, &self.path)
        })
    }
}

#[test]
fn a_plain_vm() {
    let mut config = config(Arch::X86_64);
    config.share = Some(share(false));
    let line = text(&config);
    assert_has(
        &line,
        &[
            "-machine q35,accel=tcg,memory-backend=mem -cpu max -smp 2",
            "-nodefaults -no-user-config -no-reboot",
            "-m 512M -object memory-backend-memfd,id=mem,size=512M,share=on",
            "-device virtio-rng-pci,rng=rng",
            "-chardev socket,id=vsock,path=/d/v -device vhost-user-vsock-pci,chardev=vsock,id=vsock0",
            "-chardev socket,id=fs0,path=/d/a,,b -device vhost-user-fs-pci,chardev=fs0,tag=kataShared",
            "-kernel /k/bzImage -initrd /k/initramfs",
            "-append console=ttyS0 panic=-1 random.trust_cpu=on no_timer_check reboot=t quiet",
        ],
    );
    for absent in ["nvdimm", "-bios", "mmio", "tsc_early", "swiotlb", "root="] {
        assert!(!line.contains(absent), "{absent} is in {line}");
    }
}

#[test]
fn the_other_architecture() {
    let mut config = config(Arch::Aarch64);
    assert_has(
        &text(&config),
        &[
            "-machine virt,accel=tcg,memory-backend=mem -cpu max,pauth-impdef=on",
            "vhost-user-vsock-pci",
            "-append console=ttyAMA0 panic=-1 random.trust_cpu=on quiet",
        ],
    );
    config.cpus = 9;
    assert_has(&text(&config), &["memory-backend=mem,gic-version=max"]);
}

#[test]
fn uefi_needs_its_firmware() {
    let mut config = config(Arch::Aarch64);
    config.firmware = Firmware::Uefi;
    let error = try_text(&config).unwrap_err().to_string();
    assert!(error.contains("qemu-efi-aarch64"), "{error}");
    config.tools.firmware = Some("/e/QEMU_EFI.fd".into());
    assert_has(
        &text(&config),
        &["-bios /e/QEMU_EFI.fd -kernel /k/bzImage -initrd"],
    );
}

#[test]
fn the_uncompressed_kernel_is_entered_directly_where_it_can_be() {
    let mut config = config(Arch::X86_64);
    config.vmlinux = Some("/k/vmlinux".into());
    assert_has(&text(&config), &["-kernel /k/vmlinux"]);
    config.firmware = Firmware::Uefi;
    config.tools.firmware = Some("/e/OVMF.fd".into());
    assert_has(&text(&config), &["-kernel /k/bzImage"]);
    config.arch = Arch::Aarch64;
    config.firmware = Firmware::Direct;
    assert_has(&text(&config), &["-kernel /k/bzImage"]);
}

#[test]
fn a_microvm_has_no_pci_and_boots_the_elf_file() {
    let image = Image::new(false);
    let mut config = config(Arch::X86_64);
    config.machine = Machine::Microvm;
    config.share = Some(share(false));
    config.disks = vec![disk(&image, DiskKind::VirtioBlk, false)];
    assert_has(&text(&config), &["-kernel /k/bzImage"]);
    config.vmlinux = Some("/k/vmlinux".into());
    let line = text(&config);
    assert_has(
        &line,
        &[
            "-machine microvm,acpi=on,isa-serial=on,accel=tcg,memory-backend=mem",
            "-global virtio-mmio.force-legacy=false",
            "virtio-rng-device,rng=rng",
            "vhost-user-vsock-device,chardev=vsock,id=vsock0",
            "vhost-user-fs-device,chardev=fs0,tag=kataShared,queue-size=1024",
            "virtio-blk-device,drive=disk0,serial=data-1",
            "-kernel /k/vmlinux",
        ],
    );
    assert!(!line.contains("-pci"), "{line}");
    assert_eq!(
        line.contains("tsc_early_khz="),
        cfg!(target_arch = "x86_64")
    );
    config.accel = Accel::Kvm;
    assert!(!text(&config).contains("tsc_early_khz="));
}

fn disk(image: &Image, kind: DiskKind, readonly: bool) -> Disk {
    Disk {
        path: image.path.clone(),
        serial: "data-1".into(),
        readonly,
        kind,
    }
}

#[test]
fn disks() {
    let image = Image::new(false);
    let mut config = config(Arch::X86_64);
    config.disks = vec![
        disk(&image, DiskKind::VirtioBlk, false),
        disk(&image, DiskKind::Pmem, true),
        disk(&image, DiskKind::VirtioPmem, false),
    ];
    assert_has(
        &text(&config),
        &[
            "memory-backend=mem,nvdimm=on",
            "-m 512M,slots=2,maxmem=2564M",
            "-drive if=none,id=disk0,format=raw,readonly=off,file=",
            "virtio-blk-pci,drive=disk0,serial=data-1",
            "memory-backend-file,id=pmem1,share=off,readonly=on,size=2097152,mem-path=",
            "nvdimm,id=nvdimm1,memdev=pmem1,unarmed=on",
            "memory-backend-file,id=pmem2,share=on,readonly=off,size=2097152,mem-path=",
            "virtio-pmem-pci,memdev=pmem2,id=vpmem2",
            "swiotlb=noforce",
        ],
    );
}

#[test]
fn roots_come_first_and_are_named() {
    let image = Image::new(true);
    let mut config = config(Arch::X86_64);
    config.disks = vec![disk(&image, DiskKind::VirtioBlk, false)];
    for (how, device, wanted) in [
        (
            RootDevice::Nvdimm,
            "nvdimm,id=nvdimm0,memdev=pmem0,unarmed=on",
            "root=/dev/pmem0p1 ro rootfstype=erofs",
        ),
        (
            RootDevice::VirtioPmem,
            "virtio-pmem-pci,memdev=pmem0",
            "root=/dev/pmem0p1 ro rootfstype=erofs",
        ),
        (
            RootDevice::VirtioBlk,
            "virtio-blk-pci,drive=disk0 ",
            "root=/dev/vda1 ro rootfstype=erofs",
        ),
        (
            RootDevice::VirtioFs,
            "vhost-user-fs-pci,chardev=fs0,tag=keelsonRoot",
            "root=keelsonRoot ro rootfstype=virtiofs",
        ),
    ] {
        config.root = image.root(how);
        assert_has(&text(&config), &[device, wanted]);
    }
    let plain = Image::new(false);
    config.root = plain.root(RootDevice::Nvdimm);
    let root = config.root.as_mut().unwrap();
    (root.fstype, root.dax, root.overlay) = (None, true, true);
    let line = text(&config);
    assert_has(
        &line,
        &["root=/dev/pmem0 ro rootflags=dax keelson.root_overlay quiet"],
    );
}

#[test]
fn a_measured_root_is_measured_by_whoever_mounts_it() {
    let verity = Verity {
        root_hash: [0xab; 32],
        salt: vec![1, 2],
        data_blocks: 7,
        data_block_size: 4096,
        hash_block_size: 4096,
    };
    let image = Image::new(true);
    let mut config = config(Arch::X86_64);
    config.root = image.root(RootDevice::VirtioBlk);
    let params = verity.params();
    let table = |data, hashes| {
        format!(
            "dm-mod.create=\"{}\"",
            verity.dm_create("dm-verity", data, hashes)
        )
    };
    let measure = |config: &mut VmConfig, hashes: Option<PathBuf>| {
        let verity = verity.clone();
        config.root.as_mut().unwrap().verity = Some(RootVerity { verity, hashes });
    };
    measure(&mut config, None);
    let by_init = format!("keelson.root_verity={params} root=/dev/vda1 ro");
    assert_has(&text(&config), &[&by_init]);
    config.initramfs = None;
    let by_kernel = format!(
        "{} root=/dev/dm-0 ro rootfstype=erofs init=/sbin/init",
        table("/dev/vda1", "/dev/vda2")
    );
    assert_has(&text(&config), &[&by_kernel]);
    // A hash tree in a file of its own is a disk of its own.
    let plain = Image::new(false);
    config.root = plain.root(RootDevice::Nvdimm);
    measure(&mut config, Some("/h".into()));
    let by_kernel = table("/dev/pmem0", "/dev/vda");
    assert_has(
        &text(&config),
        &[
            &by_kernel,
            "readonly=on,file=/h -device virtio-blk-pci,drive=disk1",
        ],
    );
    config.initramfs = Some("/i".into());
    config.root.as_mut().unwrap().how = RootDevice::VirtioBlk;
    let by_init = format!("keelson.root_verity={params},hash_device=/dev/vdb root=/dev/vda ro");
    assert_has(&text(&config), &[&by_init]);
}

#[test]
fn a_root_and_a_share_have_a_daemon_each() {
    let image = Image::new(false);
    let mut config = config(Arch::X86_64);
    config.root = image.root(RootDevice::VirtioFs);
    config.share = Some(share(false));
    let line = text(&config);
    assert_has(
        &line,
        &["chardev=fs0,tag=keelsonRoot", "chardev=fs1,tag=kataShared"],
    );
}

#[test]
fn a_share_with_a_window_needs_the_users_programs() {
    let mut config = config(Arch::X86_64);
    config.share = Some(share(true));
    let error = try_text(&config).unwrap_err().to_string();
    assert!(
        error.contains("KEELSON_DAX_QEMU") && error.contains("QEMU 11"),
        "{error}"
    );
    config.tools.dax = Some(Dax {
        qemu: "/q11".into(),
        virtiofsd: "/f2".into(),
    });
    let line = text(&config);
    assert_has(
        &line,
        &[
            "vhost-user-test-device-pci,virtio-id=26,num_vqs=2,vq_size=128,config_size=40,chardev=fs0",
        ],
    );
    assert!(!line.contains("vhost-user-fs"), "{line}");
}

#[test]
fn machines_that_do_not_exist_are_refused() {
    let image = Image::new(true);
    let refused = |arch, change: &dyn Fn(&mut VmConfig), word: &str| {
        let mut config = config(arch);
        change(&mut config);
        let error = try_text(&config).unwrap_err();
        assert!(matches!(error, VmError::Impossible { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    };
    let microvm = |c: &mut VmConfig| c.machine = Machine::Microvm;
    refused(Arch::Aarch64, &microvm, "x86_64 only");
    refused(
        Arch::Aarch64,
        &|c| c.root = image.root(RootDevice::Nvdimm),
        "UEFI",
    );
    refused(
        Arch::Aarch64,
        &|c| c.root = image.root(RootDevice::VirtioPmem),
        "virtio-blk",
    );
    refused(
        Arch::X86_64,
        &|c| (microvm(c), c.root = image.root(RootDevice::Nvdimm)).1,
        "virtio-blk",
    );
    refused(
        Arch::X86_64,
        &|c| (microvm(c), c.firmware = Firmware::Uefi).1,
        "firmware",
    );
    refused(
        Arch::X86_64,
        &|c| (microvm(c), c.share = Some(share(true))).1,
        "PCI",
    );
    let dax = |c: &mut VmConfig| {
        c.root = image.root(RootDevice::VirtioBlk);
        c.root.as_mut().unwrap().dax = true;
    };
    refused(Arch::X86_64, &dax, "nvdimm");
    let modular = |c: &mut VmConfig| {
        c.root = image.root(RootDevice::VirtioBlk);
        (c.modular, c.initramfs) = (true, None);
    };
    refused(Arch::X86_64, &modular, "modules");
}

#[test]
fn what_qemu_would_misread_is_refused() {
    assert!(serial_word("a,b").is_err() && serial_word(&"x".repeat(21)).is_err());
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    std::fs::write(&image, "short").unwrap();
    assert!(matches!(
        pmem_size(&image),
        Err(VmError::PmemSize { size: 5, .. })
    ));
}
