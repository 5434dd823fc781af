// SPDX-License-Identifier: Apache-2.0
//! The root on a mapped device: verified by our own word, or by the kernel's
//! where the kernel has not done it itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Request, RootError, device};
use crate::cmdline::CommandLine;
use crate::dm::{self, word};
use crate::verity::{Hashes, Verity};

/// The name of the verified root in `/dev/mapper`.
const NAME: &str = "keelson-root";

/// Makes the device that verifies `data` and answers with its node.
pub(super) fn verified(
    data: &Path,
    verity: &Verity,
    request: &Request,
) -> Result<PathBuf, RootError> {
    device::wait_for(data, request.wait)?;
    let hashes = match &verity.hashes {
        Hashes::Offset(_) => data.to_owned(),
        Hashes::Device(path) => path.clone(),
        Hashes::NextPartition => {
            let next = device::next_partition(Path::new("/"), data);
            next.ok_or_else(|| RootError::NoHashes {
                device: data.to_owned(),
            })?
        }
    };
    if hashes != data {
        device::wait_for(&hashes, request.wait)?;
    }
    let node = dm::create(&dm::Device {
        name: NAME.to_owned(),
        uuid: String::new(),
        minor: None,
        read_only: true,
        targets: vec![verity.target(data, &hashes)],
    })?;
    Ok(node)
}

/// Makes the device `wanted` by `dm-mod.create=` if it is a mapped one that is
/// not there: the kernel does so itself if its device mapper is built in and
/// the disks' drivers are too.
pub(super) fn by_kernel_word(
    wanted: &Path,
    cmdline: &CommandLine,
    patience: Duration,
) -> Result<(), RootError> {
    let name = wanted
        .strip_prefix("/dev/mapper")
        .ok()
        .and_then(Path::to_str);
    let mapped = name.is_some() || wanted.to_string_lossy().starts_with("/dev/dm-");
    if !mapped || wanted.exists() || name.is_some_and(|name| dm::find(name).is_some()) {
        return Ok(());
    }
    let Some(text) = word::value(cmdline) else {
        return Ok(());
    };
    for mapped in word::parse(text)? {
        // Those that the kernel got done stay as they are.
        if dm::find(&mapped.name).is_none() {
            for below in mapped.targets.iter().flat_map(dm::Target::below) {
                if below.starts_with("/dev/") {
                    device::wait_for(Path::new(below), patience)?;
                } else {
                    device::wait_for_number(below, patience)?;
                }
            }
            dm::create(&mapped)?;
        }
    }
    Ok(())
}
