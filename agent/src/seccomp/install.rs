// SPDX-License-Identifier: Apache-2.0
//! Puts a filter in force for the calling process. Neither nix nor rustix has seccomp(2).

use std::io;
use std::mem::ManuallyDrop;

use super::Program;

pub(super) const TSYNC: u32 = libc::SECCOMP_FILTER_FLAG_TSYNC as u32;
pub(super) const LOG: u32 = libc::SECCOMP_FILTER_FLAG_LOG as u32;
pub(super) const SPEC_ALLOW: u32 = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32;

impl Program {
    /// Puts the filter in force for this process, which must have either `no_new_privs` or `CAP_SYS_ADMIN`. It may be asked for
    /// any system call from then on, the next ones of this function's caller included.
    ///
    /// # Errors
    /// The errno of `seccomp(2)`; `EINVAL` where the kernel has no filters.
    pub fn install(&self) -> io::Result<()> {
        let instructions = self.filter.iter();
        let filter: Vec<_> = instructions
            .map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k })
            .collect();
        // Left to execve(2): giving memory back may take a system call that the filter denies.
        let mut filter = ManuallyDrop::new(filter);
        let program = libc::sock_fprog {
            // At most 4096, as compiled.
            len: filter.len().try_into().unwrap_or(u16::MAX),
            filter: filter.as_mut_ptr(),
        };
        match set_filter(self.flags, &program) {
            // No flag makes a filter stricter for a process with one thread: a kernel that does not know one gets the filter without them.
            Err(error) if self.flags != 0 && error.raw_os_error() == Some(libc::EINVAL) => {
                set_filter(0, &program)
            }
            result => result,
        }
    }
}

#[allow(unsafe_code)]
fn set_filter(flags: u32, program: &libc::sock_fprog) -> io::Result<()> {
    // SAFETY: the kernel copies `len` instructions from `filter`, which the caller keeps alive for the call. The filter only decides
    // about system calls; it touches no memory.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::from_ref(program),
        )
    };
    match rc {
        0 => Ok(()),
        // With TSYNC, the thread that could not follow.
        thread if thread > 0 => Err(io::Error::from_raw_os_error(libc::EBUSY)),
        _ => Err(io::Error::last_os_error()),
    }
}
