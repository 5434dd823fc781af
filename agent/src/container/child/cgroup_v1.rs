// SPDX-License-Identifier: Apache-2.0
//! A container's view of cgroup v1: a tmpfs with its own part of each
//! hierarchy, and links by the names of controllers that share one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::symlinkat;
use rustix::fs::{Mode, OFlags, mkdirat, openat};

use super::mounts::{new_file_system, set_attributes};
use super::root::{attach_tree, clone_tree};
use super::{Naming, StepError, within};
use crate::container::plan::MountPlan;
use crate::container::plan::mount::attr;

/// One line of `/proc/self/cgroup`.
#[derive(Debug, PartialEq, Eq)]
struct Own {
    /// Controllers, joined by commas, or the name of a hierarchy without any.
    name: String,
    /// Has a name instead of controllers.
    named: bool,
    /// Where this process is in it.
    path: String,
}

/// Mounts the view at the plan's destination.
pub fn mount(root: BorrowedFd<'_>, plan: &MountPlan) -> Result<(), StepError> {
    let parameters = [("mode".to_owned(), Some("755".to_owned()))];
    let tmpfs = new_file_system("tmpfs", "tmpfs", &parameters)?;
    let target = within::directory(root, &plan.destination).naming(|| "directory".into())?;
    attach_tree(&tmpfs, &target).naming(|| "attach".into())?;
    let groups = |file: &str| {
        let text = std::fs::read_to_string(file).naming(|| file.into())?;
        Ok(parse(&text))
    };
    let init = groups("/proc/1/cgroup")?;
    for own in groups("/proc/self/cgroup")? {
        let Some(tree) = tree(&own, &init)? else {
            continue;
        };
        let place = place(&tmpfs, &own.name).naming(|| own.name.clone())?;
        // A systemd inside needs to write to its own hierarchy, whatever the
        // others are.
        let keep = if own.named { attr::RDONLY } else { 0 };
        let attributes = MountPlan {
            set: plan.set & !keep,
            ..plan.clone()
        };
        set_attributes(&attributes, &tree).naming(|| own.name.clone())?;
        attach_tree(&tree, &place).naming(|| own.name.clone())?;
        for controller in own.name.split(',').filter(|name| *name != own.name) {
            match symlinkat(own.name.as_str(), &tmpfs, controller) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(StepError::new(controller, errno)),
            }
        }
    }
    let around = MountPlan {
        set: plan.set | attr::NOSUID | attr::NODEV | attr::NOEXEC,
        ..plan.clone()
    };
    set_attributes(&around, &tmpfs).naming(|| "attributes".into())
}

/// The process's part of a hierarchy, detached; `None` if the guest has it
/// mounted nowhere, or the container has no part of it.
fn tree(own: &Own, init: &[Own]) -> Result<Option<OwnedFd>, StepError> {
    // In a cgroup namespace its own part is all there is: a new mount shows
    // just that, while the guest's would show everything.
    if own.path == "/" {
        if !is_apart(own, init) {
            return Ok(None);
        }
        let parameters: Vec<_> = if own.named {
            let name = ("name".to_owned(), Some(own.name.clone()));
            vec![("none".to_owned(), None), name]
        } else {
            let controllers = own.name.split(',');
            controllers.map(|name| (name.to_owned(), None)).collect()
        };
        return new_file_system("cgroup", "cgroup", &parameters).map(Some);
    }
    let source = format!("/sys/fs/cgroup/{}{}", own.name, own.path);
    match within::in_guest(&source) {
        Ok(place) => clone_tree(&place, false).naming(|| source).map(Some),
        Err(_) => Ok(None),
    }
}

/// Whether a process that sees itself at the top of a hierarchy is not at its
/// root, as it is in one that nobody joined, such as another container has
/// made. The guest's first process lies outside of its part then.
fn is_apart(own: &Own, init: &[Own]) -> bool {
    let same = |other: &&Own| (&other.name, other.named) == (&own.name, own.named);
    let init = init.iter().find(same);
    init.is_some_and(|init| init.path.starts_with("/.."))
}

fn place(tmpfs: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    mkdirat(tmpfs, name, Mode::from_raw_mode(0o755))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(tmpfs.as_fd(), name, flags, Mode::empty())?)
}

/// The lines of `/proc/self/cgroup` but that of v2, which has no name.
fn parse(text: &str) -> Vec<Own> {
    let own = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let name = controllers.strip_prefix("name=");
        (!controllers.is_empty()).then(|| Own {
            name: name.unwrap_or(controllers).to_owned(),
            named: name.is_some(),
            path: path.to_owned(),
        })
    };
    text.lines().filter_map(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hierarchy_of_v1_is_found() {
        let text = "9:name=systemd:/x\n3:cpu,cpuacct:/a:b\n0::/unified\nnonsense\n";
        let own = |name: &str, named, path: &str| Own {
            name: name.to_owned(),
            named,
            path: path.to_owned(),
        };
        let wanted = [
            own("systemd", true, "/x"),
            own("cpu,cpuacct", false, "/a:b"),
        ];
        assert_eq!(parse(text), wanted);
    }

    #[test]
    fn the_top_is_a_part_only_if_the_first_process_is_outside() {
        let own = parse("2:pids:/\n3:name=made:/\n");
        let apart = |init: &str| [0, 1].map(|i| is_apart(&own[i], &parse(init)));
        assert_eq!(apart("2:pids:/../..\n3:name=made:/\n"), [true, false]);
        assert_eq!(apart("2:pids:/\n3:name=made:/init.scope\n"), [false, false]);
        assert_eq!(apart("3:made:/..\n"), [false, false]);
    }
}
