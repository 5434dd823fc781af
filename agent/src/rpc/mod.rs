// SPDX-License-Identifier: Apache-2.0
//! The services of the Kata agent protocol. A handler decodes, has the request
//! checked into a plan, acts, and encodes; nothing below sees protobuf.
//!
//! One file per family of methods; [`missing`] is the table of those that this
//! version does not serve.

mod container;
mod files;
pub mod gate;
mod guest;
mod health;
pub mod missing;
mod network;
mod process;
mod sandbox;
mod stats;
pub mod status;
mod stdio;
mod storage;
mod volume;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use protocols::agent::*;
use protocols::agent_ttrpc::{AgentService, create_agent_service};
use protocols::csi::VolumeStatsResponse;
use protocols::empty::Empty;
use protocols::health_ttrpc::create_health;
use protocols::types::Interface;
use ttrpc::r#async::{Service, TtrpcContext};

use crate::files::CopyRoot;
use crate::sandbox::Sandbox;

pub use health::API_VERSION;

/// The wire name of the agent's service.
pub const AGENT_SERVICE: &str = "grpc.AgentService";

/// What the handlers work on.
pub struct Agent {
    sandbox: Arc<Sandbox>,
    copies: Arc<CopyRoot>,
    is_init: bool,
}

/// Both services, ready to be registered. `is_init` tells hosts whether the
/// agent is PID 1; all but Health wait for `booted`.
#[must_use]
pub fn services(
    sandbox: Arc<Sandbox>,
    is_init: bool,
    booted: &gate::Booted,
) -> HashMap<String, Service> {
    let root = PathBuf::from(crate::files::SHARED_ROOT);
    let agent = Agent {
        sandbox,
        copies: Arc::new(CopyRoot::new(root)),
        is_init,
    };
    let mut all = create_agent_service(Arc::new(agent));
    if let Some(service) = all.get_mut(AGENT_SERVICE) {
        missing::install(service);
        gate::install(service, booted);
    }
    all.extend(create_health(Arc::new(health::Health)));
    all
}

type Reply<T> = ttrpc::Result<T>;

#[async_trait]
impl AgentService for Agent {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> Reply<Empty> {
        sandbox::create(&self.sandbox, request).await
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, _: DestroySandboxRequest) -> Reply<Empty> {
        sandbox::destroy(&self.sandbox).await
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> Reply<Empty> {
        container::create(&self.sandbox, request).await
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: StartContainerRequest,
    ) -> Reply<Empty> {
        container::start(&self.sandbox, &request).await
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> Reply<Empty> {
        container::update(&self.sandbox, &request).await
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: PauseContainerRequest,
    ) -> Reply<Empty> {
        container::pause(&self.sandbox, &request.container_id).await
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: ResumeContainerRequest,
    ) -> Reply<Empty> {
        container::resume(&self.sandbox, &request.container_id)
    }

    async fn get_diagnostic_data(
        &self,
        _: &TtrpcContext,
        request: GetDiagnosticDataRequest,
    ) -> Reply<GetDiagnosticDataResponse> {
        container::diagnostics(&self.sandbox, &request).await
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        request: RemoveContainerRequest,
    ) -> Reply<Empty> {
        container::remove(&self.sandbox, &request).await
    }

    async fn exec_process(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Reply<Empty> {
        process::exec(&self.sandbox, request).await
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> Reply<Empty> {
        process::signal(&self.sandbox, &request).await
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: WaitProcessRequest,
    ) -> Reply<WaitProcessResponse> {
        process::wait(&self.sandbox, &request).await
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        request: WriteStreamRequest,
    ) -> Reply<WriteStreamResponse> {
        stdio::write(&self.sandbox, &request).await
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        request: ReadStreamRequest,
    ) -> Reply<ReadStreamResponse> {
        stdio::read(&self.sandbox, &request, stdio::Stream::Stdout).await
    }

    async fn read_stderr(
        &self,
        _: &TtrpcContext,
        request: ReadStreamRequest,
    ) -> Reply<ReadStreamResponse> {
        stdio::read(&self.sandbox, &request, stdio::Stream::Stderr).await
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: CloseStdinRequest) -> Reply<Empty> {
        stdio::close(&self.sandbox, &request).await
    }

    async fn tty_win_resize(&self, _: &TtrpcContext, request: TtyWinResizeRequest) -> Reply<Empty> {
        stdio::resize(&self.sandbox, &request)
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        request: StatsContainerRequest,
    ) -> Reply<StatsContainerResponse> {
        stats::container(&self.sandbox, &request).await
    }

    async fn get_oom_event(&self, _: &TtrpcContext, _: GetOOMEventRequest) -> Reply<OOMEvent> {
        stats::oom_event(&self.sandbox).await
    }

    async fn update_interface(
        &self,
        _: &TtrpcContext,
        request: UpdateInterfaceRequest,
    ) -> Reply<Interface> {
        network::update_interface(&self.sandbox, request).await
    }

    async fn update_routes(&self, _: &TtrpcContext, request: UpdateRoutesRequest) -> Reply<Routes> {
        network::update_routes(&self.sandbox, &request).await
    }

    async fn add_arp_neighbors(
        &self,
        _: &TtrpcContext,
        request: AddARPNeighborsRequest,
    ) -> Reply<Empty> {
        network::add_neighbours(&self.sandbox, &request).await
    }

    async fn get_ip_tables(
        &self,
        _: &TtrpcContext,
        request: GetIPTablesRequest,
    ) -> Reply<GetIPTablesResponse> {
        network::get_tables(&self.sandbox, &request).await
    }

    async fn set_ip_tables(
        &self,
        _: &TtrpcContext,
        request: SetIPTablesRequest,
    ) -> Reply<SetIPTablesResponse> {
        network::set_tables(&self.sandbox, request).await
    }

    async fn update_ephemeral_mounts(
        &self,
        _: &TtrpcContext,
        request: UpdateEphemeralMountsRequest,
    ) -> Reply<Empty> {
        storage::update_ephemeral(&request).await
    }

    async fn remove_stale_virtiofs_share_mounts(
        &self,
        _: &TtrpcContext,
        _: RemoveStaleVirtiofsShareMountsRequest,
    ) -> Reply<Empty> {
        storage::look_at_shares().await
    }

    async fn list_interfaces(
        &self,
        _: &TtrpcContext,
        _: ListInterfacesRequest,
    ) -> Reply<Interfaces> {
        network::list_interfaces(&self.sandbox).await
    }

    async fn list_routes(&self, _: &TtrpcContext, _: ListRoutesRequest) -> Reply<Routes> {
        network::list_routes(&self.sandbox).await
    }

    async fn reseed_random_dev(
        &self,
        _: &TtrpcContext,
        request: ReseedRandomDevRequest,
    ) -> Reply<Empty> {
        guest::reseed(&request)
    }

    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        request: GuestDetailsRequest,
    ) -> Reply<GuestDetailsResponse> {
        guest::details(&request, self.is_init)
    }

    async fn online_cpu_mem(&self, _: &TtrpcContext, request: OnlineCPUMemRequest) -> Reply<Empty> {
        guest::online(&self.sandbox, &request).await
    }

    async fn mem_hotplug_by_probe(
        &self,
        _: &TtrpcContext,
        request: MemHotplugByProbeRequest,
    ) -> Reply<Empty> {
        guest::probe_memory(&self.sandbox, request).await
    }

    async fn set_guest_date_time(
        &self,
        _: &TtrpcContext,
        request: SetGuestDateTimeRequest,
    ) -> Reply<Empty> {
        guest::set_date_time(&request)
    }

    async fn copy_file(&self, _: &TtrpcContext, request: CopyFileRequest) -> Reply<Empty> {
        files::copy(&self.copies, request).await
    }

    async fn get_volume_stats(
        &self,
        _: &TtrpcContext,
        request: VolumeStatsRequest,
    ) -> Reply<VolumeStatsResponse> {
        volume::stats(&request).await
    }

    async fn resize_volume(&self, _: &TtrpcContext, request: ResizeVolumeRequest) -> Reply<Empty> {
        volume::resize(&self.sandbox, &request).await
    }

    async fn add_swap(&self, _: &TtrpcContext, request: AddSwapRequest) -> Reply<Empty> {
        volume::add_swap(&self.sandbox, &request).await
    }

    async fn add_swap_path(&self, _: &TtrpcContext, request: AddSwapPathRequest) -> Reply<Empty> {
        volume::add_swap_path(&self.sandbox, &request).await
    }
}
