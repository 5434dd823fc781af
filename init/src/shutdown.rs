// SPDX-License-Identifier: Apache-2.0
//! The end of the VM: processes, data, power, in this order.
//!
//! Owns the only calls of reboot(2) that stop the machine. Each step has a
//! bound: a process that does not end or a disk that hangs must not keep a VM
//! alive that nobody wants. It never touches a machine that is not ours: when
//! we are not PID 1, it only ends this process.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::mounts::{self, Mounted};
use crate::reaper::Reaper;

/// What all processes get, and how long they may take to follow.
const SIGNALS: &[(Signal, Duration)] = &[
    (Signal::SIGTERM, Duration::from_millis(300)),
    (Signal::SIGKILL, Duration::from_millis(500)),
];

/// How long written data may take to reach the disks.
const SYNC: Duration = Duration::from_secs(5);

/// How long the disks' file systems may take to be closed.
const UNMOUNT: Duration = Duration::from_secs(2);

/// Ends all processes, saves what was written, unmounts the disks and switches
/// the VM off. As a service, that is not as PID 1, it exits this process with
/// status 0; what follows is the service manager's.
pub fn power_off() -> ! {
    if nix::unistd::getpid().as_raw() != 1 {
        std::process::exit(0);
    }
    end_processes();
    bounded("sync", SYNC, nix::unistd::sync);
    bounded("unmount", UNMOUNT, release_disks);
    for &mode in ways_to_stop(can_power_off()) {
        let Err(errno) = reboot(mode);
        log::error!("Cannot stop the machine: {errno}");
    }
    // If PID 1 ended here the kernel would panic.
    loop {
        nix::unistd::pause();
    }
}

/// Whether reboot(RB_POWER_OFF) switches the machine off rather than halting
/// its processors for ever, which leaves the VMM running. On x86 that takes
/// ACPI; without it (Firecracker, microvm) a restart is what ends the VMM.
/// Other architectures have firmware for it (PSCI, SBI, diag).
fn can_power_off() -> bool {
    !cfg!(target_arch = "x86_64") || Path::new("/sys/firmware/acpi").exists()
}

fn ways_to_stop(can_power_off: bool) -> &'static [RebootMode] {
    const WAYS: &[RebootMode] = &[
        RebootMode::RB_POWER_OFF,
        RebootMode::RB_AUTOBOOT,
        RebootMode::RB_HALT_SYSTEM,
    ];
    if can_power_off { WAYS } else { &WAYS[1..] }
}

/// Ends every other process. Mostly there is none: then it costs one call.
fn end_processes() {
    if !Reaper::has_children() {
        return;
    }
    let Ok(mut reaper) = Reaper::new() else {
        // Cannot watch them end; what they have written is synced all the same.
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        return;
    };
    for &(signal, patience) in SIGNALS {
        // To all but PID 1. Fails only if there is nobody else.
        let _ = kill(Pid::from_raw(-1), signal);
        if wait_for_all(&mut reaper, patience) {
            return;
        }
    }
    log::warn!("Some processes do not end; powering off all the same");
}

/// Collects children until there is none; false if that takes too long. Every
/// process becomes our child when its parent ends, so none is missed.
fn wait_for_all(reaper: &mut Reaper, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if reaper.drain(drop).is_err() {
            return false;
        }
        if !Reaper::has_children() {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(
            &mut [PollFd::new(reaper.as_fd(), PollFlags::POLLIN)],
            timeout,
        ) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// Runs something that may hang on a thread of its own and waits for it no
/// longer than `patience`.
fn bounded(what: &str, patience: Duration, run: fn()) {
    let (done, finished) = mpsc::channel();
    let spawned = thread::Builder::new().spawn(move || {
        run();
        let _ = done.send(());
    });
    match spawned {
        Ok(_) => {
            if finished.recv_timeout(patience).is_err() {
                log::warn!("{what} takes too long; powering off all the same");
            }
        }
        // No thread to be had: doing it unbounded beats losing data.
        Err(_) => run(),
    }
}

/// Unmounts the file systems that lie on disks, the last mounted first, or at
/// least makes them read-only, which also writes them out.
fn release_disks() {
    let Ok(table) = std::fs::read_to_string("/proc/mounts") else {
        return;
    };
    for target in on_disks(&table).iter().rev() {
        let path = Path::new(target);
        let unmounted = target != "/" && umount2(path, MntFlags::UMOUNT_NOFOLLOW).is_ok();
        if !unmounted {
            let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            if let Err(errno) = mounts::mount("", path, "", read_only, "") {
                log::debug!("Cannot make {target} read-only: {errno}");
            }
        }
    }
}

/// Mount points of block devices, in the order of mounting.
fn on_disks(table: &str) -> Vec<String> {
    table
        .lines()
        .filter_map(Mounted::parse)
        .filter(|mounted| mounted.source.starts_with("/dev/"))
        .map(|mounted| mounted.target.into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_disks_are_unmounted() {
        let table = "rootfs / rootfs rw 0 0\n/dev/vda1 / ext4 ro 0 0\nproc /proc proc rw 0 0\n\
            kataShared /run/shared virtiofs rw 0 0\n/dev/vdb /run/a\\040b xfs rw 0 0\n";
        assert_eq!(on_disks(table), ["/", "/run/a b"]);
    }

    #[test]
    fn bug_a_machine_that_cannot_power_off_restarts_instead_of_hanging() {
        assert_eq!(ways_to_stop(true)[0], RebootMode::RB_POWER_OFF);
        assert_eq!(ways_to_stop(false)[0], RebootMode::RB_AUTOBOOT);
        assert_eq!(
            ways_to_stop(false).last(),
            Some(&RebootMode::RB_HALT_SYSTEM)
        );
    }

    #[test]
    fn bug_a_step_that_hangs_is_given_up() {
        let begin = Instant::now();
        bounded("test", Duration::from_millis(10), || {
            thread::sleep(Duration::from_secs(600))
        });
        assert!(begin.elapsed() < Duration::from_secs(300));
    }

    #[test]
    fn patience_is_bounded_in_all() {
        let processes: Duration = SIGNALS.iter().map(|&(_, patience)| patience).sum();
        assert!(processes + SYNC + UNMOUNT < Duration::from_secs(10));
    }
}
