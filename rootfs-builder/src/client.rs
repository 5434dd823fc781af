// SPDX-License-Identifier: Apache-2.0
//! A thin client of the agent: one connection for both services, one method per RPC that the tools and tests need.
//!
//! Owns the time limits and the shape of errors. It knows nothing of VMs beyond asking one for a connection, and keeps no state about containers.

use std::path::Path;
use std::time::{Duration, Instant};

use protobuf::MessageField;
use protocols::chunked::ChunkedStream;
use protocols::{agent, agent_ttrpc::AgentServiceClient, health, health_ttrpc::HealthClient, oci};
use tokio::net::UnixStream;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::{Context, with_duration};

use crate::vm::{Vm, VmError, vsock};

/// The port on which the agent serves (protocol section 1.6).
pub const AGENT_PORT: u32 = 1024;
/// The limit for everything that the agent does at once.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// The limit for creating a container: storages, mounts and a process, on a guest that may be emulated.
const CREATE_TIMEOUT: Duration = Duration::from_secs(120);
/// The limit of one Check while the agent may still be starting.
const FIRST_CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// No limit: the call lasts as long as the process it is about.
const NO_TIMEOUT: Duration = Duration::ZERO;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The agent answered with an error.
    #[error("{method}: {text} ({code:?})")]
    Status {
        /// The RPC.
        method: &'static str,
        /// The status code.
        code: ttrpc::Code,
        /// The agent's text.
        text: String,
    },
    /// The call got no answer.
    #[error("{method}: no answer from the agent")]
    Connection {
        /// The RPC.
        method: &'static str,
        /// What happened to the connection.
        source: ttrpc::Error,
    },
    /// No connection to the guest could be made.
    #[error("No connection to the agent")]
    Vm(#[from] VmError),
}

impl ClientError {
    fn new(method: &'static str, source: ttrpc::Error) -> ClientError {
        match source {
            ttrpc::Error::RpcStatus(status) => ClientError::Status {
                method,
                code: status.code.enum_value().unwrap_or(ttrpc::Code::UNKNOWN),
                text: status.message,
            },
            source => ClientError::Connection { method, source },
        }
    }

    /// The agent's status code, if it was the agent that refused.
    pub fn code(&self) -> Option<ttrpc::Code> {
        match self {
            ClientError::Status { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// The agent's error text, if it was the agent that refused.
    pub fn text(&self) -> Option<&str> {
        match self {
            ClientError::Status { text, .. } => Some(text),
            _ => None,
        }
    }
}

/// One of a process's two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output; a terminal's only stream.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One process of a container, as the protocol names it. The container's first process has the container's id as its exec id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// The container's id.
    pub container: String,
    /// The process's id.
    pub exec: String,
}

impl Process {
    /// The first process of a container.
    pub fn init(container: &str) -> Process {
        Process::exec(container, container)
    }

    /// A process started by ExecProcess.
    pub fn exec(container: &str, exec: &str) -> Process {
        Process {
            container: container.to_owned(),
            exec: exec.to_owned(),
        }
    }
}

/// A connection to an agent. Clones share it; calls may run side by side.
#[derive(Clone)]
pub struct Agent {
    agent: AgentServiceClient,
    health: HealthClient,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Agent")
    }
}

/// Calls `$method` of `$client` and gives an error its name on the wire.
macro_rules! call {
    ($client:expr, $method:ident, $name:literal, $timeout:expr, $request:expr) => {
        $client
            .$method(context($timeout), &$request)
            .await
            .map_err(|e| ClientError::new($name, e))
    };
}

impl Agent {
    /// A client on a connected stream. Must be called inside a tokio runtime, which the connection then belongs to.
    pub fn new(stream: UnixStream) -> Agent {
        let client = ttrpc::r#async::Client::new(Socket::new(ChunkedStream::new(stream)));
        Agent {
            agent: AgentServiceClient::new(client.clone()),
            health: HealthClient::new(client),
        }
    }

    /// Connects to the agent in `vm` and waits until it answers a Check, at most `timeout` in all.
    pub async fn connect(vm: &Vm, timeout: Duration) -> Result<Agent, ClientError> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let agent = Agent::new(vm.connect_within(AGENT_PORT, left).await?);
            match agent.first_check(deadline).await {
                Ok(()) => return Ok(agent),
                // The device may accept a connection that the guest then refuses.
                Err(ClientError::Connection { .. })
                    if Instant::now() < deadline && vm.exited().is_none() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Connects through a hybrid-vsock unix socket, once.
    pub async fn connect_hybrid(socket: &Path, port: u32) -> Result<Agent, ClientError> {
        Ok(Agent::new(vsock::connect(socket, port).await?))
    }

    async fn first_check(&self, deadline: Instant) -> Result<(), ClientError> {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        let request = health::CheckRequest::new();
        call!(
            self.health,
            check,
            "Check",
            left.min(FIRST_CHECK_TIMEOUT),
            request
        )
        .map(drop)
    }

    /// The generated client of `grpc.AgentService`, for calls that have no method here.
    pub fn service(&self) -> &AgentServiceClient {
        &self.agent
    }

    /// The generated client of `grpc.Health`.
    pub fn health(&self) -> &HealthClient {
        &self.health
    }

    /// Health.Check.
    pub async fn check(&self) -> Result<health::HealthCheckResponse, ClientError> {
        call!(
            self.health,
            check,
            "Check",
            CALL_TIMEOUT,
            health::CheckRequest::new()
        )
    }

    /// Health.Version.
    pub async fn version(&self) -> Result<health::VersionCheckResponse, ClientError> {
        call!(
            self.health,
            version,
            "Version",
            CALL_TIMEOUT,
            health::CheckRequest::new()
        )
    }

    /// GetGuestDetails, both questions asked.
    pub async fn guest_details(&self) -> Result<agent::GuestDetailsResponse, ClientError> {
        let request = agent::GuestDetailsRequest {
            mem_block_size: true,
            mem_hotplug_probe: true,
            ..Default::default()
        };
        call!(
            self.agent,
            get_guest_details,
            "GetGuestDetails",
            CALL_TIMEOUT,
            request
        )
    }

    /// CreateSandbox.
    pub async fn create_sandbox(
        &self,
        request: &agent::CreateSandboxRequest,
    ) -> Result<(), ClientError> {
        call!(
            self.agent,
            create_sandbox,
            "CreateSandbox",
            CREATE_TIMEOUT,
            *request
        )
        .map(drop)
    }

    /// DestroySandbox. A PID 1 agent powers the VM off, so that the answer may be lost.
    pub async fn destroy_sandbox(&self) -> Result<(), ClientError> {
        let request = agent::DestroySandboxRequest::new();
        call!(
            self.agent,
            destroy_sandbox,
            "DestroySandbox",
            CALL_TIMEOUT,
            request
        )
        .map(drop)
    }

    /// CreateContainer.
    pub async fn create_container(
        &self,
        request: &agent::CreateContainerRequest,
    ) -> Result<(), ClientError> {
        call!(
            self.agent,
            create_container,
            "CreateContainer",
            CREATE_TIMEOUT,
            *request
        )
        .map(drop)
    }

    /// StartContainer.
    pub async fn start_container(&self, container: &str) -> Result<(), ClientError> {
        let request = agent::StartContainerRequest {
            container_id: container.into(),
            ..Default::default()
        };
        call!(
            self.agent,
            start_container,
            "StartContainer",
            CALL_TIMEOUT,
            request
        )
        .map(drop)
    }

    /// RemoveContainer; `timeout` in seconds, 0 for none.
    pub async fn remove_container(&self, container: &str, timeout: u32) -> Result<(), ClientError> {
        let request = agent::RemoveContainerRequest {
            container_id: container.into(),
            timeout,
            ..Default::default()
        };
        call!(
            self.agent,
            remove_container,
            "RemoveContainer",
            CALL_TIMEOUT,
            request
        )
        .map(drop)
    }

    /// ExecProcess.
    pub async fn exec_process(
        &self,
        id: &Process,
        process: oci::Process,
    ) -> Result<(), ClientError> {
        let request = agent::ExecProcessRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            process: MessageField::some(process),
            ..Default::default()
        };
        call!(
            self.agent,
            exec_process,
            "ExecProcess",
            CALL_TIMEOUT,
            request
        )
        .map(drop)
    }

    /// SignalProcess. An empty exec id with SIGKILL means every process of the container.
    pub async fn signal(&self, id: &Process, signal: i32) -> Result<(), ClientError> {
        let request = agent::SignalProcessRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            signal: signal.unsigned_abs(),
            ..Default::default()
        };
        call!(
            self.agent,
            signal_process,
            "SignalProcess",
            CALL_TIMEOUT,
            request
        )
        .map(drop)
    }

    /// WaitProcess: waits for the end of a process, without limit. Its exit code, or 128 + the signal's number.
    pub async fn wait(&self, id: &Process) -> Result<i32, ClientError> {
        let request = agent::WaitProcessRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            ..Default::default()
        };
        let response = call!(self.agent, wait_process, "WaitProcess", NO_TIMEOUT, request)?;
        Ok(response.status)
    }

    /// WriteStdin, without limit: a process that does not read holds its writer back.
    pub async fn write_stdin(&self, id: &Process, data: Vec<u8>) -> Result<u32, ClientError> {
        let request = agent::WriteStreamRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            data,
            ..Default::default()
        };
        let response = call!(self.agent, write_stdin, "WriteStdin", NO_TIMEOUT, request)?;
        Ok(response.len)
    }

    /// CloseStdin.
    pub async fn close_stdin(&self, id: &Process) -> Result<(), ClientError> {
        let request = agent::CloseStdinRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            ..Default::default()
        };
        call!(self.agent, close_stdin, "CloseStdin", CALL_TIMEOUT, request).map(drop)
    }

    /// ReadStdout or ReadStderr: waits, without limit, for at least a byte and returns at most `len`; nothing at the end of the stream.
    pub async fn read(
        &self,
        id: &Process,
        output: Output,
        len: u32,
    ) -> Result<Vec<u8>, ClientError> {
        let request = agent::ReadStreamRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            len,
            ..Default::default()
        };
        let response = match output {
            Output::Stdout => call!(self.agent, read_stdout, "ReadStdout", NO_TIMEOUT, request)?,
            Output::Stderr => call!(self.agent, read_stderr, "ReadStderr", NO_TIMEOUT, request)?,
        };
        Ok(response.data)
    }

    /// Everything that is left of an output stream.
    pub async fn read_to_end(&self, id: &Process, output: Output) -> Result<Vec<u8>, ClientError> {
        let mut all = Vec::new();
        loop {
            let piece = self.read(id, output, 64 * 1024).await?;
            if piece.is_empty() {
                return Ok(all);
            }
            all.extend_from_slice(&piece);
        }
    }

    /// TtyWinResize.
    pub async fn resize(&self, id: &Process, rows: u16, columns: u16) -> Result<(), ClientError> {
        let request = agent::TtyWinResizeRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            row: rows.into(),
            column: columns.into(),
            ..Default::default()
        };
        call!(
            self.agent,
            tty_win_resize,
            "TtyWinResize",
            CALL_TIMEOUT,
            request
        )
        .map(drop)
    }
}

fn context(timeout: Duration) -> Context {
    with_duration(timeout)
}

#[cfg(test)]
pub(crate) mod fake;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_services_share_a_connection_and_streams_end() {
        let (_server, agent, _) = fake::serve().await;
        agent.check().await.unwrap();
        let id = Process::init("c1");
        let data = vec![b'x'; 3000];
        assert_eq!(agent.write_stdin(&id, data.clone()).await.unwrap(), 3000);
        agent.close_stdin(&id).await.unwrap();
        assert_eq!(agent.read_to_end(&id, Output::Stdout).await.unwrap(), data);
    }

    #[tokio::test]
    async fn the_agents_errors_keep_code_and_text() {
        let (_server, agent, _) = fake::serve().await;
        let id = Process::init(fake::GONE);
        let error = agent.read(&id, Output::Stdout, 1).await.unwrap_err();
        assert_eq!(error.code(), Some(ttrpc::Code::NOT_FOUND));
        let text = "ReadStdout: Container gone is unknown (NOT_FOUND)";
        assert_eq!(error.to_string(), text);
    }

    #[tokio::test]
    async fn a_lost_connection_is_told_apart() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        let error = Agent::new(near).check().await.unwrap_err();
        let lost = matches!(error, ClientError::Connection { method, .. } if method == "Check");
        assert!(lost, "{error}");
    }
}
