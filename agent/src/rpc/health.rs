// SPDX-License-Identifier: Apache-2.0
//! `grpc.Health`: alive, and which protocol is spoken.

use async_trait::async_trait;
use protocols::health::health_check_response::ServingStatus;
use protocols::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use protocols::health_ttrpc;
use ttrpc::r#async::TtrpcContext;

/// The version of the ttrpc interface, as hosts know it.
pub const API_VERSION: &str = "0.0.1";

/// The version of the Kata agent whose protocol is served. Hosts compare it;
/// our own version is what `keelson --version` prints.
pub const PROTOCOL_VERSION: &str = "4.1.0";

/// The service; it has no state.
pub struct Health;

#[async_trait]
impl health_ttrpc::Health for Health {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        Ok(HealthCheckResponse {
            status: ServingStatus::SERVING.into(),
            ..Default::default()
        })
    }

    async fn version(
        &self,
        _: &TtrpcContext,
        _: CheckRequest,
    ) -> ttrpc::Result<VersionCheckResponse> {
        Ok(VersionCheckResponse {
            grpc_version: API_VERSION.to_owned(),
            agent_version: PROTOCOL_VERSION.to_owned(),
            ..Default::default()
        })
    }
}
