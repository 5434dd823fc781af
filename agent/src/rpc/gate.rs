// SPDX-License-Identifier: Apache-2.0
//! What every call of `grpc.AgentService` has to pass before its handler runs.
//!
//! The port answers while the guest is still being set up: Health does so at
//! once, everything else waits here until the boot is complete.

use async_trait::async_trait;
use tokio::sync::watch;
use ttrpc::r#async::{MethodHandler, Service, TtrpcContext};
use ttrpc::proto::{Request, Response};
use ttrpc::{Code, get_status};

/// True once the guest is complete.
pub type Booted = watch::Receiver<bool>;

struct Gated {
    handler: Box<dyn MethodHandler + Send + Sync>,
    booted: Booted,
}

#[async_trait]
impl MethodHandler for Gated {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        if self
            .booted
            .clone()
            .wait_for(|booted| *booted)
            .await
            .is_err()
        {
            return Err(ttrpc::Error::RpcStatus(get_status(
                Code::INTERNAL,
                "The guest's boot ended early",
            )));
        }
        self.handler.handler(context, request).await
    }
}

/// Puts the gate before every method of a service.
pub fn install(service: &mut Service, booted: &Booted) {
    let ungated: Vec<_> = service.methods.drain().collect();
    for (method, handler) in ungated {
        service.methods.insert(
            method,
            Box::new(Gated {
                handler,
                booted: booted.clone(),
            }),
        );
    }
}
