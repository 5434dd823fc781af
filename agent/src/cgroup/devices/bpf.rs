// SPDX-License-Identifier: Apache-2.0
//! `bpf(2)`, for which there is no library without a loader of ELF files: the
//! five commands that device programs take.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

// linux/bpf.h: commands, types and flags.
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 1 << 1;
const REPLACE: u32 = 1 << 2;

/// The part of `union bpf_attr` for `BPF_PROG_LOAD` up to the log, which is not asked for.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
}

#[repr(C)]
struct Info {
    object: u32,
    length: u32,
    info: u64,
}

/// One command; `attr` begins with the fields that the command reads, and the
/// kernel takes the rest of its union as zero.
fn bpf<T>(command: libc::c_int, attr: &T) -> nix::Result<libc::c_int> {
    // SAFETY: `attr` is a live repr(C) struct of exactly the size handed over,
    // without padding, and what it points to outlives the call (see the callers).
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr),
            size_of::<T>(),
        )
    };
    let result = Errno::result(result)?;
    libc::c_int::try_from(result).map_err(|_| Errno::EBADF)
}

fn number(fd: &impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().cast_unsigned()
}

/// Loads a device program.
pub(super) fn load(program: &[u64]) -> nix::Result<OwnedFd> {
    let attr = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        instructions: program.as_ptr().expose_provenance() as u64,
        license: c"Apache-2.0".as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    let fd = bpf(PROG_LOAD, &attr)?;
    // SAFETY: the command has just made this descriptor, close-on-exec, for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a program to a group, beside others and so that others may be
/// attached below it, or in the place of one.
pub(super) fn attach(
    group: &OwnedFd,
    program: &OwnedFd,
    replaced: Option<&OwnedFd>,
) -> nix::Result<()> {
    let attr = Attach {
        target: number(group),
        program: number(program),
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI | replaced.map_or(0, |_| REPLACE),
        replaced: replaced.map_or(0, number),
    };
    bpf(PROG_ATTACH, &attr).map(drop)
}

/// The number that a program has as long as it is in use anywhere.
pub(super) fn id(program: &OwnedFd) -> nix::Result<u32> {
    // The first fields of `struct bpf_prog_info`: type and id.
    let mut info = [0u32; 2];
    let attr = Info {
        object: number(program),
        length: 8,
        info: info.as_mut_ptr().expose_provenance() as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &attr)?;
    // SAFETY: `info` is alive and initialised; read so that the compiler sees
    // that the kernel may have written it through the address in `attr`.
    let info = unsafe { std::ptr::from_ref(&info).read_volatile() };
    Ok(info[1])
}

/// The program with this number.
pub(super) fn by_id(id: u32) -> nix::Result<OwnedFd> {
    let attr = [id, 0, 0];
    let fd = bpf(PROG_GET_FD_BY_ID, &attr)?;
    // SAFETY: the command has just made this descriptor, close-on-exec, for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
