// SPDX-License-Identifier: Apache-2.0
//! The ext4 format, made by `mke2fs` and filled by `debugfs`, both of e2fsprogs: neither needs root, loop devices or the right owners
//! on the host, and what `mke2fs -d` takes from the host (times of change, holes of its file system) does not get in.
//!
//! The features are those that kernels from 5.4 on know, whatever the host's e2fsprogs would choose. The same tree, options and
//! version of e2fsprogs give the same bytes.

mod script;
mod size;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use guest_kernel::cache::{Cache, CacheError, hex};
use guest_kernel::command::{self, CommandError};
use guest_kernel::host::{self, Missing, Need};

use crate::tree::{Tree, TreeError};

use script::Script;
use size::Geometry;

/// The size of a block: that of a page, which DAX asks for.
const BLOCK: u64 = 4096;
/// The smallest journal there is, in MiB.
const JOURNAL_MIB: u64 = 4;
/// Without `metadata_csum_seed` and `orphan_file`, which are newer than some kernels, and without room for growth that nobody uses.
const FEATURES: &str = "none,ext_attr,filetype,extent,flex_bg,sparse_super,large_file,dir_nlink,extra_isize,metadata_csum,dir_index";
/// What takes the place of the host's mke2fs.conf.
const CONFIG: &str = "[defaults]\n\tdefault_mntopts = acl,user_xattr\n\tenable_periodic_fsck = 0\n[fs_types]\n\text4 = {\n\t\tinode_size = 256\n\t}\n";
/// Its label's field.
const LABEL_MAX: usize = 16;

/// What has to be on the host.
pub const NEEDS: &[Need] = &[
    Need::program("mke2fs", "e2fsprogs", "to make ext4 images"),
    Need::program("debugfs", "e2fsprogs", "to fill ext4 images without root"),
];

/// What a tree does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The file system's identity.
    pub uuid: [u8; 16],
    /// The time of everything in it, in seconds since the epoch, at most 2³¹ - 1. For 0 it is 1: e2fsprogs take 0 for now.
    pub mtime: u32,
    /// The file system's name, at most 16 bytes.
    pub label: String,
    /// How many bytes shall be free for what is written later.
    pub free: u64,
    /// The image's size in bytes, rounded down to blocks; as small as `free` allows if there is none.
    pub size: Option<u64>,
    /// Whether there is a journal, which costs at least 8 MiB. Without one the kernel refuses mount options such as `data=ordered`,
    /// which Kata gives.
    pub journal: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            uuid: [0; 16],
            mtime: 0,
            label: String::new(),
            free: 0,
            size: None,
            journal: true,
        }
    }
}

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// The host lacks e2fsprogs.
    #[error("ext4 images need programs that are not there")]
    Missing(#[from] Missing),
    /// The label does not fit into the superblock.
    #[error("The label {label:?} is longer than 16 bytes")]
    LabelTooLong {
        /// The label.
        label: String,
    },
    /// The time is after January 2038, which e2fsprogs write wrongly.
    #[error("The time {mtime} is after January 2038, too late for an ext4 image")]
    TooLate {
        /// The time, in seconds since the epoch.
        mtime: u32,
    },
    /// The tree does not fit into the size that was asked for.
    #[error("The tree needs an image of {needed} bytes, not {size}")]
    TooSmall {
        /// What was asked for.
        size: u64,
        /// What is needed.
        needed: u64,
    },
    /// A name is longer than 255 bytes.
    #[error("The name of {path} is longer than 255 bytes", path = path.display())]
    NameTooLong {
        /// Its path in the tree.
        path: PathBuf,
    },
    /// `debugfs` reads one command a line: no line breaks in names and targets, and not more than it reads at once.
    #[error(
        "{path:?} or its target has a line break in it or is too long: debugfs cannot write it"
    )]
    Unwritable {
        /// Its path in the tree.
        path: PathBuf,
    },
    /// A symbolic link's target is empty or longer than 4095 bytes.
    #[error("The symbolic link {path} has a target that is empty or longer than 4095 bytes", path = path.display())]
    BadTarget {
        /// Its path in the tree.
        path: PathBuf,
    },
    /// A device's numbers are beyond what `debugfs` takes: 12 bits for the major, 16 for the minor one.
    #[error("The device numbers of {path} are too large", path = path.display())]
    BadDevice {
        /// Its path in the tree.
        path: PathBuf,
    },
    /// Something other than a directory has the name of ext4's own directory.
    #[error("{path} is no directory, but ext4 has a directory there", path = path.display())]
    Reserved {
        /// Its path in the tree.
        path: PathBuf,
    },
    /// An extended attribute is in a namespace that the kernel does not read from ext4.
    #[error("{path} has the extended attribute {name}, which ext4 cannot hold: it knows user, trusted, security and POSIX ACLs", path = path.display())]
    UnknownAttribute {
        /// Its path in the tree.
        path: PathBuf,
        /// The attribute's name.
        name: String,
    },
    /// All extended attributes of a file have to fit into one block.
    #[error("The extended attributes of {path} are too large", path = path.display())]
    AttributesTooLarge {
        /// Its path in the tree.
        path: PathBuf,
    },
    /// A file's content cannot be reached.
    #[error(transparent)]
    Content(#[from] TreeError),
    /// The programs cannot be looked for.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A program failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// `debugfs` refused some of its commands.
    #[error("debugfs could not fill the image:{}", indented(lines))]
    Fill {
        /// The first lines of its complaints.
        lines: Vec<String>,
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

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Ext4Error {
    let path = path.to_owned();
    move |source| Ext4Error::Io {
        action,
        path,
        source,
    }
}

fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n    {line}")).collect()
}

/// Writes the tree as an image to `path`, in place of what is there. The size of the image is returned, a multiple of 4096.
pub fn write(tree: &Tree, options: &Options, path: &Path) -> Result<u64, Ext4Error> {
    if options.label.len() > LABEL_MAX {
        return Err(Ext4Error::LabelTooLong {
            label: options.label.clone(),
        });
    }
    if i32::try_from(options.mtime).is_err() {
        return Err(Ext4Error::TooLate {
            mtime: options.mtime,
        });
    }
    let geometry = Geometry::of(tree, options)?;
    let image = std::path::absolute(path).map_err(io_error("resolve", path))?;
    let near = image.parent().unwrap_or(Path::new("/"));
    let staging = tempfile::Builder::new()
        .prefix(".ext4-")
        .tempdir_in(near)
        .map_err(io_error("create a directory in", near))?;
    let tools = Tools::find(staging.path(), options)?;
    Script::write(tree, staging.path())?;
    tools.format(options, &geometry, &image)?;
    tools.fill(&image)?;
    Ok(geometry.blocks * BLOCK)
}

/// The programs, and where and when they run.
struct Tools<'a> {
    mke2fs: PathBuf,
    debugfs: PathBuf,
    staging: &'a Path,
    time: String,
}

impl<'a> Tools<'a> {
    fn find(staging: &'a Path, options: &Options) -> Result<Tools<'a>, Ext4Error> {
        // These come with the host's system, never with our cache; where that is does not matter.
        let cache = Cache::at(staging)?;
        host::check(NEEDS, &cache)?;
        let find = |name: &str| host::find_program(name, &cache).unwrap_or_else(|| name.into());
        Ok(Tools {
            mke2fs: find("mke2fs"),
            debugfs: find("debugfs"),
            staging,
            time: options.mtime.max(1).to_string(),
        })
    }

    /// A program with nothing of the caller's environment but our time.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("LC_ALL", "C")
            .env("MKE2FS_CONFIG", self.staging.join(script::CONFIG))
            .env("E2FSPROGS_FAKE_TIME", &self.time)
            // The same for e2fsprogs from 1.47.1 on.
            .env("SOURCE_DATE_EPOCH", &self.time)
            .current_dir(self.staging);
        command
    }

    /// Makes an empty file system.
    fn format(
        &self,
        options: &Options,
        geometry: &Geometry,
        image: &Path,
    ) -> Result<(), Ext4Error> {
        let config = self.staging.join(script::CONFIG);
        fs::write(&config, CONFIG).map_err(io_error("write", &config))?;
        File::create(image)
            .and_then(|file| file.set_len(geometry.blocks * BLOCK))
            .map_err(io_error("write", image))?;
        let id = hex(&options.uuid);
        let id = [&id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]].join("-");
        let mut command = self.command(&self.mke2fs);
        command.args([
            "-q", "-F", "-t", "ext4", "-T", "ext4", "-b", "4096", "-I", "256",
        ]);
        command.args(["-m", "0", "-e", "continue", "-U", &id]);
        let features = if options.journal {
            command.arg("-J").arg(format!("size={JOURNAL_MIB}"));
            format!("{FEATURES},has_journal")
        } else {
            FEATURES.to_owned()
        };
        command.args(["-O", &features, "-E"]);
        command.arg(format!(
            "hash_seed={id},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        ));
        if !options.label.is_empty() {
            command.args(["-L", &options.label]);
        }
        command.arg("-N").arg(geometry.inodes.to_string());
        command.arg(image).arg(geometry.blocks.to_string());
        Ok(command::run(&mut command)?)
    }

    /// Has the script executed. `debugfs` goes on after an error and ends as if there had been none, so its words count.
    fn fill(&self, image: &Path) -> Result<(), Ext4Error> {
        let mut command = self.command(&self.debugfs);
        command.args(["-w", "-f", script::SCRIPT]).arg(image);
        let output = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .output()
            .map_err(|source| CommandError::Start {
                program: "debugfs".to_owned(),
                source,
            })?;
        let text = String::from_utf8_lossy(&output.stderr);
        let complaints = text
            .lines()
            // The first line is its name and version.
            .filter(|line| !line.is_empty() && !is_banner(line))
            .map(str::to_owned);
        let lines: Vec<String> = complaints.take(20).collect();
        if lines.is_empty() && output.status.success() {
            Ok(())
        } else {
            Err(Ext4Error::Fill { lines })
        }
    }
}

fn is_banner(line: &str) -> bool {
    let version = line.strip_prefix("debugfs ");
    version.is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()))
}
