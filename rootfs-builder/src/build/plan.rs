// SPDX-License-Identifier: Apache-2.0
//! What a build would do, without doing it.

use std::path::PathBuf;

use serde::Serialize;

use super::image::{self, Alignment};
use super::inputs;
use super::output;
use super::words::{Boot, boots};
use crate::cli::output::Report;
use crate::definition::{
    BaseChoice, Definition, Filesystem, Format, KernelChoice, Resolved, Setting,
};
use crate::image::compress::Compression;

/// What would be done, and what would come out.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// What the image is called.
    pub name: String,
    /// What would be done, in order, as sentences without a full stop.
    pub steps: Vec<String>,
    /// Where the image would be; in the cache if nowhere else.
    pub output: Option<PathBuf>,
    /// What its size would be a multiple of.
    pub alignment: Option<Alignment>,
    /// The ways to boot it. What is measured boots with words that only the finished image can tell.
    pub boot: Vec<Boot>,
}

/// The plan of a definition.
pub fn plan(definition: &Definition) -> Plan {
    let mut steps = vec![kernel(definition), binary(definition), base(definition)];
    steps.push(additions(definition));
    steps.push(Some(write(definition)));
    if definition.verity {
        let step = "measure it: a dm-verity hash tree (SHA-256, 4096-byte blocks, no superblock)";
        steps.push(Some(step.to_owned()));
    }
    if let Some(layout) = disk(definition) {
        steps.push(Some(layout));
    }
    let beside = "write the manifest and the SPDX bill of materials beside it";
    steps.push(Some(beside.to_owned()));
    Plan {
        name: definition.name.clone(),
        steps: steps.into_iter().flatten().collect(),
        output: definition.output.clone(),
        alignment: image::alignment(definition),
        boot: match definition.verity {
            true => Vec::new(),
            false => boots(definition, None),
        },
    }
}

fn kernel(definition: &Definition) -> Option<String> {
    let arch = definition.arch;
    match definition.kernel {
        KernelChoice::None => None,
        KernelChoice::Fetched => Some(format!(
            "fetch a distributor's kernel for {arch} and take the modules that the guest loads"
        )),
        KernelChoice::Built if definition.fragments.is_empty() => {
            Some(format!("build our kernel for {arch}"))
        }
        KernelChoice::Built => Some(format!(
            "build our kernel for {arch} with the fragments {}",
            definition.fragments.join(", ")
        )),
    }
}

fn binary(definition: &Definition) -> Option<String> {
    let arch = definition.arch;
    match &definition.binary {
        Some(path) => Some(format!("take the guest binary {}", path.display())),
        None if inputs::is_built_here(definition) => {
            Some(format!("build the guest binary for {arch}"))
        }
        None => None,
    }
}

fn base(definition: &Definition) -> Option<String> {
    match &definition.base {
        BaseChoice::None => None,
        BaseChoice::Path(path) => Some(format!("take the base {}", path.display())),
        BaseChoice::Debian => {
            let suite = definition
                .suite
                .as_deref()
                .unwrap_or("of the host's release");
            let packages = match definition.packages.as_slice() {
                [] => String::new(),
                some => format!(", and {}", some.join(", ")),
            };
            Some(format!(
                "make a Debian {suite} with its essential packages{packages}"
            ))
        }
    }
}

fn additions(definition: &Definition) -> Option<String> {
    let mut added = Vec::new();
    if definition.shell {
        added.push("a static shell".to_owned());
    }
    let counts = [
        (definition.directories.len(), "directory", "directories"),
        (definition.files.len(), "file or tree", "files or trees"),
    ];
    for (count, one, several) in counts {
        match count {
            0 => {}
            1 => added.push(format!("1 {one}")),
            _ => added.push(format!("{count} {several}")),
        }
    }
    (!added.is_empty()).then(|| format!("add {}", added.join(", ")))
}

fn write(definition: &Definition) -> String {
    let packed = match definition.compression {
        Compression::None => String::new(),
        compression => format!(", compressed by {compression}"),
    };
    let filesystem = |filesystem| match filesystem {
        Filesystem::Ext4 if definition.free.0 > 0 => {
            format!("an ext4 file system with {} free", definition.free)
        }
        Filesystem::Ext4 => "an ext4 file system".to_owned(),
        Filesystem::Erofs => "an EROFS file system".to_owned(),
    };
    let what = match definition.format {
        Format::Initramfs => format!("an initramfs (cpio, newc){packed}"),
        Format::Tar => format!("a tar archive{packed}"),
        Format::Oci => format!("an OCI image layout{packed}"),
        Format::Directory => "a directory".to_owned(),
        Format::Disk | Format::Extension | Format::Ext4 | Format::Erofs => {
            filesystem(definition.root_filesystem().unwrap_or_default())
        }
    };
    format!("write {what}")
}

fn disk(definition: &Definition) -> Option<String> {
    image::layout(definition)?;
    Some(match (definition.dax, definition.verity) {
        (true, false) => "lay out a disk: two partition tables and the header for DAX, the file system at 3 MiB",
        (true, true) => "lay out a disk: two partition tables and the header for DAX, the file system at 3 MiB, the hash tree behind it",
        (false, false) => "lay out a disk: the file system in the first partition, at 1 MiB",
        (false, true) => "lay out a disk: the file system in the first partition, the hash tree in the second",
    }
    .to_owned())
}

impl Report for Plan {
    const KIND: &'static str = "plan";

    fn text(&self) -> String {
        let mut lines = vec![format!("{} would be made in these steps:", self.name)];
        let steps = self.steps.iter().enumerate();
        lines.extend(steps.map(|(at, step)| format!("  {}. {step}", at + 1)));
        lines.push(match &self.output {
            Some(path) => format!("output: {}", path.display()),
            None => "output: in the cache".to_owned(),
        });
        if let Some(alignment) = &self.alignment {
            lines.push(format!("alignment: {}", alignment.reason));
        }
        for boot in self.boot.iter().filter(|boot| !boot.words.is_empty()) {
            lines.push(format!("boot from {}: {}", boot.device, boot.line()));
        }
        lines.join("\n")
    }
}

/// What a definition says, who said so, and what would be done.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The definition, complete.
    pub definition: Definition,
    /// Why the profile is as it is, if there is one.
    pub profile_reason: Option<&'static str>,
    /// Its settings, with their origins.
    pub settings: Vec<Setting>,
    /// What the image's file would be called.
    pub file: String,
    /// What would be done.
    pub plan: Plan,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// The summary of a definition that was put together.
pub fn summary(resolved: &Resolved) -> Summary {
    let definition = resolved.definition.clone();
    Summary {
        profile_reason: definition.profile.map(|profile| profile.row().why),
        settings: resolved.settings.clone(),
        file: output::file_name(&definition),
        plan: plan(&definition),
        notes: resolved.notes.clone(),
        definition,
    }
}

impl Report for Summary {
    const KIND: &'static str = "summary";

    fn text(&self) -> String {
        let widths = self.settings.iter().map(|s| (s.key.len(), s.value.len()));
        let (key, value) = widths.fold((0, 0), |(a, b), (c, d)| (a.max(c), b.max(d.min(40))));
        let line = |s: &Setting| format!("{:key$}  {:value$}  {}", s.key, s.value, s.origin);
        let mut lines: Vec<String> = self.settings.iter().map(line).collect();
        if let (Some(profile), Some(why)) = (self.definition.profile, self.profile_reason) {
            lines.push(String::new());
            lines.push(format!("profile {profile}: {why}"));
        }
        lines.push(String::new());
        lines.push(self.plan.text());
        lines.extend(self.notes.iter().map(|note| format!("note: {note}")));
        lines.join("\n")
    }
}
