// SPDX-License-Identifier: Apache-2.0
//! GetVolumeStats, ResizeVolume, AddSwap, AddSwapPath.

use std::sync::Arc;

use protocols::agent::{
    AddSwapPathRequest, AddSwapRequest, ResizeVolumeRequest, VolumeStatsRequest,
};
use protocols::csi::volume_usage::Unit;
use protocols::csi::{VolumeCondition, VolumeStatsResponse, VolumeUsage};
use protocols::empty::Empty;
use ttrpc::Code;

use super::status::{Coded, failure};
use crate::pool::at_host_pace;
use crate::sandbox::Sandbox;
use crate::volume::{self, SwapDisk, Usage, VolumeError, VolumePath};

pub async fn stats(request: &VolumeStatsRequest) -> ttrpc::Result<VolumeStatsResponse> {
    let path = VolumePath::new(&request.volume_guest_path).map_err(Coded::status)?;
    let stats = at_host_pace(move || volume::stats(&path)).await;
    let stats = stats
        .map_err(|_| failure(Code::INTERNAL, "GetVolumeStats ended early"))?
        .map_err(Coded::status)?;
    let condition = VolumeCondition {
        abnormal: false,
        message: "OK".to_owned(),
        ..Default::default()
    };
    Ok(VolumeStatsResponse {
        usage: vec![
            usage(stats.bytes, Unit::BYTES),
            usage(stats.inodes, Unit::INODES),
        ],
        volume_condition: Some(condition).into(),
        ..Default::default()
    })
}

fn usage(usage: Usage, unit: Unit) -> VolumeUsage {
    VolumeUsage {
        available: usage.free,
        total: usage.total,
        used: usage.total.saturating_sub(usage.free),
        unit: unit.into(),
        ..Default::default()
    }
}

pub async fn resize(sandbox: &Arc<Sandbox>, request: &ResizeVolumeRequest) -> ttrpc::Result<Empty> {
    let path = VolumePath::new(&request.volume_guest_path).map_err(Coded::status)?;
    let (sandbox, size) = (sandbox.clone(), request.size);
    to_the_end(async move { volume::resize(sandbox.devices(), path, size).await }).await
}

pub async fn add_swap(sandbox: &Arc<Sandbox>, request: &AddSwapRequest) -> ttrpc::Result<Empty> {
    swap(sandbox, SwapDisk::at_slots(&request.PCIPath)).await
}

pub async fn add_swap_path(
    sandbox: &Arc<Sandbox>,
    request: &AddSwapPathRequest,
) -> ttrpc::Result<Empty> {
    swap(sandbox, SwapDisk::at_node(&request.path)).await
}

async fn swap(sandbox: &Arc<Sandbox>, disk: Result<SwapDisk, VolumeError>) -> ttrpc::Result<Empty> {
    let (sandbox, disk) = (sandbox.clone(), disk.map_err(Coded::status)?);
    let work = async move { volume::add_swap(sandbox.devices(), sandbox.cgroups(), &disk).await };
    to_the_end(work).await
}

/// What is begun is ended, also when the client goes away.
async fn to_the_end(
    work: impl Future<Output = Result<(), VolumeError>> + Send + 'static,
) -> ttrpc::Result<Empty> {
    let ended = tokio::spawn(work).await;
    ended
        .map_err(|_| failure(Code::INTERNAL, "Work on a volume ended early"))?
        .map_err(Coded::status)?;
    Ok(Empty::new())
}
