// SPDX-License-Identifier: Apache-2.0
//! UpdateEphemeralMounts, RemoveStaleVirtiofsShareMounts.

use protocols::agent::UpdateEphemeralMountsRequest;
use protocols::empty::Empty;

use super::status::Coded;
use crate::storage::{self, Remount};

pub async fn update_ephemeral(request: &UpdateEphemeralMountsRequest) -> ttrpc::Result<Empty> {
    let plans = request.storages.iter().map(Remount::from_wire);
    let plans: Vec<Option<Remount>> = plans.collect::<Result<_, _>>().map_err(Coded::status)?;
    let plans = plans.into_iter().flatten().collect();
    storage::remount_all(plans).await.map_err(Coded::status)?;
    Ok(Empty::new())
}

pub async fn look_at_shares() -> ttrpc::Result<Empty> {
    storage::look_at_shares().await;
    Ok(Empty::new())
}
