// SPDX-License-Identifier: Apache-2.0
//! VM templates: a guest that was saved when its agent answered, before it had a sandbox, and others that go on from there.
//!
//! QEMU saves no VM with our vsock device, whose other half is a process of its own: it is pulled out before and plugged in after.
//! To the guest that is what hosts' own devices do, too: connections end, listeners stay.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use protocols::agent::GetOOMEventRequest;
use rootfs_builder::vm::{VSOCK_DEVICE, Vm as Machine, VmConfig};
use serde_json::json;
use tempfile::TempDir;

use crate::agent::Refusal;
use crate::artifacts;
use crate::plug::Monitor;
use crate::vm::{Guest, Vm, slot};

/// How long a boot may take on a loaded machine.
const BOOT: Duration = Duration::from_secs(180);

/// A saved guest.
#[derive(Debug)]
pub struct Template {
    dir: TempDir,
    shape: fn(Guest) -> Guest,
}

impl Template {
    /// Boots a guest, waits until its agent answers, and saves it, in the middle of a call that the agent has not answered.
    pub async fn make(shape: fn(Guest) -> Guest) -> Template {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("No temporary directory: {e}"));
        let template = Template { dir, shape };
        let slot = slot().await;
        let machine = start(template.config().await).await;
        let listening = machine.wait_line("listening on vsock port", BOOT).await;
        listening.unwrap_or_else(|e| panic!("The agent does not listen: {e:#}"));
        let mut monitor = Monitor::of(&machine).await;
        monitor.plug_vsock().await;
        let vm = Vm::meet(machine, Some(slot)).await;
        let save = json!({ "uri": template.uri(">") });
        let refusal = monitor.try_run("migrate", save).await;
        let refusal = refusal
            .expect_err("a vsock device that cannot be saved")
            .to_string();
        assert!(refusal.contains("non-migratable"), "{refusal}");
        let call = unanswered(&vm).await;
        monitor.unplug(VSOCK_DEVICE).await;
        monitor.migrate("migrate", &template.uri(">")).await;
        drop(vm);
        let broken = call.await.expect_err("nobody is there to answer");
        assert!(broken.code.is_none(), "{broken}");
        template
    }

    /// A guest that goes on from what was saved.
    pub async fn restore(&self) -> Vm {
        let slot = slot().await;
        let mut config = self.config().await;
        config
            .extra_args
            .extend(["-incoming", "defer"].map(Into::into));
        let machine = start(config).await;
        let mut monitor = Monitor::of(&machine).await;
        monitor.migrate("migrate-incoming", &self.uri("<")).await;
        monitor.plug_vsock().await;
        Vm::meet(machine, Some(slot)).await
    }

    async fn config(&self) -> VmConfig {
        let mut config = artifacts::guest().await.config();
        config.late_vsock = true;
        (self.shape)(Guest { config }).config
    }

    fn uri(&self, direction: &str) -> String {
        format!("exec:cat {direction} {}/saved", self.dir.path().display())
    }
}

/// Asks, over a connection of its own, for what does not happen. The agent has the call: it has answered a later one.
async fn unanswered(vm: &Vm) -> Pin<Box<dyn Future<Output = Result<(), Refusal>>>> {
    // Nothing of the machine's is kept: the call ends with it.
    let rpc = vm.another_connection().await.rpc().clone();
    let (request, same) = (GetOOMEventRequest::new(), rpc.clone());
    let mut call = Box::pin(async move { rpc.get_oom_event(&request).await.map(drop) });
    tokio::select! {
        biased;
        early = &mut call => panic!("there is no event: {early:?}"),
        check = same.check() => drop(check.expect("Check is answered")),
    }
    call
}

async fn start(config: VmConfig) -> Machine {
    let started = Machine::start(config).await;
    started.unwrap_or_else(|e| panic!("The VM does not start: {e:#}"))
}
