// SPDX-License-Identifier: Apache-2.0
//! Sealed secrets of a container (protocol 13.7): values of its environment,
//! and files of the volumes that the host copied into the guest. What cannot be
//! unsealed stays sealed, with a warning: the container may not need it.

use std::os::fd::OwnedFd;
use std::path::Path;

use log::warn;

use super::sealed_files::{self, SealedFile};
use super::{Hub, HubError};
use crate::container::plan::{ContainerPlan, MountSource};
use crate::files::SHARED_ROOT;
use crate::pool::at_host_pace;
use crate::rpc::status::chain;

/// How a sealed secret begins.
pub(super) const PREFIX: &str = "sealed.";

/// The longest entry of an environment that the kernel executes a program with
/// (`MAX_ARG_STRLEN`).
const LONGEST_ENTRY: usize = (128 << 10) - 1;

/// Mounts that the runtime makes for every container, none of them secret.
const NEVER_SEALED: [&str; 5] = [
    "resolv.conf",
    "termination-log",
    "hostname",
    "hosts",
    "serviceaccount",
];

/// Unseals what is sealed, if there is a hub.
pub async fn unseal(hub: &Hub, plan: &mut ContainerPlan) {
    if !hub.is_present() {
        return;
    }
    let id = plan.id.as_str();
    let mut patient = true;
    for entry in &mut plan.process.env {
        let Some((name, sealed)) = sealed_entry(entry).filter(|_| patient) else {
            continue;
        };
        let answer = hub.unseal(sealed.as_bytes()).await;
        patient = !matches!(answer, Err(HubError::Late { .. }));
        match answer.map(|bytes| open_entry(name, bytes)) {
            Ok(Some(open)) => *entry = open,
            Ok(None) => warn!("Container {id}: {name} stays sealed: its secret is no text"),
            Err(error) => warn!("Container {id}: {name} stays sealed: {}", chain(&error)),
        }
    }
    let root = plan.init.root.as_ref();
    for mount in root.iter().flat_map(|root| &root.mounts) {
        let MountSource::Bind { path, .. } = &mount.source else {
            continue;
        };
        // A hub that once let its time run out is not waited for again.
        if patient && may_hold_secrets(path) {
            patient = unseal_files(hub, id, path).await;
        }
    }
}

/// Name and value of an entry whose value is sealed.
fn sealed_entry(entry: &str) -> Option<(&str, &str)> {
    let (name, value) = entry.split_once('=')?;
    value.starts_with(PREFIX).then_some((name, value))
}

fn open_entry(name: &str, bytes: Vec<u8>) -> Option<String> {
    let value = String::from_utf8(bytes).ok()?;
    let entry = format!("{name}={value}");
    (!value.contains('\0') && entry.len() <= LONGEST_ENTRY).then_some(entry)
}

fn may_hold_secrets(source: &str) -> bool {
    Path::new(source).starts_with(SHARED_ROOT)
        && !NEVER_SEALED.iter().any(|name| source.ends_with(name))
}

/// Says whether the hub answers in time.
async fn unseal_files(hub: &Hub, id: &str, source: &str) -> bool {
    let (root, dir) = (SHARED_ROOT, source.to_owned());
    let found = at_host_pace(move || sealed_files::find(Path::new(root), Path::new(&dir))).await;
    let found = match found.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
        Ok(found) => found,
        Err(error) => {
            warn!("Container {id}: '{source}' is not searched for secrets: {error}");
            return true;
        }
    };
    let dir = std::sync::Arc::new(found.dir);
    for file in found.files {
        let name = file.to_string();
        let sealed = &file.content;
        match hub.unseal(sealed).await {
            Ok(open) => put_back(dir.clone(), file, open, id, source).await,
            Err(error) => {
                let cause = chain(&error);
                warn!("Container {id}: '{name}' of '{source}' stays sealed: {cause}");
                if matches!(error, HubError::Late { .. }) {
                    return false;
                }
            }
        }
    }
    true
}

async fn put_back(
    dir: std::sync::Arc<OwnedFd>,
    file: SealedFile,
    open: Vec<u8>,
    id: &str,
    source: &str,
) {
    let name = file.to_string();
    let written = at_host_pace(move || file.replace(&dir, &open)).await;
    if let Err(error) = written.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
        warn!("Container {id}: '{name}' of '{source}' stays sealed: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_sealed_by_their_value() {
        assert_eq!(sealed_entry("A=sealed.x=y"), Some(("A", "sealed.x=y")));
        for open in [
            "A=unsealed.x",
            "sealed.A=x",
            "A=Sealed.x",
            "A",
            "A= sealed.x",
        ] {
            assert_eq!(sealed_entry(open), None, "{open}");
        }
    }

    #[test]
    fn what_no_environment_can_hold_stays_out() {
        assert_eq!(open_entry("A", b"b=c".to_vec()).as_deref(), Some("A=b=c"));
        assert_eq!(open_entry("A", b"b\0c".to_vec()), None);
        assert_eq!(open_entry("A", vec![0xff]), None);
        assert_eq!(open_entry("A", vec![b'x'; LONGEST_ENTRY - 1]), None);
        assert!(open_entry("A", vec![b'x'; LONGEST_ENTRY - 2]).is_some());
    }

    #[test]
    fn only_volumes_of_the_shared_directory_are_searched() {
        let below = |name: &str| may_hold_secrets(&format!("{SHARED_ROOT}/{name}"));
        assert!(below("c1-0123-secret") && below("hosts.d"));
        for name in ["c1-0123-hosts", "c1-resolv.conf", "x-serviceaccount"] {
            assert!(!below(name), "{name}");
        }
        assert!(!may_hold_secrets(
            "/run/kata-containers/shared/containersX/a"
        ));
        assert!(!may_hold_secrets("/etc"));
    }
}
