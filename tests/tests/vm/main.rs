// SPDX-License-Identifier: Apache-2.0
//! Stories of the guest in a VM. Those that can share one do ([`tests::Vm::shared`]), and then keep to container ids of their own.

mod boot;
mod isolation;
mod life;
mod pod;
mod roots;
mod signals;
mod stdio;
mod storage;
mod traces;
