// SPDX-License-Identifier: Apache-2.0
//! The label under which the program is executed: an SELinux context or an
//! AppArmor profile, written to this thread's attribute in `/proc`.
//!
//! The file is opened while the guest's own `/proc` is in view and checked to
//! be procfs': a container's `/proc` could lead the write to another file of
//! the process (CVE-2025-52881), or to nowhere.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use super::masks::is_procfs;
use super::{Child, Naming, StepError};

/// `/proc/thread-self/attr` of AppArmor's own, Linux 5.8.
const APPARMOR: &str = "/proc/thread-self/attr/apparmor/exec";
const SELINUX: &str = "/proc/thread-self/attr/exec";

/// An open attribute and what is to be written there.
pub struct Label {
    file: OwnedFd,
    path: &'static str,
    text: String,
    /// A profile that nobody loaded into this guest is left out, like all of
    /// them in a guest without AppArmor.
    optional: bool,
}

/// Opens the attribute, if a label was asked for.
pub fn open(child: &mut Child) -> Result<(), StepError> {
    let process = &child.plan.process;
    let wanted = match (&process.selinux_label, &process.apparmor_profile) {
        (Some(label), _) => (SELINUX, label.clone(), false),
        (None, Some(profile)) => (APPARMOR, format!("exec {profile}"), true),
        (None, None) => return Ok(()),
    };
    let (path, text, optional) = wanted;
    let file = attribute(path).naming(|| path.into())?;
    child.label = Some(Label {
        file,
        path,
        text,
        optional,
    });
    Ok(())
}

fn attribute(path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
    if is_procfs(&file)? {
        Ok(file)
    } else {
        Err(rustix::io::Errno::XDEV.into())
    }
}

/// Has the next execution take place under the label.
pub fn apply(child: &mut Child) -> Result<(), StepError> {
    let Some(label) = child.label.take() else {
        return Ok(());
    };
    match File::from(label.file).write_all(label.text.as_bytes()) {
        Err(error) if label.optional && error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|error| {
            StepError::request(format!("'{}' to {}", label.text, label.path), error)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_of_procfs_is_written() {
        assert!(attribute("/proc/thread-self/comm").is_ok());
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = attribute(file.path().to_str().unwrap()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EXDEV));
        // A magic link leads out of procfs.
        assert!(attribute("/proc/thread-self/exe").is_err());
    }
}
