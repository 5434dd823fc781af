// SPDX-License-Identifier: Apache-2.0
//! Kernel modules of the boot image.
//!
//! Owns the list `/lib/keelson/modules.load`, which the image builder has put
//! in load order: there is no dependency resolution, no alias matching and no
//! modprobe here. A module that does not load is logged and the others follow:
//! which of them this machine needed shows later.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use thiserror::Error;

use crate::failure::Chain;

/// Where the list lies, below the root.
pub const LIST: &str = "lib/keelson/modules.load";

/// The list or a module is of no use.
#[derive(Debug, Error)]
pub enum ModuleError {
    /// The list is there but cannot be read.
    #[error("Cannot read the list of kernel modules {}", path.display())]
    List {
        /// The list.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The file of a module cannot be opened.
    #[error("Cannot open the kernel module {}", path.display())]
    Open {
        /// The module's file.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The kernel did not take the module; its own log often says more.
    #[error("Cannot load the kernel module {}", path.display())]
    Load {
        /// The module's file.
        path: PathBuf,
        /// What the kernel answered.
        source: Errno,
    },
}

impl ModuleError {
    fn is_no_device(&self) -> bool {
        let no_device = Errno::ENODEV;
        matches!(self, Self::Load { source, .. } if *source == no_device)
    }
}

/// A line of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Module<'a> {
    /// The file, as a rule absolute.
    pub path: &'a str,
    /// Parameters as for insmod(8), `name=value` separated by blanks.
    pub params: &'a str,
}

/// The modules of a list's text, in order. `#` starts a comment, where a word
/// could start.
pub fn parse(text: &str) -> impl Iterator<Item = Module<'_>> {
    text.lines().filter_map(|line| {
        let line = without_comment(line).trim();
        let (path, params) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let params = params.trim_start();
        (!path.is_empty()).then_some(Module { path, params })
    })
}

fn without_comment(line: &str) -> &str {
    let starts = |&(at, _): &(usize, &str)| at == 0 || line[..at].ends_with(char::is_whitespace);
    let comment = line.match_indices('#').find(starts);
    comment.map_or(line, |(at, _)| &line[..at])
}

/// Loads the modules of the list. An image without a list has nothing to load.
/// With `discard`, the file of each loaded module is removed: in an initramfs
/// it is memory, and the kernel has made its copy.
pub fn load(discard: bool) -> Result<(), ModuleError> {
    load_at(Path::new("/"), discard)
}

/// The same below another root.
pub fn load_at(root: &Path, discard: bool) -> Result<(), ModuleError> {
    let list = root.join(LIST);
    let text = match std::fs::read(&list) {
        Ok(text) => text,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ModuleError::List { path: list, source }),
    };
    for module in parse(&String::from_utf8_lossy(&text)) {
        let path = root.join(module.path.trim_start_matches('/'));
        match load_one(&path, module.params) {
            Ok(()) if discard => {
                // If it stays, it stays: a few kilobytes.
                let _ = std::fs::remove_file(&path);
            }
            Ok(()) => {}
            // The driver has looked and found no hardware of its kind.
            Err(error) if error.is_no_device() => log::debug!("{}", Chain(&error)),
            Err(error) => log::error!("{}", Chain(&error)),
        }
    }
    Ok(())
}

fn load_one(path: &Path, params: &str) -> Result<(), ModuleError> {
    let file = File::open(path).map_err(|source| ModuleError::Open {
        path: path.to_owned(),
        source,
    })?;
    let loaded = CString::new(params)
        .map_err(|_| Errno::EINVAL)
        .and_then(|params| finit_module(&file, &params, ModuleInitFlags::empty()));
    match loaded {
        // EEXIST: loaded before, or built in.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(source) => Err(ModuleError::Load {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_module_per_line_with_parameters() {
        let text = "# vsock first\n/lib/modules/6.1/vsock.ko\n\n  \
            /lib/modules/6.1/x.ko  a=1 b=\"c d\"   # why\n\t/y.ko\tz=#1\n#/no.ko";
        let modules: Vec<_> = parse(text).map(|m| (m.path, m.params)).collect();
        assert_eq!(
            modules,
            [
                ("/lib/modules/6.1/vsock.ko", ""),
                ("/lib/modules/6.1/x.ko", "a=1 b=\"c d\""),
                ("/y.ko", "z=#1"),
            ]
        );
    }

    #[test]
    fn no_list_nothing_to_load() {
        let dir = tempfile::tempdir().unwrap();
        load_at(dir.path(), true).unwrap();
    }

    #[test]
    fn bug_a_bad_module_does_not_stop_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("lib/keelson")).unwrap();
        std::fs::write(dir.path().join("bad.ko"), "not a module").unwrap();
        std::fs::write(dir.path().join(LIST), "/missing.ko\n/bad.ko\n\0\n").unwrap();
        load_at(dir.path(), true).unwrap();
        // What did not load is kept, for whoever looks into it.
        assert!(dir.path().join("bad.ko").exists());
    }

    proptest! {
        #[test]
        fn any_list(text in "[ -~\t\n\0é]{0,200}") {
            for module in parse(&text) {
                prop_assert!(!module.path.is_empty());
                prop_assert!(!module.path.starts_with('#'));
            }
        }
    }
}
