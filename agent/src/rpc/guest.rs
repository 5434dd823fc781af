// SPDX-License-Identifier: Apache-2.0
//! GetGuestDetails, ReseedRandomDev, SetGuestDateTime, OnlineCPUMem, MemHotplugByProbe.

use std::sync::Arc;

use protocols::agent::{
    AgentDetails, GuestDetailsRequest, GuestDetailsResponse, MemHotplugByProbeRequest,
    OnlineCPUMemRequest, ReseedRandomDevRequest, SetGuestDateTimeRequest,
};
use protocols::empty::Empty;

use super::health::PROTOCOL_VERSION;
use super::status::Coded;
use crate::hotplug::OnlinePlan;
use crate::sandbox::Sandbox;
use crate::{device, guest, storage};

pub fn details(
    request: &GuestDetailsRequest,
    is_init: bool,
) -> ttrpc::Result<GuestDetailsResponse> {
    let mut response = GuestDetailsResponse::new();
    if request.mem_block_size {
        response.mem_block_size_bytes = guest::memory_block_size().map_err(Coded::status)?;
    }
    if request.mem_hotplug_probe {
        response.support_mem_hotplug_probe = guest::has_memory_probe().map_err(Coded::status)?;
    }
    response.agent_details = Some(AgentDetails {
        version: PROTOCOL_VERSION.to_owned(),
        init_daemon: is_init,
        device_handlers: device::types().map(str::to_owned).collect(),
        storage_handlers: storage::drivers().map(str::to_owned).collect(),
        supports_seccomp: true,
        extra_features: vec!["seccomp".to_owned()],
        ..Default::default()
    })
    .into();
    Ok(response)
}

pub fn reseed(request: &ReseedRandomDevRequest) -> ttrpc::Result<Empty> {
    guest::reseed_random(&request.data).map_err(Coded::status)?;
    Ok(Empty::new())
}

pub fn set_date_time(request: &SetGuestDateTimeRequest) -> ttrpc::Result<Empty> {
    guest::set_date_time(request.Sec, request.Usec).map_err(Coded::status)?;
    Ok(Empty::new())
}

/// `wait` changes nothing: hosts that do not set it rely on the answer too.
pub async fn online(sandbox: &Arc<Sandbox>, request: &OnlineCPUMemRequest) -> ttrpc::Result<Empty> {
    let plan = OnlinePlan {
        cpus: request.nb_cpus,
        memory: !request.cpu_only,
    };
    let done = sandbox.devices().online(plan).await;
    done.map_err(Coded::status)?;
    Ok(Empty::new())
}

pub async fn probe_memory(
    sandbox: &Arc<Sandbox>,
    request: MemHotplugByProbeRequest,
) -> ttrpc::Result<Empty> {
    let addresses = request.memHotplugProbeAddr;
    let probed = sandbox.devices().probe_memory(addresses).await;
    probed.map_err(Coded::status)?;
    Ok(Empty::new())
}
