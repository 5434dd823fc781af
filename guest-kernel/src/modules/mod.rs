// SPDX-License-Identifier: Apache-2.0
//! Which modules of a modular kernel the guest needs, and in which order they must be loaded.
//!
//! A distributor's kernel package has no `modules.dep` (that is made when it is installed), so dependencies are read from the modules
//! themselves: the `depends=` and `softdep=pre:` entries of the `.modinfo` section, see modinfo(8) and the kernel's
//! `Documentation/kbuild/modules.rst`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{self, CommandError};
use object::{modinfo, unsigned};

pub mod object;
mod wanted;

pub use wanted::{GUEST_MODULES, Purpose, Wanted};

/// Why the modules could not be collected.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The kernel cannot serve the guest.
    #[error("Kernel {release} has no {}, neither built in nor as a module", names.join(", "))]
    Lacking {
        /// `uname -r` of the kernel.
        release: String,
        /// What it lacks.
        names: Vec<String>,
    },
    /// A module names a dependency that the kernel does not have.
    #[error("Module {module} depends on {dependency}, which the kernel package does not have")]
    Dependency {
        /// The module.
        module: String,
        /// What it depends on.
        dependency: String,
    },
    /// A file is not the ELF object a module is.
    #[error("{path} is not a kernel module", path = path.display())]
    NotAModule {
        /// The file.
        path: PathBuf,
    },
    /// A module is compressed in a way this crate does not know.
    #[error("{path} is compressed in an unknown way", path = path.display())]
    UnknownCompression {
        /// The file.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("Cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The decompressor failed.
    #[error(transparent)]
    Command(#[from] CommandError),
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ModuleError {
    let path = path.to_owned();
    move |source| ModuleError::Io {
        action,
        path,
        source,
    }
}

/// The modules of one kernel: a `lib/modules/<release>` directory as a package has it.
#[derive(Debug)]
pub struct ModuleTree {
    release: String,
    builtin: BTreeSet<String>,
    files: BTreeMap<String, PathBuf>,
}

impl ModuleTree {
    /// Reads which modules there are, built in or as files.
    pub fn open(dir: &Path) -> Result<ModuleTree, ModuleError> {
        let list = dir.join("modules.builtin");
        let builtin = fs::read_to_string(&list).map_err(io_error("read", &list))?;
        let mut files = BTreeMap::new();
        collect(dir, &mut files)?;
        Ok(ModuleTree {
            release: dir
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            builtin: builtin
                .lines()
                .filter_map(|line| module_name(Path::new(line)))
                .collect(),
            files,
        })
    }

    /// Unpacks the wanted modules and all they depend on into `out` as `<name>.ko`; returns the files in load order, each with the
    /// purpose it was first wanted for.
    ///
    /// Optional ones that the kernel does not have are left out; lacking required ones are an error that names them all.
    pub fn unpack(
        &self,
        wanted: &[Wanted],
        out: &Path,
    ) -> Result<Vec<(Purpose, PathBuf)>, ModuleError> {
        let has = |name: &str| self.builtin.contains(name) || self.files.contains_key(name);
        let lacking = wanted.iter().filter(|w| w.required && !has(w.name));
        let names: Vec<String> = lacking.map(|w| w.name.to_owned()).collect();
        if !names.is_empty() {
            return Err(ModuleError::Lacking {
                release: self.release.clone(),
                names,
            });
        }
        let mut order = Vec::new();
        let mut purposes = Vec::new();
        for module in wanted.iter().filter(|w| self.files.contains_key(w.name)) {
            self.visit(module.name, out, &mut BTreeSet::new(), &mut order)?;
            purposes.resize(order.len(), module.purpose);
        }
        Ok(purposes.into_iter().zip(order).collect())
    }

    /// Appends a module to `order` after everything it depends on. `open` holds the modules above it, so that soft dependencies,
    /// which may go round in a circle, end.
    fn visit(
        &self,
        name: &str,
        out: &Path,
        open: &mut BTreeSet<String>,
        order: &mut Vec<PathBuf>,
    ) -> Result<(), ModuleError> {
        let target = out.join(format!("{name}.ko"));
        let Some(file) = self.files.get(name) else {
            return Ok(());
        };
        if order.contains(&target) || !open.insert(name.to_owned()) {
            return Ok(());
        }
        let bytes = decompressed(file)?;
        let info = modinfo(&bytes).ok_or_else(|| ModuleError::NotAModule { path: file.clone() })?;
        for dependency in info.depends {
            if !self.files.contains_key(&dependency) && !self.builtin.contains(&dependency) {
                return Err(ModuleError::Dependency {
                    module: name.to_owned(),
                    dependency,
                });
            }
            self.visit(&dependency, out, open, order)?;
        }
        for dependency in info.soft {
            self.visit(&dependency, out, open, order)?;
        }
        fs::write(&target, unsigned(&bytes)).map_err(io_error("write", &target))?;
        order.push(target);
        Ok(())
    }
}

fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), ModuleError> {
    for entry in fs::read_dir(dir).map_err(io_error("read", dir))? {
        let entry = entry.map_err(io_error("read", dir))?;
        let path = entry.path();
        // By the entry itself, not what it points to: a package's `build` link leads out of the tree.
        if entry
            .file_type()
            .map_err(io_error("look at", &path))?
            .is_dir()
        {
            collect(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// The name of the module in a file such as `virtio-rng.ko.xz`: what `lsmod` shows, with `_` for `-`.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (stem, rest) = file.split_once(".ko")?;
    (rest.is_empty() || rest.starts_with('.')).then(|| stem.replace('-', "_"))
}

fn decompressed(path: &Path) -> Result<Vec<u8>, ModuleError> {
    let program = match path.extension().and_then(|e| e.to_str()) {
        Some("ko") => return fs::read(path).map_err(io_error("read", path)),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => {
            return Err(ModuleError::UnknownCompression {
                path: path.to_owned(),
            });
        }
    };
    let mut command = Command::new(program);
    command.arg("-dc").arg(path);
    let describe = command::describe(&command);
    let out = command.output().map_err(|source| CommandError::Start {
        program: describe.clone(),
        source,
    })?;
    if out.status.success() {
        return Ok(out.stdout);
    }
    let tail = String::from_utf8_lossy(&out.stderr)
        .lines()
        .map(str::to_owned)
        .collect();
    Err(ModuleError::Command(CommandError::Failed {
        program: describe,
        status: out.status,
        tail,
    }))
}

#[cfg(test)]
mod tests {
    use super::object::tests::object;
    use super::wanted::{optional, required};
    use super::*;

    #[test]
    fn names_come_from_file_names() {
        for file in [
            "kernel/x/virtio-rng.ko.xz",
            "virtio_rng.ko",
            "a/virtio-rng.ko.zst",
        ] {
            assert_eq!(module_name(Path::new(file)).as_deref(), Some("virtio_rng"));
        }
        for file in ["modules.order", "x.kosher", "build"] {
            assert_eq!(module_name(Path::new(file)), None);
        }
    }

    fn tree(builtin: &str, modules: &[(&str, &[u8])]) -> (tempfile::TempDir, ModuleTree) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("6.0-test");
        fs::create_dir_all(root.join("kernel/deep")).unwrap();
        fs::write(root.join("modules.builtin"), builtin).unwrap();
        for (name, info) in modules {
            fs::write(root.join("kernel/deep").join(name), object(info)).unwrap();
        }
        let tree = ModuleTree::open(&root).unwrap();
        (dir, tree)
    }

    #[test]
    fn the_order_is_wanted_order_with_dependencies_before() {
        let (dir, tree) = tree(
            "kernel/fs/ext4/ext4.ko\n",
            &[
                ("sock-virtio.ko", b"depends=sock,sock-common\0"),
                ("sock.ko", b"depends=\0"),
                (
                    "sock-common.ko",
                    b"depends=sock\0softdep=pre: sock-virtio\0",
                ),
                ("disk.ko", b"depends=ext4,sock\0"),
            ],
        );
        let wanted = [
            required("ext4", "A"),
            required("sock_virtio", "B"),
            optional("absent", "C"),
            Wanted {
                purpose: Purpose::Disk,
                ..optional("disk", "D")
            },
        ];
        let files = tree.unpack(&wanted, dir.path()).unwrap();
        let names: Vec<_> = files
            .iter()
            .map(|(purpose, f)| (purpose.name(), f.file_name().unwrap().to_str().unwrap()))
            .collect();
        assert_eq!(
            names,
            [
                ("guest", "sock.ko"),
                ("guest", "sock_common.ko"),
                ("guest", "sock_virtio.ko"),
                ("disk", "disk.ko")
            ]
        );
        assert!(files.iter().all(|(_, f)| f.is_file()));
    }

    #[test]
    fn everything_lacking_is_named_at_once() {
        let (dir, tree) = tree("", &[("a.ko", b"depends=gone\0")]);
        let error = tree
            .unpack(
                &[required("b", "B"), required("a", "A"), required("c", "C")],
                dir.path(),
            )
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "Kernel 6.0-test has no b, c, neither built in nor as a module"
        );
        let error = tree.unpack(&[required("a", "A")], dir.path()).unwrap_err();
        assert!(
            matches!(error, ModuleError::Dependency { dependency, .. } if dependency == "gone")
        );
    }
}
