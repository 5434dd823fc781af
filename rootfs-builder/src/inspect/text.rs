// SPDX-License-Identifier: Apache-2.0
//! An inspection for people.

use std::fmt::Write as _;

use super::{File, Inspection};
use crate::clean::size;
use crate::cli::output::Report;
use crate::image::read::ItemKind;

impl Report for Inspection {
    const KIND: &'static str = "inspection";

    fn text(&self) -> String {
        if let Some(files) = &self.files {
            return files.iter().map(line).collect::<Vec<_>>().join("\n");
        }
        let mut text = Lines(String::new());
        self.container(&mut text);
        self.contents(&mut text);
        self.guest(&mut text);
        text.0.trim_end().to_owned()
    }
}

/// Lines of a name and what it is.
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: &str) {
        // Nothing fails when written into a string.
        let _ = writeln!(self.0, "{name:<13} {value}");
    }

    /// Several lines, of which the first has the name.
    fn list(&mut self, name: &str, values: impl IntoIterator<Item = String>) {
        for (index, value) in values.into_iter().enumerate() {
            self.add(if index == 0 { name } else { "" }, &value);
        }
    }
}

impl Inspection {
    fn container(&self, text: &mut Lines) {
        text.add("image", &self.path);
        let compressed = match self.compression {
            "none" => String::new(),
            name => format!(", compressed with {name}"),
        };
        text.add("format", &format!("{}{compressed}", self.format));
        text.add(
            "size",
            &format!("{} ({} bytes)", size(self.size), self.size),
        );
        let partitions = self.partitions.iter().enumerate().map(|(index, part)| {
            let holds = match (index, &self.filesystem) {
                (0, Some(filesystem)) => filesystem.kind,
                (1, _) if self.verity.is_some() => "dm-verity hashes",
                _ => "unknown",
            };
            let number = index + 1;
            format!("{number}: {} bytes at {} ({holds})", part.len, part.start)
        });
        text.list("partitions", partitions);
        if let Some(dax) = &self.dax {
            let uuid = dax.uuid_text();
            text.add(
                "dax",
                &format!(
                    "data from byte {}, aligned to {}, {uuid}",
                    dax.data_offset, dax.align
                ),
            );
        }
        if let Some(filesystem) = &self.filesystem {
            let label = match &filesystem.label[..] {
                "" => "no label".to_owned(),
                label => format!("label {label:?}"),
            };
            let checksum = match filesystem.checksum {
                None => "no checksum",
                Some(true) => "checksum right",
                Some(false) => "checksum WRONG",
            };
            text.add(
                "file system",
                &format!(
                    "{}, {} in blocks of {}, {label}, {}, {checksum}",
                    filesystem.kind,
                    size(filesystem.size),
                    filesystem.block_size,
                    filesystem.uuid
                ),
            );
            text.add("features", &filesystem.features.join(" "));
            let mapped = match &filesystem.unaligned {
                None => "every file can be mapped".to_owned(),
                Some(path) => {
                    format!("not every file can be mapped: {path} is not at a whole page")
                }
            };
            text.add("dax files", &mapped);
        }
        if let Some(verity) = &self.verity {
            text.add("verity", &verity.params());
        }
    }

    fn contents(&self, text: &mut Lines) {
        let counts = &self.entries;
        text.add(
            "entries",
            &format!(
                "{} directories, {} files with {}, {} links, {} devices, {} others",
                counts.directories,
                counts.files,
                size(counts.bytes),
                counts.symlinks,
                counts.devices,
                counts.others
            ),
        );
        let large = |file: &File| format!("{:>8}  {}", size(file.size), file.path);
        text.list("largest", self.largest.iter().map(large));
        text.list("set-id", self.set_id.iter().map(line));
        text.list("capabilities", self.capabilities.iter().map(line));
        text.list("devices", self.devices.iter().map(line));
        text.list("findings", self.findings.iter().cloned());
    }

    fn guest(&self, text: &mut Lines) {
        let init = match &self.init {
            None => "none: the kernel finds nothing to start".to_owned(),
            Some(init) => {
                let what = match &init.program {
                    None => "a script, or no program at all".to_owned(),
                    Some(elf) => {
                        let version = elf.version.as_deref();
                        let version = version.map(|version| format!("keelson {version}, "));
                        format!(
                            "{}{}, {}",
                            version.unwrap_or_default(),
                            elf.arch.unwrap_or("another architecture"),
                            if elf.loader.is_none() {
                                "static"
                            } else {
                                "dynamic"
                            }
                        )
                    }
                };
                let through = if init.file == init.path {
                    String::new()
                } else {
                    format!(" -> {}", init.file)
                };
                format!("{}{through}: {what}", init.path)
            }
        };
        text.add("init", &init);
        text.list("modules", self.modules.iter().cloned());
        let needs = self.requirements.iter();
        text.list(
            "needs",
            needs.map(|need| format!("{:<24} {}", need.option, need.reason)),
        );
        let ways = self.boot.iter();
        text.list(
            "boot",
            ways.map(|way| format!("{:<11} {}", way.way, way.words.join(" "))),
        );
    }
}

/// An entry as `ls -l` shows it, without times.
fn line(file: &File) -> String {
    let mode = u32::from_str_radix(&file.mode, 8).unwrap_or_default();
    let size = match file.device {
        Some((major, minor)) => format!("{major}, {minor}"),
        None => file.size.to_string(),
    };
    let target = file.target.as_ref();
    let target = target
        .map(|target| format!(" -> {target}"))
        .unwrap_or_default();
    let attributes = if file.attributes.is_empty() { ' ' } else { '+' };
    format!(
        "{}{attributes} {:>5} {:>5} {size:>10} {}{target}",
        permissions(file.kind, mode),
        file.uid,
        file.gid,
        file.path
    )
}

/// A mode as `ls -l` shows it.
pub fn permissions(kind: ItemKind, mode: u32) -> String {
    let mut text = String::from(kind.letter());
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}
