// SPDX-License-Identifier: Apache-2.0
//! Mapped devices: what `dmsetup create` would do.
//!
//! Four ioctls on `/dev/mapper/control` (linux/dm-ioctl.h): create, load the
//! table, resume, and remove if one of them fails, so that either a complete
//! device is there or none. As there is no udev, the link `/dev/mapper/NAME` is
//! made here too; `/dev/dm-N` is the kernel's. What a table says is not looked
//! at: that is `verity.rs`'s and `dm/word.rs`'s.

pub mod word;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use thiserror::Error;

const CONTROL: &str = "dev/mapper/control";

/// What the kernel's fields hold, their NUL included (`DM_NAME_LEN`,
/// `DM_UUID_LEN`, `DM_MAX_TYPE_NAME`).
const NAME_LENGTH: usize = 128;
const UUID_LENGTH: usize = 129;
const TYPE_LENGTH: usize = 16;

/// `struct dm_ioctl` and `struct dm_target_spec`.
const HEADER_SIZE: usize = 312;
const TARGET_SIZE: usize = 40;

/// Where the kernel writes the device's number.
const DEV: std::ops::Range<usize> = 40..48;

const READ_ONLY: u32 = 1 << 0;
const PERSISTENT_DEV: u32 = 1 << 3;

/// A mapped device cannot be had.
#[derive(Debug, Error)]
pub enum DmError {
    /// The kernel has no device mapper, or it is a module that is not loaded.
    #[error("Cannot open {}, the kernel's device mapper", path.display())]
    Control {
        /// Its node.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A name that is no file name, or too long for the kernel's fields.
    #[error("The mapped device {name} cannot be described to the kernel")]
    Name {
        /// The name.
        name: String,
    },
    /// The kernel refused a step; its log says more.
    #[error("Cannot {step} the mapped device {name}")]
    Step {
        /// The step.
        step: &'static str,
        /// The name.
        name: String,
        /// What the kernel answered.
        source: Errno,
    },
    /// The device is there, and its name in `/dev/mapper` cannot be.
    #[error("Cannot link {}", path.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// A line of a table (dmsetup(8)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// First sector of 512 bytes.
    pub start: u64,
    /// Sectors.
    pub length: u64,
    /// `verity`, `linear`, …
    pub kind: String,
    /// The target's own arguments.
    pub arguments: String,
}

/// A device to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name in `/dev/mapper`.
    pub name: String,
    /// Its identity; mostly empty.
    pub uuid: String,
    /// N of `/dev/dm-N`; otherwise the first that is free.
    pub minor: Option<u32>,
    /// Whether writing is refused.
    pub read_only: bool,
    /// Its table.
    pub targets: Vec<Target>,
}

#[derive(Debug, Clone, Copy)]
enum Command {
    Create = 3,
    Remove = 4,
    Suspend = 6,
    Load = 9,
}

/// Makes the device and answers with its node, `/dev/dm-N`.
pub fn create(device: &Device) -> Result<PathBuf, DmError> {
    let root = Path::new("/");
    let path = root.join(CONTROL);
    let control = OpenOptions::new().read(true).write(true).open(&path);
    let control = control.map_err(|source| DmError::Control { path, source })?;
    let failed = |step| {
        move |source| DmError::Step {
            step,
            name: device.name.clone(),
            source,
        }
    };
    let run = |command| {
        let request = encode(command, device).ok_or(Errno::EINVAL)?;
        perform(&control, command, request)
    };
    if !is_name(&device.name) || encode(Command::Load, device).is_none() {
        let name = device.name.clone();
        return Err(DmError::Name { name });
    }
    let number = run(Command::Create).map_err(failed("create"))?;
    let made = run(Command::Load)
        .map_err(failed("load the table of"))
        // The command that suspends resumes when its flag is not set.
        .and_then(|_| run(Command::Suspend).map_err(failed("start")))
        .and_then(|_| link_at(root, &device.name, minor(number)));
    made.inspect_err(|_| {
        // An empty device hurts nobody but would hold its name.
        let _ = run(Command::Remove);
    })
}

/// Removes a device and its name in `/dev/mapper`; nothing may use it any more.
pub fn remove(name: &str) -> Result<(), DmError> {
    let path = Path::new("/").join(CONTROL);
    let control = OpenOptions::new().read(true).write(true).open(&path);
    let control = control.map_err(|source| DmError::Control { path, source })?;
    let device = Device {
        name: name.to_owned(),
        uuid: String::new(),
        minor: None,
        read_only: false,
        targets: Vec::new(),
    };
    let request = match encode(Command::Remove, &device) {
        Some(request) if is_name(name) => request,
        _ => {
            let name = device.name;
            return Err(DmError::Name { name });
        }
    };
    // The link goes first: it must not lead to another device that gets the number.
    let path = Path::new("/dev/mapper").join(name);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(DmError::Link { path, source });
        }
        _ => {}
    }
    perform(&control, Command::Remove, request)
        .map(drop)
        .map_err(|source| DmError::Step {
            step: "remove",
            name: device.name,
            source,
        })
}

/// The node of a device that is there already, by its name.
pub fn find(name: &str) -> Option<PathBuf> {
    find_at(Path::new("/"), name)
}

/// The same below another root. Its name in `/dev/mapper` is made if missing.
pub fn find_at(root: &Path, name: &str) -> Option<PathBuf> {
    let disks = fs::read_dir(root.join("sys/block")).ok()?;
    disks.filter_map(Result::ok).find_map(|disk| {
        let number = disk.file_name().to_str()?.strip_prefix("dm-")?.parse();
        let found = fs::read_to_string(disk.path().join("dm/name")).ok()?;
        let is_it = found.trim_end() == name && is_name(name);
        is_it.then(|| link_at(root, name, number.ok()?).ok())?
    })
}

/// Links `/dev/mapper/NAME` to `/dev/dm-N`, which is returned.
fn link_at(root: &Path, name: &str, minor: u32) -> Result<PathBuf, DmError> {
    let path = root.join("dev/mapper").join(name);
    match symlink(format!("../dm-{minor}"), &path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            return Err(DmError::Link { path, source });
        }
        _ => {}
    }
    Ok(root.join(format!("dev/dm-{minor}")))
}

/// Whether a name is a plain file name that the kernel takes as one.
fn is_name(name: &str) -> bool {
    let plain = name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    plain && name.len() < NAME_LENGTH && !matches!(name, "" | "." | ".." | "control")
}

/// The minor number of a `dev_t` as the kernel writes it for this interface.
fn minor(number: u64) -> u32 {
    let number = number as u32; // the upper half is not used
    (number & 0xff) | (number >> 12 & 0xfff00)
}

/// The request in the kernel's form. `None` if something does not fit.
fn encode(command: Command, device: &Device) -> Option<Vec<u8>> {
    let creates = matches!(command, Command::Create);
    let table = match command {
        Command::Load => encode_table(&device.targets)?,
        _ => Vec::new(),
    };
    let count = match command {
        Command::Load => u32::try_from(device.targets.len()).ok()?,
        _ => 0,
    };
    let mut flags = if device.read_only { READ_ONLY } else { 0 };
    let mut number = 0;
    if let (true, Some(minor)) = (creates, device.minor) {
        flags |= PERSISTENT_DEV;
        number = u64::from(minor & 0xff) | u64::from(minor & 0xfff00) << 12;
    }
    let size = u32::try_from(HEADER_SIZE + table.len()).ok()?;
    let mut request = Vec::with_capacity(HEADER_SIZE + table.len());
    // version, data_size, data_start, target_count, open_count, flags,
    // event_nr, padding. Version 4.0 is all that is asked for.
    for field in [4, 0, 0, size, HEADER_SIZE as u32, count, 0, flags, 0, 0] {
        request.extend_from_slice(&field.to_ne_bytes());
    }
    request.extend_from_slice(&number.to_ne_bytes());
    push_text(&mut request, &device.name, NAME_LENGTH)?;
    // Only at its creation; later it is known by its name, and the kernel
    // wants one of the two.
    let uuid = if creates { &device.uuid } else { "" };
    push_text(&mut request, uuid, UUID_LENGTH)?;
    request.resize(HEADER_SIZE, 0);
    request.extend_from_slice(&table);
    Some(request)
}

fn encode_table(targets: &[Target]) -> Option<Vec<u8>> {
    let mut table = Vec::new();
    for target in targets {
        // The arguments, a NUL, and as much as the next one needs to be aligned.
        let size = (TARGET_SIZE + target.arguments.len() + 1).next_multiple_of(8);
        let end = table.len() + size;
        table.extend_from_slice(&target.start.to_ne_bytes());
        table.extend_from_slice(&target.length.to_ne_bytes());
        table.extend_from_slice(&0_u32.to_ne_bytes());
        table.extend_from_slice(&u32::try_from(size).ok()?.to_ne_bytes());
        push_text(&mut table, &target.kind, TYPE_LENGTH)?;
        push_text(&mut table, &target.arguments, target.arguments.len() + 1)?;
        table.resize(end, 0);
    }
    Some(table)
}

/// Appends a text and NULs up to the length of its field.
fn push_text(to: &mut Vec<u8>, text: &str, length: usize) -> Option<()> {
    let end = to.len() + length;
    (text.len() < length && !text.contains('\0')).then(|| {
        to.extend_from_slice(text.as_bytes());
        to.resize(end, 0);
    })
}

/// Has the kernel perform a request; the answer is the device's number.
#[allow(unsafe_code)] // nix has no ioctl with room behind its structure
fn perform(control: &File, command: Command, mut request: Vec<u8>) -> nix::Result<u64> {
    // _IOWR(DM_IOCTL, command, struct dm_ioctl)
    let code: u32 = 3 << 30 | (HEADER_SIZE as u32) << 16 | 0xfd << 8 | command as u32;
    // SAFETY: the kernel reads and writes at most the `data_size` bytes that
    // the request itself says it has, which `encode` sets to its length, and
    // only during the call. The buffer is ours alone and the descriptor open.
    let result = unsafe {
        libc::ioctl(
            control.as_raw_fd(),
            code as libc::Ioctl,
            request.as_mut_ptr(),
        )
    };
    Errno::result(result)?;
    let number = request.get(DEV).and_then(|bytes| bytes.try_into().ok());
    number.map(u64::from_ne_bytes).ok_or(Errno::EPROTO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        Device {
            name: "root".into(),
            uuid: "id".into(),
            minor: Some(0x1234),
            read_only: true,
            targets: vec![
                Target {
                    start: 0,
                    length: 8,
                    kind: "linear".into(),
                    arguments: "/dev/vda1 0".into(),
                },
                Target {
                    start: 8,
                    length: 16,
                    kind: "linear".into(),
                    arguments: "/dev/vda2 8".into(),
                },
            ],
        }
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn the_header_is_the_kernels() {
        let create = encode(Command::Create, &device()).unwrap();
        assert_eq!(create.len(), 312);
        assert_eq!(u32_at(&create, 0), 4, "major version");
        assert_eq!((u32_at(&create, 12), u32_at(&create, 16)), (312, 312));
        assert_eq!(u32_at(&create, 20), 0, "no targets yet");
        assert_eq!(u32_at(&create, 28), READ_ONLY | PERSISTENT_DEV);
        let number = u64::from_ne_bytes(create[DEV].try_into().unwrap());
        assert_eq!(minor(number), 0x1234);
        assert_eq!(&create[48..53], b"root\0");
        assert_eq!(&create[176..179], b"id\0");
    }

    #[test]
    fn later_commands_name_the_device_and_nothing_else() {
        for command in [Command::Load, Command::Suspend, Command::Remove] {
            let request = encode(command, &device()).unwrap();
            assert_eq!(u32_at(&request, 28), READ_ONLY, "{command:?}");
            assert_eq!(request[DEV], [0; 8], "{command:?}");
            assert_eq!(&request[48..53], b"root\0");
            assert!(request[176..312].iter().all(|&b| b == 0), "{command:?}");
        }
    }

    #[test]
    fn targets_point_to_each_other_and_are_aligned() {
        let load = encode(Command::Load, &device()).unwrap();
        assert_eq!(u32_at(&load, 20), 2);
        assert_eq!(u32_at(&load, 12) as usize, load.len());
        let next = u32_at(&load, 312 + 20) as usize;
        assert_eq!(next, 56);
        assert_eq!(&load[312 + 24..312 + 31], b"linear\0");
        assert_eq!(&load[312 + 40..312 + 52], b"/dev/vda1 0\0");
        let second = 312 + next;
        assert_eq!(load[second], 8);
        assert_eq!(&load[second + 40..second + 52], b"/dev/vda2 8\0");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let long = |length| "x".repeat(length);
        let mut bad = device();
        bad.targets[0].kind = long(TYPE_LENGTH);
        assert!(encode(Command::Load, &bad).is_none());
        bad = device();
        bad.targets[0].arguments = "a\0b".into();
        assert!(encode(Command::Load, &bad).is_none());
        bad = device();
        bad.uuid = long(UUID_LENGTH);
        assert!(encode(Command::Create, &bad).is_none());
        for name in ["", ".", "..", "control", "a/b", "a b", "ä", &long(128)] {
            assert!(!is_name(name), "{name}");
        }
        assert!(is_name("extension-coco") && is_name(&long(127)));
    }

    #[test]
    fn minors_of_any_size() {
        for number in [0, 1, 255, 256, 0xf_ffff] {
            let mut device = device();
            device.minor = Some(number);
            let create = encode(Command::Create, &device).unwrap();
            let encoded = u64::from_ne_bytes(create[DEV].try_into().unwrap());
            assert_eq!(minor(encoded), number);
            // The major number lies between, and is not looked at.
            assert_eq!(minor(encoded | 254 << 8), number);
        }
    }

    #[test]
    fn a_device_of_the_kernels_own_is_found_and_gets_its_link() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("sys/block/dm-3/dm");
        fs::create_dir_all(&dir).unwrap();
        fs::create_dir_all(root.path().join("dev/mapper")).unwrap();
        fs::create_dir_all(root.path().join("sys/block/vda")).unwrap();
        fs::write(dir.join("name"), "lroot\n").unwrap();
        assert_eq!(find_at(root.path(), "other"), None);
        for _ in 0..2 {
            let found = find_at(root.path(), "lroot").unwrap();
            assert_eq!(found, root.path().join("dev/dm-3"));
        }
        let link = fs::read_link(root.path().join("dev/mapper/lroot")).unwrap();
        assert_eq!(link, Path::new("../dm-3"));
    }
}
