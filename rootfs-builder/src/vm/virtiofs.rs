// SPDX-License-Identifier: Apache-2.0
//! The VM's shared directory: a `virtiofsd` process.
//!
//! How it is confined depends on who runs it:
//! - root: `--sandbox chroot`. It changes to the ids of the guest's processes and sees nothing but the share. Its `namespace` mode would
//!   need to create mount and pid namespaces, which a container on the host often forbids.
//! - a user: `--sandbox namespace`, in a user namespace where the user is root. Files of the user are then root's in the guest, as
//!   a container image wants them. No other owner can be stored; the guest is told so by an error.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{getegid, geteuid};

use super::process::Child;
use super::qemu::ShareSocket;
use super::{Share, VmError, wait_for_socket};

/// The tag of the share: the name under which Kata's agents mount it.
pub const TAG: &str = "kataShared";

/// The file-system daemon of one VM.
#[derive(Debug)]
pub struct Virtiofs {
    /// The daemon's process.
    pub process: Child,
    /// The socket QEMU's device connects to.
    pub socket: PathBuf,
    /// The tag under which the guest mounts it.
    pub tag: &'static str,
    /// It offers a window.
    pub dax: bool,
}

impl Virtiofs {
    /// Starts the daemon for `share` with its socket and its log in `dir`.
    pub async fn start(
        program: &Path,
        tag: &'static str,
        share: &Share,
        dir: &Path,
    ) -> Result<Virtiofs, VmError> {
        let socket = dir.join(format!("fs-{tag}.sock"));
        let mut command = Command::new(program);
        command.arg("--socket-path").arg(&socket);
        command.arg("--shared-dir").arg(&share.path);
        command.args(arguments(
            share.readonly,
            geteuid().as_raw(),
            getegid().as_raw(),
        ));
        if share.dax {
            // The device that it serves has no tag of its own. What it maps it opens by ways that its system call filter does not know.
            command.args(["--tag", tag, "--seccomp", "none"]);
        }
        let log = dir.join(format!("virtiofsd-{tag}.log"));
        let (process, _) = Child::spawn("virtiofsd", command, &log, false)?;
        wait_for_socket(&process, &socket).await?;
        Ok(Virtiofs {
            process,
            socket,
            tag,
            dax: share.dax,
        })
    }

    /// What QEMU has to know of it.
    pub(super) fn for_qemu(&self) -> ShareSocket<'_> {
        ShareSocket {
            tag: self.tag,
            path: &self.socket,
            dax: self.dax,
        }
    }
}

/// The arguments that depend on the share and on who runs the daemon.
fn arguments(readonly: bool, uid: u32, gid: u32) -> Vec<String> {
    let mut args: Vec<String> = ["--cache", "auto", "--log-level", "warn"]
        .map(String::from)
        .into();
    // Names such as security.capability and overlayfs' own marks are extended attributes.
    args.push("--xattr".into());
    if readonly {
        args.push("--readonly".into());
    }
    if uid == 0 {
        args.extend(["--sandbox", "chroot"].map(String::from));
    } else {
        args.extend(["--sandbox", "namespace"].map(String::from));
        args.push(format!("--uid-map=:0:{uid}:1:"));
        args.push(format!("--gid-map=:0:{gid}:1:"));
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_confined_by_chroot_and_users_by_namespaces() {
        let root = arguments(true, 0, 0).join(" ");
        assert!(root.contains("--sandbox chroot") && root.contains("--readonly"));
        assert!(!root.contains("--uid-map"));
        let user = arguments(false, 1000, 100).join(" ");
        assert!(user.contains("--sandbox namespace --uid-map=:0:1000:1: --gid-map=:0:100:1:"));
        assert!(!user.contains("--readonly"));
    }
}
