// SPDX-License-Identifier: Apache-2.0
//! Containers: from a checked plan to running processes, and back to nothing.
//!
//! A [`Container`] is complete from the moment it exists; what happens before
//! is in `create`, what ends it in `remove`. It knows nothing of the wire.

pub mod bundle;
pub mod child;
mod create;
pub mod diagnostics;
mod exec;
mod freeze;
pub mod hooks;
pub mod json;
pub mod plan;
mod process;
mod remove;
pub mod share;
pub mod spawn;
mod start;
pub mod state;
pub mod stats;
mod update;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::net::UnixStream;
use tokio::sync::{Notify, Semaphore, watch};

use crate::cgroup::{Cgroup, CgroupError, Cgroups};
use crate::children::Children;
use crate::launch::Launcher;
use crate::seccomp::Program;
use crate::stdio::Arrivals;
pub use create::Creation;
use diagnostics::{DiagnosticsError, TerminationLog};
use hooks::{ContainerHooks, HookError};
use plan::process::Capabilities;
use plan::{ContainerId, ExecId, Given, Namespace};
pub use process::Process;
use spawn::SpawnError;
use state::{Event, State, StateError};

/// What starting processes takes; one per agent.
pub struct Engine {
    /// Clones.
    pub launcher: Launcher,
    /// Reaps.
    pub children: Children,
    cgroups: OnceLock<Cgroups>,
    /// `agent.container_pipe_size`.
    pub pipe_size: u32,
    /// Connections that the host opened for streams.
    pub arrivals: Arc<Arrivals>,
}

impl Engine {
    /// `pipe_size` is `agent.container_pipe_size`.
    #[must_use]
    pub fn new(children: Children, pipe_size: u32) -> Self {
        Self {
            launcher: Launcher::default(),
            children,
            cgroups: OnceLock::new(),
            pipe_size,
            arrivals: Arc::default(),
        }
    }

    /// The cgroup hierarchies, looked at when they are wanted first: the agent
    /// serves before they are mounted.
    pub fn cgroups(&self) -> &Cgroups {
        self.cgroups.get_or_init(Cgroups::detect)
    }
}

/// Namespaces that containers of one sandbox have in common.
#[derive(Clone, Default)]
pub struct Shared {
    /// By CreateSandbox.
    pub ipc: Option<Arc<OwnedFd>>,
    /// By CreateSandbox.
    pub uts: Option<Arc<OwnedFd>>,
    /// The first container's.
    pub pid: Option<Arc<OwnedFd>>,
}

impl Shared {
    fn get(&self, kind: Namespace) -> Option<&Arc<OwnedFd>> {
        match kind {
            Namespace::Ipc => self.ipc.as_ref(),
            Namespace::Uts => self.uts.as_ref(),
            Namespace::Pid => self.pid.as_ref(),
            _ => None,
        }
    }
}

/// What can go wrong with a container.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// A call at the wrong time.
    #[error("Container {id}")]
    State {
        /// The container.
        id: ContainerId,
        /// Why not now.
        #[source]
        source: StateError,
    },
    /// An exec id that is taken.
    #[error("exec_id '{0}' already exists")]
    ExecExists(String),
    /// Its bundle.
    #[error(transparent)]
    Bundle(#[from] bundle::BundleError),
    /// Its cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Its process.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A hook.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// A mount that it was to take over.
    #[error(transparent)]
    Share(Box<share::ShareError>),
    /// A step of the start that the first process made after StartContainer.
    #[error("Container {id} could not be started: {reason}")]
    Start {
        /// The container.
        id: ContainerId,
        /// The step and its error.
        reason: String,
    },
    /// There is no termination log.
    #[error(transparent)]
    Diagnostics(#[from] DiagnosticsError),
    /// Processes that do not stand still: stuck in the kernel.
    #[error("Container {0} could not be paused: not all of its processes stop")]
    NotFrozen(ContainerId),
    /// RemoveContainer or DestroySandbox came before the creation was complete.
    #[error("Creation of container {0} was given up: it is being removed")]
    GivenUp(ContainerId),
    /// A namespace that could not be opened.
    #[error("Namespace '{path}' cannot be opened")]
    Namespace {
        /// Where it was looked for.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
        /// The path came with the request.
        bad_request: bool,
    },
    /// `sandbox_pidns` without a first container that has one.
    #[error("Sandbox has no shared pid namespace")]
    NoSharedPid,
    /// A signal that could not be sent.
    #[error("Signal {signal} could not be sent to container {id}")]
    Signal {
        /// The container.
        id: ContainerId,
        /// The number.
        signal: i32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Processes that outlive SIGKILL: stuck in the kernel.
    #[error("Container {0} still has processes after SIGKILL")]
    Stuck(ContainerId),
    /// A task of ours was lost.
    #[error("Container {0}: internal task ended early")]
    Task(ContainerId),
}

/// The namespaces of a container, by their kind.
type Namespaces = Vec<(Namespace, Arc<OwnedFd>)>;

/// A created container.
pub struct Container {
    id: ContainerId,
    name: Option<String>,
    bundle: PathBuf,
    cgroup: Cgroup,
    capabilities: Capabilities,
    seccomp: Option<Program>,
    given: Given,
    /// Held by descriptor: they outlive the first process, and no recycled pid
    /// leads elsewhere. None any more once it is being removed.
    namespaces: Mutex<Namespaces>,
    /// The pid namespace was made for this container and ends with its first process.
    owns_pids: bool,
    hooks: ContainerHooks,
    starts_hooks: bool,
    termination_log: TerminationLog,
    /// The first process, also after it has left the table below.
    init: Arc<Process>,
    table: Mutex<Table>,
    /// The table's state, for those who wait for a change of it.
    states: watch::Sender<State>,
    /// One update at a time: they take several files each.
    updates: Arc<Semaphore>,
    /// Told when an exec has left [`Table::starting`].
    arrivals: Notify,
}

struct Table {
    state: State,
    /// The freezer was asked to stop the processes.
    frozen: bool,
    /// The hooks for the end have run.
    hooks_ended: bool,
    gate: Option<UnixStream>,
    processes: HashMap<String, Arc<Process>>,
    /// Exec ids whose processes are not there yet.
    starting: HashSet<String>,
}

impl Container {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// Its name in the pod, if the host's annotations gave one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Held for single map operations only; none leaves it half done.
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.init.is_alive()
            && let Ok(next) = table.state.after(Event::Exit)
        {
            self.enter(&mut table, next);
        }
        table
    }

    fn enter(&self, table: &mut Table, next: State) {
        if table.state != next {
            log::debug!("Container {}: {} after {}", self.id, next, table.state);
            table.state = next;
            self.states.send_replace(next);
        }
    }

    /// Where it is in its life.
    #[must_use]
    pub fn state(&self) -> State {
        self.table().state
    }

    fn advance(&self, event: Event) -> Result<(), ContainerError> {
        let mut table = self.table();
        let next = table.state.after(event).map_err(|e| self.state_error(e))?;
        self.enter(&mut table, next);
        Ok(())
    }

    /// Sees to it that the end of the first process is known to all who wait
    /// for a change of state, and that nobody stays frozen after it.
    async fn follow(self: Arc<Self>) {
        self.init.wait().await;
        drop(self.table());
        self.thaw_if_frozen();
    }

    /// The termination log (protocol section 3.5).
    ///
    /// # Errors
    /// [`ContainerError::Diagnostics`].
    pub async fn termination_log(&self) -> Result<String, ContainerError> {
        let log = self.termination_log.clone();
        let read = crate::pool::at_host_pace(move || log.read()).await;
        Ok(read.map_err(|_| ContainerError::Task(self.id.clone()))??)
    }

    fn state_error(&self, source: StateError) -> ContainerError {
        ContainerError::State {
            id: self.id.clone(),
            source,
        }
    }

    /// The pid namespace of its processes, to be shared with other containers.
    #[must_use]
    pub fn pid_namespace(&self) -> Option<Arc<OwnedFd>> {
        let all = self.namespaces();
        let pid = all.into_iter().find(|(kind, _)| *kind == Namespace::Pid);
        pid.map(|(_, fd)| fd)
    }

    fn namespaces(&self) -> Namespaces {
        self.kept_namespaces().clone()
    }

    fn kept_namespaces(&self) -> MutexGuard<'_, Namespaces> {
        // Read or taken out as a whole.
        let kept = self.namespaces.lock();
        kept.unwrap_or_else(PoisonError::into_inner)
    }

    /// A process that has not been waited for yet. An empty exec id, like the
    /// container's own, is the first process.
    #[must_use]
    pub fn process(&self, exec_id: &str) -> Option<Arc<Process>> {
        let key = if exec_id.is_empty() {
            self.id.as_str()
        } else {
            exec_id
        };
        self.table().processes.get(key).cloned()
    }

    /// True if the process is the container's first.
    #[must_use]
    pub fn is_init(&self, process: &Arc<Process>) -> bool {
        Arc::ptr_eq(&self.init, process)
    }

    /// Forgets a process that was waited for, and with it its streams. Its exec
    /// id may be another process's by now: that one stays.
    pub fn forget(&self, process: &Arc<Process>) {
        let mut table = self.table();
        table
            .processes
            .retain(|_, other| !Arc::ptr_eq(other, process));
    }

    /// SignalProcess for one process (protocol section 3.2).
    ///
    /// # Errors
    /// [`ContainerError::Signal`]; a process that has exited is none.
    pub fn signal(&self, process: &Arc<Process>, signal: i32) -> Result<(), ContainerError> {
        let unheard =
            signal == libc::SIGTERM && self.is_init(process) && !process.handles_sigterm();
        let signal = if unheard { libc::SIGKILL } else { signal };
        process
            .signal(signal)
            .map_err(|source| ContainerError::Signal {
                id: self.id.clone(),
                signal,
                source,
            })?;
        if signal == libc::SIGKILL {
            self.let_die(process)?;
        }
        Ok(())
    }

    /// A frozen process that was sent SIGKILL may have to be let go to die.
    fn let_die(&self, process: &Arc<Process>) -> Result<(), ContainerError> {
        if self.is_init(process) {
            // The container ends with it, or at least is no longer one to be resumed.
            self.thaw_if_frozen();
        } else if self.table().frozen && process.is_alive() {
            self.cgroup.release_killed(process.pid())?;
        }
        Ok(())
    }

    /// SIGKILL for everything in the container, frozen or not: at once for the
    /// processes that are known, on the blocking pool for whatever else is in its
    /// cgroup, since that may be many. Once begun it goes on without its caller.
    ///
    /// # Errors
    /// [`ContainerError::Cgroup`].
    pub async fn kill_all(self: &Arc<Self>) -> Result<(), ContainerError> {
        let tracked: Vec<_> = self.table().processes.values().cloned().collect();
        for process in tracked.iter().chain([&self.init]) {
            process
                .signal(libc::SIGKILL)
                .map_err(|source| ContainerError::Signal {
                    id: self.id.clone(),
                    signal: libc::SIGKILL,
                    source,
                })?;
        }
        let this = self.clone();
        let work = move || {
            let killed = this.cgroup.kill();
            this.thaw_if_frozen();
            killed
        };
        let killed = tokio::task::spawn_blocking(work).await;
        Ok(killed.map_err(|_| ContainerError::Task(self.id.clone()))??)
    }
}

/// The key of a process in a container's table.
fn key_of(id: &ExecId) -> String {
    id.as_str().to_owned()
}
