// SPDX-License-Identifier: Apache-2.0
//! Containers coming and going in the sandbox's registry. What is begun here
//! goes on to its end, whether or not its caller stays.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::watch;

use super::{CreatePlan, DeviceRequest, Sandbox, SandboxError, Slot};
use crate::confidential::{self, pause::PauseImage};
use crate::container::plan::id::shorten;
use crate::container::plan::{
    ContainerId, ContainerPlan, ExecId, Namespace, NamespaceSource, ProcessPlan,
};
use crate::container::share::{ShareError, SharePlan};
use crate::container::{Container, ContainerError, Creation, Shared, bundle};
use crate::pool::at_host_pace;
use crate::rpc::status::chain;
use crate::storage::{StorageError, StoragePlan};

/// How long the end of the sandbox waits for creations that it has given up.
const GIVE_UP: Duration = Duration::from_secs(15);

/// How long it waits for all containers, more than for one that does not go.
const TAKE_DOWN: Duration = Duration::from_secs(30);

/// How long it then waits for storages: one that a mount is stuck in stays.
const UNMOUNT: Duration = Duration::from_secs(10);

/// The node of the disk that pulled images are to be kept on.
const TRUSTED_STORE: &str = "/dev/trusted_store";

/// A place in the registry for a container that is being created.
struct Reservation {
    shared: Shared,
    guest_hooks: Arc<crate::container::plan::Hooks>,
    given_up: watch::Receiver<bool>,
}

impl Sandbox {
    /// CreateContainer: the container is complete or there is none.
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
        let reservation = self.reserve(&plan.container)?;
        let created = self.create_reserved(plan, reservation).await;
        if let Ok(container) = &created {
            self.oom.watch(container);
        }
        let result = self.fill(&id, created);
        self.settled.notify_waiters();
        result
    }

    async fn create_reserved(
        &self,
        plan: CreatePlan,
        reservation: Reservation,
    ) -> Result<Arc<Container>, SandboxError> {
        let id = plan.container.id.clone();
        let mut creation = self
            .creation(plan.container, plan.config, plan.devices, reservation)
            .await?;
        let sources = self.sources(&plan.shares, &creation).await?;
        let storages = with_trusted_store(plan.storages, &creation.plan)?;
        let with_storages = !storages.is_empty();
        let created = async {
            self.storages.acquire(storages, id.as_str()).await?;
            self.complete(&mut creation.plan, plan.pause).await?;
            let container = Container::create(&self.engine, creation).await?;
            let shared = self.share(container, &plan.shares, &sources).await;
            Ok::<_, SandboxError>(shared?)
        };
        let created = created.await;
        if created.is_err() {
            self.release(id.as_str()).await;
            if with_storages {
                self.clear_bundle(&id).await;
            }
        }
        created
    }

    /// What it is created from, its devices among that.
    async fn creation(
        &self,
        plan: ContainerPlan,
        config: Option<String>,
        devices: Option<Box<DeviceRequest>>,
        reservation: Reservation,
    ) -> Result<Creation, SandboxError> {
        let mut given_up = reservation.given_up;
        let (plan, config) = match devices {
            Some(request) => {
                let root = plan.init.root.map(|root| root.path);
                self.with_devices(&plan.id, *request, root, &mut given_up)
                    .await?
            }
            None => (plan, config),
        };
        Ok(Creation {
            plan,
            config,
            shared: reservation.shared,
            guest_hooks: reservation.guest_hooks,
            given_up,
        })
    }

    /// Puts a container in the place that was reserved for it, or gives that up.
    fn fill(
        &self,
        id: &ContainerId,
        created: Result<Arc<Container>, SandboxError>,
    ) -> Result<(), SandboxError> {
        let mut registry = self.registry();
        match created {
            Ok(container) => {
                if registry.shared.pid.is_none() {
                    registry.shared.pid = container.pid_namespace();
                }
                let slot = Slot::Taken(container);
                registry.containers.insert(id.as_str().to_owned(), slot);
                Ok(())
            }
            Err(error) => {
                registry.forget(id.as_str());
                Err(error)
            }
        }
    }

    /// Fills in what only the guest knows: the process of its pause image, and
    /// secrets.
    async fn complete(&self, plan: &mut ContainerPlan, pause: bool) -> Result<(), SandboxError> {
        if pause {
            let image = at_host_pace(PauseImage::open).await;
            let image = image.map_err(|_| SandboxError::Task)?;
            let replaced = image.and_then(|image| image.replace(&mut plan.process));
            replaced.map_err(StorageError::from)?;
        }
        confidential::unseal(&self.hub, plan).await;
        Ok(())
    }

    /// The containers that have the mounts to be taken over, which are there then.
    async fn sources(
        &self,
        shares: &[SharePlan],
        creation: &Creation,
    ) -> Result<Vec<Arc<Container>>, ContainerError> {
        let found = shares.iter().map(|share| self.named(share));
        let sources: Vec<_> = found.collect::<Result<_, _>>()?;
        let mut given_up = creation.given_up.clone();
        let appear = join_all(shares.iter().zip(&sources).map(|(s, from)| s.appear(from)));
        let appeared = tokio::select! {
            appeared = appear => appeared,
            _ = given_up.wait_for(|given_up| *given_up) => {
                return Err(ContainerError::GivenUp(creation.plan.id.clone()));
            }
        };
        appeared.into_iter().collect::<Result<(), _>>()?;
        Ok(sources)
    }

    fn named(&self, share: &SharePlan) -> Result<Arc<Container>, ShareError> {
        let registry = self.registry();
        let mut taken = registry.containers.values().filter_map(|slot| match slot {
            Slot::Taken(container) => Some(container),
            Slot::Reserved(_) => None,
        });
        let (name, id) = (share.container.as_str(), |c: &Container| {
            c.id().as_str().to_owned()
        });
        let found = taken.find(|c| c.name() == Some(name) || id(c) == name);
        found.cloned().ok_or_else(|| ShareError::Unknown {
            path: share.source.clone(),
            container: shorten(name),
        })
    }

    /// Gives a new container what it takes over; without it there is no container.
    async fn share(
        &self,
        container: Arc<Container>,
        shares: &[SharePlan],
        sources: &[Arc<Container>],
    ) -> Result<Arc<Container>, ContainerError> {
        for (share, from) in shares.iter().zip(sources) {
            if let Err(error) = share.take(&self.engine, from, &container).await {
                if let Err(error) = container.remove(&self.engine).await {
                    log::warn!("Container {}: {}", container.id(), chain(&error));
                }
                return Err(error.into());
            }
        }
        Ok(container)
    }

    fn reserve(&self, plan: &ContainerPlan) -> Result<Reservation, SandboxError> {
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
        let (give_up, given_up) = watch::channel(false);
        let slot = Slot::Reserved(give_up);
        registry.containers.insert(id.to_owned(), slot);
        Ok(Reservation {
            shared: registry.shared.clone(),
            guest_hooks: registry.guest_hooks.clone(),
            given_up,
        })
    }

    /// StartContainer.
    ///
    /// # Errors
    /// Of [`Container::start`].
    pub async fn start(self: &Arc<Self>, id: &str) -> Result<(), SandboxError> {
        let (this, container) = (self.clone(), self.container(id)?);
        let work = async move { container.start(&this.engine).await };
        Ok(tokio::spawn(work).await.map_err(|_| SandboxError::Task)??)
    }

    /// PauseContainer.
    ///
    /// # Errors
    /// Of [`Container::pause`].
    pub async fn pause(&self, id: &str) -> Result<(), SandboxError> {
        let container = self.container(id)?;
        let work = async move { container.pause().await };
        Ok(tokio::spawn(work).await.map_err(|_| SandboxError::Task)??)
    }

    /// ExecProcess.
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

    /// RemoveContainer. A container that is still being created is given up
    /// first.
    ///
    /// # Errors
    /// What could not be removed; the container stays known then.
    pub async fn remove(self: &Arc<Self>, id: &str) -> Result<(), SandboxError> {
        let (this, id) = (self.clone(), id.to_owned());
        let work = async move {
            match this.settle(&id).await? {
                Some(container) => this.remove_now(&container).await,
                None => Ok(()),
            }
        };
        tokio::spawn(work).await.map_err(|_| SandboxError::Task)?
    }

    async fn remove_now(&self, container: &Arc<Container>) -> Result<(), SandboxError> {
        let id = container.id().as_str();
        self.oom.look(id).await;
        let all = container.remove(&self.engine).await?;
        self.oom.forget(id);
        self.release(id).await;
        if !all {
            self.clear_bundle(container.id()).await;
        }
        self.registry().forget(id);
        Ok(())
    }

    /// Removes what was left of a bundle as long as storages were mounted in it.
    async fn clear_bundle(&self, id: &ContainerId) {
        let place = bundle::path_of(id);
        match at_host_pace(move || bundle::remove(&place)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => {
                log::warn!("Bundle of container {id} stays: something is mounted in it")
            }
            Ok(Err(error)) => log::warn!("{}", chain(&error)),
            Err(_) => log::warn!("Bundle of container {id} could not be removed"),
        }
    }

    /// The container of that id, or `None` if it was on its way and has been
    /// given up.
    async fn settle(&self, id: &str) -> Result<Option<Arc<Container>>, SandboxError> {
        let mut was_on_its_way = false;
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            match self.registry().containers.get(id) {
                Some(Slot::Taken(container)) => return Ok(Some(container.clone())),
                Some(Slot::Reserved(give_up)) => drop(give_up.send_replace(true)),
                None if was_on_its_way => return Ok(None),
                None => return Err(SandboxError::UnknownContainer(shorten(id))),
            }
            was_on_its_way = true;
            settled.await;
        }
    }

    pub(super) async fn release(&self, owner: &str) {
        for error in self.storages.release(owner).await {
            log::warn!("{}", chain(&error));
        }
    }

    /// DestroySandbox, as hosts do: every container is removed and every
    /// storage unmounted. What fails is logged, since the VM ends anyway.
    ///
    /// # Errors
    /// [`SandboxError::Ending`] for a second one.
    pub async fn destroy(self: &Arc<Self>) -> Result<(), SandboxError> {
        if std::mem::replace(&mut self.registry().ending, true) {
            return Err(SandboxError::Ending);
        }
        let this = self.clone();
        let work = async move { this.take_down().await };
        tokio::spawn(work).await.map_err(|_| SandboxError::Task)
    }

    /// No container comes any more; those that are on their way are given up.
    async fn take_down(self: &Arc<Self>) {
        let ids: Vec<String> = self.registry().containers.keys().cloned().collect();
        let removals = ids.into_iter().map(|id| async move {
            let settled = tokio::time::timeout(GIVE_UP, self.settle(&id)).await;
            let removed = match settled {
                Ok(Ok(Some(container))) => self.remove_now(&container).await,
                Ok(Ok(None)) => Ok(()),
                Ok(Err(error)) => Err(error),
                Err(_) => return log::warn!("Container {id} is left half created"),
            };
            if let Err(error) = removed {
                log::warn!(
                    "Container {id} at the end of the sandbox: {}",
                    chain(&error)
                );
            }
        });
        if tokio::time::timeout(TAKE_DOWN, join_all(removals))
            .await
            .is_err()
        {
            log::warn!("The sandbox ends with containers in it");
        }
        match tokio::time::timeout(UNMOUNT, self.storages.release_all()).await {
            Ok(errors) => errors
                .iter()
                .for_each(|error| log::warn!("{}", chain(error))),
            Err(_) => log::warn!("The sandbox ends with storages in use"),
        }
        self.oom.close();
        self.end.send_replace(true);
    }
}

/// The storages of a container, before them the store of images if there is a
/// disk for it among its devices.
fn with_trusted_store(
    storages: Vec<StoragePlan>,
    plan: &ContainerPlan,
) -> Result<Vec<StoragePlan>, StorageError> {
    let root = plan.init.root.as_ref();
    let mut devices = root.iter().flat_map(|root| &root.devices);
    let Some(disk) = devices.find(|device| device.path == TRUSTED_STORE) else {
        return Ok(storages);
    };
    if disk.kind != libc::S_IFBLK {
        return Err(StorageError::Field {
            driver: "trusted_store".to_owned(),
            field: "linux.devices",
            value: TRUSTED_STORE.to_owned(),
            reason: "it is no block device",
        });
    }
    let store = StoragePlan::trusted_store(disk.major, disk.minor);
    Ok(std::iter::once(store).chain(storages).collect())
}
