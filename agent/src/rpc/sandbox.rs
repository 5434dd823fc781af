// SPDX-License-Identifier: Apache-2.0
//! CreateSandbox and DestroySandbox.

use std::sync::Arc;

use protocols::agent::CreateSandboxRequest;
use protocols::empty::Empty;

use super::status::Coded;
use crate::sandbox::{KernelModule, Sandbox, SandboxError, SandboxPlan};
use crate::storage::StoragePlan;

pub async fn create(sandbox: &Arc<Sandbox>, request: CreateSandboxRequest) -> ttrpc::Result<Empty> {
    let plan = plan(request).map_err(Coded::status)?;
    log::info!("Sandbox '{}' is created", plan.id);
    sandbox.create(plan).await.map_err(Coded::status)?;
    Ok(Empty::new())
}

fn plan(request: CreateSandboxRequest) -> Result<SandboxPlan, SandboxError> {
    let modules = request
        .kernel_modules
        .into_iter()
        .map(|module| KernelModule::new(&module.name, module.parameters));
    Ok(SandboxPlan {
        id: request.sandbox_id,
        hostname: request.hostname,
        dns: request.dns,
        hook_path: request.guest_hook_path,
        modules: modules.collect::<Result<_, _>>()?,
        storages: StoragePlan::all_from_wire(&request.storages, None)?,
    })
}

pub async fn destroy(sandbox: &Arc<Sandbox>) -> ttrpc::Result<Empty> {
    sandbox.destroy().await.map_err(Coded::status)?;
    Ok(Empty::new())
}
