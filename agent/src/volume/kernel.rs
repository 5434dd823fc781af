// SPDX-License-Identifier: Apache-2.0
//! The kernel's requests for growing file systems and for swap. Owns their
//! numbers and structures (fs/ext4/ext4.h, fs/xfs/libxfs/xfs_fs.h), decides
//! nothing.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

/// `struct xfs_fsop_geom_v1`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct XfsGeometry {
    pub block_size: u32,
    _rtextsize: u32,
    _agblocks: u32,
    _agcount: u32,
    _logblocks: u32,
    _sectsize: u32,
    _inodesize: u32,
    pub inodes_percent: u32,
    pub data_blocks: u64,
    /// Real-time part, log, uuid, stripes and features.
    _rest: [u32; 18],
}

/// `struct xfs_growfs_data`.
#[repr(C)]
struct XfsGrow {
    blocks: u64,
    inodes_percent: u32,
}

mod raw {
    use super::{XfsGeometry, XfsGrow};

    nix::ioctl_write_ptr!(ext4_resize_fs, b'f', 16, u64);
    nix::ioctl_read!(xfs_geometry_v1, b'X', 100, XfsGeometry);
    nix::ioctl_write_ptr!(xfs_grow_data, b'X', 110, XfsGrow);
}

/// Grows the ext4 file system that a file is on; to its own size it does nothing.
pub(super) fn grow_ext4(file: &OwnedFd, blocks: u64) -> nix::Result<()> {
    // SAFETY: the pointer is to a live integer, which the kernel only reads.
    unsafe { raw::ext4_resize_fs(file.as_raw_fd(), &blocks) }.map(drop)
}

/// The geometry of the xfs file system that a file is on.
pub(super) fn xfs_geometry(file: &OwnedFd) -> nix::Result<XfsGeometry> {
    let mut geometry = XfsGeometry::default();
    // SAFETY: the kernel writes one structure of this layout, which `geometry` has
    // room for and any bits of which are valid integers.
    unsafe { raw::xfs_geometry_v1(file.as_raw_fd(), &mut geometry) }?;
    Ok(geometry)
}

/// Grows the xfs file system that a file is on.
pub(super) fn grow_xfs(file: &OwnedFd, geometry: &XfsGeometry, blocks: u64) -> nix::Result<()> {
    let grow = XfsGrow {
        blocks,
        inodes_percent: geometry.inodes_percent,
    };
    // SAFETY: the pointer is to a live structure, which the kernel only reads.
    unsafe { raw::xfs_grow_data(file.as_raw_fd(), &grow) }.map(drop)
}

/// swapon(2), with no priority of its own.
pub(super) fn swap_on(node: &Path) -> nix::Result<()> {
    let node = CString::new(node.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the pointer is to a text that ends with NUL and lives through the call.
    Errno::result(unsafe { libc::swapon(node.as_ptr(), 0) }).map(drop)
}

/// swapoff(2).
pub(super) fn swap_off(node: &Path) -> nix::Result<()> {
    let node = CString::new(node.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the pointer is to a text that ends with NUL and lives through the call.
    Errno::result(unsafe { libc::swapoff(node.as_ptr()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_the_kernels() {
        assert_eq!(size_of::<XfsGeometry>(), 112);
        assert_eq!(std::mem::offset_of!(XfsGeometry, inodes_percent), 28);
        assert_eq!(std::mem::offset_of!(XfsGeometry, data_blocks), 32);
        assert_eq!(size_of::<XfsGrow>(), 16);
    }

    #[test]
    fn other_file_systems_refuse() {
        let proc = OwnedFd::from(std::fs::File::open("/proc").unwrap());
        assert_eq!(grow_ext4(&proc, 1), Err(Errno::ENOTTY));
        assert!(xfs_geometry(&proc).is_err());
        assert!(swap_on(Path::new("/dev/null")).is_err());
    }
}
