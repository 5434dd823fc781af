// SPDX-License-Identifier: Apache-2.0
//! Bringing processors into use.

use std::fmt;
use std::fs;
use std::path::Path;

use super::{HotplugError, is_gone, numbered, read};

/// Below the place where sysfs is mounted.
const CPU: &str = "devices/system/cpu";

/// Which processors there are, as the kernel lists them (`0-3,6`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpus {
    /// Those in use.
    pub online: String,
    /// Those that are plugged in, in use or not.
    pub present: String,
    /// How many are in use.
    pub count: u32,
    /// What kept one of the others from being brought into use.
    pub refusal: Option<String>,
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            online,
            present,
            count,
            ..
        } = self;
        write!(f, "{count} online ({online}), present are {present}")?;
        match &self.refusal {
            Some(refusal) => write!(f, "; {refusal}"),
            None => Ok(()),
        }
    }
}

/// Brings processors that are there into use until `total` are, lowest number
/// first. Fewer than asked for is no error: they may not have come yet, and the
/// result tells.
///
/// # Errors
/// [`HotplugError`] when the kernel's lists cannot be read.
pub fn bring_up_at(sysfs: &Path, total: u32) -> Result<Cpus, HotplugError> {
    let cpu = sysfs.join(CPU);
    let mut refusal = None;
    if count_at(&cpu)?.1 < total {
        for dir in numbered(&cpu, "cpu")? {
            // The first one cannot be taken out of use on most machines and has no such file.
            let file = dir.join("online");
            if !fs::read_to_string(&file).is_ok_and(|state| state.trim_end() == "0") {
                continue;
            }
            match fs::write(&file, "1") {
                Ok(()) if count_at(&cpu)?.1 >= total => break,
                Ok(()) => {}
                Err(error) if is_gone(&error) => {}
                // The next one may do.
                Err(error) => refusal = Some(format!("{}: {error}", file.display())),
            }
        }
    }
    let (online, count) = count_at(&cpu)?;
    Ok(Cpus {
        online,
        present: read(&cpu.join("present"))?,
        count,
        refusal,
    })
}

fn count_at(cpu: &Path) -> Result<(String, u32), HotplugError> {
    let path = cpu.join("online");
    let list = read(&path)?;
    let count = count(&list).ok_or_else(|| HotplugError::text(&path, &list))?;
    Ok((list, count))
}

/// How many numbers a list such as `0-3,6` has.
fn count(list: &str) -> Option<u32> {
    if list.is_empty() {
        return Some(0);
    }
    list.split(',').try_fold(0u32, |sum, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A sysfs with processors that are in use or not; the first has no switch.
    fn machine(states: &[&str], online: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(file(&dir, "cpu0")).unwrap();
        fs::write(file(&dir, "online"), format!("{online}\n")).unwrap();
        fs::write(file(&dir, "present"), format!("0-{}\n", states.len())).unwrap();
        for (index, state) in states.iter().enumerate() {
            let cpu = file(&dir, &format!("cpu{}", index + 1));
            fs::create_dir(&cpu).unwrap();
            fs::write(cpu.join("online"), format!("{state}\n")).unwrap();
        }
        dir
    }

    fn file(machine: &tempfile::TempDir, name: &str) -> PathBuf {
        machine.path().join(CPU).join(name)
    }

    fn states(machine: &tempfile::TempDir, count: usize) -> String {
        let state = |n| fs::read_to_string(file(machine, &format!("cpu{n}/online"))).unwrap();
        (1..=count).map(|n| state(n).trim().to_owned()).collect()
    }

    #[test]
    fn lists_are_counted() {
        for (list, number) in [("", 0), ("0", 1), ("0-3", 4), ("0-3,6,8-9", 7)] {
            assert_eq!(count(list), Some(number), "{list}");
        }
        for bad in [
            "x",
            "0-",
            "-1",
            "3-1",
            "0,,1",
            "0-4294967295",
            "99999999999",
        ] {
            assert_eq!(count(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_number_is_a_total_and_what_is_in_use_stays() {
        let machine = machine(&["1", "0"], "0-1");
        let cpus = bring_up_at(machine.path(), 2).unwrap();
        assert_eq!((cpus.count, cpus.online.as_str()), (2, "0-1"));
        bring_up_at(machine.path(), 1).unwrap();
        assert_eq!(states(&machine, 2), "10");
    }

    #[test]
    fn what_is_missing_is_told() {
        // A list that does not change: whatever is written has no effect.
        let machine = machine(&["0", "0"], "0");
        let cpus = bring_up_at(machine.path(), 3).unwrap();
        assert_eq!(states(&machine, 2), "11");
        assert_eq!(cpus.to_string(), "1 online (0), present are 0-2");
    }

    #[test]
    fn a_processor_that_is_refused_does_not_keep_the_next_out() {
        let machine = machine(&["0", "0"], "0");
        // Can be read as 0, and not be written.
        let refused = file(&machine, "cpu1/online");
        let mut permissions = refused.metadata().unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&refused, permissions).unwrap();
        let cpus = bring_up_at(machine.path(), 3).unwrap();
        assert!(states(&machine, 2).ends_with('1'));
        // Root may write to it all the same.
        if !rustix::process::geteuid().is_root() {
            let text = cpus.refusal.unwrap();
            assert!(text.contains("cpu1/online"), "{text}");
        }
    }

    #[test]
    fn lists_that_are_none_are_named() {
        let machine = machine(&[], "nonsense");
        let error = bring_up_at(machine.path(), 1).unwrap_err();
        assert!(matches!(error, HotplugError::Text { .. }), "{error}");
    }
}
