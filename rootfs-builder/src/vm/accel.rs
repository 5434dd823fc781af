// SPDX-License-Identifier: Apache-2.0
//! Whether KVM is there *and works*.
//!
//! QEMU's own `accel=kvm:tcg` goes on to TCG only when KVM cannot be opened. Where a host offers a KVM that then refuses part of
//! what QEMU asks for (some clouds' nested KVM does), QEMU aborts instead; where it is nested without the processor's help, each
//! first touch of a page takes milliseconds, and a guest does not get through its boot. So it is tried once: on x86_64 on a guest of
//! ninety bytes that touches 64 MiB, elsewhere on a VM that never runs.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use guest_kernel::Arch;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::OnceCell;

use super::Accel;

/// The trial takes a tenth of a second, by emulation too; a KVM that needs this long is of no use.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// The trial's memory: what its guest touches begins at 1 MiB.
const TRIAL_MEMORY: &str = "80M";
/// The size of the firmware that its guest is, and where in it a processor begins.
const FIRMWARE: (usize, usize) = (1 << 16, 0xfff0);
/// `jmp 0xf000:0`
const RESET: [u8; 5] = [0xea, 0, 0, 0, 0xf0];
/// Enters 32-bit mode, writes to the first word of each of 16,384 pages, and ends QEMU.
const GUEST: [u8; 88] = [
    0xfa, // cli
    0x2e, 0x66, 0x0f, 0x01, 0x16, 0x30, 0x00, // lgdtl %cs:0x30
    0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, // cr0 |= PE
    0x66, 0xea, 0x36, 0x00, 0x0f, 0x00, 0x08, 0x00, // ljmpl $8, $0xf0036
    0, 0, 0, 0, 0, 0, 0, 0, // 0x18: no segment
    0xff, 0xff, 0, 0, 0, 0x9a, 0xcf, 0, // code, all of 4 GiB
    0xff, 0xff, 0, 0, 0, 0x92, 0xcf, 0, // data, all of 4 GiB
    0x17, 0x00, 0x18, 0x00, 0x0f, 0x00, // 0x30: three entries at 0xf0018
    0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, // 0x36: ds = 0x10
    0xbf, 0x00, 0x00, 0x10, 0x00, // edi = 1 MiB
    0xb9, 0x00, 0x40, 0x00, 0x00, // ecx = 16,384
    0x89, 0x3f, // *edi = edi
    0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // edi += 4,096
    0xe2, 0xf6, // until --ecx == 0
    0xb0, 0x10, 0xe6, 0xf4, // outb 0x10, 0xf4
    0xf4, 0xeb, 0xfd, 0x90, // hlt, again and again
];
/// What `isa-debug-exit` makes of the guest's 0x10.
const TOUCHED: i32 = 0x10 << 1 | 1;
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

/// Whether QEMU can set up a VM with KVM, and a guest gets on in it.
async fn trial(qemu: &Path, machine: &str) -> bool {
    let mut command = Command::new(qemu);
    command.args(["-machine", &format!("{machine},accel=kvm"), "-cpu", "max"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    let run = async {
        match Arch::host() {
            Some(Arch::X86_64) => touches_memory(command).await,
            _ => sets_up(command).await,
        }
    };
    matches!(tokio::time::timeout(TRIAL_TIMEOUT, run).await, Ok(Ok(true)))
}

async fn touches_memory(mut command: Command) -> std::io::Result<bool> {
    let (size, reset) = FIRMWARE;
    let mut firmware = vec![0; size];
    firmware[..GUEST.len()].copy_from_slice(&GUEST);
    firmware[reset..reset + RESET.len()].copy_from_slice(&RESET);
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(&file, firmware)?;
    command.args(["-m", TRIAL_MEMORY, "-bios"]).arg(file.path());
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    let status = quiet(&mut command).stdin(Stdio::null()).status().await?;
    Ok(status.code() == Some(TOUCHED))
}

async fn sets_up(mut command: Command) -> std::io::Result<bool> {
    command.args(["-S", "-qmp", "stdio"]);
    let mut child = quiet(&mut command).stdin(Stdio::piped()).spawn()?;
    if let Some(stdin) = &mut child.stdin {
        // QEMU may have aborted already; its status tells.
        let _ = stdin.write_all(QUIT).await;
    }
    // Its standard input is closed by this, which QEMU does not mind.
    Ok(child.wait().await?.success())
}

fn quiet(command: &mut Command) -> &mut Command {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_qemu_that_aborts_has_no_kvm() {
        assert!(!trial(Path::new("/bin/false"), "q35").await);
        assert!(!trial(Path::new("/nonexistent"), "q35").await);
        // It ended well, but no guest has run in it.
        let runs_nothing = trial(Path::new("/bin/true"), "q35").await;
        assert_eq!(runs_nothing, Arch::host() != Some(Arch::X86_64));
    }

    /// The guest itself, by emulation: what it is must not be the reason why KVM is not taken.
    #[tokio::test]
    async fn the_trial_s_guest_gets_to_its_end() {
        let qemu = Path::new("/usr/bin/qemu-system-x86_64");
        if Arch::host() != Some(Arch::X86_64) || !qemu.exists() {
            return eprintln!("SKIPPED: no qemu-system-x86_64 here");
        }
        let mut command = Command::new(qemu);
        command.args([
            "-machine",
            "q35,accel=tcg",
            "-nodefaults",
            "-display",
            "none",
        ]);
        assert!(touches_memory(command).await.unwrap());
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
