// SPDX-License-Identifier: Apache-2.0
//! CreateContainer, StartContainer, RemoveContainer.

use std::sync::Arc;
use std::time::Duration;

use protocols::agent::{CreateContainerRequest, RemoveContainerRequest, StartContainerRequest};
use protocols::convert::spec_from_wire;
use protocols::empty::Empty;
use ttrpc::Code;

use super::status::{Coded, failure, lifecycle, missing};
use crate::container::bundle;
use crate::container::plan::{ContainerId, PlanError, spec};
use crate::sandbox::{CreatePlan, Sandbox, SandboxError};
use crate::storage::StoragePlan;

pub async fn create(
    sandbox: &Arc<Sandbox>,
    request: CreateContainerRequest,
) -> ttrpc::Result<Empty> {
    let plan = plan(request)?;
    sandbox
        .create_container(plan)
        .await
        .map_err(Coded::status)?;
    Ok(Empty::new())
}

fn plan(request: CreateContainerRequest) -> ttrpc::Result<CreatePlan> {
    let id = ContainerId::parse(&request.container_id).map_err(Coded::status)?;
    let wire = request.OCI.as_ref().ok_or_else(|| missing("OCI"))?;
    let oci = spec_from_wire(wire).map_err(|e| PlanError::from(e).status())?;
    if !request.devices.is_empty() {
        return Err(PlanError::Unsupported("devices are").status());
    }
    if !request.shared_mounts.is_empty() {
        return Err(PlanError::Unsupported("shared_mounts are").status());
    }
    refuse_passfd([request.stdin_port, request.stdout_port, request.stderr_port])?;
    let bundle = bundle::path_of(&id);
    let storages = request
        .storages
        .into_iter()
        .map(|storage| StoragePlan::from_wire(&storage, Some(&bundle)));
    Ok(CreatePlan {
        storages: storages.collect::<Result<_, _>>().map_err(Coded::status)?,
        container: spec::plan(id, &oci, request.sandbox_pidns).map_err(Coded::status)?,
    })
}

pub fn start(sandbox: &Sandbox, request: &StartContainerRequest) -> ttrpc::Result<Empty> {
    let container = sandbox
        .container(&request.container_id)
        .map_err(lifecycle)?;
    container.start().map_err(Coded::status)?;
    Ok(Empty::new())
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

/// Streams that the host would pass over sockets of their own (protocol
/// section 11.5): leaving them out silently would lose them.
pub fn refuse_passfd(ports: [u32; 3]) -> ttrpc::Result<()> {
    if ports == [0; 3] {
        return Ok(());
    }
    Err(PlanError::Unsupported("Streams over ports of their own are").status())
}
