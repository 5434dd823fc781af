// SPDX-License-Identifier: Apache-2.0
//! The launcher process: a single-threaded copy of the agent, running from a
//! sealed memory file, that does nothing but clone.
//!
//! Why it exists is told in `docs/adr/0003-launcher.md`. It owns no state
//! beyond its socket: a child reads its plan itself, so nothing of one
//! container is ever in the memory that another one is copied from.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask,
};

use super::clone::{Side, clone3};
use super::message::{LaunchStep, Order, Receipt, Task, receive_with_fds, send_with_fds};
use crate::container::child;

/// Serves orders from the socket until the agent closes it, then exits with 0.
/// Never returns.
pub fn serve(socket: OwnedFd) -> ! {
    if let Err(error) = settle() {
        log::error!("The launcher cannot set itself up: {error}");
        std::process::exit(1);
    }
    if let Err(error) = child::floor::lay() {
        log::warn!("Containers' roots lie right above the initramfs: {error}");
    }
    // Nothing but `socket` holds the agent's connection.
    if let Err(error) = File::open("/dev/null").map(nix::unistd::dup2_stdin) {
        log::warn!("The launcher keeps its standard input: {error}");
    }
    let own_pid_namespace = match File::open("/proc/self/ns/pid") {
        Ok(file) => file,
        Err(error) => {
            log::error!("The launcher cannot open its own pid namespace: {error}");
            std::process::exit(1);
        }
    };
    let mut buffer = [0; 64];
    loop {
        match receive_with_fds(socket.as_raw_fd(), &mut buffer) {
            Ok((0, _)) => std::process::exit(0),
            Ok((length, fds)) => {
                let receipt = obey(&buffer[..length], fds, &own_pid_namespace, &socket);
                if answer(&socket, receipt).is_err() {
                    std::process::exit(0);
                }
            }
            Err(error) => {
                log::error!("The launcher cannot read its socket: {error}");
                std::process::exit(1);
            }
        }
    }
}

/// Dies with the agent, and starts its children with the signal state of a
/// fresh process: PID 1 ignores and blocks signals that a container must get.
fn settle() -> nix::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    prctl::set_name(c"keelson-launch")?;
    prctl::set_dumpable(false)?;
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        reset(signal, &default)?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

#[allow(unsafe_code)]
fn reset(signal: Signal, default: &SigAction) -> nix::Result<()> {
    // SAFETY: SIG_DFL installs no handler, so no code runs in signal context.
    unsafe { sigaction(signal, default) }.map(drop)
}

fn answer(socket: &OwnedFd, receipt: Receipt) -> io::Result<()> {
    let mut bytes = [0; 32];
    let encoded = postcard::to_slice(&receipt, &mut bytes).map_err(io::Error::other)?;
    send_with_fds(socket.as_raw_fd(), encoded, &[]).map(drop)
}

fn obey(bytes: &[u8], fds: Vec<OwnedFd>, own_pid_namespace: &File, socket: &OwnedFd) -> Receipt {
    let mut fds = fds.into_iter();
    let (Ok(order), Some(control)) = (postcard::from_bytes::<Order>(bytes), fds.next()) else {
        return Receipt::Failed(LaunchStep::Order, Errno::EPROTO as i32);
    };
    if order.joins_pid {
        let Some(target) = fds.next() else {
            return Receipt::Failed(LaunchStep::Order, Errno::EPROTO as i32);
        };
        // Only children enter it; we ourselves stay where we are.
        if let Err(errno) = setns(target.as_fd(), CloneFlags::CLONE_NEWPID) {
            return Receipt::Failed(LaunchStep::JoinPid, errno as i32);
        }
    }
    let cgroup = if order.into_cgroup { fds.next() } else { None };
    let receipt = start(order, control, cgroup, socket);
    if order.joins_pid && setns(own_pid_namespace.as_fd(), CloneFlags::CLONE_NEWPID).is_err() {
        // The next container would land in this one's namespace: end here, the
        // agent starts another launcher.
        std::process::exit(1);
    }
    receipt
}

#[allow(unsafe_code)]
fn start(order: Order, control: OwnedFd, cgroup: Option<OwnedFd>, socket: &OwnedFd) -> Receipt {
    // SAFETY: this process has one thread: `serve` is called from `main`
    // before anything could have started another.
    match unsafe { clone3(order.namespaces, cgroup.as_ref().map(AsFd::as_fd)) } {
        Ok(Side::Parent(pid)) => Receipt::Started(pid.as_raw()),
        Ok(Side::Child) => {
            // While a child held it, the agent would not see the launcher's end.
            // Its owner is on the launcher's side: nothing drops it here.
            let _ = nix::unistd::close(socket.as_raw_fd());
            match order.task {
                Task::Process => child::become_process(UnixStream::from(control)),
                Task::Hook => child::hooks::run_for_agent(UnixStream::from(control)),
                Task::Share => child::share::run_for_agent(UnixStream::from(control)),
            }
        }
        Err(error) => Receipt::Failed(LaunchStep::Clone, error.raw_os_error().unwrap_or(0)),
    }
}
