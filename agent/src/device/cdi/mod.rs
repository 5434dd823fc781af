// SPDX-License-Identifier: Apache-2.0
//! Devices by the Container Device Interface (protocol 6.7): a part of the
//! guest, such as a driver's tool, writes down what containers need in order to
//! use them. Owns the wait for such files; writes none itself.

mod edits;
mod file;
mod name;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::Spec;
use rustix::fs::inotify;
use serde_json::Value;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

pub use name::{CdiDevice, requested};

use super::Extra;
use crate::pool::at_host_pace;
use crate::watch::watch_for;

/// Where the files are.
pub const CDI: &str = "/var/run/cdi";

/// What can go wrong with devices of the Container Device Interface.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// A name that is none.
    #[error("CDI device {text:?} is refused: {reason}")]
    Name {
        /// As it was sent.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No file has devices of that kind (yet).
    #[error("There is no CDI file for {0}")]
    Absent(CdiDevice),
    /// There are devices of that kind, without that one.
    #[error("CDI device {0} is not among those of its kind")]
    NoSuchDevice(CdiDevice),
    /// Two files describe it.
    #[error("CDI device {device} is described twice: in {one} and {other}")]
    Ambiguous {
        /// The device.
        device: CdiDevice,
        /// A file.
        one: PathBuf,
        /// The other one.
        other: PathBuf,
    },
    /// A description that cannot be followed.
    #[error("CDI: {field} of {object:?} is refused: {reason}")]
    Edit {
        /// The field's name in the file.
        field: &'static str,
        /// What it is about.
        object: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file or device could not be used.
    #[error("Failed to use {path} for CDI devices")]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The description did not come.
    #[error("failed to inject devices after CDI timeout of {seconds} seconds")]
    Late {
        /// How long it was waited for.
        seconds: u64,
        /// What was still missing at the end.
        source: Box<CdiError>,
    },
    /// Work that was given up half-way, which only a defect of the agent does.
    #[error("Work on CDI devices was interrupted")]
    Interrupted,
}

impl CdiError {
    /// Whether the request is to blame rather than the guest.
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Name { .. } | Self::NoSuchDevice(_))
    }
}

/// Changes the specification as the devices need it; waits for their
/// descriptions. Answers with the nodes that were added.
///
/// # Errors
/// [`CdiError::Late`] when they do not come in time; others at once.
pub async fn inject(
    spec: &mut Spec,
    devices: Vec<CdiDevice>,
    dir: &Path,
    patience: Duration,
) -> Result<Vec<Extra>, CdiError> {
    let mut nodes = Vec::new();
    for edits in described(devices, dir, patience).await? {
        nodes.extend(edits::apply(spec, &edits)?);
    }
    Ok(nodes)
}

async fn described(
    devices: Vec<CdiDevice>,
    dir: &Path,
    patience: Duration,
) -> Result<Vec<Value>, CdiError> {
    let deadline = Instant::now() + patience;
    let place = dir.to_owned();
    let failed = move |source| CdiError::File {
        path: place,
        source,
    };
    // Subscribed first: what comes after the look is told.
    let mut changes = watch_dir(dir).map_err(failed)?;
    loop {
        let (place, wanted) = (dir.to_owned(), devices.clone());
        let looked = at_host_pace(move || file::edits_at(&place, &wanted)).await;
        let absence = match looked.map_err(|_| CdiError::Interrupted)? {
            Err(error @ CdiError::Absent(_)) => error,
            other => return other,
        };
        if timeout_at(deadline, changed(&mut changes)).await.is_err() {
            return Err(CdiError::Late {
                seconds: patience.as_secs(),
                source: Box::new(absence),
            });
        }
    }
}

/// A descriptor that can be read when a file has come or was written.
fn watch_dir(dir: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    use inotify::{CreateFlags, WatchFlags};
    fs::create_dir_all(dir)?;
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let news = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE;
    inotify::add_watch(&fd, dir, news | WatchFlags::ONLYDIR)?;
    watch_for(fd, Interest::READABLE)
}

async fn changed(changes: &mut AsyncFd<OwnedFd>) {
    let Ok(mut ready) = changes.readable_mut().await else {
        // Only when the event loop ends.
        return std::future::pending().await;
    };
    // Several count as one: all files are looked at.
    let mut buffer = [0; 4096];
    while rustix::io::read(ready.get_inner(), &mut buffer).is_ok_and(|length| length > 0) {}
    ready.clear_ready();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::status::chain;

    const FILE: &str = r#"{"cdiVersion":"0.6.0","kind":"v.com/gpu",
        "devices":[{"name":"0","containerEdits":{"env":["GPU=0"]}}]}"#;

    fn device(name: &str) -> Vec<CdiDevice> {
        let kind = "v.com/gpu".to_owned();
        let name = name.to_owned();
        vec![CdiDevice { kind, name }]
    }

    fn env(spec: &Spec) -> Vec<String> {
        let process = spec.process().as_ref().unwrap();
        process.env().clone().unwrap()
    }

    #[tokio::test]
    async fn what_is_described_while_it_is_waited_for_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("cdi");
        let mut spec = Spec::default();
        let patience = Duration::from_secs(60);
        let writer = async {
            // The wait has begun when the directory is there.
            while !place.is_dir() {
                tokio::task::yield_now().await;
            }
            // Half a file is no description, and no end of the wait.
            let (half, rest) = FILE.split_at(FILE.len() / 2);
            let path = place.join("gpu.json");
            fs::write(&path, half).unwrap();
            tokio::task::yield_now().await;
            let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
            io::Write::write_all(&mut file, rest.as_bytes()).unwrap();
        };
        let injection = inject(&mut spec, device("0"), &place, patience);
        let (nodes, ()) = tokio::join!(injection, writer);
        assert!(nodes.unwrap().is_empty());
        assert!(env(&spec).contains(&"GPU=0".to_owned()));
    }

    #[tokio::test]
    async fn a_device_that_a_known_kind_lacks_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("gpu.json"), FILE).unwrap();
        let patience = Duration::from_secs(86_400);
        let mut spec = Spec::default();
        let error = inject(&mut spec, device("1"), dir.path(), patience).await;
        let error = error.unwrap_err();
        assert!(error.is_bad_input());
        assert_eq!(
            error.to_string(),
            "CDI device v.com/gpu=1 is not among those of its kind"
        );
    }

    #[tokio::test]
    async fn what_never_comes_is_late() {
        let dir = tempfile::tempdir().unwrap();
        let patience = Duration::from_millis(20);
        let mut spec = Spec::default();
        let error = inject(&mut spec, device("0"), dir.path(), patience).await;
        assert_eq!(
            chain(&error.unwrap_err()),
            "failed to inject devices after CDI timeout of 0 seconds: \
             There is no CDI file for v.com/gpu=0"
        );
    }
}
