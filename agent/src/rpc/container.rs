// SPDX-License-Identifier: Apache-2.0
//! CreateContainer, StartContainer, UpdateContainer, PauseContainer,
//! ResumeContainer, GetDiagnosticData, RemoveContainer.

use std::sync::Arc;
use std::time::Duration;

use protocols::agent::{
    CreateContainerRequest, GetDiagnosticDataRequest, GetDiagnosticDataResponse,
    RemoveContainerRequest, StartContainerRequest, Storage, UpdateContainerRequest,
};
use protocols::convert::{resources_from_wire, spec_from_wire};
use protocols::empty::Empty;
use ttrpc::Code;

use super::status::{Coded, failure, lifecycle, missing};
use crate::confidential::pause;
use crate::container::plan::{ContainerId, PlanError, id::shorten, spec};
use crate::container::{bundle, share};
use crate::device::Claims;
use crate::sandbox::{CreatePlan, DeviceRequest, Sandbox, SandboxError};
use crate::storage::{GUEST_PULL, StoragePlan};

pub async fn create(
    sandbox: &Arc<Sandbox>,
    request: CreateContainerRequest,
) -> ttrpc::Result<Empty> {
    let plan = plan(sandbox, request)?;
    sandbox
        .create_container(plan)
        .await
        .map_err(Coded::status)?;
    Ok(Empty::new())
}

fn plan(sandbox: &Sandbox, request: CreateContainerRequest) -> ttrpc::Result<CreatePlan> {
    let id = ContainerId::parse(&request.container_id).map_err(Coded::status)?;
    let wire = request.OCI.as_ref().ok_or_else(|| missing("OCI"))?;
    let mut oci = spec_from_wire(wire).map_err(|e| PlanError::from(e).status())?;
    let shares = share::plan_all(&request.shared_mounts).map_err(Coded::status)?;
    let ports = [request.stdin_port, request.stdout_port, request.stderr_port];
    let ports = passed_ports(sandbox, ports)?;
    let bundle = bundle::path_of(&id);
    let pulls = pulls(&request.storages)?;
    let storages = StoragePlan::all_from_wire(&request.storages, Some(&bundle));
    let storages = storages.map_err(Coded::status)?;
    let container = spec::plan(id, &oci, request.sandbox_pidns);
    let mut container = container.map_err(Coded::status)?;
    container.process.ports = ports;
    if pulls && let Some(root) = &mut container.init.root {
        // Whatever the host says: it cannot know.
        root.path = bundle.join("rootfs").to_string_lossy().into_owned();
    }
    let pause =
        pulls && pause::is_sandbox(|key| container.annotations.get(key).map(String::as_str));
    let claims = Claims::from_wire(&request.devices, &oci).map_err(Coded::status)?;
    let described = sandbox.described_devices(&oci).map_err(Coded::status)?;
    if claims.is_empty() && described.is_empty() {
        let config = sandbox.config(&mut oci, &bundle).map_err(Coded::status)?;
        return Ok(CreatePlan {
            storages,
            container,
            shares,
            pause,
            config,
            devices: None,
        });
    }
    let devices = DeviceRequest {
        claims,
        described,
        spec: oci,
        shares_pid: request.sandbox_pidns,
        ports,
    };
    Ok(CreatePlan {
        storages,
        container,
        shares,
        pause,
        config: None,
        devices: Some(Box::new(devices)),
    })
}

/// Whether the container's root comes from an image pulled in the guest.
fn pulls(storages: &[Storage]) -> ttrpc::Result<bool> {
    let pulled = storages.iter().filter(|s| s.driver == GUEST_PULL).count();
    if pulled > 1 {
        let reason = "a container has one image";
        return Err(PlanError::invalid("storages.driver", GUEST_PULL, reason).status());
    }
    Ok(pulled == 1)
}

pub async fn start(
    sandbox: &Arc<Sandbox>,
    request: &StartContainerRequest,
) -> ttrpc::Result<Empty> {
    let started = sandbox.start(&request.container_id);
    started.await.map_err(lifecycle)?;
    Ok(Empty::new())
}

pub async fn update(sandbox: &Sandbox, request: &UpdateContainerRequest) -> ttrpc::Result<Empty> {
    let container = sandbox
        .container(&request.container_id)
        .map_err(Coded::status)?;
    let Some(wire) = request.resources.as_ref() else {
        return Ok(Empty::new());
    };
    let resources = resources_from_wire(wire).map_err(|e| PlanError::from(e).status())?;
    // Some of the limits or all: not to be left half-way by a caller that goes away.
    let work = async move { container.update(resources).await };
    let updated = tokio::spawn(work).await;
    updated
        .map_err(|_| SandboxError::Task.status())?
        .map_err(Coded::status)?;
    Ok(Empty::new())
}

pub async fn pause(sandbox: &Sandbox, id: &str) -> ttrpc::Result<Empty> {
    sandbox.pause(id).await.map_err(Coded::status)?;
    Ok(Empty::new())
}

pub fn resume(sandbox: &Sandbox, id: &str) -> ttrpc::Result<Empty> {
    let container = sandbox.container(id).map_err(Coded::status)?;
    container.resume().map_err(Coded::status)?;
    Ok(Empty::new())
}

/// The one kind of data that hosts ask for.
const TERMINATION_LOG: &str = "termination_log";

pub async fn diagnostics(
    sandbox: &Sandbox,
    request: &GetDiagnosticDataRequest,
) -> ttrpc::Result<GetDiagnosticDataResponse> {
    if request.log_type != TERMINATION_LOG {
        let text = format!(
            "unsupported diagnostic log_type: {}",
            shorten(&request.log_type)
        );
        return Err(failure(Code::INVALID_ARGUMENT, &text));
    }
    let container = sandbox
        .container(&request.container_id)
        .map_err(lifecycle)?;
    Ok(GetDiagnosticDataResponse {
        data: container.termination_log().await.map_err(Coded::status)?,
        ..Default::default()
    })
}

pub async fn remove(
    sandbox: &Arc<Sandbox>,
    request: &RemoveContainerRequest,
) -> ttrpc::Result<Empty> {
    let removal = sandbox.remove(&request.container_id);
    let result: Result<(), SandboxError> = match request.timeout {
        0 => removal.await,
        seconds => {
            // The removal itself goes on: it runs in a task of its own.
            let limit = Duration::from_secs(u64::from(seconds));
            tokio::time::timeout(limit, removal).await.map_err(|_| {
                failure(
                    Code::INTERNAL,
                    &format!(
                        "Container {}: ETIME: not removed after {seconds} s",
                        request.container_id
                    ),
                )
            })?
        }
    };
    result.map_err(lifecycle)?;
    Ok(Empty::new())
}

/// Streams over connections of their own (protocol section 11.5) need a port to
/// come in by: leaving them out silently would lose them.
pub fn passed_ports(sandbox: &Sandbox, ports: [u32; 3]) -> ttrpc::Result<[u32; 3]> {
    if ports == [0; 3] || sandbox.arrivals().is_open() {
        return Ok(ports);
    }
    let what = "Streams over ports of their own, without agent.passfd_listener_port, are";
    Err(PlanError::Unsupported(what).status())
}
