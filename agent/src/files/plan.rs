// SPDX-License-Identifier: Apache-2.0
//! The door for CopyFile: what a host claims becomes a checked plan here.

use std::path::{Component, Path, PathBuf};

use nix::libc::{PATH_MAX, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use nix::unistd::{Gid, Uid};
use protocols::agent::CopyFileRequest;

use super::FileError;

/// One step of a copy: a directory, a link, or a piece of a file.
#[derive(Debug)]
pub struct CopyPlan {
    /// Below the root, plain: no `..`, at least one component.
    pub(super) path: PathBuf,
    pub(super) item: Item,
    pub(super) owner: Owner,
    /// For directories above it that are missing.
    pub(super) dir_mode: u32,
}

#[derive(Debug)]
pub(super) enum Item {
    Directory { mode: u32 },
    Link { target: Vec<u8> },
    Piece(Piece),
}

/// A piece of a file: `data` at `offset` of `size` bytes in all.
#[derive(Debug)]
pub(super) struct Piece {
    pub mode: u32,
    pub size: u64,
    pub offset: u64,
    pub data: Vec<u8>,
}

/// Who is to own what is copied. Minus one on the wire means nobody new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub uid: Option<Uid>,
    pub gid: Option<Gid>,
}

impl CopyPlan {
    /// Checks a request against the directory that copies are confined to.
    ///
    /// # Errors
    /// [`FileError::Path`] and [`FileError::Field`]: bad input, all of them.
    pub fn from_wire(request: CopyFileRequest, root: &Path) -> Result<Self, FileError> {
        let path = relative(&request.path, root)?;
        let field = |field, value: i64, reason| FileError::Field {
            path: request.path.clone(),
            field,
            value,
            reason,
        };
        let mode = request.file_mode & 0o7777;
        let item = match request.file_mode & S_IFMT {
            S_IFDIR => Item::Directory { mode },
            S_IFLNK => Item::Link {
                target: link_target(&request)?,
            },
            // Some callers send the permissions alone.
            S_IFREG | 0 => {
                let size = u64::try_from(request.file_size)
                    .map_err(|_| field("file_size", request.file_size, "it is negative"))?;
                let offset = u64::try_from(request.offset)
                    .map_err(|_| field("offset", request.offset, "it is negative"))?;
                let end = offset.checked_add(request.data.len() as u64);
                if end.is_none_or(|end| end > size) {
                    let reason = "the piece goes beyond file_size";
                    return Err(field("offset", request.offset, reason));
                }
                Item::Piece(Piece {
                    mode,
                    size,
                    offset,
                    data: request.data,
                })
            }
            _ => {
                let reason = "it is neither file, directory nor link";
                return Err(field("file_mode", request.file_mode.into(), reason));
            }
        };
        Ok(Self {
            path,
            item,
            owner: Owner {
                uid: id(request.uid).map(Uid::from_raw),
                gid: id(request.gid).map(Gid::from_raw),
            },
            // Go's own bit for directories is set above these.
            dir_mode: request.dir_mode & 0o777,
        })
    }
}

fn relative(text: &str, root: &Path) -> Result<PathBuf, FileError> {
    let refuse = |reason| {
        Err(FileError::Path {
            path: text.chars().take(300).collect(),
            reason,
        })
    };
    let path = Path::new(text);
    let Ok(below) = path.strip_prefix(root) else {
        return refuse("it is outside of the shared directory");
    };
    if text.contains('\0') || text.len() >= PATH_MAX as usize {
        return refuse("it is too long or has a NUL byte");
    }
    if below
        .components()
        .any(|c| !matches!(c, Component::Normal(_)))
    {
        return refuse("it has a .. component");
    }
    let plain: PathBuf = below.components().collect();
    match plain.file_name() {
        None => refuse("it is the shared directory itself"),
        Some(name) if name.len() > 255 => refuse("its name is too long"),
        Some(_) => Ok(plain),
    }
}

fn link_target(request: &CopyFileRequest) -> Result<Vec<u8>, FileError> {
    let target = &request.data;
    if target.is_empty() || target.contains(&0) || target.len() >= PATH_MAX as usize {
        return Err(FileError::Field {
            path: request.path.clone(),
            field: "data",
            value: i64::try_from(target.len()).unwrap_or(i64::MAX),
            reason: "these bytes are no link's target",
        });
    }
    Ok(target.clone())
}

/// Ids travel as signed numbers of the same width.
fn id(wire: i32) -> Option<u32> {
    (wire != -1).then_some(wire.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str) -> CopyFileRequest {
        CopyFileRequest {
            path: path.into(),
            file_size: 10,
            file_mode: S_IFREG | 0o644,
            ..CopyFileRequest::default()
        }
    }

    fn plan(request: CopyFileRequest) -> Result<CopyPlan, FileError> {
        CopyPlan::from_wire(request, Path::new("/shared/containers/"))
    }

    #[test]
    fn paths_stay_below_the_root() {
        let below = plan(request("/shared/containers//a/./b..c/x")).unwrap();
        assert_eq!(below.path, Path::new("a/b..c/x"));
        for bad in [
            "",
            "a",
            "/",
            "/shared",
            "/shared/containers",
            "/shared/containers/",
            "/shared/containers/.",
            "/shared/containersx/a",
            "/shared/containers/../a",
            "/shared/containers/a/..",
            "/shared/containers/a/../../b",
            "/shared/../shared/containers/a",
            "/shared/containers/a\0b",
        ] {
            assert!(plan(request(bad)).unwrap_err().is_bad_input(), "{bad:?}");
        }
        let long = format!("/shared/containers/{}", "x".repeat(256));
        assert!(plan(request(&long)).is_err());
        let long = format!("/shared/containers/{}", "x/".repeat(4096));
        assert!(plan(request(&long)).is_err());
    }

    #[test]
    fn numbers_are_checked() {
        for (size, offset, data) in [
            (-1, 0, 0),
            (10, -1, 1),
            (10, 0, 11),
            (10, 10, 1),
            (i64::MAX, i64::MAX, 1),
            (0, 0, 1),
        ] {
            let mut request = request("/shared/containers/a");
            (request.file_size, request.offset) = (size, offset);
            request.data = vec![0; data];
            assert!(plan(request).unwrap_err().is_bad_input(), "{size} {offset}");
        }
        let mut empty = request("/shared/containers/a");
        empty.file_size = 0;
        assert!(plan(empty).is_ok());
    }

    #[test]
    fn bug_types_are_compared_masked() {
        let kind = |mode: u32| {
            let mut request = request("/shared/containers/a");
            request.file_mode = mode;
            request.data = b"target".to_vec();
            plan(request).map(|plan| plan.item)
        };
        assert!(matches!(
            kind(0o040_755),
            Ok(Item::Directory { mode: 0o755 })
        ));
        assert!(matches!(kind(0o120_777), Ok(Item::Link { .. })));
        assert!(matches!(kind(0o100_644), Ok(Item::Piece(_))));
        assert!(matches!(kind(0o644), Ok(Item::Piece(_))));
        // Block device, socket, character device, fifo, nothing that exists.
        for odd in [0o060_644, 0o140_644, 0o020_644, 0o010_644, 0o170_000] {
            assert!(kind(odd).unwrap_err().is_bad_input(), "{odd:o}");
        }
    }

    #[test]
    fn links_need_a_target() {
        for bad in [&b""[..], b"a\0b", &[b'x'; 5000]] {
            let mut request = request("/shared/containers/a");
            request.file_mode = S_IFLNK;
            request.data = bad.to_vec();
            assert!(plan(request).unwrap_err().is_bad_input());
        }
    }

    #[test]
    fn owners_and_modes() {
        let mut request = request("/shared/containers/a");
        (request.uid, request.gid) = (-2, -1);
        request.dir_mode = 1 << 31 | 0o2750;
        let plan = plan(request).unwrap();
        assert_eq!(plan.owner.uid, Some(Uid::from_raw(u32::MAX - 1)));
        assert_eq!(plan.owner.gid, None);
        assert_eq!(plan.dir_mode, 0o750);
    }

    proptest::proptest! {
        #[test]
        fn any_request_is_planned_or_refused(path: String, size: i64, offset: i64, mode: u32, data: Vec<u8>) {
            let request = CopyFileRequest {
                path: format!("/shared/containers/{path}"),
                file_size: size,
                file_mode: mode,
                offset,
                data,
                ..CopyFileRequest::default()
            };
            match plan(request) {
                Ok(plan) => {
                    let mut parts = plan.path.components();
                    proptest::prop_assert!(parts.all(|c| matches!(c, Component::Normal(_))));
                }
                Err(error) => proptest::prop_assert!(error.is_bad_input()),
            }
        }
    }
}
