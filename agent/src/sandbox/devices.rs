// SPDX-License-Identifier: Apache-2.0
//! The devices of a container: what was asked for is waited for before the
//! container is planned to its end. Owns the order of things (protocol 3.2,
//! steps 6 and 7); finds no device itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::Spec;
use tokio::sync::watch;

use super::{Sandbox, SandboxError};
use crate::config::Config;
use crate::container::plan::{ContainerId, ContainerPlan, Given, spec};
use crate::container::{ContainerError, bundle};
use crate::device::cdi::{self, CdiDevice};
use crate::device::{self, Claims, Node};
use crate::pool::at_host_pace;

/// What the configuration says of the Container Device Interface.
pub(super) struct Cdi {
    patience: Duration,
    by_environment: bool,
    dir: PathBuf,
}

impl Cdi {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            patience: config.cdi_timeout,
            by_environment: config.visible_cdi_devices,
            dir: cdi::CDI.into(),
        }
    }
}

/// Devices that a container is to have, checked as far as the request goes.
pub struct DeviceRequest {
    /// Those that the host has plugged in.
    pub claims: Claims,
    /// Those that the guest describes.
    pub described: Vec<CdiDevice>,
    /// The specification, with the host's numbers.
    pub spec: Spec,
    /// The request's `sandbox_pidns`.
    pub shares_pid: bool,
    /// The host's ports for streams.
    pub ports: [u32; 3],
}

impl Sandbox {
    /// The devices that a specification asks the guest to describe.
    ///
    /// # Errors
    /// [`SandboxError::Cdi`] for names that are none.
    pub fn described_devices(&self, spec: &Spec) -> Result<Vec<CdiDevice>, SandboxError> {
        Ok(cdi::requested(spec, self.cdi.by_environment)?)
    }

    /// The specification as hooks find it in the bundle, with the root that is
    /// there; none where nobody looks for it.
    ///
    /// # Errors
    /// [`SandboxError::Setup`], which no specification leads to.
    pub fn config(&self, spec: &mut Spec, bundle: &Path) -> Result<Option<String>, SandboxError> {
        if !self.has_guest_hooks() && spec.hooks().is_none() {
            return Ok(None);
        }
        if let Some(root) = spec.root_mut() {
            root.set_path(bundle.join("rootfs"));
        }
        let text = serde_json::to_string(spec);
        text.map(Some)
            .map_err(|error| SandboxError::Setup("config.json", error.into()))
    }

    /// Waits for the devices of a container and plans it with them.
    pub(super) async fn with_devices(
        &self,
        id: &ContainerId,
        request: DeviceRequest,
        root: Option<String>,
        given_up: &mut watch::Receiver<bool>,
    ) -> Result<(ContainerPlan, Option<String>), SandboxError> {
        let DeviceRequest {
            claims,
            described,
            mut spec,
            shares_pid,
            ports,
        } = request;
        let given = tokio::select! {
            biased;
            given = self.give(&mut spec, claims, described) => given?,
            // The sender is ours: without it there is nobody left to want it.
            _ = given_up.wait_for(|given_up| *given_up) => {
                return Err(ContainerError::GivenUp(id.clone()).into());
            }
        };
        let mut plan = spec::plan(id.clone(), &spec, shares_pid)?;
        plan.process.ports = ports;
        plan.given = given;
        if let (Some(made), Some(path)) = (&mut plan.init.root, root) {
            // The guest's own, where it has pulled the image.
            made.path = path;
        }
        let config = self.config(&mut spec, &bundle::path_of(id))?;
        Ok((plan, config))
    }

    /// Waits for the devices and puts them into the specification.
    async fn give(
        &self,
        spec: &mut Spec,
        claims: Claims,
        described: Vec<CdiDevice>,
    ) -> Result<Given, SandboxError> {
        let provided = claims.provide(&self.devices).await?;
        let mut numbers = device::patch(spec, &provided.updates)?;
        if let Some(env) = spec
            .process_mut()
            .as_mut()
            .and_then(|p| p.env_mut().as_mut())
        {
            provided.pci.rewrite(env);
        }
        let mut nodes: Vec<_> = provided.updates.into_iter().map(|u| u.node).collect();
        let mut extra = device::add_extra(spec, provided.extra);
        if !described.is_empty() {
            let (dir, patience) = (self.cdi.dir.clone(), self.cdi.patience);
            extra.extend(cdi::inject(spec, described, &dir, patience).await?);
        }
        extra.iter().for_each(|extra| numbers.also(extra));
        nodes.extend(extra.into_iter().map(|(node, _)| node));
        self.hand_out(nodes).await?;
        Ok(Given {
            pci: provided.pci,
            numbers,
        })
    }

    /// Has the device filter let these be given to containers.
    async fn hand_out(&self, nodes: Vec<Node>) -> Result<(), SandboxError> {
        if nodes.is_empty() {
            return Ok(());
        }
        let cgroups = self.engine.cgroups().clone();
        let handed = at_host_pace(move || cgroups.hand_out(&nodes)).await;
        match handed.map_err(|_| SandboxError::Task)? {
            Ok(None) => Ok(()),
            Ok(Some(own)) => Err(SandboxError::GuestsOwn(own.path.display().to_string())),
            Err(error) => Err(ContainerError::from(error).into()),
        }
    }
}
