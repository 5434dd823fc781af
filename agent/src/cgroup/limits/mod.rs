// SPDX-License-Identifier: Apache-2.0
//! OCI limits as the values of control files (protocol 4.12). Owns the
//! arithmetic of both cgroup versions, as pure functions; never writes
//! anything. Device rules are in [`super::devices`].

mod cpu;
mod io;
mod memory;

use std::borrow::Cow;

use log::debug;
use oci_spec::runtime::{LinuxInterfacePriority, LinuxResources};

use super::CgroupError;

pub(super) use cpu::KEEP_QUOTA;

/// What a control file of the group says, given its controller and its name;
/// none when the kernel does not have the file.
pub(super) type InForce<'a> = &'a dyn Fn(&'static str, &str) -> Option<String>;

/// One value for one control file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub controller: &'static str,
    pub file: Cow<'static, str>,
    pub value: String,
    /// What to do when the kernel does not take it.
    pub absent: Absent,
    /// May have to wait for the next one to be written: the two must fit each
    /// other at every moment.
    pub may_wait: bool,
}

/// What it means that the kernel has no place for a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absent {
    /// The limit cannot be kept: an error.
    Fails,
    /// The value is a hint (a share, a preference, a placement): whatever the
    /// kernel has against it is a warning.
    Warns,
    /// There is nothing to limit (a size of huge pages), which is a warning,
    /// since somebody expected it.
    Lacks,
    /// The same for a device of which the number came from a host.
    NoDevice,
    /// Nothing is lost, because there is nothing to limit (no swap at all).
    Ignored,
}

impl Setting {
    fn new(
        controller: &'static str,
        file: impl Into<Cow<'static, str>>,
        value: impl ToString,
    ) -> Self {
        Self {
            controller,
            file: file.into(),
            value: value.to_string(),
            absent: Absent::Fails,
            may_wait: false,
        }
    }

    fn when_absent(mut self, absent: Absent) -> Self {
        self.absent = absent;
        self
    }

    fn may_wait(mut self) -> Self {
        self.may_wait = true;
        self
    }
}

/// The settings of cgroup v2, in the order in which to write them.
pub(super) fn v2(
    resources: &LinuxResources,
    in_force: InForce<'_>,
) -> Result<Vec<Setting>, CgroupError> {
    let mut settings = Vec::new();
    if let Some(cpu) = resources.cpu() {
        cpu::v2(cpu, &mut settings)?;
    }
    if let Some(memory) = resources.memory() {
        memory::v2(memory, in_force, &mut settings)?;
    }
    if let Some(pids) = resources.pids() {
        let limit = Some(pids.limit()).filter(|&limit| limit > 0);
        settings.push(Setting::new("pids", "pids.max", or_max(limit)));
    }
    if let Some(block) = resources.block_io() {
        io::v2(block, in_force, &mut settings)?;
    }
    huge_pages(resources, &["max", "rsvd.max"], &mut settings);
    if resources.network().is_some() {
        // Version 2 has neither file; packet filters ask for the group itself.
        debug!("Network classes and priorities are for cgroup v1 only");
    }
    Ok(settings)
}

/// The limits of cgroup v1 that `cgroups-rs` writes; -1 is "no limit" where a
/// number is signed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct V1 {
    pub cpus: Option<String>,
    pub mems: Option<String>,
    pub shares: Option<u64>,
    pub period: Option<u64>,
    pub quota: Option<i64>,
    pub memory: Option<i64>,
    /// Memory and swap together, as OCI counts them too.
    pub memory_and_swap: Option<i64>,
    pub soft: Option<i64>,
    pub pids: Option<i64>,
    /// The rest, in the order in which to write them.
    pub rest: Vec<Setting>,
}

/// The limits of cgroup v1.
pub(super) fn v1(resources: &LinuxResources, in_force: InForce<'_>) -> Result<V1, CgroupError> {
    let mut limits = V1::default();
    if let Some(cpu) = resources.cpu() {
        cpu::v1(cpu, &mut limits)?;
    }
    if let Some(memory) = resources.memory() {
        memory::v1(memory, &mut limits)?;
    }
    limits.pids = resources.pids().as_ref().map(|pids| pids.limit());
    if let Some(block) = resources.block_io() {
        io::v1(block, in_force, &mut limits.rest)?;
    }
    let files = ["limit_in_bytes", "rsvd.limit_in_bytes"];
    huge_pages(resources, &files, &mut limits.rest);
    network(resources, &mut limits.rest)?;
    Ok(limits)
}

/// A limit of the pages in use, and one of the reservations: without the second a
/// process learns of its limit by SIGBUS, with it mmap(2) fails.
fn huge_pages(resources: &LinuxResources, files: &[&str; 2], settings: &mut Vec<Setting>) {
    for limit in resources.hugepage_limits().iter().flatten() {
        let [used, reserved] = files.map(|file| format!("hugetlb.{}.{file}", limit.page_size()));
        let bytes = limit.limit();
        settings.push(Setting::new("hugetlb", used, bytes).when_absent(Absent::Lacks));
        settings.push(Setting::new("hugetlb", reserved, bytes).when_absent(Absent::Ignored));
    }
}

/// Marks for the traffic control of the guest, not limits: a guest without
/// them carries the packets all the same.
fn network(resources: &LinuxResources, settings: &mut Vec<Setting>) -> Result<(), CgroupError> {
    let Some(network) = resources.network() else {
        return Ok(());
    };
    if let Some(class) = network.class_id() {
        let class = Setting::new("net_cls", "net_cls.classid", class);
        settings.push(class.when_absent(Absent::Warns));
    }
    for priority in network.priorities().iter().flatten() {
        let value = priority_line(priority)?;
        let line = Setting::new("net_prio", "net_prio.ifpriomap", value);
        settings.push(line.when_absent(Absent::Warns));
    }
    Ok(())
}

fn priority_line(priority: &LinuxInterfacePriority) -> Result<String, CgroupError> {
    let name = priority.name();
    // What the kernel allows in a name (IFNAMSIZ is 16 with its NUL).
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == '/';
    if name.is_empty() || name.len() > 15 || name.contains(odd) {
        return Err(CgroupError::Value {
            limit: "network.priorities",
            reason: "it names no network interface",
        });
    }
    Ok(format!("{name} {}", priority.priority()))
}

/// A number of bytes: unset or 0 asks nothing, -1 means no limit.
fn bytes(limit: &'static str, value: Option<i64>) -> Result<Option<Option<i64>>, CgroupError> {
    match value {
        None | Some(0) => Ok(None),
        Some(-1) => Ok(Some(None)),
        Some(value) if value > 0 => Ok(Some(Some(value))),
        Some(_) => Err(CgroupError::Value {
            limit,
            reason: "it is negative",
        }),
    }
}

fn given(value: Option<u64>) -> Option<u64> {
    value.filter(|&value| value != 0)
}

fn or_max(value: Option<i64>) -> String {
    value.map_or_else(|| "max".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests;
