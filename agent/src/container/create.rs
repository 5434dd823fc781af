// SPDX-License-Identifier: Apache-2.0
//! CreateContainer below the door: bundle, cgroup, namespaces, first process.
//! Each effect has its undo; whatever fails, nothing stays.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::plan::{ChildPlan, ContainerId, ContainerPlan, Namespace, NamespaceSource};
use super::spawn::{Request, Spawned, spawn};
use super::state::State;
use super::{Container, ContainerError, Engine, Shared, Table, bundle};
use crate::cgroup::{Cgroup, CgroupPath, Join, Version};

/// Creates a container whose storages are mounted already.
///
/// # Errors
/// [`ContainerError`]; everything made here is undone then.
pub async fn create(
    engine: &Engine,
    plan: ContainerPlan,
    shared: &Shared,
) -> Result<Container, ContainerError> {
    let joins = resolve(&plan, shared)?;
    let mut ground = Ground::prepare(engine, &plan).await?;
    match populate(engine, &plan, &joins, &ground).await {
        Ok((spawned, namespaces)) => {
            let id = plan.id.clone();
            let cgroup = ground.cgroup.take().ok_or(ContainerError::Task(id))?;
            Ok(assemble(plan, ground.bundle, cgroup, spawned, namespaces))
        }
        Err(error) => {
            ground.undo(&plan.id).await;
            Err(error)
        }
    }
}

impl Container {
    /// See [`create`].
    ///
    /// # Errors
    /// [`ContainerError`].
    pub async fn create(
        engine: &Engine,
        plan: ContainerPlan,
        shared: &Shared,
    ) -> Result<Self, ContainerError> {
        create(engine, plan, shared).await
    }
}

fn assemble(
    plan: ContainerPlan,
    bundle: PathBuf,
    cgroup: Cgroup,
    spawned: Spawned,
    namespaces: Vec<(Namespace, Arc<OwnedFd>)>,
) -> Container {
    let init = spawned.process;
    let processes = HashMap::from([(plan.id.as_str().to_owned(), init.clone())]);
    Container {
        id: plan.id,
        name: plan.name,
        bundle,
        cgroup,
        capabilities: plan.process.capabilities.unwrap_or_default(),
        seccomp: plan.seccomp,
        namespaces,
        init,
        table: Mutex::new(Table {
            state: State::Created,
            gate: Some(spawned.control),
            processes,
            starting: HashSet::new(),
        }),
    }
}

/// What a container stands on: its bundle and its cgroup.
struct Ground {
    bundle: PathBuf,
    cgroup: Option<Cgroup>,
}

impl Ground {
    /// On the blocking pool: a root on a shared file system answers when the
    /// host does.
    async fn prepare(engine: &Engine, plan: &ContainerPlan) -> Result<Self, ContainerError> {
        let bundle = bundle::path_of(&plan.id);
        let cgroup_path = CgroupPath::parse(&plan.cgroups_path, plan.id.as_str())?;
        let root = plan.init.root.as_ref().map(|root| root.path.clone());
        let (cgroups, resources, place) = (
            engine.cgroups().clone(),
            plan.resources.clone(),
            bundle.clone(),
        );
        let work = move || -> Result<Cgroup, ContainerError> {
            if let Some(root) = root {
                bundle::create(&place, &root)?;
            }
            let limited = cgroups
                .create(&cgroup_path)
                .and_then(|cgroup| match &resources {
                    Some(resources) => match cgroup.apply(resources) {
                        Ok(()) => Ok(cgroup),
                        Err(error) => {
                            discard(&cgroup);
                            Err(error)
                        }
                    },
                    None => Ok(cgroup),
                });
            limited.map_err(|error| {
                discard_bundle(&place);
                error.into()
            })
        };
        let cgroup = tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| ContainerError::Task(plan.id.clone()))??;
        Ok(Self {
            bundle,
            cgroup: Some(cgroup),
        })
    }

    async fn undo(self, id: &ContainerId) {
        let work = move || {
            if let Some(cgroup) = &self.cgroup {
                discard(cgroup);
            }
            discard_bundle(&self.bundle);
        };
        if tokio::task::spawn_blocking(work).await.is_err() {
            log::error!("Container {id}: what its failed creation left could not be removed");
        }
    }
}

fn discard(cgroup: &Cgroup) {
    let deadline = std::time::Instant::now() + super::remove::PATIENCE;
    let gone = cgroup
        .kill()
        .and_then(|()| cgroup.wait_empty(deadline))
        .and_then(|_| cgroup.try_remove());
    if let Err(error) = gone {
        log::warn!("Cgroup {} stays: {error}", cgroup.path());
    }
}

fn discard_bundle(bundle: &std::path::Path) {
    if let Err(error) = bundle::remove(bundle) {
        log::warn!("{error}");
    }
}

/// Namespaces to join, opened; the kinds that are missing here are to be made.
fn resolve(
    plan: &ContainerPlan,
    shared: &Shared,
) -> Result<HashMap<Namespace, Arc<OwnedFd>>, ContainerError> {
    let mut joins = HashMap::new();
    for (kind, source) in &plan.namespaces {
        match source {
            NamespaceSource::New => {}
            NamespaceSource::Path(path) => drop(joins.insert(*kind, open(path, true)?)),
            // The first container of all makes the pid namespace that others
            // share; ipc and uts are its own if there never was a CreateSandbox.
            NamespaceSource::Sandbox => {
                if let Some(fd) = shared.get(*kind) {
                    joins.insert(*kind, fd.clone());
                }
            }
        }
    }
    Ok(joins)
}

fn open(path: &str, bad_request: bool) -> Result<Arc<OwnedFd>, ContainerError> {
    match File::open(path) {
        Ok(file) => Ok(Arc::new(file.into())),
        Err(source) => Err(ContainerError::Namespace {
            path: path.to_owned(),
            source,
            bad_request,
        }),
    }
}

async fn populate(
    engine: &Engine,
    plan: &ContainerPlan,
    joins: &HashMap<Namespace, Arc<OwnedFd>>,
    ground: &Ground,
) -> Result<(Spawned, Vec<(Namespace, Arc<OwnedFd>)>), ContainerError> {
    let cgroup = ground
        .cgroup
        .as_ref()
        .ok_or_else(|| ContainerError::Task(plan.id.clone()))?;
    let request = request(engine, plan, joins, ground, cgroup.join()?);
    let spawned = spawn(engine, request).await?;
    let pid = spawned.process.pid();
    let mut namespaces = Vec::new();
    for kind in Namespace::ALL {
        let own = plan.namespaces.contains_key(&kind) || implied(engine, kind);
        match joins.get(&kind) {
            Some(fd) => namespaces.push((kind, fd.clone())),
            None if own => namespaces.push((
                kind,
                open(&format!("/proc/{pid}/ns/{}", kind.file()), false)?,
            )),
            None => {}
        }
    }
    Ok((spawned, namespaces))
}

/// On cgroup v2 a container always gets a cgroup namespace: else it would see
/// where in the guest's tree it is.
fn implied(engine: &Engine, kind: Namespace) -> bool {
    kind == Namespace::Cgroup && engine.cgroups().version() == Version::V2
}

fn request<'a>(
    engine: &Engine,
    plan: &'a ContainerPlan,
    joins: &'a HashMap<Namespace, Arc<OwnedFd>>,
    ground: &Ground,
    cgroup: Join,
) -> Request<'a> {
    let (mut at_clone, mut later) = (0, 0);
    for kind in Namespace::ALL {
        let wanted = plan.namespaces.contains_key(&kind) || implied(engine, kind);
        if !wanted || joins.contains_key(&kind) {
            continue;
        }
        // The cgroup namespace is rooted where the process is when it is made;
        // what a joined user namespace is to own must be made inside it.
        let in_joined_user = joins.contains_key(&Namespace::User) && kind != Namespace::Pid;
        if kind == Namespace::Cgroup || in_joined_user {
            later |= kind.flag();
        } else {
            at_clone |= kind.flag();
        }
    }
    let ordered: Vec<Namespace> = Namespace::ALL
        .into_iter()
        .filter(|kind| *kind != Namespace::Pid && joins.contains_key(kind))
        .collect();
    let mut init = plan.init.clone();
    if let Some(root) = &mut init.root {
        root.path = ground.bundle.join("rootfs").to_string_lossy().into_owned();
    }
    Request {
        plan: ChildPlan {
            init: Some(init),
            joins: ordered.clone(),
            unshare: later,
            new_user_namespace: at_clone & Namespace::User.flag() != 0,
            cgroup_files: if let Join::V1(files) = &cgroup {
                files.len() as u32
            } else {
                0
            },
            seccomp: plan.seccomp.clone(),
            process: plan.process.clone(),
        },
        clone_flags: at_clone,
        pid_namespace: joins.get(&Namespace::Pid).map(|fd| fd.as_fd()),
        joins: ordered
            .iter()
            .filter_map(|kind| joins.get(kind))
            .map(|fd| fd.as_fd())
            .collect(),
        cgroup,
        maps: Some((&plan.uid_maps, &plan.gid_maps)),
    }
}
