// SPDX-License-Identifier: Apache-2.0
//! System calls and error numbers by name. Owns the one place where any system call can be made.

use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use crate::facts::{Error, Facts};

/// Makes a table of names and numbers out of libc's constants.
macro_rules! table {
    ($($(#[$condition:meta])* $name:ident = $value:path,)*) => {
        &[$($(#[$condition])* (stringify!($name), $value as i64),)*]
    };
}

/// Those that stories ask for; any other can be given by its number.
#[rustfmt::skip]
const CALLS: &[(&str, i64)] = table! {
    acct = libc::SYS_acct,
    add_key = libc::SYS_add_key,
    bpf = libc::SYS_bpf,
    chroot = libc::SYS_chroot,
    clock_settime = libc::SYS_clock_settime,
    clone3 = libc::SYS_clone3,
    delete_module = libc::SYS_delete_module,
    fchmodat = libc::SYS_fchmodat,
    fchownat = libc::SYS_fchownat,
    fsopen = libc::SYS_fsopen,
    getcpu = libc::SYS_getcpu,
    getpid = libc::SYS_getpid,
    getppid = libc::SYS_getppid,
    getpriority = libc::SYS_getpriority,
    getuid = libc::SYS_getuid,
    init_module = libc::SYS_init_module,
    io_uring_setup = libc::SYS_io_uring_setup,
    kexec_load = libc::SYS_kexec_load,
    keyctl = libc::SYS_keyctl,
    kill = libc::SYS_kill,
    linkat = libc::SYS_linkat,
    mkdirat = libc::SYS_mkdirat,
    mknodat = libc::SYS_mknodat,
    mount = libc::SYS_mount,
    mount_setattr = libc::SYS_mount_setattr,
    move_mount = libc::SYS_move_mount,
    open_by_handle_at = libc::SYS_open_by_handle_at,
    open_tree = libc::SYS_open_tree,
    openat2 = libc::SYS_openat2,
    perf_event_open = libc::SYS_perf_event_open,
    personality = libc::SYS_personality,
    pidfd_getfd = libc::SYS_pidfd_getfd,
    pidfd_open = libc::SYS_pidfd_open,
    pivot_root = libc::SYS_pivot_root,
    process_vm_readv = libc::SYS_process_vm_readv,
    ptrace = libc::SYS_ptrace,
    quotactl = libc::SYS_quotactl,
    reboot = libc::SYS_reboot,
    sched_getparam = libc::SYS_sched_getparam,
    sched_yield = libc::SYS_sched_yield,
    setdomainname = libc::SYS_setdomainname,
    sethostname = libc::SYS_sethostname,
    setns = libc::SYS_setns,
    setpriority = libc::SYS_setpriority,
    settimeofday = libc::SYS_settimeofday,
    socket = libc::SYS_socket,
    swapoff = libc::SYS_swapoff,
    swapon = libc::SYS_swapon,
    symlinkat = libc::SYS_symlinkat,
    sync = libc::SYS_sync,
    syslog = libc::SYS_syslog,
    umount2 = libc::SYS_umount2,
    unlinkat = libc::SYS_unlinkat,
    unshare = libc::SYS_unshare,
    userfaultfd = libc::SYS_userfaultfd,
    vhangup = libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")] iopl = libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")] ioperm = libc::SYS_ioperm,
};

/// Error numbers that system calls of stories end with.
#[rustfmt::skip]
const ERRORS: &[(&str, i64)] = table! {
    EPERM = libc::EPERM, ENOENT = libc::ENOENT, ESRCH = libc::ESRCH, EINTR = libc::EINTR, EIO = libc::EIO, ENXIO = libc::ENXIO,
    E2BIG = libc::E2BIG, ENOEXEC = libc::ENOEXEC, EBADF = libc::EBADF, ECHILD = libc::ECHILD, EAGAIN = libc::EAGAIN,
    ENOMEM = libc::ENOMEM, EACCES = libc::EACCES, EFAULT = libc::EFAULT, ENOTBLK = libc::ENOTBLK, EBUSY = libc::EBUSY,
    EEXIST = libc::EEXIST, EXDEV = libc::EXDEV, ENODEV = libc::ENODEV, ENOTDIR = libc::ENOTDIR, EISDIR = libc::EISDIR,
    EINVAL = libc::EINVAL, ENFILE = libc::ENFILE, EMFILE = libc::EMFILE, ENOTTY = libc::ENOTTY, ETXTBSY = libc::ETXTBSY,
    EFBIG = libc::EFBIG, ENOSPC = libc::ENOSPC, ESPIPE = libc::ESPIPE, EROFS = libc::EROFS, EMLINK = libc::EMLINK,
    EPIPE = libc::EPIPE, ERANGE = libc::ERANGE, EDEADLK = libc::EDEADLK, ENAMETOOLONG = libc::ENAMETOOLONG,
    ENOSYS = libc::ENOSYS, ENOTEMPTY = libc::ENOTEMPTY, ELOOP = libc::ELOOP, ENODATA = libc::ENODATA, EPROTO = libc::EPROTO,
    EOVERFLOW = libc::EOVERFLOW, EUSERS = libc::EUSERS, EOPNOTSUPP = libc::EOPNOTSUPP, EAFNOSUPPORT = libc::EAFNOSUPPORT,
    ESTALE = libc::ESTALE, EUCLEAN = libc::EUCLEAN, EDQUOT = libc::EDQUOT, ENOKEY = libc::ENOKEY,
};

/// An error number's name, or the number.
pub fn errno_name(errno: i32) -> String {
    let known = ERRORS
        .iter()
        .find(|(_, number)| *number == i64::from(errno));
    known.map_or_else(|| errno.to_string(), |(name, _)| (*name).to_owned())
}

/// What became of an attempt: `result=` what it gave, or `errno=` why it failed.
pub fn outcome<T: std::fmt::Display>(result: Result<T, Errno>) -> Facts {
    let mut facts = Facts::default();
    match result {
        Ok(value) => facts.add("result", value),
        Err(errno) => facts.add("errno", errno_name(errno.raw_os_error())),
    }
    facts
}

/// Makes a system call, named or by its number. An argument is a number (decimal or `0x`), else a pointer to its text.
pub fn call(args: &[String]) -> Result<Facts, Error> {
    let number = number_of(&args[0])?;
    if args.len() > 7 {
        return Err("a system call has six arguments at most".to_owned());
    }
    let texts: Vec<CString> = args[1..]
        .iter()
        .map(|text| CString::new(text.as_str()).map_err(|_| format!("{text:?} has a NUL byte")))
        .collect::<Result<_, _>>()?;
    let mut values = [0; 6];
    for (value, text) in values.iter_mut().zip(&texts) {
        *value = numeric(text.to_str().unwrap_or_default()).unwrap_or(text.as_ptr() as i64);
    }
    let result = raw(number, values);
    let mut facts = outcome(result);
    if CAUGHT.load(Ordering::Relaxed) != 0 {
        facts.add("caught", CAUGHT.load(Ordering::Relaxed));
    }
    Ok(facts)
}

/// As [`call`], with a handler for SIGSYS; `caught=31` tells that it ran.
pub fn caught_call(args: &[String]) -> Result<Facts, Error> {
    catch_sigsys();
    call(args)
}

/// `struct sockaddr_vm` of linux/vm_sockets.h.
#[repr(C)]
struct VsockAddress {
    family: libc::sa_family_t,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: [u8; 4],
}

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Connects to a vsock port: of the host (2), of this machine (1), of any; sends bytes given in hexadecimal, and tells how many
/// bytes came back before the end or a long silence.
pub fn vsock(args: &[String]) -> Result<Facts, Error> {
    let socket = match vsock_connected(&args[0], &args[1])? {
        Ok(socket) => socket,
        Err(errno) => return Ok(outcome::<i32>(Err(errno))),
    };
    let mut facts = outcome(Ok("connected"));
    if let Some(text) = args.get(2) {
        // A socket like others, for whoever only reads and writes.
        let mut stream = UnixStream::from(socket);
        let mut answer = [0; 1024];
        let sent = stream
            .set_read_timeout(Some(ANSWER))
            .and_then(|()| stream.write_all(&bytes(text)?));
        let read = sent.and_then(|()| stream.read(&mut answer));
        facts.add("answered", read.unwrap_or(0));
    }
    Ok(facts)
}

fn bytes(text: &str) -> std::io::Result<Vec<u8>> {
    let pairs = (0..text.len()).step_by(2).map(|at| text.get(at..at + 2));
    let byte = |pair: Option<&str>| u8::from_str_radix(pair?, 16).ok();
    let bytes: Option<Vec<u8>> = pairs.map(byte).collect();
    bytes.ok_or(std::io::ErrorKind::InvalidInput.into())
}

fn vsock_connected(cid: &str, port: &str) -> Result<Result<OwnedFd, Errno>, Error> {
    let number = |text: &str| numeric(text).ok_or_else(|| format!("{text:?} is no number"));
    let address = VsockAddress {
        family: libc::AF_VSOCK as libc::sa_family_t,
        reserved: 0,
        port: number(port)? as u32,
        cid: number(cid)? as u32,
        zero: [0; 4],
    };
    let kind = i64::from(libc::SOCK_STREAM | libc::SOCK_CLOEXEC);
    let socket = raw(libc::SYS_socket, [libc::AF_VSOCK.into(), kind, 0, 0, 0, 0]);
    let connected = socket.and_then(|socket| {
        let place = std::ptr::from_ref(&address) as i64;
        let length = size_of::<VsockAddress>() as i64;
        raw(libc::SYS_connect, [socket, place, length, 0, 0, 0])
    });
    Ok(connected.and(socket).map(owned))
}

#[allow(unsafe_code)]
fn owned(socket: i64) -> OwnedFd {
    // SAFETY: the number was just given by socket(2) and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(socket as i32) }
}

fn number_of(name: &str) -> Result<i64, Error> {
    let known = CALLS.iter().find(|(known, _)| *known == name);
    let number = known.map(|(_, number)| *number).or_else(|| numeric(name));
    number.ok_or_else(|| format!("no system call is known as {name}"))
}

fn numeric(text: &str) -> Option<i64> {
    match text.strip_prefix("0x") {
        // All 64 bits may be used.
        Some(digits) => u64::from_str_radix(digits, 16).ok().map(|n| n as i64),
        None => text.parse().ok(),
    }
}

#[allow(unsafe_code)]
fn raw(number: i64, a: [i64; 6]) -> Result<i64, Errno> {
    let number = number as libc::c_long;
    // SAFETY: texts handed over outlive the call; what else a call does to this process is what the story asked for, and after a
    // call nothing is done but to report it.
    let result = unsafe { libc::syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]) };
    if result == -1 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_raw_os_error(error.raw_os_error().unwrap_or(0)));
    }
    Ok(result)
}

/// Takes a mount away at once, whatever uses it.
pub fn detach(path: &str) -> Result<i64, Errno> {
    let path = CString::new(path).map_err(|_| Errno::INVAL)?;
    let place = path.as_ptr() as i64;
    raw(
        libc::SYS_umount2,
        [place, libc::MNT_DETACH.into(), 0, 0, 0, 0],
    )
}

/// The signal that was caught.
static CAUGHT: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: libc::c_int) {
    CAUGHT.store(signal, Ordering::Relaxed);
}

#[allow(unsafe_code)]
fn catch_sigsys() {
    // SAFETY: the handler only stores to an atomic, which may be done at any time.
    unsafe { libc::signal(libc::SIGSYS, note as *const () as libc::sighandler_t) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_call_answers_or_fails() {
        let pid = std::process::id().to_string();
        let facts = call(&words("getpid")).unwrap();
        assert_eq!(facts.get("result"), Some(pid.as_str()));
        let by_number = call(&[libc::SYS_getpid.to_string()]).unwrap();
        assert_eq!(by_number, facts);
        // AT_FDCWD, a text, a mode.
        let facts = call(&words("mkdirat -100 /proc/x 0x1ff")).unwrap();
        assert_eq!(facts.get("errno"), Some("ENOENT"));
        assert!(call(&words("no_such_call")).is_err());
        assert!(call(&words("getpid 1 2 3 4 5 6 7")).is_err());
    }

    #[test]
    fn numbers_are_read_with_all_their_bits() {
        assert_eq!(numeric("0xffffffffffffffff"), Some(-1));
        assert_eq!(numeric("-100"), Some(-100));
        assert_eq!(numeric("/x"), None);
    }

    #[test]
    fn bytes_are_read_in_pairs() {
        assert_eq!(bytes("00ff10").unwrap(), [0, 255, 16]);
        assert!(bytes("0").is_err() && bytes("zz").is_err());
    }

    #[test]
    fn errors_have_names() {
        assert_eq!(errno_name(libc::EPERM), "EPERM");
        assert_eq!(errno_name(4242), "4242");
    }
}
