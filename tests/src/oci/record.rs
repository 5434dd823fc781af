// SPDX-License-Identifier: Apache-2.0
//! What is remembered of a container between two commands: a file below the root directory. Whether its process lives is asked of
//! `/proc`, never remembered.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cli::{SPEC_VERSION, advice};

/// How far commands have brought a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Created,
    Running,
    Paused,
    Stopped,
}

impl Phase {
    /// As the specification writes it; a paused container is runc's addition.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Created => "created",
            Phase::Running => "running",
            Phase::Paused => "paused",
            Phase::Stopped => "stopped",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub bundle: PathBuf,
    pub annotations: BTreeMap<String, String>,
    pub pid: u32,
    /// When the process began, in ticks since the boot: a pid alone may be another's by now.
    birth: u64,
    phase: Phase,
    /// Lines of `/proc/PID/cgroup`.
    pub cgroups: Vec<String>,
    /// `process` of config.json, for other processes of the container.
    pub process: serde_json::Value,
}

/// State and start of a process, if it is there.
fn stat(pid: u32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Whether a process is there and not dead.
pub fn alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

impl Record {
    /// A container that has just been created.
    pub fn new(id: &str, bundle: &Path, config: &serde_json::Value, pid: u32) -> Result<Record> {
        let (_, birth) = stat(pid).with_context(|| format!("The process {pid} is gone"))?;
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let annotations = config.get("annotations").cloned().unwrap_or_default();
        Ok(Record {
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            annotations: serde_json::from_value(annotations).unwrap_or_default(),
            pid,
            birth,
            phase: Phase::Created,
            cgroups: cgroups.lines().map(str::to_owned).collect(),
            process: config.get("process").cloned().unwrap_or_default(),
        })
    }

    pub fn phase(&self) -> Phase {
        match stat(self.pid) {
            Some((state, birth)) if birth == self.birth && !matches!(state, 'Z' | 'X') => {
                self.phase
            }
            _ => Phase::Stopped,
        }
    }

    /// Insists on one of `wanted` for a command called `verb`.
    pub fn expect(&self, verb: &str, wanted: &[Phase]) -> Result<()> {
        let phase = self.phase();
        if wanted.contains(&phase) {
            return Ok(());
        }
        let names: Vec<_> = wanted.iter().map(|phase| phase.name()).collect();
        Err(advice(
            format!(
                "Cannot {verb} container {}: it is {}",
                self.id,
                phase.name()
            ),
            format!("it must be {}", names.join(" or ")),
        ))
    }

    pub fn set_phase(&mut self, root: &Path, phase: Phase) -> Result<()> {
        self.phase = phase;
        self.write(root)
    }

    /// The specification's state.
    pub fn state(&self) -> serde_json::Value {
        let phase = self.phase();
        let mut state = serde_json::json!({
            "ociVersion": SPEC_VERSION,
            "id": self.id,
            "status": phase.name(),
            "bundle": self.bundle,
            "annotations": self.annotations,
        });
        if phase != Phase::Stopped {
            state["pid"] = self.pid.into();
        }
        state
    }

    pub fn write(&self, root: &Path) -> Result<()> {
        let dir = directory(root, &self.id)?;
        fs::create_dir_all(&dir).with_context(|| format!("Cannot make {}", dir.display()))?;
        let (path, new) = (dir.join("state.json"), dir.join("state.json.new"));
        fs::write(&new, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("Cannot write {}", path.display()))
    }

    pub fn read(root: &Path, id: &str) -> Result<Record> {
        let path = directory(root, id)?.join("state.json");
        let text = fs::read(&path).map_err(|_| {
            advice(
                format!("Container {id} does not exist"),
                format!("`oci --root {} list` names those that do", root.display()),
            )
        })?;
        serde_json::from_slice(&text).with_context(|| format!("Cannot read {}", path.display()))
    }

    pub fn forget(&self, root: &Path) -> Result<()> {
        let dir = directory(root, &self.id)?;
        fs::remove_dir_all(&dir).with_context(|| format!("Cannot remove {}", dir.display()))
    }

    /// All containers of a root directory.
    pub fn all(root: &Path) -> Vec<Record> {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        let mut all: Vec<_> = entries
            .filter_map(|entry| Record::read(root, entry.file_name().to_str()?).ok())
            .collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// The pids of the container's processes, all those in its cgroup or below.
    pub fn pids(&self) -> Vec<u32> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut pids: Vec<u32> = numbers
            .filter(|&pid| {
                let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
                text.lines().any(|line| self.owns(line))
            })
            .collect();
        pids.sort_unstable();
        pids
    }

    fn owns(&self, line: &str) -> bool {
        self.cgroups.iter().any(|own| {
            let rest = line.strip_prefix(own.as_str());
            !own.ends_with(":/")
                && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

/// Where a container's files are. The id is part of a path.
pub fn directory(root: &Path, id: &str) -> Result<PathBuf> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"_+.-".contains(&byte);
    if id.is_empty() || id.starts_with('.') || !id.bytes().all(fine) {
        let text = format!("{id:?} is no container id");
        return Err(advice(text, "letters, digits and _+.- are possible"));
    }
    Ok(root.join(id))
}
