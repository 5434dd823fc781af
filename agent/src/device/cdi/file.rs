// SPDX-License-Identifier: Apache-2.0
//! The files that describe CDI devices. Owns reading them, within bounds, and
//! finding devices in them; applies nothing.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::name::is_kind;
use super::{CdiDevice, CdiError};
use crate::rpc::status::chain;

/// Larger than any description.
const MOST_BYTES: u64 = 512 << 10;
/// More than any guest has.
const MOST_FILES: usize = 128;

/// A file with devices of one kind.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    kind: String,
    content: Value,
}

/// What has to be done for the devices, in order: `containerEdits`.
pub(super) fn edits_at(dir: &Path, devices: &[CdiDevice]) -> Result<Vec<Value>, CdiError> {
    let mut files = load(dir, devices)?;
    let mut edits = Vec::new();
    let mut general = vec![false; files.len()];
    for device in devices {
        let (at, which) = find(&files, device)?;
        // What all devices of the file need comes once, and first.
        if !std::mem::replace(&mut general[at], true)
            && let Some(all) = files[at].content.get_mut("containerEdits")
        {
            edits.push(all.take());
        }
        let own = files[at]
            .content
            .pointer_mut(&format!("/devices/{which}/containerEdits"));
        edits.extend(own.map(Value::take));
    }
    Ok(edits)
}

/// The files with devices of the kinds that are wanted.
fn load(dir: &Path, devices: &[CdiDevice]) -> Result<Vec<File>, CdiError> {
    let failed = |source| CdiError::File {
        path: dir.to_owned(),
        source,
    };
    let mut files = Vec::new();
    let mut count = 0;
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension() != Some(OsStr::new("json")) {
            continue;
        }
        count += 1;
        if count > MOST_FILES {
            return Err(failed(io::Error::other("it has too many files")));
        }
        match read(&path) {
            Ok(file) if devices.iter().any(|device| device.kind == file.kind) => files.push(file),
            Ok(_) => {}
            // Perhaps it is still being written; else it is not the one that matters.
            Err(error) => log::warn!("CDI file {}: {}", path.display(), chain(&error)),
        }
    }
    Ok(files)
}

fn read(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // Whatever it is, opening it must not wait.
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not an ordinary file"));
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(io::Error::other("it is too large"));
    }
    let content: Value = serde_json::from_slice(&bytes)?;
    let kind = content.get("kind").and_then(Value::as_str);
    let kind = kind
        .filter(|kind| is_kind(kind))
        .ok_or_else(|| io::Error::other("it has no valid kind"))?;
    Ok(File {
        path: path.to_owned(),
        kind: kind.to_owned(),
        content,
    })
}

/// The one file that has the device, and the device's place in it.
fn find(files: &[File], device: &CdiDevice) -> Result<(usize, usize), CdiError> {
    let named = |value: &Value| {
        let name = value.get("name").and_then(Value::as_str);
        name == Some(device.name.as_str())
    };
    let of_kind = || {
        let numbered = files.iter().enumerate();
        numbered.filter(|(_, file)| file.kind == device.kind)
    };
    let mut found = of_kind().filter_map(|(at, file)| {
        let list = file.content.get("devices").and_then(Value::as_array)?;
        Some((at, list.iter().position(named)?))
    });
    match (found.next(), found.next()) {
        (Some(found), None) => Ok(found),
        (Some((one, _)), Some((other, _))) => Err(CdiError::Ambiguous {
            device: device.clone(),
            one: files[one].path.clone(),
            other: files[other].path.clone(),
        }),
        (None, _) if of_kind().next().is_some() => Err(CdiError::NoSuchDevice(device.clone())),
        (None, _) => Err(CdiError::Absent(device.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(kind: &str, name: &str) -> CdiDevice {
        CdiDevice {
            kind: kind.to_owned(),
            name: name.to_owned(),
        }
    }

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    const GPUS: &str = r#"{"cdiVersion":"0.6.0","kind":"v.com/gpu",
        "containerEdits":{"env":["ALL=1"]},
        "devices":[{"name":"0","containerEdits":{"env":["A=1"]}},{"name":"1","containerEdits":{"env":["B=1"]}}]}"#;

    #[test]
    fn what_all_need_comes_once_and_first() {
        let dir = dir(&[("gpus.json", GPUS)]);
        let wanted = [device("v.com/gpu", "1"), device("v.com/gpu", "0")];
        let edits = edits_at(dir.path(), &wanted).unwrap();
        let text: Vec<_> = edits.iter().map(Value::to_string).collect();
        let expected = [
            r#"{"env":["ALL=1"]}"#,
            r#"{"env":["B=1"]}"#,
            r#"{"env":["A=1"]}"#,
        ];
        assert_eq!(text, expected);
    }

    #[test]
    fn a_kind_may_come_and_a_device_of_a_known_kind_will_not() {
        let dir = dir(&[("gpus.json", GPUS), ("x.yaml", GPUS)]);
        let error = |kind, name| edits_at(dir.path(), &[device(kind, name)]).unwrap_err();
        assert!(matches!(error("v.com/net", "0"), CdiError::Absent(_)));
        assert!(matches!(error("v.com/gpu", "7"), CdiError::NoSuchDevice(_)));
        fs::write(dir.path().join("again.json"), GPUS).unwrap();
        assert!(matches!(
            error("v.com/gpu", "0"),
            CdiError::Ambiguous { .. }
        ));
    }

    #[test]
    fn files_that_are_none_are_passed_over() {
        let large = format!("{GPUS}{}", " ".repeat(MOST_BYTES as usize));
        let deep = "[".repeat(100_000);
        let dir = dir(&[
            ("a.json", ""),
            ("b.json", "[1, 2"),
            ("c.json", &deep),
            ("d.json", &large),
            ("e.json", r#"{"kind": 7}"#),
            ("f.json", r#"{"kind": "gpu"}"#),
            (
                "g.json",
                r#"{"kind": "v.com/gpu", "devices": {"name": "0"}}"#,
            ),
        ]);
        fs::create_dir(dir.path().join("h.json")).unwrap();
        nix::unistd::mkfifo(
            &dir.path().join("i.json"),
            nix::sys::stat::Mode::from_bits_truncate(0o600),
        )
        .unwrap();
        let wanted = [device("v.com/gpu", "0")];
        let error = edits_at(dir.path(), &wanted).unwrap_err();
        assert!(matches!(error, CdiError::NoSuchDevice(_)), "{error}");
        fs::write(dir.path().join("j.json"), GPUS).unwrap();
        assert_eq!(edits_at(dir.path(), &wanted).unwrap().len(), 2);
        for n in 0..MOST_FILES {
            fs::write(dir.path().join(format!("{n}.json")), "").unwrap();
        }
        let error = edits_at(dir.path(), &wanted).unwrap_err();
        assert!(matches!(error, CdiError::File { .. }));
    }
}
