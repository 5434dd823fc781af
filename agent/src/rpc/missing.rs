// SPDX-License-Identifier: Apache-2.0
//! The methods of `grpc.AgentService` that this version does not serve, and
//! what is missing for each. Every one of them answers UNIMPLEMENTED; a method
//! leaves this table when its handler comes.

use async_trait::async_trait;
use ttrpc::r#async::{MethodHandler, Service, TtrpcContext};
use ttrpc::proto::{Request, Response};
use ttrpc::{Code, get_status};

/// Method and what it needs.
pub const TABLE: &[(&str, &str)] = &[
    ("GetMetrics", "metrics"),
    ("MemAgentMemcgSet", "the memory agent"),
    ("MemAgentCompactSet", "the memory agent"),
    ("SetPolicy", "policies"),
];

struct Missing {
    method: &'static str,
    what: &'static str,
}

#[async_trait]
impl MethodHandler for Missing {
    async fn handler(&self, _: TtrpcContext, _: Request) -> ttrpc::Result<Response> {
        let text = format!(
            "{} is not implemented: {} missing in this version",
            self.method, self.what
        );
        let mut response = Response::new();
        response.set_status(get_status(Code::UNIMPLEMENTED, text));
        Ok(response)
    }
}

/// Puts the table's entries in place of the generated defaults.
pub fn install(service: &mut Service) {
    for &(method, what) in TABLE {
        service
            .methods
            .insert(method.to_owned(), Box::new(Missing { method, what }));
    }
}
