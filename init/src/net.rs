// SPDX-License-Identifier: Apache-2.0
//! The loopback interface.
//!
//! Two ioctls (netdevice(7)), so that a boot needs no netlink library. Every
//! other interface is the agent's. The kernel gives a loopback that comes up
//! its addresses by itself.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use thiserror::Error;

/// Loopback could not be brought up.
#[derive(Debug, Error)]
pub enum LoopbackError {
    /// No socket to ask through.
    #[error("Cannot open a socket to configure lo")]
    Socket(#[source] Errno),
    /// Its flags could not be read.
    #[error("Cannot read the flags of lo")]
    Get(#[source] Errno),
    /// Its flags could not be set.
    #[error("Cannot bring lo up")]
    Set(#[source] Errno),
}

/// Brings `lo` up in this network namespace. Done already is fine.
pub fn loopback_up() -> Result<(), LoopbackError> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(LoopbackError::Socket)?;
    let mut request = request_for_lo();
    interface_ioctl(&socket, libc::SIOCGIFFLAGS, &mut request).map_err(LoopbackError::Get)?;
    // SAFETY: SIOCGIFFLAGS has filled in this member of the union, and any bit
    // pattern is a valid c_short.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    interface_ioctl(&socket, libc::SIOCSIFFLAGS, &mut request).map_err(LoopbackError::Set)
}

fn request_for_lo() -> libc::ifreq {
    // SAFETY: ifreq is a C struct of integers, arrays and a union of such; all
    // zeroes is a valid value and also ends the name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request
}

fn interface_ioctl(
    socket: &OwnedFd,
    code: libc::c_ulong,
    request: &mut libc::ifreq,
) -> nix::Result<()> {
    // The type of the code differs between C libraries, its 16 bits do not.
    // SAFETY: both codes used in this module take a pointer to an ifreq, which
    // the kernel uses only during the call; the reference keeps it valid and
    // exclusive, and the borrowed descriptor is open.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), code as libc::Ioctl, request) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_names_lo() {
        let request = request_for_lo();
        assert_eq!(request.ifr_name[0] as u8, b'l');
        assert_eq!(request.ifr_name[1] as u8, b'o');
        assert!(request.ifr_name[2..].iter().all(|&c| c == 0));
    }
}
