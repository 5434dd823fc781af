// SPDX-License-Identifier: Apache-2.0
//! Processors and memory that the host plugs in (protocol section 9): when they
//! are brought into use, and how long they are waited for. How that is done is
//! [`init::hotplug`]'s. Never takes anything out of use.

use std::time::Duration;

use init::hotplug::{HotplugError as Sysfs, cpu, memory};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use crate::device::Devices;
use crate::rpc::status::chain;

/// How long processors may take to come after the request for them: hosts send
/// it as soon as they have told the VMM.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can go wrong with what is plugged in.
#[derive(Debug, thiserror::Error)]
pub enum HotplugError {
    /// The kernel's own trouble.
    #[error(transparent)]
    Sysfs(#[from] Sysfs),
    /// Fewer processors came than the host announced. Its beginning is what hosts' logs are searched for.
    #[error("failed to online {wanted} CPU(s) within {} s: {cpus}", PATIENCE.as_secs())]
    Late {
        /// How many there should be in all.
        wanted: u32,
        /// What there is.
        cpus: cpu::Cpus,
    },
    /// A task of ours was lost.
    #[error("Internal task ended early")]
    Task,
}

/// What OnlineCPUMem asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnlinePlan {
    /// How many processors there shall be in all; none are waited for if 0.
    pub cpus: u32,
    /// Whether memory that is there shall be brought into use as well.
    pub memory: bool,
}

impl Devices {
    /// Brings into use what was plugged in. Memory, which the kernel's messages
    /// have announced already, is not waited for; processors are. May be repeated.
    ///
    /// # Errors
    /// [`HotplugError::Late`]; about memory only when the processors are there.
    pub async fn online(&self, plan: OnlinePlan) -> Result<(), HotplugError> {
        let memory = match plan.memory {
            true => self.online_memory().await,
            false => Ok(0),
        };
        if plan.cpus > 0 {
            self.online_cpus(plan.cpus).await?;
        }
        memory.map(drop)
    }

    async fn online_cpus(&self, wanted: u32) -> Result<(), HotplugError> {
        // Subscribed first: what comes after the look is told.
        let mut news = self.news();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let late = Instant::now() >= deadline;
            let sysfs = self.sysfs().to_owned();
            let cpus = on_pool(move || cpu::bring_up_at(&sysfs, wanted)).await?;
            if cpus.count >= wanted {
                return Ok(());
            }
            if late {
                return Err(HotplugError::Late { wanted, cpus });
            }
            // The sender is `self`: it cannot be dropped while we wait.
            let _ = timeout_at(deadline, news.changed()).await;
        }
    }

    async fn online_memory(&self) -> Result<usize, HotplugError> {
        let sysfs = self.sysfs().to_owned();
        on_pool(move || memory::bring_up_at(&sysfs)).await
    }

    /// Tells the kernel of memory at these addresses.
    ///
    /// # Errors
    /// [`Sysfs`] about the first that is refused.
    pub async fn probe_memory(&self, addresses: Vec<u64>) -> Result<(), HotplugError> {
        let sysfs = self.sysfs().to_owned();
        on_pool(move || memory::probe_at(&sysfs, &addresses)).await
    }

    /// Brings memory into use whenever the kernel has announced some, for as
    /// long as the agent lives. However many blocks come while that goes on,
    /// and whether or not their messages were dropped, they are found together.
    pub(crate) async fn keep_memory_in_use(&self) {
        loop {
            self.memory_news().notified().await;
            match self.online_memory().await {
                Ok(count) => log::debug!("{count} blocks of memory brought into use"),
                Err(error) => log::warn!("Memory stays unused: {}", chain(&error)),
            }
        }
    }
}

/// Only the guest's kernel has a part in it: a host that leaves mounts hanging
/// keeps no processor out.
async fn on_pool<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Sysfs> + Send + 'static,
) -> Result<T, HotplugError> {
    Ok(spawn_blocking(work)
        .await
        .map_err(|_| HotplugError::Task)??)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    /// A sysfs with so many processors of which the first is in use.
    fn machine(dir: &Path, cpus: u32) {
        let cpu = dir.join("devices/system/cpu");
        for n in 0..cpus {
            fs::create_dir_all(cpu.join(format!("cpu{n}"))).unwrap();
        }
        fs::write(cpu.join("online"), "0\n").unwrap();
        fs::write(cpu.join("present"), format!("0-{}\n", cpus - 1)).unwrap();
    }

    fn devices(dir: &Path) -> Devices {
        Devices::at(dir, dir, Duration::from_secs(3))
    }

    const CPUS: OnlinePlan = OnlinePlan {
        cpus: 2,
        memory: false,
    };

    #[tokio::test]
    async fn processors_are_looked_for_after_each_message() {
        let dir = tempfile::tempdir().unwrap();
        machine(dir.path(), 2);
        let devices = devices(dir.path());
        let online = dir.path().join("devices/system/cpu/online");
        let arrival = async {
            // The first look has to be over, and finds one.
            tokio::time::sleep(Duration::from_millis(50)).await;
            fs::write(online, "0-1\n").unwrap();
            devices.tell();
        };
        let (result, ()) = tokio::join!(devices.online(CPUS), arrival);
        result.unwrap();
        // Again, which is no error, and nothing is waited for.
        devices.online(CPUS).await.unwrap();
    }

    /// The clock stands still but for those who wait for it.
    #[tokio::test(start_paused = true)]
    async fn processors_that_never_come_are_told_with_what_did() {
        let dir = tempfile::tempdir().unwrap();
        machine(dir.path(), 1);
        let error = devices(dir.path()).online(CPUS).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "failed to online 2 CPU(s) within 5 s: 1 online (0), present are 0-0"
        );
    }

    #[tokio::test]
    async fn memory_has_its_turn_although_processors_are_late() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("devices/system/memory/memory7/state");
        fs::create_dir_all(state.parent().unwrap()).unwrap();
        fs::write(&state, "offline\n").unwrap();
        let plan = |cpus, memory| OnlinePlan { cpus, memory };
        let devices = devices(dir.path());
        devices.online(plan(0, false)).await.unwrap();
        assert_eq!(fs::read_to_string(&state).unwrap(), "offline\n");
        // There is no list of processors at all.
        devices.online(plan(2, true)).await.unwrap_err();
        assert_eq!(fs::read_to_string(&state).unwrap(), "online");
    }

    #[tokio::test]
    async fn one_look_is_enough_for_many_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let memory = dir.path().join("devices/system/memory");
        let state = |n| memory.join(format!("memory{n}/state"));
        for n in 0..256 {
            fs::create_dir_all(state(n).parent().unwrap()).unwrap();
            fs::write(state(n), "offline\n").unwrap();
        }
        let devices = devices(dir.path());
        devices.memory_news().notify_one();
        let keeping = devices.keep_memory_in_use();
        let online = |n| fs::read_to_string(state(n)).unwrap() == "online";
        let all = async {
            while !(0..256).all(online) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = keeping => unreachable!("it never ends"),
            () = all => {}
        }
    }
}
