// SPDX-License-Identifier: Apache-2.0
//! `dm-mod.create=`: mapped devices by a kernel word.
//!
//! A kernel with its device mapper built in makes them before PID 1 starts
//! (Documentation/admin-guide/device-mapper/dm-init.rst). Where the mapper is a
//! module, nobody does; then this reads the same grammar, strictly, and only
//! the targets that a root is made of.

use thiserror::Error;

use super::{Device, Target};
use crate::cmdline::CommandLine;

/// Devices, and targets of one device, that a word may ask for.
const MAX_COUNT: usize = 16;

/// Where minor numbers end (`MINORBITS`).
const MINORS: u64 = 1 << 20;

/// The word is not in the kernel's grammar, or asks for what is not done here.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WordError {
    /// More than is ever needed.
    #[error("dm-mod.create asks for more than {MAX_COUNT} devices or targets")]
    TooMany,
    /// Not `name,uuid,minor,flags,table`.
    #[error("dm-mod.create: the device \"{text}\" is not name,uuid,minor,ro|rw,table")]
    Device {
        /// The device's part of the word.
        text: String,
    },
    /// Not `start sectors type arguments`, or of another type.
    #[error(
        "dm-mod.create: the table line \"{text}\" is not \"start sectors verity|linear arguments\""
    )]
    Target {
        /// The line.
        text: String,
    },
}

/// The value of the word, if it is given. The kernel takes `-` and `_` in the
/// names of its parameters for the same.
pub fn value(cmdline: &CommandLine) -> Option<&str> {
    let is_it = |key: &str| matches!(key, "dm-mod.create" | "dm_mod.create");
    let words = cmdline.words().filter(|word| is_it(word.key));
    words.filter_map(|word| word.value).last()
}

/// Reads the value of the word.
pub fn parse(text: &str) -> Result<Vec<Device>, WordError> {
    each(text, ';', device)
}

/// Reads the parts of a text; there are few.
fn each<T>(
    text: &str,
    separator: char,
    read: fn(&str) -> Result<T, WordError>,
) -> Result<Vec<T>, WordError> {
    let mut found = Vec::new();
    for part in text.split(separator) {
        if found.len() == MAX_COUNT {
            return Err(WordError::TooMany);
        }
        found.push(read(part)?);
    }
    Ok(found)
}

fn device(text: &str) -> Result<Device, WordError> {
    let bad = || WordError::Device {
        text: text.trim().to_owned(),
    };
    let mut fields = text.splitn(5, ',').map(str::trim);
    let mut field = || fields.next().ok_or_else(bad);
    let (name, uuid, minor) = (field()?, field()?, field()?);
    let read_only = match field()? {
        "ro" => true,
        "rw" => false,
        _ => return Err(bad()),
    };
    let minor = match minor {
        "" => None,
        digits => match number(digits) {
            Some(minor) if minor < MINORS => u32::try_from(minor).ok(),
            _ => return Err(bad()),
        },
    };
    let table = field()?;
    if !super::is_name(name) {
        return Err(bad());
    }
    Ok(Device {
        name: name.to_owned(),
        uuid: uuid.to_owned(),
        minor,
        read_only,
        targets: each(table, ',', target)?,
    })
}

fn target(text: &str) -> Result<Target, WordError> {
    let bad = || WordError::Target {
        text: text.trim().to_owned(),
    };
    let mut fields = text.split_ascii_whitespace();
    let mut field = || fields.next().ok_or_else(bad);
    let start = number(field()?).ok_or_else(bad)?;
    let length = number(field()?).filter(|&length| length > 0);
    let length = length.ok_or_else(bad)?;
    let kind = field()?;
    let arguments: Vec<_> = fields.collect();
    let enough = match kind {
        "verity" => arguments.len() >= 10,
        "linear" => arguments.len() == 2,
        _ => false,
    };
    if !enough || start.checked_add(length).is_none() {
        return Err(bad());
    }
    Ok(Target {
        start,
        length,
        kind: kind.to_owned(),
        arguments: arguments.join(" "),
    })
}

impl Target {
    /// The devices that a target made by [`parse`] lies on, as it names them.
    pub fn below(&self) -> impl Iterator<Item = &str> {
        let (skip, take) = match self.kind.as_str() {
            "verity" => (1, 2),
            _ => (0, 1),
        };
        self.arguments.split(' ').skip(skip).take(take)
    }
}

/// A decimal number and nothing else. The kernel would also take octal and
/// hexadecimal ones, so that a leading zero is refused rather than misread.
pub(crate) fn number(digits: &str) -> Option<u64> {
    let decimal = digits.bytes().all(|b| b.is_ascii_digit());
    let plain = digits == "0" || !digits.starts_with('0');
    (decimal && plain).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: &str = "ac87db56303c9c1da433d7209b5a6ef3e4779df141200cbd7c157dcb8dd89c42";

    #[test]
    fn what_kata_sends() {
        let line = format!(
            "root=/dev/dm-0 dm-mod.create=\"dm-verity,,,ro,0 736328 verity 1 /dev/vda1 /dev/vda2 \
             4096 4096 92041 0 sha256 {HASH} 065c13df\" quiet"
        );
        let cmdline = CommandLine::parse(line.as_bytes());
        let devices = parse(value(&cmdline).unwrap()).unwrap();
        assert_eq!(devices.len(), 1);
        let device = &devices[0];
        assert_eq!(
            (device.name.as_str(), device.uuid.as_str()),
            ("dm-verity", "")
        );
        assert!(device.read_only && device.minor.is_none());
        let target = &device.targets[0];
        assert_eq!((target.start, target.length), (0, 736_328));
        assert_eq!(target.kind, "verity");
        assert!(
            target
                .arguments
                .ends_with(&format!("sha256 {HASH} 065c13df"))
        );
        assert_eq!(
            target.below().collect::<Vec<_>>(),
            ["/dev/vda1", "/dev/vda2"]
        );
    }

    #[test]
    fn the_kernels_own_examples() {
        let text = format!(
            "dm-linear,,1,rw, 0 32768 linear 8:1 0, 32768 1024000 linear 8:2 0; \
             dm-verity,,3,ro, 0 1638400 verity 1 /dev/sdc1 /dev/sdc2 4096 4096 204800 1 sha256 \
             {HASH} 5ebfe87f"
        );
        let devices = parse(&text).unwrap();
        assert_eq!(devices.len(), 2);
        assert_eq!(devices[0].minor, Some(1));
        assert!(!devices[0].read_only);
        assert_eq!(devices[0].targets.len(), 2);
        assert_eq!(devices[0].targets[1].below().collect::<Vec<_>>(), ["8:2"]);
        assert_eq!(
            (devices[1].name.as_str(), devices[1].minor),
            ("dm-verity", Some(3))
        );
    }

    #[test]
    fn both_spellings_and_the_last_one_counts() {
        let cmdline = CommandLine::parse(b"dm-mod.create=a dm_mod.create=b dm-mod.create");
        assert_eq!(value(&cmdline), Some("b"));
        assert_eq!(value(&CommandLine::parse(b"dm-mod.created=x")), None);
    }

    #[test]
    fn bug_what_is_not_understood_is_refused_and_not_guessed() {
        for text in [
            "",
            "x",
            "x,,,ro",
            "x,,,ro,",
            ",,,ro,0 8 linear 8:1 0",
            "a/b,,,ro,0 8 linear 8:1 0",
            "x,,,RO,0 8 linear 8:1 0",
            "x,,-1,ro,0 8 linear 8:1 0",
            "x,,1048576,ro,0 8 linear 8:1 0",
            "x,,,ro,0 0 linear 8:1 0",
            "x,,,ro,010 8 linear 8:1 0",
            "x,,,ro,0 18446744073709551616 linear 8:1 0",
            "x,,,ro,1 18446744073709551615 linear 8:1 0",
            "x,,,ro,0 8 linear 8:1",
            "x,,,ro,0 8 linear 8:1 0 0",
            "x,,,ro,0 8 crypt 8:1 0",
            "x,,,ro,0 8 verity 1 8:1 8:2 4096 4096 1 0 sha256 ab",
            "x,,,ro,0 8 linear 8:1 0;",
            "x,,,ro,0 8 linear 8:1 0,",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        let one = "x,,,ro,0 8 linear 8:1 0";
        assert!(parse(one).is_ok());
        assert_eq!(parse(&[one; 17].join(";")), Err(WordError::TooMany));
        assert!(parse(&[one; 16].join(";")).is_ok());
        let many = [one, &",1 8 linear 8:1 0".repeat(16)].concat();
        assert_eq!(parse(&many), Err(WordError::TooMany));
    }

    proptest! {
        #[test]
        fn any_text(text in "[a-z0-9 ,;:/-]{0,80}|(x,,[0-9]?,ro,0 [0-9]{1,20} (linear|verity) [a-z0-9:/, ]{0,40};?){0,3}") {
            if let Ok(devices) = parse(&text) {
                for device in devices {
                    prop_assert!(!device.name.is_empty() && !device.targets.is_empty());
                    for target in &device.targets {
                        prop_assert!(target.below().count() >= 1 && target.length > 0);
                    }
                }
            }
        }
    }
}
