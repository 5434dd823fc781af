// SPDX-License-Identifier: Apache-2.0
//! Finding the guest's devices. Owns the addresses hosts use and the look into
//! sysfs; never creates nodes and, so far, never waits: a device that the host
//! plugs in while the request is under way is not waited for yet.

pub mod pci;
