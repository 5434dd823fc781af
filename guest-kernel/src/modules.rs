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

/// One module the guest wants, and whether a kernel that has it neither built in nor as a module is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name, with `_` for `-`.
    pub name: &'static str,
    /// Whether the guest cannot do without.
    pub required: bool,
}

const fn required(name: &'static str) -> Wanted {
    Wanted {
        name,
        required: true,
    }
}

const fn optional(name: &'static str) -> Wanted {
    Wanted {
        name,
        required: false,
    }
}

/// What the guest loads, in order. The socket comes first: the host is waiting for the RPC port, not for disks.
pub const GUEST_MODULES: &[Wanted] = &[
    required("virtio_pci"),
    optional("virtio_mmio"),
    required("vmw_vsock_virtio_transport"),
    required("virtiofs"),
    required("virtio_blk"),
    required("ext4"),
    required("overlay"),
    required("virtio_console"),
    required("virtio_net"),
    optional("af_packet"),
    optional("virtio_rng"),
    optional("virtio_mem"),
    optional("virtio_balloon"),
    optional("nfit"),
    optional("nd_pmem"),
    optional("virtio_pmem"),
];

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

    /// Unpacks the wanted modules and all they depend on into `out` as `<name>.ko`; returns the files in load order.
    ///
    /// Optional ones that the kernel does not have are left out; lacking required ones are an error that names them all.
    pub fn unpack(&self, wanted: &[Wanted], out: &Path) -> Result<Vec<PathBuf>, ModuleError> {
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
        for module in wanted.iter().filter(|w| self.files.contains_key(w.name)) {
            self.visit(module.name, out, &mut BTreeSet::new(), &mut order)?;
        }
        Ok(order)
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

/// What the kernel's `scripts/sign-file` appends last.
const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";
/// Size of `struct module_signature` before it; its last four bytes are the length of the signature proper (big endian).
const SIGNATURE_INFO: usize = 12;

/// A module without its appended signature. A kernel that does not insist on signatures checks those that are there all the same, and
/// that is two thirds of the time that loading takes.
fn unsigned(module: &[u8]) -> &[u8] {
    let Some(signed) = module.strip_suffix(SIGNATURE_MAGIC) else {
        return module;
    };
    let Some((_, length)) = signed.split_last_chunk::<4>() else {
        return module;
    };
    let appended = SIGNATURE_INFO + u32::from_be_bytes(*length) as usize;
    match signed.len().checked_sub(appended) {
        Some(end) => &signed[..end],
        None => module,
    }
}

/// What a module says about its dependencies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModInfo {
    /// It cannot be linked without these.
    pub depends: Vec<String>,
    /// These should be loaded before it, where they exist.
    pub soft: Vec<String>,
}

/// Reads the `.modinfo` section of a module; none if the bytes are no 64-bit little-endian ELF object with one.
pub fn modinfo(elf: &[u8]) -> Option<ModInfo> {
    let mut info = ModInfo::default();
    let name = |word: &str| word.replace('-', "_");
    for entry in section(elf, b".modinfo")?.split(|b| *b == 0) {
        let Ok(entry) = std::str::from_utf8(entry) else {
            continue;
        };
        match entry.split_once('=') {
            Some(("depends", list)) => {
                info.depends
                    .extend(list.split(',').filter(|n| !n.is_empty()).map(name));
            }
            Some(("softdep", list)) => {
                let words = list.split_whitespace().skip_while(|w| *w != "pre:").skip(1);
                info.soft
                    .extend(words.take_while(|w| *w != "post:").map(name));
            }
            _ => {}
        }
    }
    Some(info)
}

/// The content of an ELF section; none if there is none or the file is not what it should be.
fn section<'a>(elf: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    // e_ident: magic, ELFCLASS64, ELFDATA2LSB; see elf(5).
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(number::<8>(elf, 0x28)?).ok()?;
    let size = usize::try_from(number::<2>(elf, 0x3a)?).ok()?;
    let count = usize::try_from(number::<2>(elf, 0x3c)?).ok()?;
    let names = usize::try_from(number::<2>(elf, 0x3e)?).ok()?;
    let header = |index: usize| {
        let start = table.checked_add(index.checked_mul(size)?)?;
        elf.get(start..start.checked_add(size.max(0x40))?)
    };
    let content = |header: &[u8]| {
        let offset = usize::try_from(number::<8>(header, 0x18)?).ok()?;
        let length = usize::try_from(number::<8>(header, 0x20)?).ok()?;
        elf.get(offset..offset.checked_add(length)?)
    };
    let strings = content(header(names)?)?;
    (0..count).find_map(|index| {
        let header = header(index)?;
        let name = strings.get(usize::try_from(number::<4>(header, 0)?).ok()?..)?;
        let name = name.split(|b| *b == 0).next()?;
        if name == wanted {
            content(header)
        } else {
            None
        }
    })
}

/// A little-endian number of N (at most 8) bytes.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(N)?)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |value, byte| (value << 8) | u64::from(*byte)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The smallest object with a `.modinfo` section: header, the section, names, three section headers.
    fn object(info: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut elf = vec![0; 0x40];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let info_at = elf.len();
        elf.extend(info);
        let names_at = elf.len();
        elf.extend(names);
        let table = elf.len() as u64;
        elf[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        elf[0x3a] = 0x40;
        elf[0x3c] = 3;
        elf[0x3e] = 2;
        for (name, at, length) in [
            (0, 0, 0),
            (1, info_at, info.len()),
            (10, names_at, names.len()),
        ] {
            let mut header = [0; 0x40];
            header[0] = name;
            header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
            elf.extend(header);
        }
        elf
    }

    #[test]
    fn dependencies_are_read() {
        let info = modinfo(&object(
            b"license=GPL\0depends=a-b,c\0softdep=pre: d-e f post: g\0depends=\0",
        ))
        .unwrap();
        assert_eq!(info.depends, ["a_b", "c"]);
        assert_eq!(info.soft, ["d_e", "f"]);
    }

    #[test]
    fn an_appended_signature_is_taken_off() {
        let mut signed = b"module".to_vec();
        signed.extend(b"PKCS7");
        signed.extend([0, 0, 2, 0, 0, 0, 0, 0]);
        signed.extend(5u32.to_be_bytes());
        let damaged = [&signed[..], b"~"].concat();
        signed.extend(SIGNATURE_MAGIC);
        assert_eq!(unsigned(&signed), b"module");
        assert_eq!(unsigned(b"module"), b"module");
        assert_eq!(unsigned(&damaged), damaged);
        let absurd = [&[0xff; 12][..], SIGNATURE_MAGIC].concat();
        assert_eq!(unsigned(&absurd), absurd);
        assert_eq!(unsigned(SIGNATURE_MAGIC), SIGNATURE_MAGIC);
    }

    #[test]
    fn what_is_no_module_is_refused() {
        assert_eq!(modinfo(b""), None);
        assert_eq!(modinfo(b"\x7fELF\x01\x01 32-bit"), None);
        let whole = object(b"depends=a\0");
        for length in 0..whole.len() {
            // A cut file may still have its section; it must only never panic.
            let _ = modinfo(&whole[..length]);
        }
    }

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
                ("disk.ko", b"depends=ext4\0"),
            ],
        );
        let wanted = [
            required("ext4"),
            required("sock_virtio"),
            optional("absent"),
            required("disk"),
        ];
        let files = tree.unpack(&wanted, dir.path()).unwrap();
        let names: Vec<_> = files
            .iter()
            .map(|f| f.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(
            names,
            ["sock.ko", "sock_common.ko", "sock_virtio.ko", "disk.ko"]
        );
        assert!(files.iter().all(|f| f.is_file()));
    }

    #[test]
    fn everything_lacking_is_named_at_once() {
        let (dir, tree) = tree("", &[("a.ko", b"depends=gone\0")]);
        let error = tree
            .unpack(&[required("b"), required("a"), required("c")], dir.path())
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "Kernel 6.0-test has no b, c, neither built in nor as a module"
        );
        let error = tree.unpack(&[required("a")], dir.path()).unwrap_err();
        assert!(
            matches!(error, ModuleError::Dependency { dependency, .. } if dependency == "gone")
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = b"\x7fELF\x02\x01".to_vec();
            bytes.extend(tail);
            let _ = modinfo(&bytes);
        }
    }
}
