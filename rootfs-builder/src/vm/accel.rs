// SPDX-License-Identifier: Apache-2.0
//! Whether KVM is there *and works*.
//!
//! QEMU's own `accel=kvm:tcg` goes on to TCG only when KVM cannot be opened. Where a host offers a KVM that then refuses part of
//! what QEMU asks for (some clouds' nested KVM does), QEMU aborts instead; so it is tried once, on a VM that never runs.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use guest_kernel::Arch;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::OnceCell;

use super::Accel;

/// The trial takes a tenth of a second; a KVM that needs this long is of no use.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// What makes QEMU end as soon as it has set everything up.
const QUIT: &[u8] = b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"quit\"}\n";

/// The trial's outcome; a host does not change its mind while we run.
static USABLE: OnceCell<bool> = OnceCell::const_new();

/// `wanted` with [`Accel::Auto`] resolved: [`Accel::Kvm`] if KVM works for this guest, else [`Accel::Tcg`].
pub async fn resolve(wanted: Accel, guest: Arch, qemu: &Path, machine: &str) -> Accel {
    if wanted != Accel::Auto {
        return wanted;
    }
    if Arch::host() != Some(guest)
        || OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_err()
    {
        return Accel::Tcg;
    }
    if *USABLE.get_or_init(|| trial(qemu, machine)).await {
        Accel::Kvm
    } else {
        Accel::Tcg
    }
}

/// Whether QEMU can set up a VM with KVM.
async fn trial(qemu: &Path, machine: &str) -> bool {
    let mut command = Command::new(qemu);
    command.args([
        "-machine",
        &format!("{machine},accel=kvm"),
        "-cpu",
        "max",
        "-S",
        "-qmp",
        "stdio",
    ]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let run = async {
        let mut child = command.spawn()?;
        if let Some(stdin) = &mut child.stdin {
            // QEMU may have aborted already; its status tells.
            let _ = stdin.write_all(QUIT).await;
        }
        // Its standard input is closed by this, which QEMU does not mind.
        child.wait().await
    };
    matches!(tokio::time::timeout(TRIAL_TIMEOUT, run).await, Ok(Ok(status)) if status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_qemu_that_aborts_has_no_kvm() {
        assert!(!trial(Path::new("/bin/false"), "q35").await);
        assert!(!trial(Path::new("/nonexistent"), "q35").await);
        assert!(trial(Path::new("/bin/true"), "q35").await);
    }

    #[tokio::test]
    async fn what_is_asked_for_by_name_is_taken() {
        let qemu = Path::new("/nonexistent");
        assert_eq!(
            resolve(Accel::Kvm, Arch::X86_64, qemu, "q35").await,
            Accel::Kvm
        );
        let foreign = if Arch::host() == Some(Arch::X86_64) {
            Arch::Aarch64
        } else {
            Arch::X86_64
        };
        assert_eq!(resolve(Accel::Auto, foreign, qemu, "q35").await, Accel::Tcg);
    }
}
