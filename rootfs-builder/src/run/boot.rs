// SPDX-License-Identifier: Apache-2.0
//! The words for the VM itself, which `run` and `shell` have in common.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use guest_kernel::Arch;

use crate::vm;

/// How the VM is made.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "The VM")]
pub struct BootArgs {
    /// Boot this image: an initramfs, a disk or its root file system, or a directory. Without it an initramfs with nothing but the guest binary
    #[arg(long, value_name = "PATH")]
    pub image: Option<PathBuf>,
    /// How the guest is given the root in --image. Without it by nvdimm if the image is made for it, else by virtio-blk; a directory by
    /// virtio-fs
    #[arg(long, value_enum, requires = "image")]
    pub root_device: Option<RootDevice>,
    /// Let the guest change the root in --image; the changes are in its memory and are lost
    #[arg(long, requires = "image")]
    pub overlay: bool,
    /// The kernel: `fetched` (a distributor's), `built` (our own), or the path of an image with built-in drivers
    #[arg(long, value_name = "fetched|built|PATH", default_value = "fetched")]
    pub kernel: String,
    /// Take this guest binary instead of building it
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// More words for the kernel command line
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub append: Vec<String>,
    /// The guest's architecture: x86_64 or aarch64; this machine's if not given
    #[arg(long)]
    pub arch: Option<Arch>,
    /// The machine that QEMU plays
    #[arg(long, value_enum, default_value_t = Machine::Default)]
    pub machine: Machine,
    /// What starts the kernel
    #[arg(long, value_enum, default_value_t = Firmware::Direct)]
    pub firmware: Firmware,
    /// How the processor is made
    #[arg(long, value_enum, default_value_t = Accel::Auto)]
    pub accel: Accel,
    /// The memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(128..=1 << 20))]
    pub memory: u32,
    /// The number of processors
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=255))]
    pub cpus: u32,
    /// Let the guest map the files of shared directories (virtio-fs with DAX). Needs a QEMU of release 11 or newer, named in
    /// KEELSON_DAX_QEMU, and a virtiofsd with mapping requests, named in KEELSON_DAX_VIRTIOFSD
    #[arg(long)]
    pub dax: bool,
    /// Print where the time went
    #[arg(long)]
    pub timings: bool,
    /// Show the console on standard error
    #[arg(long)]
    pub console: bool,
    /// Keep the directory with the logs, and say where it is
    #[arg(long)]
    pub keep: bool,
}

/// As [`vm::Accel`], for the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// KVM if it is usable, else emulation
    Auto,
    /// KVM
    Kvm,
    /// Emulation
    Tcg,
}

impl From<Accel> for vm::Accel {
    fn from(accel: Accel) -> vm::Accel {
        match accel {
            Accel::Auto => vm::Accel::Auto,
            Accel::Kvm => vm::Accel::Kvm,
            Accel::Tcg => vm::Accel::Tcg,
        }
    }
}

/// As [`vm::Machine`], for the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Machine {
    /// The usual one, with PCI Express
    Default,
    /// QEMU's microvm: virtio-mmio and little else; x86_64 only
    Microvm,
}

impl From<Machine> for vm::Machine {
    fn from(machine: Machine) -> vm::Machine {
        match machine {
            Machine::Default => vm::Machine::Default,
            Machine::Microvm => vm::Machine::Microvm,
        }
    }
}

/// As [`vm::Firmware`], for the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Firmware {
    /// QEMU itself
    Direct,
    /// UEFI, which brings ACPI to aarch64
    Uefi,
}

impl From<Firmware> for vm::Firmware {
    fn from(firmware: Firmware) -> vm::Firmware {
        match firmware {
            Firmware::Direct => vm::Firmware::Direct,
            Firmware::Uefi => vm::Firmware::Uefi,
        }
    }
}

/// As [`vm::RootDevice`], for the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RootDevice {
    /// An nvdimm; on aarch64 with UEFI
    Nvdimm,
    /// A virtio-pmem device; x86_64 only
    VirtioPmem,
    /// A virtio-blk disk
    VirtioBlk,
    /// A shared directory
    VirtioFs,
}

impl From<RootDevice> for vm::RootDevice {
    fn from(device: RootDevice) -> vm::RootDevice {
        match device {
            RootDevice::Nvdimm => vm::RootDevice::Nvdimm,
            RootDevice::VirtioPmem => vm::RootDevice::VirtioPmem,
            RootDevice::VirtioBlk => vm::RootDevice::VirtioBlk,
            RootDevice::VirtioFs => vm::RootDevice::VirtioFs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        args: BootArgs,
    }

    fn parse(words: &[&str]) -> Result<BootArgs, clap::Error> {
        Program::try_parse_from([&["run"], words].concat()).map(|program| program.args)
    }

    #[test]
    fn every_choice_has_a_word() {
        let words = [
            "--image",
            "x",
            "--root-device",
            "virtio-pmem",
            "--machine",
            "microvm",
            "--firmware",
            "uefi",
            "--overlay",
        ];
        let args = parse(&words).unwrap();
        assert_eq!(args.root_device, Some(RootDevice::VirtioPmem));
        assert_eq!(
            (args.machine, args.firmware),
            (Machine::Microvm, Firmware::Uefi)
        );
        assert!(args.overlay && !args.dax);
        assert_eq!(
            parse(&["--arch", "arm64"]).unwrap().arch,
            Some(Arch::Aarch64)
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [
            &["--cpus", "0"][..],
            &["--memory", "1"],
            &["--overlay"],
            &["--root-device", "nvdimm"],
            &["--image", "x", "--root-device", "floppy"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn kernel_words_may_begin_with_a_dash() {
        assert_eq!(
            parse(&["--append", "-x quiet"]).unwrap().append,
            ["-x quiet"]
        );
    }
}
