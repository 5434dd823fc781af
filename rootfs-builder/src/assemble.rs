// SPDX-License-Identifier: Apache-2.0
//! Puts an initramfs together: the guest binary, a base, and the modules of a modular kernel. The same inputs give the same bytes, and
//! a cache entry.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use flate2::{Compression as Deflate, GzBuilder};
use guest_kernel::cache::{CacheError, Key};
use guest_kernel::{Arch, Cache, Kernel, Progress};

use crate::base::{self, BaseError, RootSource, none};
use crate::image::cpio::{self, CpioError};
use crate::tree::{Entry, Tree, TreeError};

/// The list of modules that the guest loads, in load order: one `path [params…]` per line.
const MODULE_LIST: &str = "lib/keelson/modules.load";
/// Counts up when the same tree gives other bytes than before.
const FORMAT: &str = "1";
/// The name of the image inside its cache entry.
const IMAGE: &str = "initramfs";

/// How an initramfs is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: larger, and the quickest to boot.
    #[default]
    None,
    /// gzip, which every kernel can unpack.
    Gzip,
}

/// What the initramfs holds besides the guest binary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Base {
    /// Nothing but a few empty directories.
    #[default]
    None,
    /// A whole root file system.
    Root(RootSource),
}

/// What an initramfs is made of.
#[derive(Clone, Debug)]
pub struct Initramfs<'a> {
    /// The architecture.
    pub arch: Arch,
    /// The guest binary.
    pub binary: &'a Path,
    /// The kernel whose modules go in; none for a kernel with everything built in.
    pub kernel: Option<&'a Kernel>,
    /// What else goes in.
    pub base: Base,
    /// How it is compressed.
    pub compression: Compression,
}

/// Why an initramfs could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// The base could not be had.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The tree could not be made.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The archive could not be written.
    #[error(transparent)]
    Cpio(#[from] CpioError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// `SOURCE_DATE_EPOCH` is no time that the format can hold.
    #[error(
        "SOURCE_DATE_EPOCH is {value:?}, which is no number of seconds from 0 to {}",
        u32::MAX
    )]
    Epoch {
        /// The variable's value.
        value: String,
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
}

/// Makes the initramfs, or takes it from the cache, and returns the file.
pub fn initramfs(
    what: &Initramfs<'_>,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<PathBuf, AssembleError> {
    let tree = tree(what, cache, progress)?;
    let mtime = epoch(std::env::var("SOURCE_DATE_EPOCH").ok())?;
    let compression = match what.compression {
        Compression::None => "none",
        Compression::Gzip => "gzip",
    };
    let key = Key::of(&format!("initramfs-{}", what.arch))
        .field("format", FORMAT)
        .field("compression", compression)
        .field("mtime", mtime.to_le_bytes());
    let key = tree.digest_into(key)?.finish();
    let entry = cache.entry("image", &key, |dir| {
        let step = progress.step("Initramfs");
        let path = dir.join(IMAGE);
        let size = write(&tree, mtime, what.compression, &path)?;
        step.done(&format!("{} entries, {size} bytes", tree.entries().len()));
        Ok::<_, AssembleError>(())
    })?;
    Ok(entry.join(IMAGE))
}

/// All that goes into the initramfs.
fn tree(
    what: &Initramfs<'_>,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<Tree, AssembleError> {
    let mut tree = match &what.base {
        Base::None => none::tree(what.binary)?,
        Base::Root(source) => {
            let root = base::container_root(source, what.arch, cache, progress)?;
            let mut tree = base::dir::tree(&root.dir)?;
            none::add_init(&mut tree, what.binary)?;
            tree
        }
    };
    if let Some(kernel) = what.kernel {
        add_modules(&mut tree, kernel)?;
    }
    Ok(tree)
}

fn add_modules(tree: &mut Tree, kernel: &Kernel) -> Result<(), TreeError> {
    if kernel.modules.is_empty() {
        return Ok(());
    }
    // A base's /lib may be a link to usr/lib; what is below it then goes there, as it would on a disk.
    let lib = match tree.get("lib").map(|entry| &entry.kind) {
        Some(crate::tree::Kind::Symlink(_)) => "usr/lib",
        _ => "lib",
    };
    let mut list = String::from("# Loaded by init in this order: path [parameters]\n");
    for module in &kernel.modules {
        let name = module
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let inside = format!("modules/{}/{name}", kernel.release);
        tree.insert(format!("{lib}/{inside}"), Entry::file(&module.path, 0o644))?;
        list.push_str(&format!("/lib/{inside}"));
        for param in &module.params {
            list.push(' ');
            list.push_str(param);
        }
        list.push('\n');
    }
    let place = MODULE_LIST.replacen("lib", lib, 1);
    tree.insert(place, Entry::bytes(list, 0o644))
}

/// The one time of every entry: `SOURCE_DATE_EPOCH` (reproducible-builds.org), else the epoch.
fn epoch(value: Option<String>) -> Result<u32, AssembleError> {
    match value {
        None => Ok(0),
        Some(value) => value.parse().map_err(|_| AssembleError::Epoch { value }),
    }
}

/// Writes the image and returns its size in bytes.
fn write(
    tree: &Tree,
    mtime: u32,
    compression: Compression,
    path: &Path,
) -> Result<u64, AssembleError> {
    let failed = |action: &'static str| {
        let path = path.to_owned();
        move |source| AssembleError::Io {
            action,
            path,
            source,
        }
    };
    let mut out = BufWriter::new(File::create(path).map_err(failed("create"))?);
    match compression {
        Compression::None => cpio::write(tree, mtime, &mut out)?,
        Compression::Gzip => {
            // Without a name and a time in its header, equal content gives equal bytes.
            let mut gzip = GzBuilder::new().mtime(0).write(&mut out, Deflate::best());
            cpio::write(tree, mtime, &mut gzip)?;
            gzip.finish().map_err(failed("write"))?;
        }
    }
    out.flush().map_err(failed("write"))?;
    fs::metadata(path)
        .map(|m| m.len())
        .map_err(failed("look at"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_kernel::progress::Silent;
    use guest_kernel::{Module, Source};

    /// A cache, a binary and a kernel with two modules in a directory of their own.
    struct Inputs {
        dir: tempfile::TempDir,
        cache: Cache,
        kernel: Kernel,
    }

    impl Inputs {
        fn new() -> Inputs {
            let dir = tempfile::tempdir().unwrap();
            let path = |name: &str| dir.path().join(name);
            for name in ["keelson", "b.ko", "a.ko"] {
                fs::write(path(name), name).unwrap();
            }
            let module = |name: &str, params: &[&str]| Module {
                path: path(name),
                params: params.iter().map(|&p| p.to_owned()).collect(),
            };
            let kernel = Kernel {
                image: path("image"),
                vmlinux: None,
                config: path("config"),
                release: "6.0".to_owned(),
                modules: vec![module("b.ko", &[]), module("a.ko", &["x=1", "y"])],
                source: Source::Fetched,
            };
            let cache = Cache::at(path("cache")).unwrap();
            Inputs { cache, kernel, dir }
        }

        fn build(&self, compression: Compression) -> PathBuf {
            let binary = self.dir.path().join("keelson");
            let what = Initramfs {
                arch: Arch::X86_64,
                binary: &binary,
                kernel: Some(&self.kernel),
                base: Base::None,
                compression,
            };
            initramfs(&what, &self.cache, &Silent).unwrap()
        }
    }

    #[test]
    fn two_builds_in_two_places_are_equal() {
        for compression in [Compression::None, Compression::Gzip] {
            let (one, two) = (Inputs::new(), Inputs::new());
            let (first, second) = (one.build(compression), two.build(compression));
            assert_ne!(first, second);
            assert_eq!(fs::read(first).unwrap(), fs::read(second).unwrap());
        }
    }

    #[test]
    fn a_changed_binary_is_another_image_and_an_equal_one_is_not() {
        let inputs = Inputs::new();
        let first = inputs.build(Compression::None);
        assert_eq!(inputs.build(Compression::None), first);
        fs::write(inputs.dir.path().join("keelson"), "changed").unwrap();
        assert_ne!(inputs.build(Compression::None), first);
        assert_ne!(inputs.build(Compression::Gzip), first);
    }

    #[test]
    fn modules_are_listed_in_load_order() {
        let inputs = Inputs::new();
        let mut tree = Tree::default();
        add_modules(&mut tree, &inputs.kernel).unwrap();
        let list = tree.get(MODULE_LIST).unwrap();
        let expected = "# Loaded by init in this order: path [parameters]\n\
            /lib/modules/6.0/b.ko\n/lib/modules/6.0/a.ko x=1 y\n";
        assert_eq!(list, &Entry::bytes(expected, 0o644));
        assert!(tree.get("lib/modules/6.0/a.ko").is_some());
    }

    #[test]
    fn a_merged_usr_keeps_its_link() {
        let inputs = Inputs::new();
        let mut tree = Tree::default();
        tree.insert(
            "lib",
            Entry::new(crate::tree::Kind::Symlink("usr/lib".into()), 0o777),
        )
        .unwrap();
        add_modules(&mut tree, &inputs.kernel).unwrap();
        assert!(
            tree.get("usr/lib/modules/6.0/a.ko").is_some()
                && tree.get("usr/lib/keelson/modules.load").is_some()
        );
    }

    #[test]
    fn the_epoch_is_a_number_or_refused() {
        assert_eq!(epoch(None).unwrap(), 0);
        assert_eq!(epoch(Some("1700000000".to_owned())).unwrap(), 1_700_000_000);
        for bad in ["", "-1", "now", "4294967296"] {
            assert!(epoch(Some(bad.to_owned())).is_err());
        }
    }
}
