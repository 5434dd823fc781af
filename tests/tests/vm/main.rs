// SPDX-License-Identifier: Apache-2.0
//! Stories of the guest in a VM. Those that can share one do ([`tests::Vm::shared`]), and then keep to container ids of their own.

mod boot;
mod confinement;
mod crowd;
mod devices;
mod disconnects;
mod disks;
mod floods;
mod given;
mod hooks;
mod hotplug;
mod isolation;
mod life;
mod lifecycle;
mod limits;
mod mounts;
mod namespaces;
mod neighbours;
mod network;
mod oom;
mod passfd;
mod pod;
mod roots;
mod serial;
mod signals;
mod specs;
mod stats;
mod stdio;
mod storage;
mod templates;
mod traces;
mod volumes;
mod watchable;
