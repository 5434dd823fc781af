// SPDX-License-Identifier: Apache-2.0
//! The methods of `grpc.AgentService` that this version does not serve, and
//! what is missing for each. Every one of them answers UNIMPLEMENTED; a method
//! leaves this table when its handler comes.

use std::time::Duration;

use async_trait::async_trait;
use ttrpc::r#async::{MethodHandler, Service, TtrpcContext};
use ttrpc::proto::{Request, Response};
use ttrpc::{Code, get_status};

/// Method and what it needs.
pub const TABLE: &[(&str, &str)] = &[
    ("UpdateContainer", "limits of a running container"),
    ("UpdateEphemeralMounts", "remounting of ephemeral storages"),
    ("StatsContainer", "cgroup statistics"),
    ("PauseContainer", "the cgroup freezer"),
    ("ResumeContainer", "the cgroup freezer"),
    ("RemoveStaleVirtiofsShareMounts", "virtio-fs mount refresh"),
    ("GetDiagnosticData", "termination logs"),
    ("UpdateInterface", "network configuration"),
    ("UpdateRoutes", "network configuration"),
    ("AddARPNeighbors", "network configuration"),
    ("GetIPTables", "iptables"),
    ("SetIPTables", "iptables"),
    ("GetMetrics", "metrics"),
    ("MemAgentMemcgSet", "the memory agent"),
    ("MemAgentCompactSet", "the memory agent"),
    ("OnlineCPUMem", "CPU and memory hotplug"),
    ("MemHotplugByProbe", "memory hotplug by probe"),
    (OOM_EVENT, "OOM events"),
    ("AddSwap", "swap devices"),
    ("AddSwapPath", "swap devices"),
    ("GetVolumeStats", "volume statistics"),
    ("ResizeVolume", "volume growth"),
    ("SetPolicy", "policies"),
];

const OOM_EVENT: &str = "GetOOMEvent";

/// A host repeats a failed GetOOMEvent at once (protocol section 1.8), so its
/// failure takes a while, or the host would spin.
const OOM_PAUSE: Duration = Duration::from_secs(1);

struct Missing {
    method: &'static str,
    what: &'static str,
}

#[async_trait]
impl MethodHandler for Missing {
    async fn handler(&self, _: TtrpcContext, _: Request) -> ttrpc::Result<Response> {
        if self.method == OOM_EVENT {
            tokio::time::sleep(OOM_PAUSE).await;
        }
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
