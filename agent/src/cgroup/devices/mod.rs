// SPDX-License-Identifier: Apache-2.0
//! Which devices a container may use. Owns the way from OCI rules to what
//! the kernel keeps, and that the guest's own disks are beyond all rules;
//! makes no device node.
//!
//! On v2 a program on the container's group decides, and a second one, the
//! guard, sits on the outermost group that was made here: a container with
//! enough capabilities can take off what is on its own group, but cannot reach
//! above it. On v1 the kernel itself lets no group grant what one above denies.

mod bpf;
mod ebpf;
mod guest;
mod rule;
#[cfg(test)]
mod sample;
mod v1;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::{debug, warn};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::write;
use oci_spec::runtime::LinuxDeviceCgroup;

use super::hierarchy::Hierarchy;
use super::{Cgroup, CgroupError, Cgroups, Layout};
use crate::device::Node;
use guest::Guest;
use rule::Device;
use v1::List;

/// How many programs stay loaded for the next container: most have the same
/// rules, and a loaded program costs a descriptor.
const KEPT_PROGRAMS: usize = 4;

/// When guards of groups that are gone are looked for.
const MOST_GUARDS: usize = 64;

/// What all containers share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Found when the first container comes: the boot is complete then, and no
    /// container's own disk is there yet that was plugged for it later. Less by
    /// what the host has given to containers since, more by what it has given to
    /// the guest.
    guest: Mutex<Option<Arc<Guest>>>,
    /// What guards the groups that were made here; nothing as long as the guest
    /// has no devices.
    guards: Mutex<Vec<Guard>>,
    /// The last ones used, the latest last.
    programs: Mutex<Vec<Arc<Program>>>,
}

/// A group and what guards it.
type Guard = (String, Option<Given>);

/// A program in the kernel.
#[derive(Debug)]
struct Program {
    code: Vec<u64>,
    fd: OwnedFd,
    id: u32,
}

/// What a group was given.
#[derive(Debug)]
pub(super) struct Applied(Given);

#[derive(Debug, Clone)]
enum Given {
    V1(List),
    /// The program's number; it lives as long as the group has it.
    V2(u32),
}

impl Shared {
    fn guest(&self) -> Arc<Guest> {
        // Held while /proc and /sys are read, once.
        let mut guest = lock(&self.guest);
        let found = guest.get_or_insert_with(|| {
            let guest = Guest::find(Path::new("/"));
            debug!("Denied to all containers: {:?}", guest.devices);
            Arc::new(guest)
        });
        found.clone()
    }

    /// The program, loaded unless it is one of the last.
    fn program(&self, code: Vec<u64>) -> Result<Arc<Program>, (&'static str, Errno)> {
        // Held while the kernel checks a new program: some 0.1 ms, rarely.
        let mut programs = lock(&self.programs);
        let program = match programs.iter().position(|kept| kept.code == code) {
            Some(at) => programs.remove(at),
            None => {
                let fd = bpf::load(&code).map_err(|e| ("load", e))?;
                let id = bpf::id(&fd).map_err(|e| ("identify", e))?;
                Arc::new(Program { code, fd, id })
            }
        };
        programs.push(program.clone());
        if programs.len() > KEPT_PROGRAMS {
            programs.remove(0);
        }
        Ok(program)
    }
}

/// What is guarded is complete before anything can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cgroups {
    /// Has a group made here, with all below it, never touch the guest's devices.
    pub(super) fn guard(&self, group: &str) -> Result<(), CgroupError> {
        let shared = &self.0.devices;
        let mut guards = lock(&shared.guards);
        let guest = shared.guest();
        guards.retain(|(other, _)| other != group);
        if guards.len() >= MOST_GUARDS {
            // Groups that are gone; there never are as many.
            guards.retain(|(other, _)| self.has_group(other));
        }
        let given = match guest.devices.is_empty() {
            true => None,
            false => self.put_guard(group, &guest, None)?,
        };
        guards.push((group.to_owned(), given));
        Ok(())
    }

    fn has_group(&self, group: &str) -> bool {
        let hierarchy = match &self.0.layout {
            Layout::V1(split) => split.hierarchy_of("devices"),
            Layout::V2(unified) => Some(&unified.hierarchy),
            Layout::None => None,
        };
        hierarchy.is_some_and(|hierarchy| open(hierarchy, group).is_ok())
    }

    /// Puts a guard on a group, in the place of an earlier one.
    fn put_guard(
        &self,
        group: &str,
        guest: &Guest,
        old: Option<Given>,
    ) -> Result<Option<Given>, CgroupError> {
        match &self.0.layout {
            Layout::V1(split) => {
                let hierarchy = split.hierarchy_of("devices").ok_or_else(no_controller)?;
                let list = List::compile(&[rule::ANYTHING], guest);
                let old = match old {
                    Some(Given::V1(list)) => list,
                    // Not emptied first: a group above may deny all.
                    _ => List::all(),
                };
                write_list(hierarchy, group, &list.writes(Some(&old)))?;
                Ok(Some(Given::V1(list)))
            }
            Layout::V2(unified) => {
                let old = match old {
                    Some(Given::V2(id)) => Some(id),
                    _ => None,
                };
                let code = ebpf::program(&[rule::ANYTHING], &guest.devices);
                let guard = self.0.devices.program(code);
                let id = guard.and_then(|guard| replace(&unified.hierarchy, group, &guard, old));
                let id = id.map_err(|failed| program_failed(group, failed))?;
                Ok(Some(Given::V2(id)))
            }
            Layout::None => Ok(None),
        }
    }

    /// Lets devices that a host has given to a container be used by those whose
    /// rules allow it. Answers with the first that is the guest's own: that one
    /// is nobody's, and nothing was done.
    ///
    /// # Errors
    /// [`CgroupError`] when a guard cannot be changed.
    pub fn hand_out(&self, nodes: &[Node]) -> Result<Option<Node>, CgroupError> {
        let shared = &self.0.devices;
        let mut guards = lock(&shared.guards);
        let mut guest = Guest::clone(&shared.guest());
        for node in nodes {
            let device = Device::from(node);
            if !guest.devices.contains(&device) {
                continue;
            }
            if !guest.spare.contains(&device) {
                return Ok(Some(node.clone()));
            }
            guest.devices.retain(|other| *other != device);
        }
        if guest.devices == shared.guest().devices {
            return Ok(None);
        }
        self.renew(&mut guards, guest)?;
        Ok(None)
    }

    /// Makes a disk the guest's own, with all that shares it: no container can
    /// open or make it from now on, whether it runs already or not. What one has
    /// open stays open.
    ///
    /// # Errors
    /// [`CgroupError`] when a guard cannot be changed.
    pub fn take_over(&self, disk: (u32, u32)) -> Result<(), CgroupError> {
        let shared = &self.0.devices;
        let mut guards = lock(&shared.guards);
        let guest = shared.guest().with(disk, Path::new("/"));
        self.renew(&mut guards, guest)
    }

    /// Has all guards keep other devices from now on, and what comes later, too.
    fn renew(&self, guards: &mut Vec<Guard>, guest: Guest) -> Result<(), CgroupError> {
        guards.retain(|(group, _)| self.has_group(group));
        for (group, given) in guards {
            *given = self.put_guard(group, &guest, given.clone())?;
        }
        *lock(&self.0.devices.guest) = Some(Arc::new(guest));
        Ok(())
    }
}

impl Cgroup {
    /// Lets the group's processes use the devices that every container may use
    /// and those that `rules` allow, of which the last that matches decides; the
    /// guest's own disks stay denied. Takes the place of earlier rules, without a
    /// moment in which neither hold. `Cgroup::apply` calls it when the
    /// resources have rules; who has none calls it with none.
    ///
    /// # Errors
    /// [`CgroupError::Value`] for rules that cannot be, [`CgroupError::Program`]
    /// and [`CgroupError::Controller`] when the kernel cannot keep them: a
    /// container never runs without.
    pub fn restrict_devices(&self, rules: &[LinuxDeviceCgroup]) -> Result<(), CgroupError> {
        let rules = rule::effective(rules)?;
        let shared = &self.cgroups.0.devices;
        // Held over a few calls on cgroup files, which wait for nobody.
        let mut applied = lock(&self.devices);
        match &self.cgroups.0.layout {
            Layout::V1(split) => {
                let hierarchy = split.hierarchy_of("devices").ok_or_else(no_controller)?;
                let list = List::compile(&rules, &shared.guest());
                if !list.exact {
                    debug!("Cgroup /{}: v1 grants less than the rules", self.path);
                }
                let old = match applied.take() {
                    Some(Applied(Given::V1(list))) => Some(list),
                    _ => None,
                };
                let (now, result) = change_list(hierarchy, self.path(), list, old);
                *applied = now.map(|list| Applied(Given::V1(list)));
                result
            }
            Layout::V2(unified) => {
                let code = ebpf::program(&rules, &shared.guest().devices);
                let old = match *applied {
                    Some(Applied(Given::V2(id))) => Some(id),
                    _ => None,
                };
                let id = shared
                    .program(code)
                    .and_then(|program| replace(&unified.hierarchy, self.path(), &program, old))
                    .map_err(|failed| program_failed(self.path(), failed))?;
                *applied = Some(Applied(Given::V2(id)));
                Ok(())
            }
            Layout::None => {
                warn!(
                    "Container {} runs without device rules: no cgroups",
                    self.path
                );
                Ok(())
            }
        }
    }
}

/// Puts a program in the place of an earlier one, or of none.
fn replace(
    hierarchy: &Hierarchy,
    group: &str,
    program: &Program,
    old: Option<u32>,
) -> Result<u32, (&'static str, Errno)> {
    if old == Some(program.id) {
        return Ok(program.id);
    }
    let group = open(hierarchy, group)?;
    // A container with the capabilities for it may have taken the old one off.
    let old = old.and_then(|id| bpf::by_id(id).ok());
    match bpf::attach(&group, &program.fd, old.as_ref()) {
        Err(Errno::ENOENT) if old.is_some() => bpf::attach(&group, &program.fd, None),
        other => other,
    }
    .map_err(|e| ("attach", e))?;
    Ok(program.id)
}

fn open(hierarchy: &Hierarchy, group: &str) -> Result<OwnedFd, (&'static str, Errno)> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    hierarchy
        .open_at(group, "", flags)
        .map_err(|e| ("attach", e))
}

/// Brings a group from one list to another; answers with the list it has then,
/// as far as that is known.
fn change_list(
    hierarchy: &Hierarchy,
    group: &str,
    list: List,
    old: Option<List>,
) -> (Option<List>, Result<(), CgroupError>) {
    let writes = list.writes(old.as_ref());
    let mut result = write_list(hierarchy, group, &writes);
    if result.is_err() && old.is_some() {
        // The kernel takes back no denial that touches one above; from the
        // start it does not have to, where no group is below.
        let again = list.writes(None);
        result = write_list(hierarchy, group, &again).or(result);
    }
    match (&result, old) {
        (Ok(()), _) => (Some(list), result),
        (Err(_), Some(old)) => (list.between(old), result),
        (Err(_), None) => (None, result),
    }
}

fn write_list(
    hierarchy: &Hierarchy,
    group: &str,
    writes: &[(v1::File, String)],
) -> Result<(), CgroupError> {
    let mut opened: Option<(v1::File, OwnedFd)> = None;
    for (file, text) in writes {
        let refused = |source| CgroupError::Limit {
            path: group.to_owned(),
            file: file.name().into(),
            value: text.clone(),
            source,
        };
        let fd = match opened.take() {
            Some((same, fd)) if same == *file => fd,
            _ => hierarchy
                .open_at(group, file.name(), OFlag::O_WRONLY)
                .map_err(refused)?,
        };
        write(&fd, text.as_bytes()).map_err(refused)?;
        opened = Some((*file, fd));
    }
    Ok(())
}

fn no_controller() -> CgroupError {
    CgroupError::Controller {
        controller: "devices",
        file: "devices.allow".into(),
    }
}

fn program_failed(group: &str, (step, source): (&'static str, Errno)) -> CgroupError {
    CgroupError::Program {
        path: group.to_owned(),
        step,
        source,
    }
}

#[cfg(test)]
mod tests;
