// SPDX-License-Identifier: Apache-2.0
//! The profiles: what an image for one purpose needs, in one table. A profile says nothing that a definition or a flag cannot say
//! otherwise.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::layer::{DirectoryEntry, Layer};
use super::value::{BaseChoice, Filesystem, Format, KernelChoice, Mode};
use crate::image::compress::Compression;

/// A profile's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Nothing but the guest binary
    Minimal,
    /// A small Debian for what the guest itself may want to execute
    Debian,
    /// A measured root for confidential guests
    Coco,
    /// Passed-through devices: what looks at them and loads their drivers
    Gpu,
    /// Accelerators through vAccel, which needs nothing in the guest but vsock
    Vaccel,
    /// For a stock Kata kernel in place of Kata's own initrd
    KataStock,
    /// The guest binary and a shell
    Debug,
}

/// One line of [`TABLE`].
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Which profile.
    pub profile: Profile,
    /// Why it is as it is.
    pub why: &'static str,
    /// Where its files come from.
    base: BaseWord,
    /// Debian's packages.
    packages: &'static [&'static str],
    /// What comes out.
    format: Format,
    /// Whether a hash tree goes with it.
    verity: bool,
    /// Which kernel it is for; what the format asks for if not given.
    kernel: Option<KernelChoice>,
    /// Kernel fragments.
    fragments: &'static [&'static str],
    /// How it is compressed.
    compression: Compression,
    /// Directories besides those every root has.
    directories: &'static [(&'static str, u32)],
    /// Kernel words.
    words: &'static [&'static str],
    /// Whether a shell goes in.
    shell: bool,
}

/// A [`BaseChoice`] that can stand in a table.
#[derive(Clone, Copy, Debug)]
enum BaseWord {
    None,
    Debian,
}

const PLAIN: Row = Row {
    profile: Profile::Minimal,
    why: "",
    base: BaseWord::None,
    packages: &[],
    format: Format::Initramfs,
    verity: false,
    kernel: None,
    fragments: &[],
    compression: Compression::None,
    directories: &[],
    words: &[],
    shell: false,
};

/// Every profile.
pub const TABLE: &[Row] = &[
    Row {
        profile: Profile::Minimal,
        why: "The guest binary is init and agent in one and executes nothing else, so nothing else goes in.",
        ..PLAIN
    },
    Row {
        profile: Profile::Debian,
        why: "Guest hooks, modprobe, mkfs and iptables are programs that the agent starts where there are any: a Debian has them.",
        base: BaseWord::Debian,
        packages: &["ca-certificates", "e2fsprogs", "iptables", "kmod"],
        ..PLAIN
    },
    Row {
        profile: Profile::Coco,
        why: "What runs must be what was measured: a read-only root under dm-verity whose hash stands on the measured command line. \
              The guest components lie in /usr/local/bin and are configured below /etc; they need certificates and cryptsetup.",
        base: BaseWord::Debian,
        packages: &["ca-certificates", "cryptsetup-bin"],
        format: Format::Disk,
        verity: true,
        kernel: Some(KernelChoice::Built),
        fragments: &["confidential"],
        directories: &[
            ("/etc/kata-opa", 0o755),
            ("/pause_bundle", 0o755),
            ("/usr/local/bin", 0o755),
        ],
        ..PLAIN
    },
    Row {
        profile: Profile::Gpu,
        why: "A passed-through device needs its driver, which modprobe loads, and somebody who can look at the bus. VFIO itself is in \
              every kernel of ours.",
        base: BaseWord::Debian,
        packages: &["kmod", "pciutils"],
        kernel: Some(KernelChoice::Built),
        ..PLAIN
    },
    Row {
        profile: Profile::Vaccel,
        why: "vAccel's library is in the container and its agent on the host; between them there is vsock, which every kernel of ours has.",
        ..PLAIN
    },
    Row {
        profile: Profile::KataStock,
        why: "Kata's kernel has its drivers built in, so no modules go in, and of the compressions it unpacks gzip only (RD_GZIP).",
        kernel: Some(KernelChoice::None),
        compression: Compression::Gzip,
        ..PLAIN
    },
    Row {
        profile: Profile::Debug,
        why: "To look around in a guest: a static shell beside the guest binary, which the verb shell opens, and a log of everything.",
        words: &["agent.log=debug"],
        shell: true,
        ..PLAIN
    },
];

impl Profile {
    /// Its line of the table.
    pub fn row(self) -> &'static Row {
        // A test holds that every profile has its line.
        TABLE
            .iter()
            .find(|row| row.profile == self)
            .unwrap_or(&TABLE[0])
    }

    /// What it says, as the lowest of the sources of settings.
    pub fn layer(self) -> Layer {
        let row = self.row();
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let directory = |(target, mode): &(&str, u32)| DirectoryEntry {
            target: target.into(),
            mode: Some(Mode(*mode)),
            owner: None,
        };
        Layer {
            base: Some(match row.base {
                BaseWord::None => BaseChoice::None,
                BaseWord::Debian => BaseChoice::Debian,
            }),
            packages: owned(row.packages),
            directories: row.directories.iter().map(directory).collect(),
            kernel: row.kernel,
            fragments: owned(row.fragments),
            format: Some(row.format),
            filesystem: (row.format == Format::Disk).then_some(Filesystem::Erofs),
            // Only where it differs from what is taken anyway, so that another format does not trip over it.
            compression: (row.compression != Compression::None).then_some(row.compression),
            verity: row.verity.then_some(true),
            words: owned(row.words),
            shell: row.shell.then_some(true),
            ..Layer::default()
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.to_possible_value();
        f.pad(word.as_ref().map_or("", |word| word.get_name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_has_one_line_with_a_reason() {
        assert_eq!(TABLE.len(), Profile::value_variants().len());
        for profile in Profile::value_variants() {
            assert_eq!(profile.row().profile, *profile);
            assert!(profile.row().why.ends_with('.'), "{profile}");
        }
    }
}
