// SPDX-License-Identifier: Apache-2.0
//! PID 1 and the console.
//!
//! Owns the standard streams, the session and the keys that could reach PID 1:
//! Ctrl-Alt-Del must not restart the VM and Ctrl-C on the console must do
//! nothing. The latter needs no signal handler. PID 1 has a session without a
//! controlling terminal, so no terminal signals it; and the kernel drops every
//! signal for PID 1 whose disposition is the default (signal(7), kill(2)).
//! SIGINT, SIGQUIT and SIGHUP are left alone on purpose: ignoring them would
//! be inherited by every container through exec.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::reboot::set_cad_enabled;
use nix::sys::stat::{fstat, makedev};
use nix::unistd::setsid;
use thiserror::Error;

/// PID 1 is not properly apart from the console.
#[derive(Debug, Error)]
pub enum ConsoleError {
    /// Ctrl-Alt-Del still restarts the VM.
    #[error("Cannot disable Ctrl-Alt-Del")]
    CtrlAltDel(#[source] Errno),
    /// No session of its own.
    #[error("Cannot start a session")]
    Session(#[source] Errno),
    /// Neither the console nor the null device.
    #[error("Cannot open /dev/console or /dev/null for the standard streams")]
    Streams(#[source] io::Error),
}

/// Puts PID 1 apart from the console: keys, session, streams. All three are
/// tried; the first failure is returned.
pub fn detach() -> Result<(), ConsoleError> {
    let keys = set_cad_enabled(false).map_err(ConsoleError::CtrlAltDel);
    let session = match setsid() {
        // EPERM: it leads one already.
        Ok(_) | Err(Errno::EPERM) => Ok(()),
        Err(errno) => Err(ConsoleError::Session(errno)),
    };
    let streams = connect_streams().map_err(ConsoleError::Streams);
    keys.and(session).and(streams)
}

/// Connects the standard streams with the console. The kernel has done so
/// before it started us, if the root it started us from had `/dev/console`; if
/// not, the Rust runtime has opened `/dev/null`, and now there is a `/dev`.
fn connect_streams() -> io::Result<()> {
    if !stderr_is_null() {
        return Ok(());
    }
    // A kernel without any console has the node, but opening it is ENODEV.
    let console = open("/dev/console").or_else(|_| open("/dev/null"))?;
    rustix::stdio::dup2_stdin(&console)?;
    rustix::stdio::dup2_stdout(&console)?;
    rustix::stdio::dup2_stderr(&console)?;
    Ok(())
}

fn stderr_is_null() -> bool {
    // The null device's number, Documentation/admin-guide/devices.txt.
    let null = makedev(1, 3);
    fstat(io::stderr().as_fd()).map_or(true, |stat| stat.st_rdev == null)
}

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(path)
}
