// SPDX-License-Identifier: Apache-2.0
//! Puts the sources of settings together and remembers what came from where.

use std::fmt;

use guest_kernel::Arch;
use serde::{Serialize, Serializer};

use super::check::{self, DefinitionError};
use super::value::{BaseChoice, Filesystem, Format, KernelChoice, Size};
use super::{Definition, Layer, Profile};
use crate::image::compress::Compression;

/// Where a setting came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag.
    Flag,
    /// One of osbuilder's variables.
    Environment,
    /// The definition file.
    File,
    /// The profile.
    Profile,
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Origin::Flag => "flag",
            Origin::Environment => "environment",
            Origin::File => "file",
            Origin::Profile => "profile",
            Origin::Default => "default",
        })
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One setting of a definition, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Its key in a definition file.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// Who said so. What adds up from several sources has one setting for each.
    pub origin: Origin,
}

/// A definition and where its settings came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The definition.
    pub definition: Definition,
    /// What was set, in the order of the keys.
    pub settings: Vec<Setting>,
    /// What was left out for a reason the user should know.
    pub notes: Vec<String>,
}

/// Puts the sources together, the strongest first. The profile they name is the weakest of them.
pub fn resolve(own: Vec<(Origin, Layer)>) -> Result<Resolved, DefinitionError> {
    let mut sources = Sources {
        layers: own,
        settings: Vec::new(),
    };
    let profile = sources.pick("profile", |layer| layer.profile);
    if let Some(profile) = profile {
        sources.layers.push((Origin::Profile, profile.layer()));
    }
    let definition = sources.definition(profile)?;
    let mut resolved = Resolved {
        definition,
        settings: sources.settings,
        notes: Vec::new(),
    };
    drop_what_goes_nowhere(&mut resolved);
    check::check(&resolved)?;
    Ok(resolved)
}

/// The sources, and what was taken from them.
struct Sources {
    layers: Vec<(Origin, Layer)>,
    settings: Vec<Setting>,
}

impl Sources {
    fn set(&mut self, key: &'static str, value: &impl fmt::Display, origin: Origin) {
        self.settings.push(Setting {
            key,
            value: value.to_string(),
            origin,
        });
    }

    /// The strongest value of a key.
    fn pick<T: fmt::Display>(
        &mut self,
        key: &'static str,
        get: impl Fn(&Layer) -> Option<T>,
    ) -> Option<T> {
        let found = self
            .layers
            .iter()
            .find_map(|(origin, layer)| Some((get(layer)?, *origin)));
        found.map(|(value, origin)| {
            self.set(key, &value, origin);
            value
        })
    }

    /// The same, with what is taken where nobody says anything.
    fn or<T: fmt::Display>(
        &mut self,
        key: &'static str,
        default: T,
        get: impl Fn(&Layer) -> Option<T>,
    ) -> T {
        self.pick(key, get).unwrap_or_else(|| {
            self.set(key, &default, Origin::Default);
            default
        })
    }

    /// The lists of all sources, the weakest first: so what a stronger one adds comes later and wins.
    fn all<T: Clone + PartialEq>(
        &mut self,
        key: &'static str,
        get: impl Fn(&Layer) -> &[T],
        show: impl Fn(&T) -> String,
    ) -> Vec<T> {
        let mut all: Vec<T> = Vec::new();
        let mut settings = Vec::new();
        for (origin, layer) in self.layers.iter().rev() {
            for item in get(layer) {
                if !all.contains(item) {
                    all.push(item.clone());
                    settings.push((show(item), *origin));
                }
            }
        }
        for (value, origin) in settings {
            self.set(key, &value, origin);
        }
        all
    }

    fn definition(&mut self, profile: Option<Profile>) -> Result<Definition, DefinitionError> {
        let host = Arch::host();
        let arch = self
            .pick("arch", |layer| layer.arch)
            .or_else(|| host.inspect(|arch| self.set("arch", arch, Origin::Default)));
        let name = profile.map_or_else(|| "keelson".to_owned(), |p| p.to_string());
        let format = self.or("format", Format::Initramfs, |layer| layer.format);
        let filesystem = self.or("filesystem", Filesystem::Erofs, |layer| layer.filesystem);
        let verity = format == Format::Extension;
        let verity = self.or("verity", verity, |layer| layer.verity);
        // DAX does not go through dm-verity, so there the header would be of no use.
        let dax = format == Format::Disk && !verity;
        let kernel = default_kernel(format);
        let path = |path: std::path::PathBuf| Shown(path);
        Ok(Definition {
            arch: arch.ok_or(DefinitionError::Arch)?,
            profile,
            name: self.or("name", name, |layer| layer.name.clone()),
            base: self.or("base", BaseChoice::None, |layer| layer.base.clone()),
            suite: self.pick("suite", |layer| layer.suite.clone()),
            packages: self.all("packages", |layer| &layer.packages, String::clone),
            files: self.all(
                "files",
                |layer| &layer.files,
                |f| f.target.display().to_string(),
            ),
            directories: self.all(
                "directories",
                |layer| &layer.directories,
                |d| d.target.display().to_string(),
            ),
            kernel: self.or("kernel", kernel, |layer| layer.kernel),
            fragments: self.all("fragments", |layer| &layer.fragments, String::clone),
            format,
            filesystem,
            compression: self.or("compression", default_compression(format), |layer| {
                layer.compression
            }),
            verity,
            dax: self.or("dax", dax, |layer| layer.dax),
            align: self.pick("align", |layer| layer.align),
            free: self.or("free", Size(0), |layer| layer.free),
            hostname: self.pick("hostname", |layer| layer.hostname.clone()),
            words: self.all("words", |layer| &layer.words, String::clone),
            extension: self.pick("extension", |layer| layer.extension.clone()),
            shell: self.or("shell", false, |layer| layer.shell),
            binary: self
                .pick("binary", |layer| layer.binary.clone().map(path))
                .map(|shown| shown.0),
            output: self
                .pick("output", |layer| layer.output.clone().map(path))
                .map(|shown| shown.0),
        })
    }
}

/// A path as it is shown.
struct Shown(std::path::PathBuf);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.display())
    }
}

/// An initramfs brings the modules of its kernel. A root on a device is mounted by a kernel that has its drivers built in, or from an
/// initramfs, which then has brought them.
fn default_kernel(format: Format) -> KernelChoice {
    match format {
        Format::Initramfs => KernelChoice::Fetched,
        _ => KernelChoice::None,
    }
}

/// Unpacking takes longer than reading, except where the image is sent about.
fn default_compression(format: Format) -> Compression {
    match format {
        Format::Oci => Compression::Gzip,
        _ => Compression::None,
    }
}

/// What a profile says about a base or a format that somebody else chose otherwise is left out.
fn drop_what_goes_nowhere(resolved: &mut Resolved) {
    let Resolved {
        definition,
        settings,
        notes,
    } = resolved;
    let by_profile = |settings: &[Setting], key, value: &str| {
        settings
            .iter()
            .any(|s| s.key == key && s.value == value && s.origin == Origin::Profile)
    };
    if definition.base != BaseChoice::Debian {
        let profiles = |package: &String| by_profile(settings, "packages", package);
        let left: Vec<String> = definition
            .packages
            .extract_if(.., |package| profiles(package))
            .collect();
        if !left.is_empty() {
            settings.retain(|s| s.key != "packages" || s.origin != Origin::Profile);
            notes.push(format!(
                "the base {} is to have what the profile would take from Debian: {}",
                definition.base,
                left.join(", ")
            ));
        }
    }
    let compression = definition.compression.to_string();
    let fits = definition.format.takes_compression(definition.compression);
    if !fits && by_profile(settings, "compression", &compression) {
        settings.retain(|s| s.key != "compression");
        definition.compression = Compression::None;
    }
}
