// SPDX-License-Identifier: Apache-2.0
//! What is done with containers besides running processes in them: limits, statistics, pause and resume, news of OOM kills, and
//! the container that looks at all others.
//!
//! Words only, as in `container`; each comes as the one that insists and, where refusals are of interest, as `try_`.

use protocols::agent::*;
use protocols::oci;

use crate::agent::{Agent, Refusal};
use crate::container::{Builder, Container};
use crate::spec;

impl Container {
    /// Asks for other limits: what `change` leaves out stays as it is.
    pub async fn try_update(
        &self,
        change: impl FnOnce(&mut oci::LinuxResources),
    ) -> Result<(), Refusal> {
        let mut request = UpdateContainerRequest::new();
        request.container_id = self.id().to_owned();
        change(request.resources.mut_or_insert_default());
        self.agent()
            .rpc()
            .update_container(&request)
            .await
            .map(drop)
    }

    /// Gives the container other limits.
    pub async fn update(&self, change: impl FnOnce(&mut oci::LinuxResources)) {
        self.try_update(change)
            .await
            .unwrap_or_else(|e| panic!("UpdateContainer {}: {e}", self.id()));
    }

    /// The container's statistics.
    pub async fn stats(&self) -> CgroupStats {
        let mut request = StatsContainerRequest::new();
        request.container_id = self.id().to_owned();
        let answer = self.agent().rpc().stats_container(&request).await;
        let answer = answer.unwrap_or_else(|e| panic!("StatsContainer {}: {e}", self.id()));
        answer
            .cgroup_stats
            .into_option()
            .unwrap_or_else(|| panic!("StatsContainer {} has no cgroup_stats", self.id()))
    }

    /// Asks for every process of the container to be stopped where it is.
    pub async fn try_pause(&self) -> Result<(), Refusal> {
        let mut request = PauseContainerRequest::new();
        request.container_id = self.id().to_owned();
        self.agent().rpc().pause_container(&request).await.map(drop)
    }

    /// Stops every process of the container where it is.
    pub async fn pause(&self) {
        self.try_pause()
            .await
            .unwrap_or_else(|e| panic!("PauseContainer {}: {e}", self.id()));
    }

    /// Asks for the processes to go on.
    pub async fn try_resume(&self) -> Result<(), Refusal> {
        let mut request = ResumeContainerRequest::new();
        request.container_id = self.id().to_owned();
        self.agent()
            .rpc()
            .resume_container(&request)
            .await
            .map(drop)
    }

    /// Lets the processes go on.
    pub async fn resume(&self) {
        self.try_resume()
            .await
            .unwrap_or_else(|e| panic!("ResumeContainer {}: {e}", self.id()));
    }
}

impl Agent {
    /// Begins a container that sees the guest as PID 1 does: all capabilities, the guest's processes, the guest's `/` at `/mnt`.
    pub fn seeing_all(&self, id: &str) -> Builder {
        let guest_pids = |linux: &mut protocols::oci::Linux| {
            linux.MaskedPaths.clear();
            linux.ReadonlyPaths.clear();
            let mut pids = spec::namespace("pid");
            pids.Path = "/proc/1/ns/pid".to_owned();
            linux.Namespaces.push(pids);
        };
        self.container(id)
            .linux(guest_pids)
            .capabilities(&spec::ALL_CAPABILITIES)
            .bind("/mnt", "/")
    }

    /// Such a container, for looking at what is left behind.
    pub async fn probe(&self, id: &str) -> Container {
        let probe = self.seeing_all(id).args(&["sleep", "1000000"]);
        probe.start().await
    }

    /// Waits for the next OOM kill and gives the container's id.
    pub async fn oom_event(&self) -> String {
        let answer = self.rpc().get_oom_event(&GetOOMEventRequest::new()).await;
        answer
            .unwrap_or_else(|e| panic!("GetOOMEvent: {e}"))
            .container_id
    }
}
