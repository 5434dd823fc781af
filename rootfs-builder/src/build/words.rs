// SPDX-License-Identifier: Apache-2.0
//! The kernel words an image boots with, for each way of offering it to a VM.

use serde::Serialize;

use crate::definition::{Definition, Filesystem, Format};
use crate::image::verity::Verity;

/// What Kata calls the device; it shows as `/dev/dm-0` either way.
const MAPPED: &str = "dm-verity";
/// The name that a virtio-fs root is offered under by `run`; any will do.
const TAG: &str = "keelsonRoot";

/// Without it a kernel that cannot execute `/sbin/init` (its blocks are not what was measured) goes on to try `/bin/init` and `/bin/sh`, and
/// the guest would run without its agent.
pub const INIT_WORD: &str = "init=/sbin/init";

/// One way to boot an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Boot {
    /// How the VM is offered the image.
    pub device: &'static str,
    /// The kernel words for it, in order.
    pub words: Vec<String>,
}

impl Boot {
    /// The words as they stand on a command line.
    pub fn line(&self) -> String {
        self.words.join(" ")
    }
}

/// Every way to boot an image, the best first. What is not booted but unpacked or added has none, or one that is no root.
pub fn boots(definition: &Definition, verity: Option<&Verity>) -> Vec<Boot> {
    let boot = |device, words| Boot { device, words };
    let mut boots = match definition.format {
        Format::Initramfs => vec![boot("initramfs", Vec::new())],
        Format::Directory => {
            let words = [&format!("root={TAG}"), "rootfstype=virtiofs", "ro"];
            vec![boot("virtio-fs", words.map(str::to_owned).to_vec())]
        }
        Format::Extension => vec![boot("virtio-blk", vec![extension(definition, verity)])],
        Format::Tar | Format::Oci => Vec::new(),
        Format::Disk => {
            let blk = root(definition, verity, "/dev/vda1", "/dev/vda2", false);
            let mut boots = vec![boot("virtio-blk", blk)];
            if definition.dax {
                // dm-verity does not pass on DAX, and so mounts as from any disk.
                let dax = verity.is_none();
                let pmem = root(definition, verity, "/dev/pmem0p1", "/dev/pmem0p2", dax);
                boots.insert(0, boot("nvdimm", pmem));
            }
            boots
        }
        Format::Ext4 | Format::Erofs => {
            let words = root(definition, verity, "/dev/vda", "/dev/vdb", false);
            vec![boot("virtio-blk", words)]
        }
    };
    for boot in &mut boots {
        boot.words.extend(definition.words.iter().cloned());
    }
    boots
}

/// The words of a root on a device: as Kata's hosts give them, so that an image is tried here as it is used there.
fn root(
    definition: &Definition,
    verity: Option<&Verity>,
    data: &str,
    hashes: &str,
    dax: bool,
) -> Vec<String> {
    let filesystem = definition.root_filesystem().unwrap_or_default();
    let mut words = match verity {
        // The kernel makes the device if it has DM_INIT, our init if it has not.
        Some(verity) => vec![
            format!(
                "dm-mod.create=\"{}\"",
                verity.dm_create(MAPPED, data, hashes)
            ),
            "root=/dev/dm-0".to_owned(),
        ],
        None => vec![format!("root={data}")],
    };
    words.push(format!("rootfstype={filesystem}"));
    let mut flags = Vec::new();
    if dax {
        flags.push("dax");
    }
    if filesystem == Filesystem::Ext4 {
        flags.extend(["data=ordered", "errors=remount-ro"]);
    }
    if !flags.is_empty() {
        words.push(format!("rootflags={}", flags.join(",")));
    }
    words.push("ro".to_owned());
    words.extend(verity.map(|_| INIT_WORD.to_owned()));
    words
}

/// The word that makes a guest mount an extension, with what it is measured by.
fn extension(definition: &Definition, verity: Option<&Verity>) -> String {
    let name = definition.extension.as_deref().unwrap_or_default();
    match verity {
        Some(verity) => format!("kata.extension.{name}.verity_params={}", verity.params()),
        None => format!("kata.extension.{name}.verity_params"),
    }
}
