// SPDX-License-Identifier: Apache-2.0
//! Containers: from a checked plan to running processes, and back to nothing.
//!
//! A [`Container`] is complete from the moment it exists; what happens before
//! is in `create`, what ends it in `remove`. It knows nothing of the wire.

pub mod bundle;
pub mod child;
mod create;
mod exec;
pub mod plan;
mod process;
mod remove;
pub mod spawn;
pub mod state;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::net::UnixStream;

use crate::cgroup::{Cgroup, CgroupError, Cgroups};
use crate::children::Children;
use crate::launch::Launcher;
use crate::launch::message::Report;
use crate::seccomp::Program;
use plan::process::Capabilities;
use plan::{ContainerId, ExecId, Namespace};
pub use process::Process;
use spawn::SpawnError;
use state::{State, StateError};

/// What starting processes takes; one per agent.
pub struct Engine {
    /// Clones.
    pub launcher: Launcher,
    /// Reaps.
    pub children: Children,
    cgroups: OnceLock<Cgroups>,
    /// `agent.container_pipe_size`.
    pub pipe_size: u32,
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

/// A created container.
pub struct Container {
    id: ContainerId,
    name: Option<String>,
    bundle: PathBuf,
    cgroup: Cgroup,
    capabilities: Capabilities,
    seccomp: Option<Program>,
    /// Held by descriptor: they outlive the first process, and no recycled pid
    /// leads elsewhere.
    namespaces: Vec<(Namespace, Arc<OwnedFd>)>,
    /// The first process, also after it has left the table below.
    init: Arc<Process>,
    table: Mutex<Table>,
}

struct Table {
    state: State,
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
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.namespaces
            .iter()
            .find(|(kind, _)| *kind == Namespace::Pid)
            .map(|(_, fd)| fd.clone())
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

    /// Forgets a process that was waited for, and with it its streams.
    pub fn forget(&self, exec_id: &str) {
        let key = if exec_id.is_empty() {
            self.id.as_str()
        } else {
            exec_id
        };
        self.table().processes.remove(key);
    }

    /// Lets the first process execute its program.
    ///
    /// # Errors
    /// [`StateError::AlreadyStarted`] or [`StateError::Dead`].
    pub fn start(&self) -> Result<(), ContainerError> {
        let mut table = self.table();
        let next = table
            .state
            .start(self.init.is_alive())
            .map_err(|e| self.state_error(e))?;
        let gate = table
            .gate
            .take()
            .ok_or_else(|| self.state_error(StateError::AlreadyStarted))?;
        spawn::go(&gate).map_err(|_| self.state_error(StateError::Dead))?;
        table.state = next;
        drop(table);
        tokio::spawn(watch_execution(self.id.clone(), gate));
        Ok(())
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
            })
    }

    /// SIGKILL for everything in the container.
    ///
    /// # Errors
    /// [`ContainerError::Cgroup`].
    pub fn kill_all(&self) -> Result<(), ContainerError> {
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
        Ok(self.cgroup.kill()?)
    }
}

/// The program may still turn out not to be executable; its exit status says
/// so to the host, this to whoever reads the log.
async fn watch_execution(id: ContainerId, gate: UnixStream) {
    if let Ok(Some((Report::Failed { step, error, .. }, _))) = spawn::receive(&gate).await {
        log::warn!("Container {id}: {step}: {error}");
    }
}

/// The key of a process in a container's table.
fn key_of(id: &ExecId) -> String {
    id.as_str().to_owned()
}
