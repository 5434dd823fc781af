// SPDX-License-Identifier: Apache-2.0
//! The agent as a Kata host sees it: the generated clients of both services over one connection.
//!
//! Knows how to reach an agent and how to name a refusal; containers and processes are `container`'s.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use protocols::agent::*;
use protocols::agent_ttrpc::AgentServiceClient;
use protocols::csi::VolumeStatsResponse;
use protocols::empty::Empty;
use protocols::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use protocols::health_ttrpc::HealthClient;
use protocols::types::Interface;
use tokio::net::UnixStream;
pub use ttrpc::Code;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::Context;

use crate::container::{Builder, Output};
use crate::wire::Wire;

/// How to open a connection to an agent's RPC port.
pub type Connect = dyn Fn() -> Pin<Box<dyn Future<Output = UnixStream> + Send>> + Send + Sync;

/// An answer that is not OK.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The status code; `None` when the connection broke and there was no answer.
    pub code: Option<Code>,
    /// The status text.
    pub text: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => write!(f, "{code:?}: {}", self.text),
            None => write!(f, "no answer: {}", self.text),
        }
    }
}

impl From<ttrpc::Error> for Refusal {
    fn from(error: ttrpc::Error) -> Refusal {
        match error {
            ttrpc::Error::RpcStatus(status) => Refusal {
                code: status.code.enum_value().ok(),
                text: status.message,
            },
            other => Refusal {
                code: None,
                text: other.to_string(),
            },
        }
    }
}

/// Insists that a call was refused with `code` and a text that contains `part`.
#[track_caller]
pub fn expect_refusal<T: fmt::Debug>(result: Result<T, Refusal>, code: Code, part: &str) {
    match result {
        Ok(answer) => panic!("Expected {code:?}, got an answer: {answer:?}"),
        Err(refusal) => {
            assert_eq!(refusal.code, Some(code), "{refusal}");
            assert!(
                refusal.text.contains(part),
                "{part:?} is not in the text of {refusal}"
            );
        }
    }
}

/// Declares one method per RPC of the agent service, each taking its request and giving the answer or the refusal.
macro_rules! agent_calls {
    ($($method:ident($request:ty) -> $answer:ty;)*) => {
        impl Rpc {
            $(
                #[doc = concat!("The RPC `", stringify!($method), "`.")]
                pub async fn $method(&self, request: &$request) -> Result<$answer, Refusal> {
                    Ok(self.agent.$method(Context::default(), request).await?)
                }
            )*
        }
    };
}

/// One connection to an agent.
#[derive(Clone)]
pub struct Rpc {
    agent: AgentServiceClient,
    health: HealthClient,
}

agent_calls! {
    create_sandbox(CreateSandboxRequest) -> Empty;
    destroy_sandbox(DestroySandboxRequest) -> Empty;
    create_container(CreateContainerRequest) -> Empty;
    start_container(StartContainerRequest) -> Empty;
    remove_container(RemoveContainerRequest) -> Empty;
    exec_process(ExecProcessRequest) -> Empty;
    signal_process(SignalProcessRequest) -> Empty;
    wait_process(WaitProcessRequest) -> WaitProcessResponse;
    get_volume_stats(VolumeStatsRequest) -> VolumeStatsResponse;
    resize_volume(ResizeVolumeRequest) -> Empty;
    add_swap(AddSwapRequest) -> Empty;
    add_swap_path(AddSwapPathRequest) -> Empty;
    write_stdin(WriteStreamRequest) -> WriteStreamResponse;
    read_stdout(ReadStreamRequest) -> ReadStreamResponse;
    read_stderr(ReadStreamRequest) -> ReadStreamResponse;
    close_stdin(CloseStdinRequest) -> Empty;
    tty_win_resize(TtyWinResizeRequest) -> Empty;
    get_guest_details(GuestDetailsRequest) -> GuestDetailsResponse;
    set_guest_date_time(SetGuestDateTimeRequest) -> Empty;
    online_cpu_mem(OnlineCPUMemRequest) -> Empty;
    mem_hotplug_by_probe(MemHotplugByProbeRequest) -> Empty;
    reseed_random_dev(ReseedRandomDevRequest) -> Empty;
    copy_file(CopyFileRequest) -> Empty;
    update_interface(UpdateInterfaceRequest) -> Interface;
    update_routes(UpdateRoutesRequest) -> Routes;
    add_arp_neighbors(AddARPNeighborsRequest) -> Empty;
    get_ip_tables(GetIPTablesRequest) -> GetIPTablesResponse;
    set_ip_tables(SetIPTablesRequest) -> SetIPTablesResponse;
    list_interfaces(ListInterfacesRequest) -> Interfaces;
    list_routes(ListRoutesRequest) -> Routes;
    update_container(UpdateContainerRequest) -> Empty;
    stats_container(StatsContainerRequest) -> StatsContainerResponse;
    pause_container(PauseContainerRequest) -> Empty;
    resume_container(ResumeContainerRequest) -> Empty;
    get_oom_event(GetOOMEventRequest) -> OOMEvent;
    update_ephemeral_mounts(UpdateEphemeralMountsRequest) -> Empty;
    remove_stale_virtiofs_share_mounts(RemoveStaleVirtiofsShareMountsRequest) -> Empty;
    get_diagnostic_data(GetDiagnosticDataRequest) -> GetDiagnosticDataResponse;
}

impl Rpc {
    /// Speaks ttrpc over a connected socket. Must be called within the stories' runtime.
    pub fn over(stream: UnixStream) -> Rpc {
        let client = Client::new(Socket::new(stream));
        Rpc {
            agent: AgentServiceClient::new(client.clone()),
            health: HealthClient::new(client),
        }
    }

    /// Health.Check.
    pub async fn check(&self) -> Result<HealthCheckResponse, Refusal> {
        Ok(self
            .health
            .check(Context::default(), &CheckRequest::new())
            .await?)
    }

    /// Health.Version.
    pub async fn version(&self) -> Result<VersionCheckResponse, Refusal> {
        Ok(self
            .health
            .version(Context::default(), &CheckRequest::new())
            .await?)
    }
}

/// An agent that can be reached, with a connection to it and the root file system that its containers use.
#[derive(Clone)]
pub struct Agent {
    rpc: Rpc,
    connect: Arc<Connect>,
    rootfs: Arc<str>,
    scope: Arc<str>,
}

impl Agent {
    /// Opens a connection. `rootfs` is the tests' root file system as the agent sees it, `scope` the cgroup that holds those of its
    /// containers.
    pub async fn reach(connect: Arc<Connect>, rootfs: &str, scope: &str) -> Agent {
        let rpc = Rpc::over(connect().await);
        Agent {
            rpc,
            connect,
            rootfs: rootfs.into(),
            scope: scope.into(),
        }
    }

    /// The connection that the vocabulary uses, for calls it has no word for.
    pub fn rpc(&self) -> &Rpc {
        &self.rpc
    }

    /// The same agent over a connection of its own.
    pub async fn another_connection(&self) -> Agent {
        Agent::reach(self.connect.clone(), &self.rootfs, &self.scope).await
    }

    /// Closes the connection, if nobody else holds it; nothing can be asked until [`Agent::come_back`].
    pub fn leave(&mut self) {
        let (nowhere, _) = UnixStream::pair().expect("a pair of sockets");
        self.rpc = Rpc::over(nowhere);
    }

    /// Opens a connection again.
    pub async fn come_back(&mut self) {
        self.rpc = Rpc::over((self.connect)().await);
    }

    /// A connection for bare frames.
    pub async fn wire(&self) -> Wire {
        Wire::new((self.connect)().await)
    }

    /// The path of the tests' root file system in the guest.
    pub fn rootfs(&self) -> &str {
        &self.rootfs
    }

    /// The cgroup that holds those of the containers.
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// Insists that the agent answers, on the connection in use and on a new one.
    pub async fn expect_alive(&self) {
        self.rpc.check().await.expect("Check is answered");
        self.wire().await.expect_alive().await;
    }

    /// Begins a container with this id.
    pub fn container(&self, id: &str) -> Builder {
        Builder::new(self.clone(), id)
    }

    /// Runs a shell script in a container of its own, to its end, and removes the container.
    pub async fn sh(&self, id: &str, script: &str) -> Output {
        self.container(id).sh(script).run().await
    }
}
