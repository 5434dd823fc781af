// SPDX-License-Identifier: Apache-2.0
//! When the guest's vsock driver is there: before that, the vsock device must not be used, as it takes a connection, never answers,
//! and stays deaf.
//!
//! The console tells it without delay and for free. Where the kernel command line silences the console QEMU is asked instead, by a
//! monitor of its own, since QEMU serves one client per monitor.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::Console;
use super::qemu::machine::Bus;
use super::qmp::Qmp;

/// What the agent prints once its socket is open (kernel log, so that it reaches the console).
const LISTENING: &str = "keelson: listening on vsock port";
/// What the kernel prints when it hands over to our binary, and how the line goes on.
const RUN_INIT: (&str, &str) = ("Run /", " as init process");
/// The name QEMU knows the vsock device by.
pub const DEVICE: &str = "vsock0";
/// The pause between two questions to QEMU.
const ASK_PAUSE: Duration = Duration::from_millis(20);

/// What the device may need, after QEMU says that it has been started, to see to the last of QEMU's messages; most are not answered. A
/// connection that comes before its queues are enabled is what makes it deaf.
const SETTLE: Duration = Duration::from_millis(200);

/// Whether a console line says that the agent listens.
pub fn is_listening(line: &str) -> bool {
    line.contains(LISTENING)
}

/// Whether a console line says that the kernel has handed over: `Run /init as init process`, or the same for a binary on a disk.
pub fn is_run_init(line: &str) -> bool {
    line.contains(RUN_INIT.0) && line.contains(RUN_INIT.1)
}

/// Whether these kernel words may keep the lines from the console that we wait for.
pub fn is_silenced(words: &[String]) -> bool {
    words
        .iter()
        .flat_map(|word| word.split_whitespace())
        .any(|word| {
            let key = word.split('=').next().unwrap_or_default();
            matches!(key, "quiet" | "loglevel" | "console")
        })
}

/// What QEMU calls the vsock device: on PCI it is a part of what has the name that we gave.
pub fn backend(bus: Bus) -> &'static str {
    match bus {
        Bus::Pci => "/machine/peripheral/vsock0/virtio-backend",
        Bus::Mmio => "/machine/peripheral/vsock0",
    }
}

/// Waits until the guest's vsock driver is there; `monitor` is where QEMU can be asked, and for which device. A modular one is loaded by our binary, a built-in one is there before it. False if
/// the console ends, or `timeout` passes, before.
pub async fn wait(
    console: &Console,
    modular: bool,
    monitor: Option<(&Path, &str)>,
    timeout: Duration,
) -> bool {
    let line = |line: &str| is_listening(line) || (!modular && is_run_init(line));
    let told = console.wait(line, timeout);
    match monitor {
        None => told.await.is_some(),
        Some((socket, device)) => tokio::select! {
            line = told => line.is_some(),
            () = asked(socket, device) => true,
        },
    }
}

/// Asks QEMU until it says that the driver has started the device. Never returns if QEMU cannot tell.
pub async fn asked(socket: &Path, device: &str) {
    let question = json!({ "path": device });
    let mut qmp = loop {
        match Qmp::connect(socket).await {
            Ok(qmp) => break qmp,
            // QEMU has been started just now and makes the socket in its time.
            Err(_) => tokio::time::sleep(ASK_PAUSE).await,
        }
    };
    // The command is there since QEMU 7.2; its name says that it may change.
    while let Ok(status) = qmp.execute("x-query-virtio-status", question.clone()).await {
        if status.get("vhost-started") == Some(&Value::Bool(true)) {
            return tokio::time::sleep(SETTLE).await;
        }
        tokio::time::sleep(ASK_PAUSE).await;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hand_over_to_init_is_recognised() {
        assert!(is_run_init("[    1.2] Run /init as init process"));
        assert!(is_run_init("[    1.2] Run /sbin/init as init process"));
        assert!(!is_run_init("[    1.2] Run /init from nowhere"));
    }

    #[test]
    fn words_that_silence_the_console_are_known() {
        let words = |text: &str| vec![text.to_owned()];
        for text in ["quiet", "a quiet b", "loglevel=3", "console=hvc0"] {
            assert!(is_silenced(&words(text)), "{text}");
        }
        assert!(!is_silenced(&words("quietly agent.log=debug")));
    }

    #[tokio::test]
    async fn a_modular_driver_is_there_when_the_agent_says_so() {
        let follow = |text: &'static [u8]| Console::follow(text, Vec::new()).unwrap();
        let second = Duration::from_secs(1);
        let init = follow(b"[ 1] Run /init as init process\n");
        assert!(wait(&init, false, None, second).await);
        assert!(!wait(&init, true, None, second).await);
        let listening = follow(b"[ 2] keelson: listening on vsock port 1024\n");
        assert!(
            wait(
                &listening,
                true,
                Some((Path::new("/nonexistent"), "/")),
                second
            )
            .await
        );
    }
}
