// SPDX-License-Identifier: Apache-2.0
//! From a fresh clone of the launcher to the container's process: a list of
//! named steps, run in order in the child itself.
//!
//! The child is single-threaded and may allocate. It trusts its plan, but
//! nothing that it finds inside the container's root: everything there is
//! reached through descriptors confined to that root.

mod cgroup_v1;
mod credentials;
mod devices;
pub(crate) mod floor;
pub(crate) mod hooks;
mod initramfs;
mod label;
mod limits;
mod masks;
mod mounts;
mod namespaces;
mod program;
mod root;
pub(crate) mod share;
mod terminal;
pub(crate) mod within;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;

use super::plan::{ChildPlan, RootPlan};
use crate::launch::message::{GO, Report, read_frame, write_frame};

/// What a step failed with: the object and the kernel's answer.
#[derive(Debug)]
pub struct StepError {
    object: String,
    source: io::Error,
    bad_request: bool,
}

impl StepError {
    /// A failure of the guest.
    pub(crate) fn new(object: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self {
            object: object.into(),
            source: source.into(),
            bad_request: false,
        }
    }

    /// A failure that the request brought about: a file that is not there, a
    /// directory that is none.
    pub(crate) fn request(object: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self {
            bad_request: true,
            ..Self::new(object, source)
        }
    }
}

impl StepError {
    /// Whether the kernel's answer was this.
    pub(crate) fn is(&self, errno: Errno) -> bool {
        self.source.raw_os_error() == Some(errno as i32)
    }
}

impl std::error::Error for StepError {}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.source)
    }
}

/// Adds the object to an error of the kernel.
pub(crate) trait Naming<T> {
    /// Names what the failed call was about.
    fn naming(self, object: impl FnOnce() -> String) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> Naming<T> for Result<T, E> {
    fn naming(self, object: impl FnOnce() -> String) -> Result<T, StepError> {
        self.map_err(|error| StepError::new(object(), error))
    }
}

/// A child on its way.
pub(crate) struct Child {
    plan: ChildPlan,
    control: UnixStream,
    stdio: Option<[OwnedFd; 3]>,
    joins: VecDeque<OwnedFd>,
    cgroup_files: Vec<OwnedFd>,
    terminal: terminal::Terminal,
    label: Option<label::Label>,
    /// The container's root directory, from [`root::attach`] to [`root::pivot`].
    root: Option<OwnedFd>,
    /// See [`floor`].
    floor: Option<OwnedFd>,
    /// Made before a user namespace was joined, which may not mount it.
    proc: Option<OwnedFd>,
}

impl Child {
    /// The file system plan, for a container's first process in a new mount namespace.
    fn root_plan(&self) -> Option<&RootPlan> {
        self.plan.init.as_ref()?.root.as_ref()
    }

    /// Waits for the agent's word. The agent being gone is an error: nobody
    /// would ever look after this process.
    fn await_go(&mut self) -> Result<(), StepError> {
        let mut byte = [0];
        io::Read::read_exact(&mut self.control, &mut byte)
            .naming(|| "agent's word to go on".into())?;
        if byte == [GO] {
            Ok(())
        } else {
            Err(StepError::new("agent's word to go on", Errno::EPROTO))
        }
    }

    fn report(&mut self, report: &Report) -> io::Result<()> {
        let master = self.terminal.take_master();
        let fds: Vec<_> = master.iter().map(AsFd::as_fd).collect();
        write_frame(&mut self.control, report, &fds)
    }
}

/// One step: what it is called in an error, and the function.
pub(crate) struct Step {
    /// As it appears in errors.
    pub name: &'static str,
    run: fn(&mut Child) -> Result<(), StepError>,
}

/// The order is the design: limits while the guest's `/proc` is visible, the
/// user namespace before what it owns, the root while the guest can still be
/// seen, credentials when nothing privileged is left to do.
pub(crate) const STEPS: &[Step] = &[
    Step {
        name: "cgroup",
        run: limits::join_cgroup,
    },
    Step {
        name: "oom score",
        run: limits::oom_score,
    },
    Step {
        name: "resource limits",
        run: limits::rlimits,
    },
    Step {
        name: "guest terminal",
        run: terminal::open_guest,
    },
    Step {
        name: "guest label",
        run: label::open,
    },
    Step {
        name: "user namespace",
        run: namespaces::become_root,
    },
    Step {
        name: "namespaces",
        run: namespaces::join,
    },
    Step {
        name: "new namespaces",
        run: namespaces::unshare,
    },
    Step {
        name: "hostname",
        run: namespaces::hostname,
    },
    Step {
        name: "root",
        run: root::attach,
    },
    Step {
        name: "mounts",
        run: mounts::mount_all,
    },
    Step {
        name: "devices",
        run: devices::make_all,
    },
    Step {
        name: "terminal",
        run: terminal::open,
    },
    Step {
        name: "hooks of the guest",
        run: hooks::await_agent,
    },
    Step {
        name: "createContainer",
        run: hooks::create_container,
    },
    Step {
        name: "sysctls",
        run: masks::write_sysctls,
    },
    Step {
        name: "masked paths",
        run: masks::mask,
    },
    Step {
        name: "read-only paths",
        run: masks::protect,
    },
    Step {
        name: "read-only root",
        run: root::make_readonly,
    },
    Step {
        name: "pivot",
        run: root::pivot,
    },
    Step {
        name: "working directory",
        run: program::enter_cwd,
    },
    Step {
        name: "session",
        run: terminal::new_session,
    },
    Step {
        name: "standard streams",
        run: terminal::attach_stdio,
    },
    Step {
        name: "program",
        run: program::find,
    },
    Step {
        name: "label",
        run: label::apply,
    },
    Step {
        name: "capabilities",
        run: credentials::bound,
    },
    Step {
        name: "user",
        run: credentials::switch_user,
    },
    Step {
        name: "privileges",
        run: credentials::restrict,
    },
    Step {
        name: "descriptors",
        run: program::close_descriptors,
    },
    Step {
        name: "start",
        run: program::await_start,
    },
    Step {
        name: "startContainer",
        run: hooks::start_container,
    },
];

/// Reads the plan, runs the steps, executes the program. Reports exactly once
/// what became of it; never returns.
pub fn become_process(mut control: UnixStream) -> ! {
    let Ok((plan, fds)) = read_frame::<ChildPlan>(&mut control) else {
        // The agent has gone or was never there: nobody to tell.
        std::process::exit(1);
    };
    let Some(mut child) = take_apart(plan, fds, control) else {
        std::process::exit(1);
    };
    for step in STEPS {
        if let Err(error) = (step.run)(&mut child) {
            fail(&mut child, step.name, &error);
        }
    }
    let (step, errno) = program::execute(&child);
    fail_late(&mut child, step, errno)
}

fn take_apart(plan: ChildPlan, fds: Vec<OwnedFd>, control: UnixStream) -> Option<Child> {
    let mut fds = VecDeque::from(fds);
    let stdio = if plan.process.terminal {
        None
    } else {
        Some([fds.pop_front()?, fds.pop_front()?, fds.pop_front()?])
    };
    if fds.len() != plan.joins.len() + plan.cgroup_files as usize {
        return None;
    }
    let cgroup_files = fds.split_off(plan.joins.len()).into();
    let terminal = terminal::Terminal::default();
    Some(Child {
        plan,
        control,
        stdio,
        joins: fds,
        cgroup_files,
        terminal,
        label: None,
        root: None,
        floor: None,
        proc: None,
    })
}

fn fail(child: &mut Child, step: &'static str, error: &StepError) -> ! {
    let report = Report::Failed {
        step: step.to_owned(),
        error: error.to_string(),
        bad_request: error.bad_request,
    };
    // If the agent is gone, there is nobody left to tell.
    let _ = child.report(&report);
    std::process::exit(1)
}

/// The program was found before, and could not be executed after all (a script
/// without an interpreter, a binary for another machine): the exit status is
/// the errno, as hosts know it. The filter may deny the report; the status
/// gets through.
fn fail_late(child: &mut Child, step: &'static str, errno: Errno) -> ! {
    let object = format!("{step} of '{}'", child.plan.process.args[0]);
    let report = Report::Failed {
        step: step.to_owned(),
        error: StepError::request(object, errno).to_string(),
        bad_request: true,
    };
    let _ = child.report(&report);
    program::leave(errno as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The position of a step; the tests state orders that security rests on.
    fn at(name: &str) -> usize {
        STEPS.iter().position(|step| step.name == name).unwrap()
    }

    #[test]
    fn credentials_come_after_everything_privileged() {
        for earlier in [
            "cgroup",
            "resource limits",
            "mounts",
            "devices",
            "pivot",
            "standard streams",
        ] {
            assert!(at(earlier) < at("capabilities"), "{earlier}");
        }
        assert!(at("capabilities") < at("user"));
        assert!(at("user") < at("privileges"));
    }

    #[test]
    fn the_guest_is_gone_before_the_program_is_looked_up() {
        assert!(at("pivot") < at("working directory"));
        assert!(at("pivot") < at("program"));
        assert!(at("descriptors") < at("start"));
    }

    /// The container's own `/proc` is never trusted for what the child is.
    #[test]
    fn the_child_s_own_files_are_opened_while_the_guest_s_proc_is_in_view() {
        for own in ["oom score", "guest label", "guest terminal"] {
            assert!(at(own) < at("namespaces"), "{own}");
        }
        assert!(at("standard streams") < at("label"));
        assert!(at("label") < at("start"));
    }

    #[test]
    fn sysctls_are_written_before_proc_becomes_read_only() {
        assert!(at("mounts") < at("sysctls"));
        assert!(at("sysctls") < at("read-only paths"));
        assert!(at("devices") < at("read-only root"));
    }

    #[test]
    fn hooks_see_what_they_are_meant_to_change() {
        for later in ["createContainer", "sysctls", "read-only root", "pivot"] {
            assert!(at("hooks of the guest") < at(later), "{later}");
        }
        assert!(at("mounts") < at("hooks of the guest"));
        assert!(at("createContainer") < at("read-only root"));
        assert!(at("start") < at("startContainer"));
    }

    #[test]
    fn steps_have_distinct_names() {
        let mut names: Vec<_> = STEPS.iter().map(|step| step.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), STEPS.len());
    }
}
