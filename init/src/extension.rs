// SPDX-License-Identifier: Apache-2.0
//! Guest extensions: read-only images beside the root (protocol section 7.5).
//!
//! The host asks for each with `kata.extension.<name>.verity_params[=…]` and
//! attaches a disk whose serial is `extension-<name>`. Owns finding the disk,
//! the rule that decides whether it is verified, and the mount below
//! `/run/kata-extensions`. The disk's layout and the command line must agree:
//! hashes that nobody has verified by, or parameters without hashes, mean that
//! somebody changed one of them. An extension that cannot be had as asked for
//! powers the VM off. What is in one is the agent's to use.

mod disk;

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MsFlags;
use thiserror::Error;

use disk::Disk;

use crate::arrival;
use crate::cmdline::CommandLine;
use crate::dm::{self, DmError};
use crate::mounts::{self, MountError};
use crate::root;
use crate::uevent::UeventError;
use crate::verity::{Verity, VerityError};

/// Where extensions are mounted.
const MOUNTS: &str = "/run/kata-extensions";

/// What every extension says of itself.
const MANIFEST: &str = "etc/kata-extensions/components.toml";

/// The longest name, far below what a mapped device may be called.
const MAX_NAME: usize = 64;

/// Why an extension cannot be had.
#[derive(Debug, Error)]
#[error("The extension \"{name}\" cannot be mounted")]
pub struct ExtensionError {
    /// The extension.
    pub name: String,
    /// Why.
    pub source: Problem,
}

/// What is wrong with an extension.
#[derive(Debug, Error)]
pub enum Problem {
    /// Not lower-case letters, digits and hyphens, or too long.
    #[error("Its name is not made of at most {MAX_NAME} of a-z, 0-9 and -")]
    Name,
    /// Two words for it.
    #[error("It is asked for twice")]
    Twice,
    /// A virtio-blk disk tells only the first part of a long serial.
    #[error("Its disk cannot be told from that of \"{other}\": their names begin alike")]
    SameSerial {
        /// The other extension.
        other: String,
    },
    /// The parameters are wrong.
    #[error("Its verity parameters cannot be used")]
    Verity(#[from] VerityError),
    /// Waiting needs the kernel's messages.
    #[error("Cannot wait for its disk")]
    Wait(#[source] UeventError),
    /// The disk is there and cannot be read.
    #[error("Cannot open {}", path.display())]
    Open {
        /// The disk.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The disks cannot be listed.
    #[error("Cannot list {}", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// No disk with its serial.
    #[error("No disk with the serial {serial} appeared within {seconds} s")]
    Missing {
        /// The serial.
        serial: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// More than one disk with its serial.
    #[error("The disks {first} and {second} both have its serial")]
    Ambiguous {
        /// A disk.
        first: String,
        /// Another.
        second: String,
    },
    /// Hashes, but no parameters.
    #[error(
        "{disk} has a partition of hashes, but the command line has no parameters to verify it by"
    )]
    Stripped {
        /// The disk.
        disk: String,
    },
    /// Parameters, but no hashes.
    #[error(
        "The command line has parameters to verify it by, but {disk} has no partition 2 of hashes"
    )]
    NoHashes {
        /// The disk.
        disk: String,
    },
    /// Not verified, beside a root that is.
    #[error("{disk} is not verified, but the root is")]
    Unmeasured {
        /// The disk.
        disk: String,
    },
    /// The mapped device cannot be made.
    #[error("Its verified device cannot be made")]
    Mapper(#[from] DmError),
    /// Its directory cannot be made.
    #[error("Cannot prepare its directory")]
    Prepare(#[source] MountError),
    /// mount(2) failed; the kernel's log often says more.
    #[error("Cannot mount {} as erofs", device.display())]
    Mount {
        /// The device.
        device: PathBuf,
        /// What the kernel answered.
        source: Errno,
    },
    /// It does not say what it is.
    #[error("It has no {MANIFEST}")]
    Manifest,
}

/// An extension that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Request<'a> {
    name: &'a str,
    verity: Option<Verity>,
}

/// What is mounted.
#[derive(Debug, PartialEq, Eq)]
enum Plan<'a> {
    Verified {
        verity: &'a Verity,
        data: &'a str,
        hashes: &'a str,
    },
    /// As it is: nobody claims more of it.
    Plain(&'a str),
}

/// Mounts all extensions that the command line asks for.
pub fn mount_all(cmdline: &CommandLine) -> Result<(), ExtensionError> {
    // All words are read before a disk is touched.
    for request in requests(cmdline)? {
        mount(&request, cmdline).map_err(|source| ExtensionError {
            name: request.name.to_owned(),
            source,
        })?;
        log::info!("extension {} is mounted", request.name);
    }
    Ok(())
}

fn requests(cmdline: &CommandLine) -> Result<Vec<Request<'_>>, ExtensionError> {
    let mut requests: Vec<Request<'_>> = Vec::new();
    for word in cmdline.words() {
        let name = word.key.strip_prefix("kata.extension.");
        let Some(name) = name.and_then(|rest| rest.strip_suffix(".verity_params")) else {
            continue;
        };
        let failed = |source| ExtensionError {
            name: name.to_owned(),
            source,
        };
        if !is_name(name) {
            return Err(failed(Problem::Name));
        }
        if requests.iter().any(|request| request.name == name) {
            return Err(failed(Problem::Twice));
        }
        let cut = |name: &str| disk::cut(&serial(name)).to_owned();
        if let Some(other) = requests.iter().find(|other| cut(other.name) == cut(name)) {
            let other = other.name.to_owned();
            return Err(failed(Problem::SameSerial { other }));
        }
        // The host writes a bare word for no parameters.
        let text = word.value.filter(|text| !text.is_empty());
        let verity = text.map(|text| Verity::parse(text, false)).transpose();
        let verity = verity.map_err(|error| failed(error.into()))?;
        requests.push(Request { name, verity });
    }
    Ok(requests)
}

/// The serial of an extension's disk, and the name of its verified device.
fn serial(name: &str) -> String {
    format!("extension-{name}")
}

fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(plain)
}

fn mount(request: &Request<'_>, cmdline: &CommandLine) -> Result<(), Problem> {
    let name = serial(request.name);
    let patience = root::patience(cmdline);
    let mut look = || disk::find_at(Path::new("/"), &name);
    let found = arrival::wait_for(patience, arrival::about_disks, &Problem::Wait, &mut look)?;
    let disk = found.ok_or_else(|| Problem::Missing {
        serial: name.clone(),
        seconds: patience.as_secs(),
    })?;
    let device = match plan(request.verity.as_ref(), &disk, root::is_measured(cmdline))? {
        Plan::Plain(device) => node(device),
        Plan::Verified {
            verity,
            data,
            hashes,
        } => dm::create(&dm::Device {
            name,
            uuid: String::new(),
            minor: None,
            read_only: true,
            targets: vec![verity.target(&node(data), &node(hashes))],
        })?,
    };
    let target = Path::new(MOUNTS).join(request.name);
    mounts::make_target(&target).map_err(Problem::Prepare)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mounts::mount(&device.to_string_lossy(), &target, "erofs", flags, "")
        .map_err(|source| Problem::Mount { device, source })?;
    check_manifest(&target)
}

fn node(name: &str) -> PathBuf {
    Path::new("/dev").join(name)
}

fn check_manifest(target: &Path) -> Result<(), Problem> {
    // No part of it is followed: a link could lead to a file of the root.
    let mut path = target.to_owned();
    let mut last = None;
    for part in Path::new(MANIFEST) {
        path.push(part);
        let metadata = path.symlink_metadata().map_err(|_| Problem::Manifest)?;
        if metadata.is_symlink() {
            return Err(Problem::Manifest);
        }
        last = Some(metadata);
    }
    let is_file = last.is_some_and(|metadata| metadata.is_file());
    is_file.then_some(()).ok_or(Problem::Manifest)
}

/// The rule (protocol section 7.5): verified exactly if there are hashes, and
/// never less verified than the root.
fn plan<'a>(
    verity: Option<&'a Verity>,
    disk: &'a Disk,
    measured: bool,
) -> Result<Plan<'a>, Problem> {
    let name = || disk.name.clone();
    match (verity, &disk.data, &disk.hashes) {
        (Some(verity), Some(data), Some(hashes)) => Ok(Plan::Verified {
            verity,
            data,
            hashes,
        }),
        (Some(_), ..) => Err(Problem::NoHashes { disk: name() }),
        (None, _, Some(_)) => Err(Problem::Stripped { disk: name() }),
        (None, _, None) if measured => Err(Problem::Unmeasured { disk: name() }),
        (None, data, None) => Ok(Plan::Plain(data.as_ref().unwrap_or(&disk.name))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use proptest::prelude::*;

    const PARAMS: &str = "salt=00,data_blocks=8,root_hash=\
        ac87db56303c9c1da433d7209b5a6ef3e4779df141200cbd7c157dcb8dd89c42";

    fn cmdline(text: &str) -> CommandLine {
        CommandLine::parse(text.replace("PARAMS", PARAMS).as_bytes())
    }

    fn problem(text: &str) -> Problem {
        requests(&cmdline(text)).unwrap_err().source
    }

    fn disk(partitions: usize) -> Disk {
        let partition = |n| (n <= partitions).then(|| format!("vdb{n}"));
        Disk {
            name: "vdb".into(),
            data: partition(1),
            hashes: partition(2),
        }
    }

    #[test]
    fn what_hosts_ask_for() {
        let line = cmdline(
            "quiet kata.extension.coco.verity_params=PARAMS kata.extension.gpu.verity_params \
             kata.extension.devkit.verity_params= kata.extension.other=1 kata.extension=x",
        );
        let found = requests(&line).unwrap();
        let found: Vec<_> = found.iter().map(|r| (r.name, r.verity.is_some())).collect();
        assert_eq!(found, [("coco", true), ("gpu", false), ("devkit", false)]);
        assert!(requests(&cmdline("quiet")).unwrap().is_empty());
    }

    #[test]
    fn bug_odd_names_and_duplicates_are_refused() {
        let long = "x".repeat(65);
        for name in ["", "..", "a/b", "a.b", "A", "a_b", "a b", "é", &long] {
            let line = format!("\"kata.extension.{name}.verity_params=PARAMS\"");
            assert!(matches!(problem(&line), Problem::Name), "{name}");
        }
        let twice = "kata.extension.x.verity_params=PARAMS kata.extension.x.verity_params";
        assert!(matches!(problem(twice), Problem::Twice));
        // A virtio-blk disk tells twenty bytes of "extension-kata-devkit-a".
        let alike =
            "kata.extension.kata-devkit-a.verity_params kata.extension.kata-devkit-b.verity_params";
        assert!(matches!(problem(alike), Problem::SameSerial { .. }));
        let error = requests(&cmdline("kata.extension.x.verity_params=salt=1")).unwrap_err();
        assert!(error.to_string().contains("\"x\""), "{error}");
        // Where the hashes are is not the command line's to say.
        let elsewhere = "kata.extension.x.verity_params=PARAMS,hash_device=/dev/vdc";
        assert!(matches!(problem(elsewhere), Problem::Verity(_)));
    }

    #[test]
    fn bug_verified_exactly_if_there_are_hashes() {
        let verity = Verity::parse(PARAMS, false).unwrap();
        for measured in [false, true] {
            assert_eq!(
                plan(Some(&verity), &disk(2), measured).unwrap(),
                Plan::Verified {
                    verity: &verity,
                    data: "vdb1",
                    hashes: "vdb2"
                }
            );
            for partitions in [0, 1] {
                let disk = disk(partitions);
                let refused = plan(Some(&verity), &disk, measured);
                assert!(matches!(refused, Err(Problem::NoHashes { .. })));
            }
            let stripped = disk(2);
            let refused = plan(None, &stripped, measured);
            assert!(matches!(refused, Err(Problem::Stripped { .. })));
        }
        let only_hashes = Disk {
            data: None,
            ..disk(2)
        };
        assert!(plan(Some(&verity), &only_hashes, false).is_err());
        assert!(plan(None, &only_hashes, false).is_err());
    }

    #[test]
    fn bug_nothing_unverified_is_added_to_a_measured_root() {
        assert_eq!(plan(None, &disk(1), false).unwrap(), Plan::Plain("vdb1"));
        assert_eq!(plan(None, &disk(0), false).unwrap(), Plan::Plain("vdb"));
        for partitions in [0, 1] {
            let disk = disk(partitions);
            let refused = plan(None, &disk, true);
            assert!(matches!(refused, Err(Problem::Unmeasured { .. })));
        }
    }

    #[test]
    fn bug_a_manifest_is_a_file_of_the_extension() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(
            check_manifest(root.path()),
            Err(Problem::Manifest)
        ));
        let manifest = root.path().join(MANIFEST);
        fs::create_dir_all(manifest.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &manifest).unwrap();
        assert!(check_manifest(root.path()).is_err());
        fs::remove_file(&manifest).unwrap();
        fs::write(&manifest, "schema_version = 1\n").unwrap();
        assert!(check_manifest(root.path()).is_ok());
        let leading_out = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(root.path().join("etc"), leading_out.path().join("etc"))
            .unwrap();
        assert!(check_manifest(leading_out.path()).is_err());
    }

    proptest! {
        #[test]
        fn any_words(text in "(kata.extension.[a-z0-9./-]{0,8}(.verity_params)?=?[ -~]{0,20} ?){0,4}") {
            if let Ok(found) = requests(&cmdline(&text)) {
                for request in found {
                    prop_assert!(is_name(request.name));
                }
            }
        }
    }
}
