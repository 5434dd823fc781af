// SPDX-License-Identifier: Apache-2.0
//! The sandbox: which containers there are, what they share, and its end.
//!
//! Its one lock guards maps and is never held across anything that can wait.

mod dns;
pub mod modules;
mod namespaces;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::children::Children;
use crate::config::Config;
use crate::container::plan::{
    ContainerId, ContainerPlan, ExecId, Namespace, NamespaceSource, ProcessPlan,
};
use crate::container::{Container, ContainerError, Engine, Process, Shared, bundle};
use crate::storage::{StorageError, StoragePlan, Storages};
pub use modules::{KernelModule, ModuleError};

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
}

/// What CreateContainer asks for.
pub struct CreatePlan {
    /// The container.
    pub container: ContainerPlan,
    /// Mounted first, in order.
    pub storages: Vec<StoragePlan>,
}

enum Slot {
    Reserved,
    Taken(Arc<Container>),
}

#[derive(Default)]
struct Registry {
    id: Option<String>,
    ending: bool,
    shared: Shared,
    containers: HashMap<String, Slot>,
}

/// The owner of storages that belong to the sandbox itself. No container can
/// be called that.
const SANDBOX_OWNER: &str = "";

/// One per agent.
pub struct Sandbox {
    engine: Engine,
    storages: Storages,
    registry: Mutex<Registry>,
    end: watch::Sender<bool>,
}

impl Sandbox {
    /// An empty sandbox.
    #[must_use]
    pub fn new(config: &Config, children: Children) -> Arc<Self> {
        let engine = Engine::new(children, config.container_pipe_size);
        let (storages, registry) = (Storages::new(), Mutex::default());
        Arc::new(Self {
            engine,
            storages,
            registry,
            end: watch::Sender::new(false),
        })
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        // Held for single map operations only; none leaves it half done.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when DestroySandbox has been answered.
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
        if let Err(error) = dns::set_up(&plan.dns) {
            self.release(SANDBOX_OWNER).await;
            return Err(SandboxError::Setup("DNS", error));
        }
        let mut registry = self.registry();
        registry.shared.ipc = Some(Arc::new(ipc));
        registry.shared.uts = Some(Arc::new(uts));
        Ok(())
    }

    /// CreateContainer, to the end even if the caller goes away: the container
    /// is complete or there is none.
    ///
    /// # Errors
    /// [`SandboxError::ContainerExists`] before anything was done; else what
    /// failed, all of it undone.
    pub async fn create_container(self: &Arc<Self>, plan: CreatePlan) -> Result<(), SandboxError> {
        let this = self.clone();
        tokio::spawn(async move { this.create_container_now(plan).await })
            .await
            .map_err(|_| SandboxError::Task)?
    }

    async fn create_container_now(&self, plan: CreatePlan) -> Result<(), SandboxError> {
        let id = plan.container.id.clone();
        let shared = self.reserve(&plan.container)?;
        let created = async {
            self.storages.acquire(plan.storages, id.as_str()).await?;
            let created = Container::create(&self.engine, plan.container, &shared).await;
            if created.is_err() {
                self.release(id.as_str()).await;
            }
            Ok::<_, SandboxError>(created?)
        };
        let created = created.await;
        let mut registry = self.registry();
        match created {
            Ok(container) => {
                let container = Arc::new(container);
                if registry.shared.pid.is_none() {
                    registry.shared.pid = container.pid_namespace();
                }
                registry
                    .containers
                    .insert(id.as_str().to_owned(), Slot::Taken(container));
                Ok(())
            }
            Err(error) => {
                registry.containers.remove(id.as_str());
                Err(error)
            }
        }
    }

    fn reserve(&self, plan: &ContainerPlan) -> Result<Shared, SandboxError> {
        let mut registry = self.registry();
        if registry.ending {
            return Err(SandboxError::Ending);
        }
        let id = plan.id.as_str();
        if registry.containers.contains_key(id) {
            return Err(SandboxError::ContainerExists(plan.id.clone()));
        }
        let shares_pid = plan.namespaces.get(&Namespace::Pid) == Some(&NamespaceSource::Sandbox);
        if shares_pid && registry.shared.pid.is_none() && !registry.containers.is_empty() {
            return Err(ContainerError::NoSharedPid.into());
        }
        registry.containers.insert(id.to_owned(), Slot::Reserved);
        Ok(registry.shared.clone())
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

    /// ExecProcess, to the end even if the caller goes away.
    ///
    /// # Errors
    /// What kept the process from running.
    pub async fn exec(
        self: &Arc<Self>,
        container: &str,
        id: ExecId,
        plan: ProcessPlan,
    ) -> Result<(), SandboxError> {
        let (this, container) = (self.clone(), self.container(container)?);
        let work = async move { container.exec(&this.engine, &id, plan).await };
        Ok(tokio::spawn(work).await.map_err(|_| SandboxError::Task)??)
    }

    /// RemoveContainer, to the end even if the caller goes away.
    ///
    /// # Errors
    /// What could not be removed; the container stays known then.
    pub async fn remove(self: &Arc<Self>, id: &str) -> Result<(), SandboxError> {
        let (this, container) = (self.clone(), self.container(id)?);
        let work = async move {
            container.remove().await?;
            this.release(container.id().as_str()).await;
            let mut registry = this.registry();
            registry.containers.remove(container.id().as_str());
            Ok(())
        };
        tokio::spawn(work).await.map_err(|_| SandboxError::Task)?
    }

    async fn release(&self, owner: &str) {
        for error in self.storages.release(owner).await {
            log::warn!("{}", crate::rpc::status::chain(&error));
        }
    }

    /// DestroySandbox, to the end even if the caller goes away, as hosts do:
    /// every container is removed and every storage unmounted. What fails is
    /// logged, since the VM ends anyway.
    ///
    /// # Errors
    /// [`SandboxError::Ending`] for a second one.
    pub async fn destroy(self: &Arc<Self>) -> Result<(), SandboxError> {
        let ids: Vec<String> = {
            let mut registry = self.registry();
            if std::mem::replace(&mut registry.ending, true) {
                return Err(SandboxError::Ending);
            }
            registry.containers.keys().cloned().collect()
        };
        let this = self.clone();
        let work = async move { this.take_down(ids).await };
        tokio::spawn(work).await.map_err(|_| SandboxError::Task)
    }

    async fn take_down(self: &Arc<Self>, containers: Vec<String>) {
        for id in containers {
            if let Err(error) = self.remove(&id).await {
                let cause = crate::rpc::status::chain(&error);
                log::warn!("Container {id} at the end of the sandbox: {cause}");
            }
        }
        for error in self.storages.release_all().await {
            log::warn!("{}", crate::rpc::status::chain(&error));
        }
        self.end.send_replace(true);
    }
}
