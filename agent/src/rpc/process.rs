// SPDX-License-Identifier: Apache-2.0
//! ExecProcess, SignalProcess, WaitProcess.

use std::sync::Arc;

use protocols::agent::{
    ExecProcessRequest, SignalProcessRequest, WaitProcessRequest, WaitProcessResponse,
};
use protocols::convert::process_from_wire;
use protocols::empty::Empty;

use super::container::passed_ports;
use super::status::{Coded, lifecycle, missing};
use crate::container::plan::{ExecId, PlanError, process};
use crate::sandbox::Sandbox;

pub async fn exec(sandbox: &Arc<Sandbox>, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
    let id = ExecId::parse(&request.exec_id).map_err(Coded::status)?;
    let ports = [request.stdin_port, request.stdout_port, request.stderr_port];
    let ports = passed_ports(sandbox, ports)?;
    let wire = request.process.as_ref().ok_or_else(|| missing("process"))?;
    let oci = process_from_wire(wire).map_err(|e| PlanError::from(e).status())?;
    let mut plan = process::plan(&oci).map_err(Coded::status)?;
    plan.ports = ports;
    sandbox
        .exec(&request.container_id, id, plan)
        .await
        .map_err(lifecycle)?;
    Ok(Empty::new())
}

pub async fn signal(sandbox: &Sandbox, request: &SignalProcessRequest) -> ttrpc::Result<Empty> {
    // What does not fit is no signal; EINVAL comes from where the others do.
    let number = i32::try_from(request.signal).unwrap_or(i32::MAX);
    if request.exec_id.is_empty() && number == libc::SIGKILL {
        let container = sandbox
            .container(&request.container_id)
            .map_err(lifecycle)?;
        container.kill_all().await.map_err(Coded::status)?;
        return Ok(Empty::new());
    }
    let (container, process) = sandbox
        .process(&request.container_id, &request.exec_id)
        .map_err(Coded::status)?;
    container.signal(&process, number).map_err(Coded::status)?;
    Ok(Empty::new())
}

pub async fn wait(
    sandbox: &Sandbox,
    request: &WaitProcessRequest,
) -> ttrpc::Result<WaitProcessResponse> {
    let (container, process) = sandbox
        .process(&request.container_id, &request.exec_id)
        .map_err(Coded::status)?;
    let status = process.wait().await;
    if status == 128 + libc::SIGKILL {
        sandbox.oom().look(container.id().as_str()).await;
    }
    container.forget(&process);
    Ok(WaitProcessResponse {
        status,
        ..Default::default()
    })
}
