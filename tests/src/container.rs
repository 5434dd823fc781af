// SPDX-License-Identifier: Apache-2.0
//! Containers and processes, as words: `vm.container("c1").sh("exit 3").start().await.wait().await`.
//!
//! A [`Builder`] is a CreateContainer request in the making; a [`Container`] derefs to its init [`Process`]. Words that can be
//! refused come in two forms: `start` insists, `try_start` gives the [`Refusal`].

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use protocols::agent::*;
use protocols::oci;

use crate::agent::{Agent, Refusal, Rpc};
use crate::facts::Facts;
use crate::spec;

/// What the Go shim asks for per read.
pub const READ: u32 = 32 << 10;

/// A container about to be created.
#[must_use = "a builder does nothing until it is created, started or run"]
pub struct Builder {
    agent: Agent,
    request: CreateContainerRequest,
}

impl Builder {
    pub(crate) fn new(agent: Agent, id: &str) -> Builder {
        let mut request = CreateContainerRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = id.to_owned();
        let cgroup = format!("/{}/{id}", agent.scope());
        request.OCI = Some(spec::ordinary(agent.rootfs(), cgroup)).into();
        Builder { agent, request }
    }

    /// The program and its arguments.
    pub fn args(self, args: &[&str]) -> Builder {
        let args = args.iter().map(|&a| a.to_owned()).collect();
        self.process(|p| p.Args = args)
    }

    /// A shell script as the container's process.
    pub fn sh(self, script: &str) -> Builder {
        self.args(&["sh", "-c", script])
    }

    /// Changes the process.
    pub fn process(mut self, change: impl FnOnce(&mut oci::Process)) -> Builder {
        change(
            self.request
                .OCI
                .mut_or_insert_default()
                .Process
                .mut_or_insert_default(),
        );
        self
    }

    /// Changes the Linux section.
    pub fn linux(mut self, change: impl FnOnce(&mut oci::Linux)) -> Builder {
        change(
            self.request
                .OCI
                .mut_or_insert_default()
                .Linux
                .mut_or_insert_default(),
        );
        self
    }

    /// Changes the spec.
    pub fn spec(mut self, change: impl FnOnce(&mut oci::Spec)) -> Builder {
        change(self.request.OCI.mut_or_insert_default());
        self
    }

    /// Changes the whole request.
    pub fn request(mut self, change: impl FnOnce(&mut CreateContainerRequest)) -> Builder {
        change(&mut self.request);
        self
    }

    /// Adds an environment entry.
    pub fn env(self, entry: &str) -> Builder {
        self.process(|p| p.Env.push(entry.to_owned()))
    }

    /// Gives the process a terminal.
    pub fn tty(self) -> Builder {
        self.process(|p| p.Terminal = true)
    }

    /// Grants exactly these capabilities.
    pub fn capabilities(self, names: &[&str]) -> Builder {
        self.process(|p| p.Capabilities = Some(spec::capabilities(names)).into())
    }

    /// Adds a mount.
    pub fn mount(self, destination: &str, source: &str, kind: &str, options: &[&str]) -> Builder {
        self.spec(|s| {
            s.Mounts
                .push(spec::mount(destination, source, kind, options))
        })
    }

    /// Binds a path of the guest into the container, with everything mounted below it.
    pub fn bind(self, destination: &str, source: &str) -> Builder {
        self.mount(destination, source, "bind", &["rbind", "rw"])
    }

    /// Another root file system than the tests' ordinary one.
    pub fn root(self, path: &str) -> Builder {
        self.spec(|s| s.Root.mut_or_insert_default().Path = path.to_owned())
    }

    /// A read-only root file system.
    pub fn read_only_root(self) -> Builder {
        self.spec(|s| s.Root.mut_or_insert_default().Readonly = true)
    }

    /// Adds a storage, to be mounted before the container starts.
    pub fn storage(self, storage: Storage) -> Builder {
        self.request(|r| r.storages.push(storage))
    }

    /// Joins the sandbox's process namespace.
    pub fn sandbox_pids(self) -> Builder {
        self.request(|r| r.sandbox_pidns = true)
    }

    /// The request as it stands.
    pub fn into_request(self) -> CreateContainerRequest {
        self.request
    }

    /// Asks for creation.
    pub async fn try_create(self) -> Result<Container, Refusal> {
        self.agent.rpc().create_container(&self.request).await?;
        Ok(Container::known(&self.agent, &self.request.container_id))
    }

    /// Creates the container; its process waits to be started.
    pub async fn create(self) -> Container {
        let id = self.request.container_id.clone();
        self.try_create()
            .await
            .unwrap_or_else(|e| panic!("CreateContainer {id}: {e}"))
    }

    /// Creates and starts the container.
    pub async fn start(self) -> Container {
        let container = self.create().await;
        container.start().await;
        container
    }

    /// Runs the container to its end and removes it.
    pub async fn run(self) -> Output {
        let container = self.start().await;
        let output = container.output().await;
        container.remove().await;
        output
    }
}

/// A created container. Derefs to its init process.
#[derive(Clone)]
pub struct Container {
    init: Process,
}

impl Deref for Container {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.init
    }
}

impl Container {
    /// A container that is taken to exist, such as one created over another connection.
    pub fn known(agent: &Agent, id: &str) -> Container {
        Container {
            init: Process {
                agent: agent.clone(),
                cid: id.into(),
                exec: id.into(),
            },
        }
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.init.cid
    }

    /// Asks for the start.
    pub async fn try_start(&self) -> Result<(), Refusal> {
        let mut request = StartContainerRequest::new();
        request.container_id = self.id().to_owned();
        self.rpc().start_container(&request).await.map(drop)
    }

    /// Starts the container's process.
    pub async fn start(&self) {
        self.try_start()
            .await
            .unwrap_or_else(|e| panic!("StartContainer {}: {e}", self.id()));
    }

    /// Asks for removal.
    pub async fn try_remove(&self) -> Result<(), Refusal> {
        let mut request = RemoveContainerRequest::new();
        request.container_id = self.id().to_owned();
        self.rpc().remove_container(&request).await.map(drop)
    }

    /// Removes the container.
    pub async fn remove(&self) {
        self.try_remove()
            .await
            .unwrap_or_else(|e| panic!("RemoveContainer {}: {e}", self.id()));
    }

    /// Kills every process of the container, waits for the first and removes the container: what a host does.
    pub async fn kill_and_remove(&self) {
        self.kill_all().await;
        self.wait().await;
        self.remove().await;
    }

    /// Kills every process of the container (SignalProcess with an empty exec id).
    pub async fn kill_all(&self) {
        let mut request = SignalProcessRequest::new();
        request.container_id = self.id().to_owned();
        request.signal = 9;
        self.rpc()
            .signal_process(&request)
            .await
            .unwrap_or_else(|e| panic!("SignalProcess, all of {}: {e}", self.id()));
    }

    /// A process that is taken to exist, such as one that another connection asked for.
    pub fn known_process(&self, exec: &str) -> Process {
        Process {
            exec: exec.into(),
            ..self.init.clone()
        }
    }

    /// Begins another process in the container.
    pub fn exec(&self, args: &[&str]) -> Exec {
        Exec::new(self, args)
    }

    /// Runs a shell script in the container, to its end.
    pub async fn sh(&self, script: &str) -> Output {
        self.exec(&["sh", "-c", script]).run().await
    }
}

/// Another process of a container, about to be started.
#[must_use = "an exec does nothing until it is started or run"]
pub struct Exec {
    agent: Agent,
    request: ExecProcessRequest,
}

impl Exec {
    fn new(container: &Container, args: &[&str]) -> Exec {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let mut request = ExecProcessRequest::new();
        request.container_id = container.id().to_owned();
        request.exec_id = format!("exec-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        request.process = Some(spec::process(args)).into();
        Exec {
            agent: container.agent.clone(),
            request,
        }
    }

    /// Gives it this exec id.
    pub fn id(mut self, id: &str) -> Exec {
        self.request.exec_id = id.to_owned();
        self
    }

    /// Changes the process.
    pub fn process(mut self, change: impl FnOnce(&mut oci::Process)) -> Exec {
        change(self.request.process.mut_or_insert_default());
        self
    }

    /// Changes the whole request.
    pub fn request(mut self, change: impl FnOnce(&mut ExecProcessRequest)) -> Exec {
        change(&mut self.request);
        self
    }

    /// Gives it a terminal.
    pub fn tty(self) -> Exec {
        self.process(|p| p.Terminal = true)
    }

    /// Asks for the process.
    pub async fn try_start(self) -> Result<Process, Refusal> {
        self.agent.rpc().exec_process(&self.request).await?;
        Ok(Process {
            agent: self.agent,
            cid: self.request.container_id.into(),
            exec: self.request.exec_id.into(),
        })
    }

    /// Starts the process.
    pub async fn start(self) -> Process {
        let what = format!("{} in {}", self.request.exec_id, self.request.container_id);
        self.try_start()
            .await
            .unwrap_or_else(|e| panic!("ExecProcess {what}: {e}"))
    }

    /// Runs the process to its end.
    pub async fn run(self) -> Output {
        self.start().await.output().await
    }
}

/// What a process left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; 128 + N for death by signal N.
    pub code: i32,
    /// All of its standard output (or of its terminal).
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Output {
    /// Insists on exit code 0 and gives the standard output without trailing blanks.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(
            self.code, 0,
            "stdout:\n{}stderr:\n{}",
            self.stdout, self.stderr
        );
        self.stdout.trim_end()
    }

    /// Insists on exit code 0 and gives what the probe reported.
    #[track_caller]
    pub fn facts(&self) -> Facts {
        Facts::parse(self.ok())
    }
}

/// A process that the agent knows by container id and exec id.
#[derive(Clone)]
pub struct Process {
    agent: Agent,
    cid: Arc<str>,
    exec: Arc<str>,
}

/// Which output of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Process {
    fn rpc(&self) -> &Rpc {
        self.agent.rpc()
    }

    /// The agent that knows this process.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// The process as seen through another connection.
    pub fn through(&self, agent: &Agent) -> Process {
        Process {
            agent: agent.clone(),
            ..self.clone()
        }
    }

    /// A request that asks for this process's exit code.
    pub fn wait_request(&self) -> WaitProcessRequest {
        let mut request = WaitProcessRequest::new();
        request.container_id = self.cid.to_string();
        request.exec_id = self.exec.to_string();
        request
    }

    /// Asks for the exit code, which may take as long as the process lives.
    pub async fn try_wait(&self) -> Result<i32, Refusal> {
        Ok(self.rpc().wait_process(&self.wait_request()).await?.status)
    }

    /// The exit code; 128 + N for death by signal N.
    pub async fn wait(&self) -> i32 {
        self.try_wait()
            .await
            .unwrap_or_else(|e| panic!("WaitProcess {} {}: {e}", self.cid, self.exec))
    }

    /// Asks for a signal to be sent.
    pub async fn try_signal(&self, signal: u32) -> Result<(), Refusal> {
        let mut request = SignalProcessRequest::new();
        request.container_id = self.cid.to_string();
        request.exec_id = self.exec.to_string();
        request.signal = signal;
        self.rpc().signal_process(&request).await.map(drop)
    }

    /// Sends a signal to this process.
    pub async fn signal(&self, signal: u32) {
        self.try_signal(signal)
            .await
            .unwrap_or_else(|e| panic!("SignalProcess {signal} {} {}: {e}", self.cid, self.exec));
    }

    /// Asks for at most `len` bytes of output.
    pub async fn try_read(&self, stream: Stream, len: u32) -> Result<Vec<u8>, Refusal> {
        let mut request = ReadStreamRequest::new();
        request.container_id = self.cid.to_string();
        request.exec_id = self.exec.to_string();
        request.len = len;
        let answer = match stream {
            Stream::Stdout => self.rpc().read_stdout(&request).await?,
            Stream::Stderr => self.rpc().read_stderr(&request).await?,
        };
        Ok(answer.data)
    }

    /// The next piece of output; empty at its end.
    pub async fn read(&self, stream: Stream) -> Vec<u8> {
        self.try_read(stream, READ)
            .await
            .unwrap_or_else(|e| panic!("Read {stream:?} of {} {}: {e}", self.cid, self.exec))
    }

    /// All output that is still to come.
    pub async fn read_to_end(&self, stream: Stream) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let piece = self.read(stream).await;
            if piece.is_empty() {
                return all;
            }
            all.extend_from_slice(&piece);
        }
    }

    /// Reads standard output until it contains `text`, and gives what was read.
    pub async fn expect(&self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            let piece = self.read(Stream::Stdout).await;
            assert!(
                !piece.is_empty(),
                "the output ended before {text:?}: {seen:?}"
            );
            seen.push_str(&String::from_utf8_lossy(&piece));
        }
        seen
    }

    /// Reads both streams to their ends, as a host does, then waits.
    pub async fn output(&self) -> Output {
        let (stdout, stderr) = tokio::join!(
            self.read_to_end(Stream::Stdout),
            self.read_to_end(Stream::Stderr)
        );
        Output {
            code: self.wait().await,
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }

    /// Asks for bytes to be written to standard input.
    pub async fn try_write(&self, data: &[u8]) -> Result<u32, Refusal> {
        let mut request = WriteStreamRequest::new();
        request.container_id = self.cid.to_string();
        request.exec_id = self.exec.to_string();
        request.data = data.to_vec();
        Ok(self.rpc().write_stdin(&request).await?.len)
    }

    /// Writes all of `data` to standard input. Nothing is end of file.
    pub async fn write(&self, data: &[u8]) {
        let written = self
            .try_write(data)
            .await
            .unwrap_or_else(|e| panic!("WriteStdin {} {}: {e}", self.cid, self.exec));
        assert_eq!(
            written as usize,
            data.len(),
            "WriteStdin takes all of the data"
        );
    }

    /// Asks for standard input to be closed.
    pub async fn try_close_stdin(&self) -> Result<(), Refusal> {
        let mut request = CloseStdinRequest::new();
        request.container_id = self.cid.to_string();
        request.exec_id = self.exec.to_string();
        self.rpc().close_stdin(&request).await.map(drop)
    }

    /// Closes standard input.
    pub async fn close_stdin(&self) {
        self.try_close_stdin()
            .await
            .unwrap_or_else(|e| panic!("CloseStdin {} {}: {e}", self.cid, self.exec));
    }

    /// Asks for a terminal size.
    pub async fn try_resize(&self, rows: u32, columns: u32) -> Result<(), Refusal> {
        let mut request = TtyWinResizeRequest::new();
        request.container_id = self.cid.to_string();
        request.exec_id = self.exec.to_string();
        request.row = rows;
        request.column = columns;
        self.rpc().tty_win_resize(&request).await.map(drop)
    }

    /// Sets the terminal's size.
    pub async fn resize(&self, rows: u32, columns: u32) {
        self.try_resize(rows, columns)
            .await
            .unwrap_or_else(|e| panic!("TtyWinResize {} {}: {e}", self.cid, self.exec));
    }
}
