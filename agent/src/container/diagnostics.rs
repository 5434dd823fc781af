// SPDX-License-Identifier: Apache-2.0
//! What a container leaves behind for diagnosis: its termination log (protocol
//! section 3.5). The file was written by the container, so nothing about it is
//! believed: not its type, not its size, not what is in it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

use super::plan::{MountPlan, MountSource};

/// The annotation that names the log inside the container.
const ANNOTATION: &str = "io.kubernetes.container.terminationMessagePath";

/// Bytes of it that count.
const MAX_LOG: u64 = 4096;

/// Why there is no termination log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiagnosticsError {
    /// The host has not said where it is.
    #[error("Container has no annotation {ANNOTATION}")]
    NoAnnotation,
    /// Where it is said to be nothing of the guest is mounted.
    #[error("No mount of the container leads to its termination log '{0}'")]
    NoMount(String),
    /// Something else is there.
    #[error("Termination log '{0}' is not a regular file")]
    NotAFile(String),
    /// It cannot be read.
    #[error("Termination log '{0}' cannot be read: {1}")]
    Read(String, String),
}

/// Where a container's termination log is in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TerminationLog(Result<String, DiagnosticsError>);

impl TerminationLog {
    /// By the annotation and the mount that it names.
    #[must_use]
    pub fn of(annotations: &HashMap<String, String>, mounts: &[MountPlan]) -> Self {
        let Some(inside) = annotations.get(ANNOTATION) else {
            return Self(Err(DiagnosticsError::NoAnnotation));
        };
        let source = mounts.iter().rev().find_map(|mount| match &mount.source {
            MountSource::Bind { path, .. } if mount.destination == *inside => Some(path.clone()),
            _ => None,
        });
        Self(source.ok_or_else(|| DiagnosticsError::NoMount(inside.clone())))
    }

    /// The beginning of the log; a log that was never written is empty.
    /// Blocking: the file may lie on the host.
    ///
    /// # Errors
    /// [`DiagnosticsError`].
    pub fn read(&self) -> Result<String, DiagnosticsError> {
        let path = self.0.clone()?;
        let failed = |error: io::Error| DiagnosticsError::Read(path.clone(), error.to_string());
        // Never waits for the other end of a pipe; no link leads anywhere else.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let found = openat2(CWD, &*path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
        let file = match found {
            Err(rustix::io::Errno::NOENT) => return Ok(String::new()),
            other => other.map_err(|e| failed(e.into()))?,
        };
        let mode = fstat(&file).map_err(|e| failed(e.into()))?.st_mode;
        if FileType::from_raw_mode(mode) != FileType::RegularFile {
            return Err(DiagnosticsError::NotAFile(path));
        }
        let mut bytes = Vec::new();
        let mut beginning = File::from(file).take(MAX_LOG);
        beginning.read_to_end(&mut bytes).map_err(failed)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_at(path: &std::path::Path) -> TerminationLog {
        let mount = MountPlan {
            destination: "/dev/termination-log".to_owned(),
            source: MountSource::Bind {
                path: path.to_string_lossy().into_owned(),
                recursive: true,
            },
            set: 0,
            clear: 0,
            set_recursive: 0,
            clear_recursive: 0,
            propagation: Vec::new(),
        };
        let annotations = HashMap::from([(ANNOTATION.to_owned(), mount.destination.clone())]);
        TerminationLog::of(&annotations, &[mount])
    }

    #[test]
    fn only_the_beginning_is_read() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("log");
        assert_eq!(log_at(&path).read(), Ok(String::new()));
        std::fs::write(&path, b"why\xff").unwrap();
        assert_eq!(log_at(&path).read().unwrap(), "why\u{fffd}");
        std::fs::write(&path, "x".repeat(100_000)).unwrap();
        assert_eq!(log_at(&path).read().unwrap().len(), 4096);
    }

    /// The reference reads all of it into memory first: a container could fill the guest's.
    #[test]
    fn bug_a_log_without_end_is_not_read_to_its_end() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("log");
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(log_at(&path).read().unwrap().len(), 4096);
    }

    #[test]
    fn what_is_no_file_is_refused_and_not_waited_for() {
        let base = tempfile::tempdir().unwrap();
        let fifo = base.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let link = base.path().join("link");
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        let not_a_file = |path: &std::path::Path| log_at(path).read().unwrap_err();
        assert!(matches!(not_a_file(&fifo), DiagnosticsError::NotAFile(_)));
        assert!(matches!(
            not_a_file(base.path()),
            DiagnosticsError::NotAFile(_)
        ));
        assert!(matches!(not_a_file(&link), DiagnosticsError::Read(..)));
    }

    #[test]
    fn the_annotation_and_its_mount_are_needed() {
        let none = TerminationLog::of(&HashMap::new(), &[]);
        assert_eq!(none.read(), Err(DiagnosticsError::NoAnnotation));
        let annotations = HashMap::from([(ANNOTATION.to_owned(), "/log".to_owned())]);
        let unmounted = TerminationLog::of(&annotations, &[]);
        assert_eq!(
            unmounted.read(),
            Err(DiagnosticsError::NoMount("/log".to_owned()))
        );
    }
}
