// SPDX-License-Identifier: Apache-2.0
//! Roots: each kind that a guest can be given, up to a container that runs from it; and what must not be served from.

use std::time::Duration;

use guest_kernel::Arch;
use rootfs_builder::vm::{DiskKind, Firmware, Machine, RootDevice, Vm as Bare};
use tests::roots::{self, Copy, PROBE, Shape};
use tests::vm::Guest;
use tests::{Vm, artifacts, vm_story};

/// How long a VM that must not serve may take to end.
const END: Duration = Duration::from_secs(120);

/// Boots a guest whose kernel mounts the root itself.
async fn boot_from(shape: Shape, how: RootDevice, more: impl FnOnce(Guest) -> Guest) -> Vm {
    let root = shape.root(how).await;
    Vm::boot_own(|guest| more(guest.root(root))).await
}

/// What a container in the guest sees of the file it runs.
async fn facts(vm: &Vm) -> String {
    vm.container("facts")
        .args(&[PROBE, "statx", PROBE])
        .run()
        .await
        .ok()
        .to_owned()
}

/// The guest's own `/`: the name of the block device that it lies on (none for a shared one), and the mount as `/proc/mounts` has it.
async fn guest_root(vm: &Vm) -> String {
    let probe = vm.probe("probe").await;
    let found = probe
        .sh("sed -n s/^DEVNAME=//p /mnt/sys/dev/block/$(awk '$5 == \"/mnt\" { print $3 }' /proc/self/mountinfo)/uevent; \
             grep ' /mnt ' /proc/mounts | tail -n 1")
        .await;
    let found = found.ok().replace('\n', " ");
    probe.kill_and_remove().await;
    found
}

fn has(facts: &str, fact: &str) {
    assert!(
        facts.lines().any(|line| line == fact),
        "{fact} is not among\n{facts}"
    );
}

#[test]
fn an_nvdimm_with_ext4_is_mapped_directly() {
    vm_story(async {
        let vm = boot_from(Shape::Ext4, RootDevice::Nvdimm, |g| {
            g.firmware(roots::firmware_for_nvdimm())
        })
        .await;
        has(&facts(&vm).await, "dax=true");
        let root = guest_root(&vm).await;
        assert!(root.starts_with("pmem0p1 "), "{root}");
        assert!(
            root.contains(" ext4 ") && root.contains("dax=always"),
            "{root}"
        );
        vm.expect_power_off().await;
    });
}

#[test]
fn an_nvdimm_with_erofs_is_mapped_directly() {
    vm_story(async {
        let vm = boot_from(Shape::Erofs, RootDevice::Nvdimm, |g| {
            g.firmware(roots::firmware_for_nvdimm())
        })
        .await;
        has(&facts(&vm).await, "dax=true");
        assert!(guest_root(&vm).await.contains(" erofs "));
        vm.expect_power_off().await;
    });
}

/// QEMU's aarch64 machines have no virtio-pmem; asking for one is an error that says so.
#[test]
fn a_virtio_pmem_device_is_mapped_directly() {
    vm_story(async {
        if artifacts::arch() == Arch::Aarch64 {
            let mut config = artifacts::own_config().await;
            config.root = Some(Shape::Erofs.root(RootDevice::VirtioPmem).await);
            let error = Bare::start(config)
                .await
                .expect_err("no such device on aarch64");
            assert!(error.to_string().contains("virtio-pmem"), "{error}");
            return;
        }
        let vm = boot_from(Shape::Erofs, RootDevice::VirtioPmem, |g| g).await;
        has(&facts(&vm).await, "dax=true");
        vm.expect_power_off().await;
    });
}

/// The same image as on an nvdimm: the first of its two partition tables is for those who do not know the header.
#[test]
fn the_same_image_is_a_virtio_disk() {
    vm_story(async {
        let vm = boot_from(Shape::Ext4, RootDevice::VirtioBlk, |g| g).await;
        has(&facts(&vm).await, "dax=false");
        assert!(guest_root(&vm).await.starts_with("vda1 "));
        vm.expect_power_off().await;
    });
}

#[test]
fn a_shared_directory_is_a_root() {
    vm_story(async {
        let vm = boot_from(Shape::Directory, RootDevice::VirtioFs, |g| g).await;
        has(&facts(&vm).await, "dax=false");
        assert!(guest_root(&vm).await.contains(" virtiofs "));
        vm.expect_power_off().await;
    });
}

/// init mounts it from an initramfs, and finds no window to map it through.
#[test]
fn a_shared_root_asked_for_with_dax_does_without() {
    vm_story(async {
        let root = Shape::Directory.root(RootDevice::VirtioFs).await;
        let vm = Vm::boot_through_init(|g| g.root(root).words("rootflags=dax=always")).await;
        let root = guest_root(&vm).await;
        assert!(
            root.contains(" virtiofs ") && !root.contains("dax"),
            "{root}"
        );
        let console = vm.console().join("\n");
        assert_eq!(
            console.matches("does not support DAX").count(),
            1,
            "{console}"
        );
        vm.expect_power_off().await;
    });
}

/// Needs a QEMU of 11 or newer and a virtiofsd that maps (SHMEM_MAP), which no distributor has yet: with `KEELSON_DAX_QEMU` and
/// `KEELSON_DAX_VIRTIOFSD` naming them the story boots, without it holds that asking for a window says what is missing.
#[test]
fn a_shared_root_is_mapped_directly_where_there_is_a_window() {
    vm_story(async {
        let mut root = Shape::Directory.root(RootDevice::VirtioFs).await;
        root.dax = true;
        if std::env::var_os("KEELSON_DAX_QEMU").is_none() {
            let mut config = artifacts::own_config().await;
            config.root = Some(root);
            let error = Bare::start(config).await.expect_err("no window");
            assert!(error.to_string().contains("KEELSON_DAX_QEMU"), "{error}");
            return;
        }
        let vm = Vm::boot_own(|g| g.root(root)).await;
        has(&facts(&vm).await, "dax=true");
        vm.expect_power_off().await;
    });
}

#[test]
fn a_root_measured_by_the_kernel() {
    vm_story(async {
        let vm = boot_from(Shape::Measured, RootDevice::VirtioBlk, |g| g).await;
        let root = guest_root(&vm).await;
        assert!(
            root.starts_with("dm-0 ") && root.contains(" erofs "),
            "{root}"
        );
        assert!(facts(&vm).await.contains("fstype=erofs"));
        vm.expect_power_off().await;
    });
}

#[test]
fn a_root_measured_by_init() {
    vm_story(async {
        let root = Shape::Measured.root(RootDevice::VirtioBlk).await;
        let vm = Vm::boot_through_init(|g| g.root(root)).await;
        let root = guest_root(&vm).await;
        assert!(
            root.starts_with("dm-0 ") && root.contains(" erofs "),
            "{root}"
        );
        vm.expect_power_off().await;
    });
}

/// Starts a guest that must not come to serve; its console when it has ended.
async fn ends(shape: impl FnOnce(&mut rootfs_builder::vm::VmConfig)) -> String {
    let mut config = artifacts::own_config_with_initramfs().await;
    shape(&mut config);
    let _slot = tests::vm::slot().await;
    let machine = Bare::start(config).await.expect("the machine starts");
    let ended = machine.wait_exit(END).await;
    let console = machine.console();
    ended.unwrap_or_else(|e| panic!("{e}\n{console}"));
    console
}

/// A measured root is asked for with another root hash than it has.
#[test]
fn a_root_that_is_not_what_was_measured_is_not_served_from() {
    vm_story(async {
        let mut root = Shape::Measured.root(RootDevice::VirtioBlk).await;
        let verity = root.verity.as_mut().expect("it is measured");
        verity.verity.root_hash[0] ^= 1;
        let console = ends(|config| {
            config.root = Some(root.clone());
            // What lets an unmeasured guest go on from the initramfs is no way around.
            config.cmdline.push("keelson.root_fallback".to_owned());
        })
        .await;
        let line = console
            .lines()
            .find(|l| l.contains("Cannot mount the root device"));
        let line = line.unwrap_or_else(|| panic!("no word of it:\n{console}"));
        for word in ["/dev/dm-0", "EIO", "powering off"] {
            assert!(line.contains(word), "{word} is not in {line}");
        }
    });
}

/// One flipped bit in a file: whoever reads the block gets an I/O error, and nobody the wrong bytes.
#[test]
fn a_flipped_bit_in_a_measured_root_is_an_error_where_it_is_read() {
    vm_story(async {
        let image = Shape::Measured.image().await;
        let copy = Copy::of(&image.image).expect("a copy");
        copy.flip_bit_of(artifacts::ROOT_DISK_MARKER.as_bytes())
            .expect("the marker is in the image");
        let mut root = roots::root_of(&image, RootDevice::VirtioBlk);
        root.image = copy.path();
        let vm = Vm::boot_own(|g| g.root(root)).await;
        let probe = vm.probe("probe").await;
        let read = probe.sh("cat /mnt/etc/marker").await;
        assert!(
            read.code != 0 && read.stderr.contains("Input/output error"),
            "{read:?}"
        );
        assert_eq!(vm.sh("c1", "echo alive").await.ok(), "alive");
        vm.expect_power_off().await;
    });
}

/// A read-only root, once mounted by the kernel and once by init, that the guest may still write to.
#[test]
fn an_overlay_makes_a_root_writable() {
    vm_story(async {
        for by_kernel in [true, false] {
            let mut root = Shape::Erofs.root(RootDevice::VirtioBlk).await;
            root.overlay = true;
            let vm = if by_kernel {
                Vm::boot_own(|g| g.root(root)).await
            } else {
                Vm::boot_through_init(|g| g.root(root)).await
            };
            let probe = vm.probe("probe").await;
            let written = probe
                .sh("echo changed > /mnt/etc/marker && cat /mnt/etc/marker && echo new > /mnt/new && cat /mnt/new")
                .await;
            assert_eq!(written.ok(), "changed\nnew");
            assert_eq!(vm.sh("c1", "echo alive").await.ok(), "alive");
            vm.expect_power_off().await;
        }
    });
}

/// The microvm has no PCI: every device is a virtio-mmio one.
#[test]
fn a_microvm_boots_the_same_image() {
    vm_story(async {
        if artifacts::arch() == Arch::Aarch64 {
            let mut config = artifacts::own_config().await;
            config.machine = Machine::Microvm;
            let error = Bare::start(config).await.expect_err("x86_64 only");
            assert!(error.to_string().contains("microvm"), "{error}");
            return;
        }
        let vm = boot_from(Shape::Erofs, RootDevice::VirtioBlk, |g| {
            g.machine(Machine::Microvm)
        })
        .await;
        assert!(guest_root(&vm).await.starts_with("vda1 "));
        let pci = vm
            .sh("c1", "ls /sys/bus/pci/devices 2>/dev/null | wc -l")
            .await;
        assert_eq!(pci.ok(), "0");
        vm.expect_power_off().await;
    });
}

/// On aarch64 this is the way with ACPI.
#[test]
fn an_initramfs_boots_under_uefi() {
    vm_story(async {
        let uefi = |g: Guest| g.firmware(Firmware::Uefi);
        // Our x86_64 kernel has no use for EFI's services and says nothing of them.
        let vm = match artifacts::arch() {
            Arch::X86_64 => Vm::boot_distributors(uefi).await,
            Arch::Aarch64 => Vm::boot(uefi).await,
        };
        let probe = vm.probe("probe").await;
        let firmware = probe.sh("ls -d /mnt/sys/firmware/efi").await;
        assert_eq!(firmware.ok(), "/mnt/sys/firmware/efi");
        let tables = probe.sh("ls -d /mnt/sys/firmware/acpi/tables").await;
        assert_eq!(tables.code, 0, "{tables:?}");
        vm.expect_power_off().await;
    });
}

/// The manifest that an extension must have (protocol section 7.5).
const MANIFEST: (&str, &str) = (
    "/etc/kata-extensions/components.toml",
    "schema_version = 1\n",
);

/// The kernel word for a measured extension.
fn word(name: &str, built: &rootfs_builder::build::Built) -> String {
    let params = built.verity_params.as_ref().expect("it is measured");
    format!("kata.extension.{name}.verity_params={params}")
}

#[test]
fn a_measured_extension_is_mounted() {
    vm_story(async {
        let tool = ("/bin/tool", "a tool");
        let built = roots::extension("tools", &[MANIFEST, tool], true).expect("an extension");
        let word = word("tools", &built);
        let vm =
            Vm::boot_through_init(|g| g.named_disk(&built.image, "extension-tools").words(&word))
                .await;
        let probe = vm.probe("probe").await;
        let inside = "/mnt/run/kata-extensions/tools";
        assert_eq!(
            probe.sh(&format!("cat {inside}/bin/tool")).await.ok(),
            "a tool"
        );
        let written = probe.sh(&format!("touch {inside}/x")).await;
        assert!(written.stderr.contains("Read-only"), "{written:?}");
        vm.expect_power_off().await;
    });
}

/// Every way in which an extension is not what was promised ends the VM, and says which extension.
#[test]
fn an_extension_that_is_not_what_was_promised_ends_the_vm() {
    vm_story(async {
        let measured = roots::extension("tools", &[MANIFEST], true).expect("an extension");
        let plain = roots::extension("tools", &[MANIFEST], false).expect("an extension");
        let bare = roots::extension("tools", &[("/x", "y")], true).expect("an extension");
        let spoilt = Copy::of(&measured.image).expect("a copy");
        spoilt.flip_bit_of_superblock().expect("its superblock");
        let good = word("tools", &measured);
        let bare_word = "kata.extension.tools.verity_params".to_owned();
        let nonsense = format!("{bare_word}=root_hash=zz");
        let cases = [
            (None, good.clone(), "No disk with the serial"),
            (Some(plain.image), good.clone(), "has no partition 2"),
            (Some(measured.image.clone()), bare_word, "no parameters"),
            (Some(bare.image.clone()), word("tools", &bare), "It has no "),
            // EROFS would refuse it by itself with another error.
            (Some(spoilt.path()), good, "as erofs: EIO"),
            (Some(measured.image), nonsense, "root_hash=zz is not valid"),
        ];
        for (disk, word, reason) in cases {
            let console = ends(|config| {
                config
                    .disks
                    .extend(disk.iter().map(|path| rootfs_builder::vm::Disk {
                        path: path.clone(),
                        serial: "extension-tools".to_owned(),
                        readonly: true,
                        kind: DiskKind::VirtioBlk,
                    }));
                config.cmdline.push(word.clone());
            })
            .await;
            let line = console
                .lines()
                .find(|l| l.contains("The extension \"tools\""));
            let line = line.unwrap_or_else(|| panic!("no word of it:\n{console}"));
            assert!(
                line.contains(reason) && line.contains("powering off"),
                "{reason} is expected instead of {line}"
            );
        }
    });
}
