// SPDX-License-Identifier: Apache-2.0
//! CreateContainer below the door: bundle, cgroup, namespaces, hooks, first
//! process. Each effect has its undo; whatever fails, nothing stays.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::unistd::{Gid, Pid, Uid};
use oci_spec::runtime::LinuxResources;
use rustix::fs::{Mode, OFlags};
use tokio::sync::{Notify, Semaphore, watch};

use super::diagnostics::TerminationLog;
use super::hooks::{ContainerHooks, Point};
use super::plan::{
    ChildHooks, ChildPlan, ContainerId, ContainerPlan, Hooks, InitPlan, Namespace, NamespaceSource,
};
use super::spawn::{Request, SpawnError, Spawned, spawn};
use super::state::State;
use super::{Container, ContainerError, Engine, Shared, Table, bundle, hooks, json};
use crate::cgroup::{Cgroup, CgroupError, CgroupPath, Cgroups, Join, Version};
use crate::pool::at_host_pace;

/// The type of the file system that namespaces are files of, statfs(2).
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// What a container is created from.
pub struct Creation {
    /// The request, checked.
    pub plan: ContainerPlan,
    /// `config.json` for the bundle, which hooks look for there.
    pub config: Option<String>,
    /// What the sandbox shares.
    pub shared: Shared,
    /// The guest's own hooks.
    pub guest_hooks: Arc<Hooks>,
    /// Becomes true when nobody wants the container any more.
    pub given_up: watch::Receiver<bool>,
}

impl Container {
    /// Creates a container whose storages are mounted already. To be run to its end.
    ///
    /// # Errors
    /// [`ContainerError`]; everything made here is undone then.
    pub async fn create(engine: &Engine, creation: Creation) -> Result<Arc<Self>, ContainerError> {
        let Creation { plan, config, .. } = &creation;
        hooks::check(&plan.hooks)?;
        let joins = resolve(plan, &creation.shared).await?;
        let bundle = bundle::path_of(&plan.id);
        let members = json::members(plan.id.as_str(), &bundle, &plan.annotations);
        let cgroup = prepare(engine, plan, &bundle, config.clone()).await?;
        let hooks = ContainerHooks::new(
            plan.id.clone(),
            plan.hooks.clone(),
            creation.guest_hooks.clone(),
            members.clone(),
        );
        let ground = Ground {
            bundle,
            cgroup,
            hooks,
            members,
        };
        let mut given_up = creation.given_up.clone();
        let populated = tokio::select! {
            biased;
            populated = populate(engine, plan, &joins, &ground) => populated,
            // The sender is the sandbox's: without it there is nobody left to want it.
            _ = given_up.wait_for(|given_up| *given_up) => {
                Err(ContainerError::GivenUp(plan.id.clone()))
            }
        };
        match populated {
            Ok((spawned, namespaces)) => {
                let owns_pids = !joins.contains_key(&Namespace::Pid);
                let container = assemble(creation.plan, ground, spawned, namespaces, owns_pids);
                tokio::spawn(container.clone().follow());
                Ok(container)
            }
            Err(error) => {
                ground.undo(engine, &plan.id).await;
                Err(error)
            }
        }
    }
}

fn assemble(
    plan: ContainerPlan,
    ground: Ground,
    spawned: Spawned,
    namespaces: Vec<(Namespace, Arc<OwnedFd>)>,
    owns_pids: bool,
) -> Arc<Container> {
    let init = spawned.process;
    let processes = HashMap::from([(plan.id.as_str().to_owned(), init.clone())]);
    let root = plan.init.root.as_ref();
    let mounts = root.map_or(&[][..], |root| &root.mounts);
    Arc::new(Container {
        termination_log: TerminationLog::of(&plan.annotations, mounts),
        id: plan.id,
        name: plan.name,
        bundle: ground.bundle,
        cgroup: ground.cgroup,
        capabilities: plan.process.capabilities.unwrap_or_default(),
        seccomp: plan.seccomp,
        given: plan.given,
        namespaces: Mutex::new(namespaces),
        owns_pids,
        starts_hooks: !plan.hooks.start_container.is_empty(),
        hooks: ground.hooks,
        init,
        table: Mutex::new(Table {
            state: State::Created,
            frozen: false,
            hooks_ended: false,
            gate: Some(spawned.control),
            processes,
            starting: HashSet::new(),
        }),
        states: watch::Sender::new(State::Created),
        updates: Arc::new(Semaphore::new(1)),
        arrivals: Notify::new(),
    })
}

/// What a container stands on.
struct Ground {
    bundle: PathBuf,
    cgroup: Cgroup,
    hooks: ContainerHooks,
    members: String,
}

/// Makes the bundle and the cgroup, on the blocking pool: a root on a shared
/// file system answers when the host does.
async fn prepare(
    engine: &Engine,
    plan: &ContainerPlan,
    bundle: &Path,
    config: Option<String>,
) -> Result<Cgroup, ContainerError> {
    let path = CgroupPath::parse(&plan.cgroups_path, plan.id.as_str())?;
    let root = plan.init.root.as_ref().map(|root| root.path.clone());
    let (cgroups, resources) = (engine.cgroups().clone(), plan.resources.clone());
    let place = bundle.to_owned();
    let owner = plan.root_in_guest();
    let work = move || {
        let made = make_bundle(&place, root.as_deref(), config.as_deref())
            .and_then(|()| Ok(make_cgroup(&cgroups, &path, resources.as_ref(), owner)?));
        if made.is_err() {
            discard_bundle(&place);
        }
        made
    };
    at_host_pace(work)
        .await
        .map_err(|_| ContainerError::Task(plan.id.clone()))?
}

fn make_bundle(
    bundle: &Path,
    root: Option<&str>,
    config: Option<&str>,
) -> Result<(), ContainerError> {
    if let Some(root) = root {
        bundle::create(bundle, root)?;
    }
    if let Some(config) = config {
        bundle::write_config(bundle, config)?;
    }
    Ok(())
}

fn make_cgroup(
    cgroups: &Cgroups,
    path: &CgroupPath,
    resources: Option<&LinuxResources>,
    owner: Option<(Uid, Gid)>,
) -> Result<Cgroup, CgroupError> {
    let cgroup = cgroups.create(path)?;
    let limited = || {
        if let Some((uid, gid)) = owner {
            cgroup.delegate_to(uid, gid)?;
        }
        if let Some(resources) = resources {
            cgroup.apply(resources)?;
        }
        // With rules of its own that was part of the limits.
        let rules = resources.and_then(|resources| resources.devices().as_deref());
        if rules.is_none_or(<[_]>::is_empty) {
            cgroup.restrict_devices(&[])?;
        }
        Ok(())
    };
    match limited() {
        Ok(()) => Ok(cgroup),
        Err(error) => {
            // Nothing has run in it yet.
            if let Err(error) = cgroup.try_remove() {
                log::warn!("Cgroup {} stays: {error}", cgroup.path());
            }
            Err(error)
        }
    }
}

impl Ground {
    async fn undo(self, engine: &Engine, id: &ContainerId) {
        // A frozen or stuck process would keep the group; others go at once.
        let killed = self.cgroup.kill();
        let emptied = match killed {
            Ok(()) => self.cgroup.emptied(super::remove::PATIENCE).await,
            Err(error) => Err(error),
        };
        if let Err(error) = emptied {
            log::warn!("Cgroup {}: {error}", self.cgroup.path());
        }
        self.hooks.run_all(engine, Point::Stopped, None).await;
        let work = move || {
            match self.cgroup.try_remove() {
                Ok(true) => {}
                Ok(false) => log::warn!("Cgroup {} stays: in use", self.cgroup.path()),
                Err(error) => log::warn!("Cgroup {} stays: {error}", self.cgroup.path()),
            }
            discard_bundle(&self.bundle);
        };
        if tokio::task::spawn_blocking(work).await.is_err() {
            log::error!("Container {id}: what its failed creation left could not be removed");
        }
    }
}

fn discard_bundle(bundle: &Path) {
    if let Err(error) = bundle::remove(bundle) {
        log::warn!("{error}");
    }
}

/// Namespaces to join, opened; the kinds that are missing here are to be made.
async fn resolve(
    plan: &ContainerPlan,
    shared: &Shared,
) -> Result<HashMap<Namespace, Arc<OwnedFd>>, ContainerError> {
    let (mut joins, mut paths) = (HashMap::new(), Vec::new());
    for (kind, source) in &plan.namespaces {
        match source {
            NamespaceSource::New => {}
            NamespaceSource::Path(path) => paths.push((*kind, path.clone())),
            // The first container of all makes the pid namespace that others
            // share; ipc and uts are its own if there never was a CreateSandbox.
            NamespaceSource::Sandbox => {
                if let Some(fd) = shared.get(*kind) {
                    joins.insert(*kind, fd.clone());
                }
            }
        }
    }
    if !paths.is_empty() {
        let opened = at_host_pace(move || {
            let opened = paths
                .into_iter()
                .map(|(kind, path)| Ok((kind, named(&path)?)));
            opened.collect::<Result<Vec<_>, ContainerError>>()
        });
        let lost = |_| ContainerError::Task(plan.id.clone());
        joins.extend(opened.await.map_err(lost)??);
    }
    Ok(joins)
}

/// The namespace at a path that came with a request. It is looked at before it
/// is opened: what is none may wait for its other end, or do what devices do when
/// they are opened. Blocking.
fn named(path: &str) -> Result<Arc<OwnedFd>, ContainerError> {
    let found = || -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let place = rustix::fs::open(path, flags, Mode::empty())?;
        if rustix::fs::fstatfs(&place)?.f_type != NSFS_MAGIC {
            return Err(rustix::io::Errno::INVAL);
        }
        let place = format!("/proc/self/fd/{}", place.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(place, flags, Mode::empty())
    };
    let namespace = found().map_err(|errno| ContainerError::Namespace {
        path: path.to_owned(),
        source: errno.into(),
        bad_request: true,
    })?;
    Ok(Arc::new(namespace))
}

/// A namespace of a process that has not been reaped.
fn of_process(pid: Pid, kind: Namespace) -> Result<Arc<OwnedFd>, ContainerError> {
    let path = format!("/proc/{pid}/ns/{}", kind.file());
    match File::open(&path) {
        Ok(file) => Ok(Arc::new(file.into())),
        Err(source) => Err(ContainerError::Namespace {
            path,
            source,
            bad_request: false,
        }),
    }
}

async fn populate(
    engine: &Engine,
    plan: &ContainerPlan,
    joins: &HashMap<Namespace, Arc<OwnedFd>>,
    ground: &Ground,
) -> Result<(Spawned, Vec<(Namespace, Arc<OwnedFd>)>), ContainerError> {
    let request = request(engine, plan, joins, ground, ground.cgroup.join()?);
    let spawned = spawn(engine, request).await?;
    let pid = spawned.process.pid();
    let mut namespaces = Vec::new();
    for kind in Namespace::ALL {
        let own = plan.namespaces.contains_key(&kind) || implied(engine, kind);
        match joins.get(&kind) {
            Some(fd) => namespaces.push((kind, fd.clone())),
            None if own => namespaces.push((kind, of_process(pid, kind)?)),
            None => {}
        }
    }
    // Reaped before all were opened, its pid may have been another process's.
    if !spawned.process.is_alive() {
        return Err(SpawnError::Died.into());
    }
    Ok((spawned, namespaces))
}

/// What the first process does besides what every process does.
fn init_plan(plan: &ContainerPlan, ground: &Ground) -> InitPlan {
    let mut init = plan.init.clone();
    if let Some(root) = &mut init.root {
        root.path = ground.bundle.join("rootfs").to_string_lossy().into_owned();
    }
    let (create, start) = (&plan.hooks.create_container, &plan.hooks.start_container);
    if !create.is_empty() || !start.is_empty() {
        init.hooks = ChildHooks {
            state: ground.members.clone(),
            create_container: create.clone(),
            start_container: start.clone(),
            wait_for_agent: false,
        };
    }
    init.hooks.wait_for_agent = ground.hooks.any(Point::Creation);
    init
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
    ground: &'a Ground,
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
        // Clocks take effect at a clone only and give nothing to own.
        let at_once = matches!(kind, Namespace::Pid | Namespace::Time);
        let in_joined_user = joins.contains_key(&Namespace::User) && !at_once;
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
    Request {
        plan: ChildPlan {
            init: Some(init_plan(plan, ground)),
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
        hooks: Some(&ground.hooks),
    }
}
