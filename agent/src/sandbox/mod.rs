// SPDX-License-Identifier: Apache-2.0
//! The sandbox: which containers there are, what they share, and its end.
//!
//! Its one lock guards maps and is never held across anything that can wait.

mod containers;
mod devices;
mod dns;
pub mod modules;
mod namespaces;
mod oom;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::cgroup::Cgroups;
use crate::children::Children;
use crate::confidential::Hub;
use crate::config::Config;
use crate::container::plan::{ContainerId, ContainerPlan, Hooks, PlanError};
use crate::container::share::SharePlan;
use crate::container::{Container, ContainerError, Engine, Process, Shared, bundle, hooks};
use crate::device::cdi::CdiError;
use crate::device::{DeviceError, Devices};
use crate::network::Network;
use crate::pool::at_host_pace;
use crate::rpc::status::chain;
use crate::stdio::Arrivals;
use crate::storage::{StorageError, StoragePlan, Storages};
pub use devices::DeviceRequest;
pub use modules::{KernelModule, ModuleError};
pub use oom::OomEvents;

/// What can go wrong between the RPCs and the containers.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// CreateSandbox was called before.
    #[error("Sandbox {0} exists already")]
    Exists(String),
    /// DestroySandbox was called before.
    #[error("Sandbox is being destroyed")]
    Ending,
    /// No container of that id.
    #[error("Invalid container id: {0}")]
    UnknownContainer(String),
    /// No process of that exec id, or it was waited for already.
    #[error("Process not found: container {container}, exec_id '{exec}'")]
    UnknownProcess {
        /// The container.
        container: String,
        /// What was asked for.
        exec: String,
    },
    /// An id that is taken.
    #[error("Container {0} exists already")]
    ContainerExists(ContainerId),
    /// A container's own trouble.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// A storage's.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A device's.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A device's that the guest describes.
    #[error(transparent)]
    Cdi(#[from] CdiError),
    /// A disk of the guest's own, which is given to nobody.
    #[error("Device {0} is one of the guest's own")]
    GuestsOwn(String),
    /// What devices made of the specification cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A kernel module that could not be loaded.
    #[error(transparent)]
    Module(#[from] modules::ModuleError),
    /// Part of the sandbox could not be set up.
    #[error("{0} of the sandbox failed")]
    Setup(&'static str, #[source] io::Error),
    /// The launcher.
    #[error(transparent)]
    Launch(#[from] crate::launch::LaunchError),
    /// A task of ours was lost.
    #[error("Internal task ended early")]
    Task,
}

/// What CreateSandbox asks for.
pub struct SandboxPlan {
    /// Kept if not empty.
    pub id: String,
    /// For the shared uts namespace.
    pub hostname: String,
    /// Lines of `resolv.conf`.
    pub dns: Vec<String>,
    /// Mounted in order.
    pub storages: Vec<StoragePlan>,
    /// Loaded in order, before anything else.
    pub modules: Vec<KernelModule>,
    /// Directory of the guest's own hooks; none if empty.
    pub hook_path: String,
}

/// What CreateContainer asks for.
pub struct CreatePlan {
    /// The container.
    pub container: ContainerPlan,
    /// Mounted first, in order.
    pub storages: Vec<StoragePlan>,
    /// `config.json` of the bundle, if there are hooks.
    pub config: Option<String>,
    /// It runs what the guest's pause image says, not what the request says.
    pub pause: bool,
    /// The devices that it is to have; the first two are preliminary then.
    pub devices: Option<Box<DeviceRequest>>,
    /// Taken over from other containers, in order.
    pub shares: Vec<SharePlan>,
}

enum Slot {
    /// Being created; true tells it that nobody wants it any more.
    Reserved(watch::Sender<bool>),
    Taken(Arc<Container>),
}

#[derive(Default)]
struct Registry {
    id: Option<String>,
    ending: bool,
    shared: Shared,
    guest_hooks: Arc<Hooks>,
    containers: HashMap<String, Slot>,
}

impl Registry {
    /// The container has gone, or never came to be. Without containers there is
    /// no pid namespace to share: the next one makes another.
    fn forget(&mut self, id: &str) {
        self.containers.remove(id);
        if self.containers.is_empty() {
            self.shared.pid = None;
        }
    }
}

/// The owner of storages that belong to the sandbox itself. No container can
/// be called that.
const SANDBOX_OWNER: &str = "";

/// One per agent.
pub struct Sandbox {
    engine: Engine,
    devices: Devices,
    cdi: devices::Cdi,
    storages: Storages,
    hub: Hub,
    network: Network,
    registry: Mutex<Registry>,
    oom: Arc<OomEvents>,
    /// Told when a creation has ended, well or not.
    settled: Notify,
    end: watch::Sender<bool>,
}

impl Sandbox {
    /// An empty sandbox.
    #[must_use]
    pub fn new(config: &Config, children: Children, devices: Devices) -> Arc<Self> {
        let network = Network::new(devices.clone(), children.clone());
        let engine = Engine::new(children, config.container_pipe_size);
        let hub = Hub::new(config);
        let storages = Storages::new(devices.clone(), hub.clone(), engine.children.clone());
        let registry = Mutex::default();
        Arc::new(Self {
            engine,
            devices,
            cdi: devices::Cdi::new(config),
            storages,
            hub,
            network,
            registry,
            oom: Arc::default(),
            settled: Notify::new(),
            end: watch::Sender::new(false),
        })
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        // Held for single map operations only; none leaves it half done.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The devices of the guest.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// The cgroups of its containers.
    pub fn cgroups(&self) -> &Cgroups {
        self.engine.cgroups()
    }

    /// Connections that the host opened for streams of processes.
    pub fn arrivals(&self) -> &Arc<Arrivals> {
        &self.engine.arrivals
    }

    /// The guest's network, which its containers share.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// OOM kills in its containers.
    pub fn oom(&self) -> &Arc<OomEvents> {
        &self.oom
    }

    /// Ends when DestroySandbox has nothing left to do; its answer is on its way
    /// by then, or about to be.
    pub async fn ended(&self) {
        // The sender is `self`: it cannot be dropped while we wait.
        let _ = self.end.subscribe().wait_for(|ended| *ended).await;
    }

    /// CreateSandbox, to the end even if the caller goes away. A failed one may
    /// be repeated.
    ///
    /// # Errors
    /// [`SandboxError::Exists`] for a second one, which does not touch the
    /// first; else what failed, all of it undone but the kernel modules.
    pub async fn create(self: &Arc<Self>, plan: SandboxPlan) -> Result<(), SandboxError> {
        {
            let mut registry = self.registry();
            if let Some(id) = &registry.id {
                return Err(SandboxError::Exists(id.clone()));
            }
            registry.id = Some(plan.id.clone());
        }
        let this = self.clone();
        let work = async move {
            let result = this.set_up(plan).await;
            if result.is_err() {
                this.registry().id = None;
            }
            result
        };
        tokio::spawn(work).await.map_err(|_| SandboxError::Task)?
    }

    async fn set_up(&self, plan: SandboxPlan) -> Result<(), SandboxError> {
        bundle::create_base().map_err(|e| SandboxError::Setup("Base directory", e))?;
        for module in &plan.modules {
            modules::load(&self.engine.children, module).await?;
        }
        let (ipc, uts) =
            namespaces::create(&plan.hostname).map_err(|e| SandboxError::Setup("Namespaces", e))?;
        self.engine.launcher.warm().await?;
        self.storages.acquire(plan.storages, SANDBOX_OWNER).await?;
        // The root may lie on the host.
        let covered = at_host_pace(move || dns::set_up(&plan.dns)).await;
        if let Err(error) = covered.unwrap_or_else(|error| Err(io::Error::other(error))) {
            self.release(SANDBOX_OWNER).await;
            return Err(SandboxError::Setup("DNS", error));
        }
        let guest_hooks = scan_hooks(plan.hook_path).await;
        let mut registry = self.registry();
        registry.guest_hooks = Arc::new(guest_hooks);
        registry.shared.ipc = Some(Arc::new(ipc));
        registry.shared.uts = Some(Arc::new(uts));
        Ok(())
    }

    /// True if the guest has hooks of its own, which run for every container.
    pub fn has_guest_hooks(&self) -> bool {
        *self.registry().guest_hooks != Hooks::default()
    }

    /// A container by id.
    ///
    /// # Errors
    /// [`SandboxError::UnknownContainer`], also while it is being created.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, SandboxError> {
        match self.registry().containers.get(id) {
            Some(Slot::Taken(container)) => Ok(container.clone()),
            _ => Err(SandboxError::UnknownContainer(
                crate::container::plan::id::shorten(id),
            )),
        }
    }

    /// A process by container and exec id; an empty exec id is the first one.
    ///
    /// # Errors
    /// [`SandboxError::UnknownContainer`] or [`SandboxError::UnknownProcess`].
    pub fn process(
        &self,
        container: &str,
        exec: &str,
    ) -> Result<(Arc<Container>, Arc<Process>), SandboxError> {
        let owner = self.container(container)?;
        match owner.process(exec) {
            Some(process) => Ok((owner, process)),
            None => Err(SandboxError::UnknownProcess {
                container: owner.id().to_string(),
                exec: crate::container::plan::id::shorten(exec),
            }),
        }
    }
}

/// What goes wrong with the guest's own hooks is only logged: a host that has
/// configured some still gets its sandbox.
async fn scan_hooks(path: String) -> Hooks {
    if path.is_empty() {
        return Hooks::default();
    }
    let place = std::path::PathBuf::from(&path);
    let scanned = at_host_pace(move || hooks::scan(&place)).await;
    let result = scanned.unwrap_or_else(|error| Err(io::Error::other(error)));
    result.unwrap_or_else(|error| {
        log::warn!("Guest hooks in '{path}': {}", chain(&error));
        Hooks::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bug_the_shared_pid_namespace_goes_with_the_last_container() {
        let mut registry = Registry::default();
        let namespace = std::fs::File::open("/proc/self/ns/pid").unwrap();
        registry.shared.pid = Some(Arc::new(namespace.into()));
        for id in ["c1", "c2"] {
            let slot = Slot::Reserved(watch::Sender::new(false));
            registry.containers.insert(id.to_owned(), slot);
        }
        registry.forget("c1");
        assert!(registry.shared.pid.is_some());
        registry.forget("c2");
        assert!(registry.shared.pid.is_none());
    }
}
