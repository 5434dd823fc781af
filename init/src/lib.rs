// SPDX-License-Identifier: Apache-2.0
//! PID 1's duties in a container micro-VM.
//!
//! [`begin`] and [`complete`] are the boot story: what the kernel leaves undone
//! between starting PID 1 and a machine in which containers can run. It is
//! three tables of steps, `LISTEN`, `SETTLE` and `COMPLETE`: read them from top
//! to bottom. A step that fails is logged, and its table entry says whether the boot goes
//! on; nothing in here panics, sleeps or waits without end.
//!
//! The crate owns the machine as a whole: its mounts, root, modules, console,
//! loopback, children and its end. It never speaks to the host, knows nothing
//! of containers, runs no other program and starts no thread (but for bounded
//! waits while powering off). The arguments and the environment that the
//! kernel hands to PID 1 are words of the command line that it did not know
//! itself; they are not looked at, so a bad one cannot hurt.

mod arrival;
pub mod cgroup;
pub mod cmdline;
pub mod console;
pub mod dev;
pub mod dm;
mod extension;
mod failure;
pub mod host;
pub mod hotplug;
pub mod image;
pub mod kmsg;
pub mod limits;
pub mod modules;
pub mod mounts;
pub mod net;
pub mod phase;
pub mod reaper;
pub mod root;
pub mod shutdown;
pub mod uevent;
pub mod verity;

use std::error::Error;
use std::path::Path;

pub use cgroup::CgroupMode;
pub use cmdline::CommandLine;
pub use failure::OnFailure;
pub use phase::Phases;

use mounts::Stage;

/// What the boot found and did.
#[derive(Debug)]
pub struct Boot {
    /// The kernel command line; empty if it could not be read.
    pub cmdline: CommandLine,
    /// The cgroup interface of this machine.
    pub cgroup: CgroupMode,
    /// Whether the root is (still) the kernel's initramfs.
    pub initramfs: bool,
    /// How long it took. The agent adds its own marks and logs the summary.
    pub phases: Phases,
}

/// A step of the boot.
struct Step {
    /// Its name among the phases.
    name: &'static str,
    run: fn(&mut Boot) -> Result<(), Box<dyn Error>>,
    on_failure: OnFailure,
}

const fn step(
    name: &'static str,
    on_failure: OnFailure,
    run: fn(&mut Boot) -> Result<(), Box<dyn Error>>,
) -> Step {
    Step {
        name,
        run,
        on_failure,
    }
}

use OnFailure::{GoOn, PowerOff};

/// As little as the agent's listening socket needs: the host is trying to
/// connect already, and a refused attempt costs it more than all of this.
#[rustfmt::skip]
const LISTEN: &[Step] = &[
    // /dev, /proc and /sys: from here on lines reach the log.
    step("mounts",   GoOn,     |_|    { mounts::mount_stage(Stage::Early); Ok(()) }),
    // Without it nobody knows what is wanted, not even where to listen.
    step("cmdline",  PowerOff, |boot| { boot.cmdline = CommandLine::read()?; Ok(()) }),
    // Drivers first of all: vsock is often one of them. In an initramfs their
    // files are memory, which is given back.
    step("modules",  GoOn,     |boot| Ok(modules::load(boot.initramfs)?)),
];

/// What must not change any more while requests are answered.
#[rustfmt::skip]
const SETTLE: &[Step] = &[
    // Another root than the one asked for must not be served from.
    step("root",     PowerOff, |boot| { boot.initramfs = root::settle(&boot.cmdline, boot.initramfs)?; Ok(()) }),
    // Every connection takes a descriptor.
    step("limits",   GoOn,     |_|    Ok(limits::raise_open_files()?)),
];

/// What containers need, and the manners of a PID 1.
#[rustfmt::skip]
const COMPLETE: &[Step] = &[
    // The rest of the mount table, on the root that stays.
    step("mounts2",  GoOn,     |_|    { mounts::mount_stage(Stage::Final); Ok(()) }),
    step("links",    GoOn,     |_|    Ok(dev::links()?)),
    // On the tmpfs of the step before last. One that is missing or changed must
    // not be done without.
    step("extensions", PowerOff, |boot| Ok(extension::mount_all(&boot.cmdline)?)),
    // Logs by itself what is missing; any version is better than none.
    step("cgroup",   GoOn,     |boot| { boot.cgroup = cgroup::mount(&boot.cmdline); Ok(()) }),
    step("loopback", GoOn,     |_|    Ok(net::loopback_up()?)),
    step("tcp",      GoOn,     |boot| Ok(net::tcp_congestion(&boot.cmdline)?)),
    step("hostname", GoOn,     |_|    Ok(host::set_hostname()?)),
    // No key on the console may reach PID 1.
    step("console",  GoOn,     |_|    Ok(console::detach()?)),
    // When memory runs out, a container has to go, not the agent.
    step("oom",      GoOn,     |_|    Ok(limits::protect_from_oom()?)),
    // What was plugged in before anybody listened for it.
    step("memory",   GoOn,     |_|    { hotplug::memory::bring_up_at(Path::new("/sys"))?; Ok(()) }),
    // A read-only root may lack something and may not be completed.
    step("varrun",   GoOn,     |_|    Ok(image::run_link()?)),
    step("resolv",   GoOn,     |_|    Ok(image::resolv_conf()?)),
];

/// Boots the machine as PID 1, up to where requests can be answered that need
/// no container: the root is the one that stays, but only `/dev`, `/proc` and
/// `/sys` are mounted and [`Boot::cgroup`] is not known. [`complete`] must
/// follow. The two halves exist because the second is by far the longer one,
/// and a host that asks for the agent's health need not wait for it.
///
/// Neither ever fails or panics: what goes wrong is logged, and either done
/// without or the VM powers off, by the tables.
///
/// `early` is called once, when the command line is known and the kernel's
/// modules are loaded, for the agent to open its listening socket; the rest of
/// the boot follows while the host connects. Nothing but `/dev`, `/proc` and
/// `/sys` is mounted then, and the root may still change: paths do not last,
/// descriptors do.
///
/// Must be called before any thread is started.
pub fn begin(early: &mut dyn FnMut(&CommandLine)) -> Boot {
    let mut boot = Boot {
        phases: Phases::start(),
        cmdline: CommandLine::default(),
        cgroup: CgroupMode::None,
        initramfs: root::on_initramfs(),
    };
    take(LISTEN, &mut boot);
    early(&boot.cmdline);
    boot.phases.mark("early");
    take(SETTLE, &mut boot);
    boot
}

/// The second half of the boot, after [`begin`]. May run on another thread than the first.
pub fn complete(boot: &mut Boot) {
    take(COMPLETE, boot);
}

fn take(steps: &[Step], boot: &mut Boot) {
    for step in steps {
        if let Err(error) = (step.run)(boot) {
            failure::handle(&*error, step.on_failure);
        }
        boot.phases.mark(step.name);
    }
}

/// What a service, under systemd in a bigger image, needs of all this: the
/// command line and the cgroup interface that are there, and room for open
/// files. Nothing is mounted and nothing of the machine is changed.
pub fn service() -> Boot {
    let mut phases = Phases::start();
    let cmdline = CommandLine::read().unwrap_or_else(|error| {
        failure::handle(&error, GoOn);
        CommandLine::default()
    });
    if let Err(error) = limits::raise_open_files() {
        failure::handle(&error, GoOn);
    }
    phases.mark("service");
    Boot {
        cmdline,
        cgroup: cgroup::detect(),
        initramfs: root::on_initramfs(),
        phases,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn steps() -> impl Iterator<Item = &'static Step> {
        LISTEN.iter().chain(SETTLE).chain(COMPLETE)
    }

    #[test]
    fn phases_have_names_of_their_own() {
        let names: HashSet<_> = steps().map(|step| step.name).collect();
        assert_eq!(names.len(), steps().count());
    }

    #[test]
    fn bug_only_what_cannot_be_served_powers_off() {
        let fatal = steps().filter(|step| step.on_failure == PowerOff);
        assert_eq!(
            fatal.map(|step| step.name).collect::<Vec<_>>(),
            ["cmdline", "root", "extensions"]
        );
    }

    #[test]
    fn the_agent_listens_before_the_root_is_looked_for() {
        assert!(LISTEN.iter().any(|step| step.name == "modules"));
        assert_eq!(SETTLE[0].name, "root");
    }

    #[test]
    fn bug_the_root_is_settled_before_anything_is_mounted_that_stays() {
        let at = |name| steps().position(|step| step.name == name);
        assert!(at("root") < at("mounts2") && at("mounts2") < at("links"));
        // Extensions are mounted below /run.
        assert!(at("mounts2") < at("extensions"));
    }

    #[test]
    fn a_service_changes_nothing_of_the_machine() {
        let boot = service();
        assert!(boot.phases.summary().starts_with("boot: kernel "));
    }
}
