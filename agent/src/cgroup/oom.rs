// SPDX-License-Identifier: Apache-2.0
//! Kills by the kernel's OOM killer in a container's group and those below it.
//! Owns the one descriptor that tells of them and what was counted so far;
//! who is told is not known here.
//!
//! Version 2 reports every change of `memory.events`, which counts whole trees.
//! Version 1 reports the begin of a memory shortage, by an eventfd, and counts
//! kills where the victim was: the counters of the tree are gone through then,
//! and for a while, because the kill comes after the report. A group below with
//! a limit of its own does not report upwards on version 1; its kills show with
//! the next look.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::uio::pread;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Cgroup, CgroupError, Cgroups, Layout, hierarchy::Hierarchy};

/// How long a v1 kill may come after the report of the shortage: the looks are
/// 1, 2, 4, … ms apart, about a second in all.
const LOOKS: u32 = 10;

/// The watch over one group. The descriptor it holds keeps nothing in place.
#[derive(Debug)]
pub struct OomWatch {
    /// v2: `memory.events`; v1: an eventfd.
    fd: AsyncFd<OwnedFd>,
    source: Source,
    seen: Mutex<Kills>,
}

#[derive(Debug)]
enum Source {
    Events,
    Control { cgroups: Cgroups, group: String },
}

/// Counted kills by group; without those that have none.
type Kills = HashMap<OsString, u64>;

impl Cgroup {
    /// Begins to watch for OOM kills, from now on; `None` where memory is not
    /// controlled. Must be called inside the runtime.
    ///
    /// # Errors
    /// [`CgroupError::Step`] when the kernel refuses.
    pub fn watch_oom(&self) -> Result<Option<OomWatch>, CgroupError> {
        let watch = match &self.cgroups.0.layout {
            Layout::V2(unified) => watch_events(&unified.hierarchy, self.path()),
            Layout::V1(split) => match split.hierarchy_of("memory") {
                Some(hierarchy) => watch_control(&self.cgroups, hierarchy, self.path()),
                None => Ok(None),
            },
            Layout::None => Ok(None),
        };
        watch.map_err(|e| self.failed("watch for OOM kills", e))
    }
}

fn watch_events(hierarchy: &Hierarchy, group: &str) -> nix::Result<Option<OomWatch>> {
    let events = match hierarchy.open_at(group, "memory.events", OFlag::O_RDONLY) {
        Err(Errno::ENOENT) => return Ok(None),
        other => other?,
    };
    // Also what keeps the registration from reporting a change that was before.
    let seen = read_events(&events)?;
    Ok(Some(OomWatch {
        fd: register(events, Interest::PRIORITY)?,
        source: Source::Events,
        seen: Mutex::new(seen),
    }))
}

fn watch_control(
    cgroups: &Cgroups,
    hierarchy: &Hierarchy,
    group: &str,
) -> nix::Result<Option<OomWatch>> {
    let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
    let eventfd =
        rustix::event::eventfd(0, flags).map_err(|e| Errno::from_raw(e.raw_os_error()))?;
    let control = match hierarchy.open_at(group, "memory.oom_control", OFlag::O_RDONLY) {
        Err(Errno::ENOENT) => return Ok(None),
        other => other?,
    };
    let registration = format!("{} {}", eventfd.as_raw_fd(), control.as_raw_fd());
    hierarchy.write(group, "cgroup.event_control", &registration)?;
    Ok(Some(OomWatch {
        fd: register(eventfd, Interest::READABLE)?,
        source: Source::Control {
            cgroups: cgroups.clone(),
            group: group.to_owned(),
        },
        seen: Mutex::new(read_controls(hierarchy, group)?.unwrap_or_default()),
    }))
}

fn register(fd: OwnedFd, interest: Interest) -> nix::Result<AsyncFd<OwnedFd>> {
    crate::watch::watch_for(fd, interest).map_err(super::hierarchy::errno)
}

impl OomWatch {
    /// Waits for the next kill, several at once counting as one; `false` when
    /// there will be none: the group is gone. Safe to drop while it waits.
    pub async fn killed(&self) -> bool {
        loop {
            if !self.reported().await {
                return false;
            }
            let looks = match self.source {
                Source::Events => 1,
                Source::Control { .. } => LOOKS,
            };
            for look in 0..looks {
                match self.look().await {
                    Some(true) => return true,
                    None => return false,
                    Some(false) if look + 1 < looks => {
                        tokio::time::sleep(Duration::from_millis(1 << look)).await;
                    }
                    Some(false) => {}
                }
            }
        }
    }

    /// Waits for the kernel's report that something may have happened.
    async fn reported(&self) -> bool {
        let interest = match self.source {
            Source::Events => Interest::PRIORITY,
            Source::Control { .. } => Interest::READABLE,
        };
        let Ok(mut ready) = self.fd.ready(interest).await else {
            return false;
        };
        if let Source::Control { .. } = self.source {
            // Never blocks; what it counts is of no interest.
            let _ = nix::unistd::read(self.fd.get_ref(), &mut [0; 8]);
        }
        ready.clear_ready();
        true
    }

    /// Whether there were kills that no look has seen yet; `None` when the group
    /// is gone.
    pub async fn look(&self) -> Option<bool> {
        let now = match &self.source {
            Source::Events => read_events(self.fd.get_ref()).ok()?,
            Source::Control { cgroups, group } => {
                let (cgroups, group) = (cgroups.clone(), group.clone());
                // As many groups as the container likes to make.
                let read = move || {
                    let Layout::V1(split) = &cgroups.0.layout else {
                        return None;
                    };
                    read_controls(split.hierarchy_of("memory")?, &group).ok()?
                };
                tokio::task::spawn_blocking(read).await.ok()??
            }
        };
        Some(self.note(now))
    }

    fn note(&self, mut now: Kills) -> bool {
        // Nothing in here can panic half way.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = false;
        for (group, kills) in &mut now {
            let before = seen.get(group).copied().unwrap_or(0);
            new |= *kills > before;
            // A look that began earlier may end later.
            *kills = before.max(*kills);
        }
        *seen = now;
        new
    }
}

/// `memory.events` of version 2, read anew through its descriptor.
fn read_events(events: &OwnedFd) -> nix::Result<Kills> {
    let mut buffer = [0; 512];
    let length = pread(events.as_fd(), &mut buffer, 0)?;
    let text = std::str::from_utf8(&buffer[..length]).unwrap_or_default();
    Ok(kills_of(text, &["oom_kill", "oom_group_kill"])
        .map(|kills| (OsString::new(), kills))
        .into_iter()
        .collect())
}

/// The counters of a v1 group and those below; `None` when it is gone.
fn read_controls(hierarchy: &Hierarchy, group: &str) -> nix::Result<Option<Kills>> {
    let mut kills = Kills::new();
    for path in hierarchy.tree(group)? {
        match hierarchy.read(&path, "memory.oom_control") {
            Ok(text) => kills.extend(kills_of(&text, &["oom_kill"]).map(|count| (path, count))),
            Err(Errno::ENOENT | Errno::ENODEV) if path == group => return Ok(None),
            Err(Errno::ENOENT | Errno::ENODEV) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(Some(kills))
}

/// The sum of these counters among lines `word number`; none if it is 0.
fn kills_of(text: &str, counters: &[&str]) -> Option<u64> {
    let counted = super::stats::pairs(text).filter(|(key, _)| counters.contains(key));
    let sum = counted.fold(0u64, |sum, (_, count)| sum.saturating_add(count));
    (sum > 0).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> OomWatch {
        let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
        OomWatch {
            fd: register(eventfd, Interest::READABLE).unwrap(),
            source: Source::Events,
            seen: Mutex::default(),
        }
    }

    fn kills(groups: &[(&str, u64)]) -> Kills {
        let owned = groups.iter().map(|(group, n)| (OsString::from(group), *n));
        owned.collect()
    }

    #[test]
    fn kills_are_counted_with_those_of_whole_groups() {
        let v2 = "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(kills_of(v2, &["oom_kill", "oom_group_kill"]), Some(3));
        let v1 = "oom_kill_disable 0\nunder_oom 1\noom_kill 4\n";
        assert_eq!(kills_of(v1, &["oom_kill"]), Some(4));
        assert_eq!(kills_of("oom 7\noom_kill 0\n", &["oom_kill"]), None);
        assert_eq!(kills_of("", &["oom_kill"]), None);
        let huge = format!("oom_kill {}\noom_group_kill 1\n", u64::MAX);
        assert_eq!(
            kills_of(&huge, &["oom_kill", "oom_group_kill"]),
            Some(u64::MAX)
        );
    }

    /// The reference stops after the first on version 2.
    #[tokio::test]
    async fn bug_only_new_kills_count_and_each_of_them_does() {
        let watch = watch();
        assert!(!watch.note(kills(&[])));
        assert!(watch.note(kills(&[("c", 1)])));
        assert!(!watch.note(kills(&[("c", 1)])), "the same kill");
        assert!(watch.note(kills(&[("c", 2)])));
        assert!(watch.note(kills(&[("c", 2), ("c/below", 1)])));
        assert!(!watch.note(kills(&[("c", 1)])), "a look that came late");
        assert!(!watch.note(kills(&[("c", 2)])));
    }

    #[test]
    fn counters_of_a_tree() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("c");
        std::fs::create_dir_all(group.join("below/deeper")).unwrap();
        let write = |path: &str, n: u64| {
            let text = format!("oom_kill_disable 0\nunder_oom 0\noom_kill {n}\n");
            std::fs::write(group.join(path).join("memory.oom_control"), text).unwrap();
        };
        write("", 0);
        write("below/deeper", 2);
        let hierarchy = Hierarchy::open(dir.path()).unwrap();
        let read = read_controls(&hierarchy, "c").unwrap();
        assert_eq!(read, Some(kills(&[("c/below/deeper", 2)])));
        assert_eq!(read_controls(&hierarchy, "gone").unwrap(), None);
    }
}
