// SPDX-License-Identifier: Apache-2.0
//! Session, controlling terminal and standard streams of the process.
//!
//! A terminal comes from the container's own devpts, so that it has a name
//! there; a container without one gets it from the guest's.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::{Uid, dup2_stderr, dup2_stdin, dup2_stdout, fchown, setsid};
use rustix::fs::{CWD, Mode, OFlags, fstat, fstatfs, openat};
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::root::{attach_tree, clone_tree};
use super::{Child, Naming, StepError, within};

/// `DEVPTS_SUPER_MAGIC`, statfs(2).
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// keyctl(2).
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;

/// A pty pair on its way: the master goes to the agent, the slave stays.
#[derive(Default)]
pub struct Terminal {
    master: Option<OwnedFd>,
    slave: Option<OwnedFd>,
    spare: Option<OwnedFd>,
}

impl Terminal {
    /// The master side, to be sent away with the report; once.
    pub fn take_master(&mut self) -> Option<OwnedFd> {
        self.master.take()
    }
}

/// Opens the multiplexer of the guest's devpts while it can be seen.
pub fn open_guest(child: &mut Child) -> Result<(), StepError> {
    if child.plan.process.terminal {
        child.terminal.spare = open_multiplexer(CWD.as_fd(), "/dev/pts/ptmx").ok();
    }
    Ok(())
}

fn open_multiplexer(at: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    Ok(openat(
        at,
        path,
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Opens the pair: before the pivot for a new container, else in the joined root.
pub fn open(child: &mut Child) -> Result<(), StepError> {
    if !child.plan.process.terminal {
        return Ok(());
    }
    let own = match &child.root {
        Some(root) => within::open(root.as_fd(), "/dev/pts/ptmx", OFlags::RDWR | OFlags::NOCTTY),
        None => {
            let root = within::in_guest("/").naming(|| "root".into())?;
            within::open(root.as_fd(), "/dev/pts/ptmx", OFlags::RDWR | OFlags::NOCTTY)
        }
    };
    let own = own.ok().filter(is_devpts);
    let master = own
        .or_else(|| child.terminal.spare.take())
        .ok_or_else(|| StepError::new("/dev/pts/ptmx", io::Error::from(io::ErrorKind::NotFound)))?;
    let pair = || -> io::Result<OwnedFd> {
        unlockpt(&master)?;
        Ok(ioctl_tiocgptpeer(
            &master,
            OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
        )?)
    };
    let slave = pair().naming(|| "pseudoterminal".into())?;
    if let Some((rows, columns)) = child.plan.process.console_size {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&slave, size).naming(|| "window size".into())?;
    }
    if let Some(root) = &child.root {
        bind_console(root.as_fd(), &slave).naming(|| "/dev/console".into())?;
    }
    child.terminal.master = Some(master);
    child.terminal.slave = Some(slave);
    child.terminal.spare = None;
    Ok(())
}

/// A device that only looks like a multiplexer could be anything.
fn is_devpts(fd: &OwnedFd) -> bool {
    #[allow(
        clippy::useless_conversion,
        reason = "the type differs between targets"
    )]
    fstatfs(fd).is_ok_and(|stat| i64::from(stat.f_type) == DEVPTS_MAGIC)
}

/// `/dev/console` is the terminal of the container's first process (OCI
/// runtime specification, "terminal"); by descriptor, so that no path of the
/// container is trusted (CVE-2025-52565).
fn bind_console(root: BorrowedFd<'_>, slave: &OwnedFd) -> io::Result<()> {
    let name = within::in_guest(&format!("/proc/self/fd/{}", slave.as_raw_fd()))?;
    // A slave of another mount namespace's devpts cannot be bound; then there is no console.
    let Ok(tree) = clone_tree(&name, false) else {
        return Ok(());
    };
    let target = within::file(root, "/dev/console")?;
    Ok(attach_tree(&tree, &target)?)
}

/// A session of its own, so that no signal of the agent's terminal arrives.
pub fn new_session(_: &mut Child) -> Result<(), StepError> {
    new_keyring();
    setsid().naming(|| "new session".into()).map(drop)
}

/// A session keyring of its own: else containers of one user would share what
/// they keep there. Not a reason to fail: a kernel may have no keys, and a user
/// namespace has a small quota of them.
#[allow(unsafe_code)]
fn new_keyring() {
    // SAFETY: a null name asks for a new anonymous keyring; no memory is handed over.
    unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    };
}

/// Puts the streams on 0, 1 and 2 and gives them to the process's user.
pub fn attach_stdio(child: &mut Child) -> Result<(), StepError> {
    let user = child.plan.process.uid;
    match (child.terminal.slave.take(), child.stdio.take()) {
        (Some(slave), _) => {
            ioctl_tiocsctty(&slave).naming(|| "controlling terminal".into())?;
            give(&slave, user).naming(|| "owner of the terminal".into())?;
            put([&slave, &slave, &slave])
        }
        (None, Some(streams)) => {
            for stream in &streams {
                give(stream, user).naming(|| "owner of the standard streams".into())?;
            }
            put([&streams[0], &streams[1], &streams[2]])
        }
        (None, None) => Ok(()),
    }
}

fn put(streams: [&OwnedFd; 3]) -> Result<(), StepError> {
    dup2_stdin(streams[0]).naming(|| "standard input".into())?;
    dup2_stdout(streams[1]).naming(|| "standard output".into())?;
    dup2_stderr(streams[2]).naming(|| "standard error".into())
}

/// Lets a program that is not root open `/dev/stdout` again. The null device
/// is the guest's and keeps its owner.
fn give(stream: &OwnedFd, user: u32) -> io::Result<()> {
    let stat = fstat(stream)?;
    let is_null = rustix::fs::major(stat.st_rdev) == 1 && rustix::fs::minor(stat.st_rdev) == 3;
    if user == 0 || is_null {
        return Ok(());
    }
    match fchown(stream, Some(Uid::from_raw(user)), None) {
        // The agent's pipe has no owner in a user namespace and cannot be given
        // one from there.
        Err(Errno::EPERM | Errno::EINVAL) => Ok(()),
        other => Ok(other?),
    }
}
