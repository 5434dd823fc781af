// SPDX-License-Identifier: Apache-2.0
//! The root that the command line asks for: reading its words.
//!
//! Decides nothing about the machine and touches nothing of it. What is not
//! understood, or contradicts itself where protection is asked for, is an
//! error and never the nearest thing that could be meant.

use std::path::PathBuf;
use std::time::Duration;

use nix::mount::MsFlags;

use super::RootError;
use crate::cmdline::CommandLine;
use crate::dm::word;
use crate::mounts::{self, Options};
use crate::verity::{Verity, is_device};

/// How long the device may take to appear, without and with `rootwait`. The
/// kernel's `rootwait` has no end, but a VM that waits for ever tells nobody.
const WAIT: Duration = Duration::from_secs(3);
const ROOTWAIT: Duration = Duration::from_secs(30);

/// The word that has the root verified.
pub(super) const VERITY: &str = "keelson.root_verity";

/// The type that takes a tag where others take a device.
pub(super) const VIRTIOFS: &str = "virtiofs";

/// What the root is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A block device, by its path in `/dev`.
    Device(PathBuf),
    /// A directory that the host shares by virtio-fs, by its tag.
    Tag(String),
}

/// The root that the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it is on.
    pub source: Source,
    /// File systems to try, in order; empty means all that the kernel knows.
    pub fstypes: Vec<String>,
    /// Flags and options of the mount.
    pub options: Options,
    /// How long to wait for the device.
    pub wait: Duration,
    /// How the device is verified, if it is.
    pub verity: Option<Verity>,
    /// Whether memory is laid above it.
    pub overlay: bool,
}

impl Request {
    /// Reads the request. `None` if no root is asked for that would be a block
    /// device or a tag: `root=` is missing, names the initramfs (`/dev/ram0`),
    /// or is a word that no kernel would take for a device either.
    pub fn from_cmdline(cmdline: &CommandLine) -> Result<Option<Self>, RootError> {
        let fstypes = cmdline.value("rootfstype").unwrap_or("").split(',');
        let fstypes: Vec<_> = fstypes.filter(|name| !name.is_empty()).collect();
        let source = match cmdline.value("root") {
            Some(root) => source(root, fstypes.contains(&VIRTIOFS))?,
            None => None,
        };
        let verity = verity(cmdline)?;
        check_table(cmdline)?;
        let source = match (source, &verity) {
            (Some(Source::Tag(_)), Some(_)) => return Err(unverifiable("a tag is no device")),
            // A blank in it would add to the table.
            (Some(Source::Device(device)), Some(_)) if !device.to_str().is_some_and(is_device) => {
                return Err(unverifiable("root= is not a plain path"));
            }
            (None, Some(_)) => return Err(unverifiable("root= names no device")),
            (None, None) => return Ok(None),
            (Some(source), _) => source,
        };
        let overlay = cmdline.has("keelson.root_overlay");
        let mut options = options(cmdline);
        if overlay || verity.is_some() {
            options.flags |= MsFlags::MS_RDONLY;
        }
        Ok(Some(Self {
            source,
            fstypes: fstypes.into_iter().map(str::to_owned).collect(),
            options,
            wait: patience(cmdline),
            verity,
            overlay,
        }))
    }
}

pub(super) fn unverifiable(reason: &'static str) -> RootError {
    RootError::Unverifiable { reason }
}

/// How the root is to be verified. The word without parameters is an error:
/// whoever writes it wants a verified root.
pub(super) fn verity(cmdline: &CommandLine) -> Result<Option<Verity>, RootError> {
    match cmdline.value(VERITY) {
        Some(text) => Ok(Some(Verity::parse(text, true)?)),
        None if cmdline.has(VERITY) => Err(unverifiable("without parameters")),
        None => Ok(None),
    }
}

/// Whether the root is one that dm-verity is asked to verify, by us or by the
/// kernel. Where it is, nothing that is not verified may stand in for it or be
/// added to it. Says yes in doubt.
pub fn is_measured(cmdline: &CommandLine) -> bool {
    cmdline.value(VERITY).is_some() || cmdline.has(VERITY) || is_measured_by_table(cmdline)
}

/// Whether the kernel's word asks for verity. Not parted into words: whoever
/// reads it may part it otherwise.
fn is_measured_by_table(cmdline: &CommandLine) -> bool {
    word::value(cmdline).is_some_and(|text| text.contains("verity"))
}

/// A table with verity that `root=` does not lie on protects nothing, and
/// whoever writes one wants a root that it does.
pub(super) fn check_table(cmdline: &CommandLine) -> Result<(), RootError> {
    let root = cmdline.value("root").unwrap_or("");
    let mapped = root.starts_with("/dev/dm-") || root.starts_with("/dev/mapper/");
    let ours = verity(cmdline)?.is_some();
    if is_measured_by_table(cmdline) && !mapped && !ours {
        let root = root.to_owned();
        return Err(RootError::NotOnTable { root });
    }
    Ok(())
}

/// What the value of `root=` names.
fn source(root: &str, virtiofs: bool) -> Result<Option<Source>, RootError> {
    let by_content = ["PARTUUID=", "PARTLABEL=", "UUID=", "LABEL="];
    if by_content.iter().any(|prefix| root.starts_with(prefix)) {
        let root = root.to_owned();
        return Err(RootError::Unsupported { root });
    }
    let Some(name) = root.strip_prefix("/dev/") else {
        if virtiofs && !root.is_empty() {
            return Ok(Some(Source::Tag(root.to_owned())));
        }
        log::warn!("root={root} is not a device; staying on the initramfs");
        return Ok(None);
    };
    let plain = !name.is_empty() && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !plain {
        let root = root.to_owned();
        return Err(RootError::Unsupported { root });
    }
    // The old way to say that the initramfs is the root.
    let ram = name
        .strip_prefix("ram")
        .is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
    Ok((!ram).then(|| Source::Device(root.into())))
}

/// Options of the root: read-only unless `rw` follows, as the kernel has it.
/// `ro` and `rw` count as words and inside `rootflags=`; the last one wins.
fn options(cmdline: &CommandLine) -> Options {
    let mut all = String::new();
    for word in cmdline.words() {
        match (word.key, word.value) {
            ("ro" | "rw", None) => mounts::push_option(&mut all, word.key),
            ("rootflags", Some(flags)) => mounts::push_option(&mut all, flags),
            _ => {}
        }
    }
    Options::parse(&all, MsFlags::MS_RDONLY)
}

/// How long to wait for a device that the command line asks for. `rootdelay=`
/// does not delay, since the device is waited for by its event, but it allows
/// for as much more time.
pub(crate) fn patience(cmdline: &CommandLine) -> Duration {
    let seconds = |key| cmdline.value(key).and_then(|value| value.parse().ok());
    let wait = match (cmdline.has("rootwait"), seconds("rootwait")) {
        (_, Some(seconds)) => Duration::from_secs(seconds),
        (true, None) => ROOTWAIT,
        (false, None) => WAIT,
    };
    let delay = seconds("rootdelay").map_or(Duration::ZERO, Duration::from_secs);
    wait.saturating_add(delay).min(ROOTWAIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(line: &str) -> Option<Request> {
        Request::from_cmdline(&CommandLine::parse(line.as_bytes())).unwrap()
    }

    #[test]
    fn the_words_that_hosts_send() {
        let line =
            "root=/dev/pmem0p1 rootflags=dax,data=ordered,errors=remount-ro ro rootfstype=ext4";
        let request = request(line).unwrap();
        assert_eq!(request.source, Source::Device("/dev/pmem0p1".into()));
        assert_eq!(request.fstypes, ["ext4"]);
        assert_eq!(request.options.flags, MsFlags::MS_RDONLY);
        assert_eq!(request.options.data, "dax,data=ordered,errors=remount-ro");
        assert_eq!(request.wait, WAIT);
    }

    #[test]
    fn read_only_unless_told_otherwise() {
        let flags = |line| request(line).unwrap().options.flags;
        assert_eq!(flags("root=/dev/vda1"), MsFlags::MS_RDONLY);
        assert_eq!(flags("root=/dev/vda1 rw"), MsFlags::empty());
        assert_eq!(flags("root=/dev/vda1 rootflags=rw"), MsFlags::empty());
        assert_eq!(
            flags("rw root=/dev/vda1 rootflags=x ro"),
            MsFlags::MS_RDONLY
        );
    }

    #[test]
    fn waiting_has_an_end() {
        let wait = |line| request(line).unwrap().wait.as_secs();
        assert_eq!(wait("root=/dev/vda1 rootwait"), 30);
        assert_eq!(wait("root=/dev/vda1 rootwait=7"), 7);
        assert_eq!(wait("root=/dev/vda1 rootdelay=5"), 8);
        assert_eq!(
            wait("root=/dev/vda1 rootwait=18446744073709551615 rootdelay=9"),
            30
        );
        assert_eq!(wait("root=/dev/vda1 rootwait=soon rootdelay=-1"), 3);
    }

    #[test]
    fn bug_roots_that_are_no_devices_are_ignored() {
        for line in [
            "",
            "root",
            "root=",
            "root=rootfs",
            "root=/dev/ram0",
            "root=/dev/ram",
            "root=x/dev/vda",
        ] {
            assert_eq!(request(line), None, "{line}");
        }
        assert!(request("root=/dev/ramdisk").is_some());
        assert!(request("root=/dev/mapper/root").is_some());
    }

    #[test]
    fn devices_that_cannot_be_found_are_refused() {
        for line in [
            "root=PARTUUID=1",
            "root=LABEL=x",
            "root=/dev/",
            "root=/dev/../etc",
            "root=/dev//vda",
        ] {
            let cmdline = CommandLine::parse(line.as_bytes());
            assert!(
                matches!(
                    Request::from_cmdline(&cmdline),
                    Err(RootError::Unsupported { .. })
                ),
                "{line}"
            );
        }
    }

    const PARAMS: &str = "salt=00,data_blocks=8,root_hash=\
        ac87db56303c9c1da433d7209b5a6ef3e4779df141200cbd7c157dcb8dd89c42";

    fn cmdline(text: &str) -> CommandLine {
        CommandLine::parse(text.replace("PARAMS", PARAMS).as_bytes())
    }

    #[test]
    fn a_tag_needs_its_file_system() {
        let source = |line| request(line).map(|request| request.source);
        let tag = Some(Source::Tag("kataShared".into()));
        assert_eq!(source("root=kataShared rootfstype=virtiofs"), tag);
        assert_eq!(source("rootfstype=ext4,virtiofs root=kataShared rw"), tag);
        assert_eq!(source("root=kataShared rootfstype=9p"), None);
        assert_eq!(source("root= rootfstype=virtiofs"), None);
        let device = Some(Source::Device("/dev/vda".into()));
        assert_eq!(source("root=/dev/vda rootfstype=virtiofs"), device);
    }

    #[test]
    fn what_is_verified_or_covered_is_never_written_to() {
        let request = |line| Request::from_cmdline(&cmdline(line)).unwrap().unwrap();
        let verified = request("root=/dev/vda1 rw keelson.root_verity=PARAMS");
        assert!(verified.verity.is_some() && !verified.overlay);
        assert_eq!(verified.options.flags, MsFlags::MS_RDONLY);
        let covered = request("root=/dev/vda1 keelson.root_overlay rw");
        assert!(covered.verity.is_none() && covered.overlay);
        assert_eq!(covered.options.flags, MsFlags::MS_RDONLY);
    }

    #[test]
    fn bug_a_root_to_be_verified_that_cannot_be_is_an_error() {
        for line in [
            "keelson.root_verity=PARAMS",
            "keelson.root_verity=PARAMS root=/dev/ram0",
            "keelson.root_verity=PARAMS root=rootfs",
            "keelson.root_verity=PARAMS root=tag rootfstype=virtiofs",
            "keelson.root_verity=PARAMS \"root=/dev/vda1 ignore_corruption\"",
            "keelson.root_verity=PARAMS,x root=/dev/vda1",
            "keelson.root_verity= root=/dev/vda1",
            "keelson.root_verity root=/dev/vda1",
        ] {
            assert!(Request::from_cmdline(&cmdline(line)).is_err(), "{line}");
        }
        let line = "keelson.root_verity=PARAMS root=/dev/vda1";
        assert!(Request::from_cmdline(&cmdline(line)).is_ok());
    }

    proptest! {
        #[test]
        fn any_command_line(line in "(root(=|fstype=(virtiofs )?|flags=|wait=|delay=)?[ -~]{0,20} ?){0,5}") {
            let cmdline = CommandLine::parse(line.as_bytes());
            if let Ok(Some(request)) = Request::from_cmdline(&cmdline) {
                match request.source {
                    Source::Device(device) => prop_assert!(device.starts_with("/dev")),
                    Source::Tag(tag) => prop_assert!(!tag.is_empty() && !tag.starts_with("/dev/")),
                }
                prop_assert!(request.wait <= ROOTWAIT);
            }
        }
    }
}
