// SPDX-License-Identifier: Apache-2.0
//! The guest's network, as the kernel has it and as the host wants it. Owns the
//! rtnetlink conversation and the running of iptables; never touches the network
//! of the host, never remembers anything itself.
//!
//! What talks to the kernel does so on the blocking pool: tables may be long, and
//! a network card may take its time over a change.

mod error;
mod interface;
pub mod iptables;
pub mod list;
mod neighbour;
mod netlink;
pub mod plan;
mod request;
mod route;

use tokio::sync::Semaphore;

pub use error::NetworkError;
pub use netlink::NetlinkError;

use crate::children::Children;
use crate::device::Devices;
use crate::pool::at_host_pace;
use netlink::Socket;
use plan::{InterfacePlan, NeighbourPlan, RoutePlan};

/// One change at a time: a link that gives its name away must not meet another
/// that wants it.
static TURN: Semaphore = Semaphore::const_new(1);

/// Makes an answer of what there is.
pub type Tell<T, A> = fn(Vec<T>) -> Result<A, NetworkError>;

/// What the network needs of the rest of the agent. Cheap to clone.
#[derive(Clone)]
pub struct Network {
    devices: Devices,
    /// Told of the programs that are started.
    pub children: Children,
}

impl Network {
    /// The network of the guest with these devices.
    #[must_use]
    pub fn new(devices: Devices, children: Children) -> Self {
        Self { devices, children }
    }

    /// UpdateInterface. A device that is still to come is waited for, on the event loop.
    ///
    /// # Errors
    /// [`NetworkError`]; then nothing has changed.
    pub async fn update_interface(&self, plan: InterfacePlan) -> Result<(), NetworkError> {
        let below = match &plan.device {
            None => Vec::new(),
            Some(path) => {
                let links = self.devices.network_interfaces(path).await;
                links.map_err(NetworkError::Device)?
            }
        };
        change(move |socket| interface::update(socket, &plan, &below)).await
    }

    /// UpdateRoutes, answered with all routes.
    ///
    /// # Errors
    /// [`NetworkError`]; then nothing has changed.
    pub async fn update_routes<A: Send + 'static>(
        &self,
        plans: Vec<RoutePlan>,
        tell: Tell<list::Route, A>,
    ) -> Result<A, NetworkError> {
        change(move |socket| route::update(socket, &plans, tell)).await
    }

    /// AddARPNeighbors.
    ///
    /// # Errors
    /// [`NetworkError`]; then nothing has changed.
    pub async fn add_neighbours(&self, plans: Vec<NeighbourPlan>) -> Result<(), NetworkError> {
        change(move |socket| neighbour::add(socket, &plans)).await
    }

    /// ListInterfaces.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn interfaces<A: Send + 'static>(
        &self,
        tell: Tell<list::Interface, A>,
    ) -> Result<A, NetworkError> {
        look(list::interfaces, tell).await
    }

    /// ListRoutes.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn routes<A: Send + 'static>(
        &self,
        tell: Tell<list::Route, A>,
    ) -> Result<A, NetworkError> {
        look(list::routes, tell).await
    }
}

/// Makes a change, to its end even if the caller goes away.
async fn change<T: Send + 'static>(
    work: impl FnOnce(&Socket) -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    // Never closed: there always is a turn.
    let turn = TURN.acquire().await;
    let work = move || {
        let _turn = turn;
        work(&Socket::open()?)
    };
    at_host_pace(work).await.map_err(|_| NetworkError::Task)?
}

async fn look<T: 'static, A: Send + 'static>(
    work: fn() -> Result<Vec<T>, NetlinkError>,
    tell: Tell<T, A>,
) -> Result<A, NetworkError> {
    let answer = at_host_pace(move || tell(work()?)).await;
    answer.map_err(|_| NetworkError::Task)?
}
