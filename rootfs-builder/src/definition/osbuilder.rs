// SPDX-License-Identifier: Apache-2.0
//! The environment variables of Kata's osbuilder, read as settings: a script that called osbuilder calls this instead, with
//! `--from-env`. A variable that would change the result in a way that is not possible here is refused, not passed over; one that is
//! not needed is told.

mod table;

use std::path::PathBuf;

use guest_kernel::Arch;

use super::layer::{FileContent, FileEntry, Layer};
use super::value::{BaseChoice, Filesystem, Format, Size};
use crate::image::compress::Compression;
use table::{MUST_BE, MustBe, NO, NOT_NEEDED, RELEASES};

/// Why osbuilder's variables cannot be followed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OsbuilderError {
    /// What it asks for is not to be had here.
    #[error("{variable}={value} cannot be followed: {why}")]
    Refused {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// Why not.
        why: &'static str,
        /// What can be done instead.
        hint: &'static str,
    },
    /// Its value means nothing.
    #[error("{variable}={value} means nothing: {expected}")]
    Value {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What would.
        expected: &'static str,
    },
}

impl OsbuilderError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            OsbuilderError::Refused { hint, .. } => Some(hint),
            OsbuilderError::Value { .. } => None,
        }
    }
}

/// What the variables say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// As settings.
    pub layer: Layer,
    /// What was understood but has no effect, and why.
    pub notes: Vec<String>,
}

/// The variables of the process.
pub fn from_env() -> Result<Imported, OsbuilderError> {
    import(&|name| std::env::var(name).ok())
}

/// Reads osbuilder's variables; `get` gives a variable's value. An empty one counts as not set.
pub fn import(get: &dyn Fn(&str) -> Option<String>) -> Result<Imported, OsbuilderError> {
    let env = Environment(get);
    for rule in MUST_BE {
        env.refuse(rule)?;
    }
    let mut imported = Imported::default();
    let layer = &mut imported.layer;
    layer.arch = env.arch()?;
    layer.binary = env.get("AGENT_SOURCE_BIN").map(PathBuf::from);
    layer.packages = env
        .get("EXTRA_PKGS")
        .map(|text| text.split_whitespace().map(str::to_owned).collect())
        .unwrap_or_default();
    env.base(&mut imported)?;
    env.image(&mut imported)?;
    env.modules(&mut imported);
    for (variable, why) in NOT_NEEDED {
        if env.get(variable).is_some() {
            imported
                .notes
                .push(format!("{variable} is not needed: {why}"));
        }
    }
    Ok(imported)
}

struct Environment<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Environment<'_> {
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    fn refuse(&self, rule: &MustBe) -> Result<(), OsbuilderError> {
        match self.get(rule.variable) {
            Some(value) if !rule.accepted.contains(&value.as_str()) => {
                Err(OsbuilderError::Refused {
                    variable: rule.variable,
                    value,
                    why: rule.why,
                    hint: rule.hint,
                })
            }
            _ => Ok(()),
        }
    }

    /// `yes` or `no`.
    fn switch(&self, variable: &'static str) -> Result<Option<bool>, OsbuilderError> {
        match self.get(variable) {
            None => Ok(None),
            Some(value) if ["yes", "true", "1"].contains(&value.as_str()) => Ok(Some(true)),
            Some(value) if NO.contains(&value.as_str()) => Ok(Some(false)),
            Some(value) => Err(OsbuilderError::Value {
                variable,
                value,
                expected: "it is yes or no",
            }),
        }
    }

    fn arch(&self) -> Result<Option<Arch>, OsbuilderError> {
        // The former is the latter in Docker's words, and stronger since it is what a cross build is told.
        for variable in ["TARGET_ARCH", "ARCH"] {
            if let Some(value) = self.get(variable) {
                return match value.parse() {
                    Ok(arch) => Ok(Some(arch)),
                    Err(_) => Err(OsbuilderError::Refused {
                        variable,
                        value,
                        why: "the guest runs on x86_64 and aarch64",
                        hint: "unset it for this machine's",
                    }),
                };
            }
        }
        Ok(None)
    }

    /// `DISTRO`, `OS_VERSION` and `ROOTFS_DIR`.
    fn base(&self, imported: &mut Imported) -> Result<(), OsbuilderError> {
        let distro = self.get("DISTRO").or_else(|| self.get("distro"));
        let directory = self.get("ROOTFS_DIR");
        let version = self.get("OS_VERSION");
        match (distro.as_deref(), directory) {
            (Some("debian"), directory) => {
                imported.layer.base = Some(BaseChoice::Debian);
                imported.layer.suite = version.map(|version| {
                    let named = RELEASES.iter().find(|(number, _)| *number == version);
                    named.map_or(version, |(_, name)| (*name).to_owned())
                });
                if directory.is_some() {
                    let note =
                        "ROOTFS_DIR is not needed: no directory is filled on the way to the image";
                    imported.notes.push(note.to_owned());
                }
            }
            (Some(_), _) => {
                return Err(OsbuilderError::Refused {
                    variable: "DISTRO",
                    value: distro.unwrap_or_default(),
                    why: "Debian is the one distribution that is built here",
                    hint: "DISTRO=debian; or take that distribution's OCI image or directory: --base PATH",
                });
            }
            (None, directory) => {
                imported.layer.base = directory.map(|path| BaseChoice::Path(path.into()));
                if version.is_some() {
                    let note = "OS_VERSION is not needed: no DISTRO is built";
                    imported.notes.push(note.to_owned());
                }
            }
        }
        Ok(())
    }

    /// What comes out: an initrd where its file is named, a disk where one of a disk's variables is set.
    fn image(&self, imported: &mut Imported) -> Result<(), OsbuilderError> {
        let filesystem = self.filesystem()?;
        let verity = self.switch("MEASURED_ROOTFS")?;
        let no_header = self.switch("SKIP_DAX_HEADER")?;
        let free = self.free_space()?;
        let initrd = self.get("INITRD_IMAGE");
        let layer = &mut imported.layer;
        if let Some(output) = initrd {
            // osbuilder compresses with gzip, which every kernel unpacks.
            layer.compression = Some(Compression::Gzip);
            layer.format = Some(Format::Initramfs);
            layer.output = Some(output.into());
            if self.get("IMAGE").is_some() {
                let note =
                    "IMAGE is left out: INITRD_IMAGE is set, and one image is built at a time";
                imported.notes.push(note.to_owned());
            }
            return Ok(());
        }
        let output = self.get("IMAGE");
        if output.is_none() && filesystem.is_none() && verity.is_none() && free.is_none() {
            return Ok(());
        }
        let filesystem = filesystem.unwrap_or(Filesystem::Ext4);
        layer.format = Some(Format::Disk);
        layer.output = output.map(PathBuf::from);
        layer.filesystem = Some(filesystem);
        layer.verity = verity;
        layer.dax = no_header.map(|without| !without);
        match (filesystem, free) {
            (Filesystem::Erofs, Some(_)) => {
                let note = "ROOT_FREE_SPACE is not needed: EROFS is read-only";
                imported.notes.push(note.to_owned());
            }
            (Filesystem::Ext4, free) => layer.free = free,
            _ => {}
        }
        Ok(())
    }

    fn filesystem(&self) -> Result<Option<Filesystem>, OsbuilderError> {
        match self.get("FS_TYPE").as_deref() {
            None => Ok(None),
            Some("ext4") => Ok(Some(Filesystem::Ext4)),
            Some("erofs") => Ok(Some(Filesystem::Erofs)),
            Some(value) => Err(OsbuilderError::Refused {
                variable: "FS_TYPE",
                value: value.to_owned(),
                why: "roots are ext4 or EROFS",
                hint: "FS_TYPE=ext4 for a writable root, FS_TYPE=erofs for a read-only one; rootfs_type in Kata's configuration must say the same",
            }),
        }
    }

    fn free_space(&self) -> Result<Option<Size>, OsbuilderError> {
        let Some(value) = self.get("ROOT_FREE_SPACE") else {
            return Ok(None);
        };
        match value.parse::<u32>() {
            Ok(mebibytes) => Ok(Some(Size(u64::from(mebibytes) << 20))),
            Err(_) => Err(OsbuilderError::Value {
                variable: "ROOT_FREE_SPACE",
                value,
                expected: "it is a number of MiB",
            }),
        }
    }

    /// A directory of modules goes below `/lib/modules` under its own name, as osbuilder has it.
    fn modules(&self, imported: &mut Imported) {
        let Some(directory) = self.get("KERNEL_MODULES_DIR").map(PathBuf::from) else {
            return;
        };
        let name = directory.file_name().unwrap_or_default();
        imported.layer.files.push(FileEntry {
            target: PathBuf::from("/lib/modules").join(name),
            what: FileContent::Source(directory.clone()),
            mode: None,
            owner: None,
        });
        imported.notes.push(format!(
            "KERNEL_MODULES_DIR: {} goes in; loaded at boot is what /lib/keelson/modules.load lists, the rest by modprobe if the root has it",
            directory.display()
        ));
    }
}

#[cfg(test)]
mod tests;
