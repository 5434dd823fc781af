// SPDX-License-Identifier: Apache-2.0
//! The Kata agent of a container micro-VM: configuration, RPCs, sandbox,
//! containers, storage, network, streams. The binary is `keelson`.

pub mod cgroup;
pub mod children;
pub mod confidential;
pub mod config;
pub mod container;
pub mod device;
pub mod files;
pub mod guest;
pub mod hotplug;
pub mod launch;
pub mod mount_options;
pub mod network;
pub mod observe;
pub mod pool;
pub mod program;
pub mod rpc;
pub mod run;
pub mod sandbox;
pub mod seccomp;
pub mod server;
pub mod stdio;
pub mod storage;
pub mod volume;
pub mod watch;
