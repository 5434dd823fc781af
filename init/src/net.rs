// SPDX-License-Identifier: Apache-2.0
//! The loopback interface, and how TCP reacts to congestion.
//!
//! Two ioctls (netdevice(7)), so that a boot needs no netlink library. Every
//! other interface is the agent's. The kernel gives a loopback that comes up
//! its addresses by itself.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use thiserror::Error;

use crate::cmdline::CommandLine;

/// The word that names the algorithm by which TCP reacts to congestion.
const CONGESTION: &str = "keelson.tcp_congestion";

/// Where the kernel takes its name (tcp(7)).
const CONGESTION_FILE: &str = "proc/sys/net/ipv4/tcp_congestion_control";

/// The kernel's bound on such a name, with the byte that ends it.
const CONGESTION_SIZE: usize = 16;

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

/// TCP's reaction to congestion could not be chosen.
#[derive(Debug, Error)]
pub enum CongestionError {
    /// No algorithm is called that.
    #[error("{CONGESTION} is ignored: it is not the name of an algorithm")]
    Name,
    /// The kernel does not have it.
    #[error("{CONGESTION}={name} is ignored: cannot write {}", path.display())]
    Write {
        /// The algorithm.
        name: String,
        /// The kernel's file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// Chooses the algorithm that the command line names; without the word, the
/// kernel's own choice stays.
pub fn tcp_congestion(cmdline: &CommandLine) -> Result<(), CongestionError> {
    tcp_congestion_at(Path::new("/"), cmdline)
}

fn tcp_congestion_at(root: &Path, cmdline: &CommandLine) -> Result<(), CongestionError> {
    let Some(name) = cmdline.value(CONGESTION) else {
        return Ok(());
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    if name.is_empty() || name.len() >= CONGESTION_SIZE || !name.bytes().all(plain) {
        return Err(CongestionError::Name);
    }
    let path = root.join(CONGESTION_FILE);
    fs::write(&path, name).map_err(|source| CongestionError::Write {
        name: name.to_owned(),
        path,
        source,
    })
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

    #[test]
    fn congestion_control_is_what_the_word_says() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join(CONGESTION_FILE);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let choose = |line: &str| {
            fs::write(&file, "cubic").unwrap();
            let result = tcp_congestion_at(root.path(), &CommandLine::parse(line.as_bytes()));
            (result.is_ok(), fs::read_to_string(&file).unwrap())
        };
        assert_eq!(choose("quiet"), (true, "cubic".to_owned()));
        assert_eq!(
            choose("keelson.tcp_congestion=bbr"),
            (true, "bbr".to_owned())
        );
        for bad in ["", "../x", "sixteen_letters_", "\"b b\""] {
            let line = format!("keelson.tcp_congestion={bad}");
            assert_eq!(choose(&line), (false, "cubic".to_owned()), "{bad:?}");
        }
        fs::remove_dir_all(root.path().join("proc")).unwrap();
        let line = CommandLine::parse(b"keelson.tcp_congestion=bbr");
        assert!(tcp_congestion_at(root.path(), &line).is_err());
    }
}
