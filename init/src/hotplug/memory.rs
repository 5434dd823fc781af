// SPDX-License-Identifier: Apache-2.0
//! Bringing blocks of memory into use.
//!
//! Which zone a block goes to is the kernel's policy, and thereby whoever writes
//! its command line decides: memory that shall be pulled out again has to be
//! movable, and memory that is movable is of no use for the kernel's own
//! needs. A small guest that grows to many times its size with movable memory
//! only runs out of the other kind. So the plain word is what blocks get, which
//! `memory_hotplug.online_policy=auto-movable` turns into "movable, as far as is
//! good"; `memhp_default_state=online_movable` has everything movable.

use std::fs;
use std::io;
use std::path::Path;

use super::{HotplugError, is_gone, numbered, read};

/// Below the place where sysfs is mounted.
const MEMORY: &str = "devices/system/memory";

/// What the kernel does with new blocks by itself.
const POLICY: &str = "auto_online_blocks";

/// Where it is told of them.
const PROBE: &str = "probe";

/// Brings every block that is not in use into use, the way the kernel's own
/// policy has it. Returns how many it was.
///
/// # Errors
/// [`HotplugError`] about the first block that could not be, when the others
/// have had their turn. One that was unplugged meanwhile is none.
pub fn bring_up_at(sysfs: &Path) -> Result<usize, HotplugError> {
    let memory = sysfs.join(MEMORY);
    let word = word_at(&memory);
    let (mut count, mut failure) = (0, None);
    for block in numbered(&memory, "memory")? {
        let file = block.join("state");
        if !fs::read_to_string(&file).is_ok_and(|state| state.trim_end() == "offline") {
            continue;
        }
        match fs::write(&file, word) {
            Ok(()) => count += 1,
            Err(error) if is_gone(&error) => {}
            Err(error) => {
                failure.get_or_insert_with(|| HotplugError::file("write to", &file)(error));
            }
        }
    }
    failure.map_or(Ok(count), Err)
}

/// The kernel's own word, if it has one: it would have been written to the
/// block had the kernel been asked in time.
fn word_at(memory: &Path) -> &'static str {
    let policy = fs::read_to_string(memory.join(POLICY)).unwrap_or_default();
    match policy.trim_end() {
        "online_movable" => "online_movable",
        "online_kernel" => "online_kernel",
        _ => "online",
    }
}

/// Tells the kernel of memory that it does not notice by itself, at each of
/// these physical addresses. All are looked at before the first is told.
///
/// # Errors
/// [`HotplugError::Unaligned`] and [`HotplugError::NoProbe`] before anything is
/// done, [`HotplugError::Probe`] when the kernel refuses one.
pub fn probe_at(sysfs: &Path, addresses: &[u64]) -> Result<(), HotplugError> {
    if addresses.is_empty() {
        return Ok(());
    }
    let memory = sysfs.join(MEMORY);
    let path = memory.join(PROBE);
    if !path.exists() {
        return Err(HotplugError::NoProbe { path });
    }
    let block_size = block_size_at(&memory)?;
    if let Some(&address) = addresses.iter().find(|&a| !a.is_multiple_of(block_size)) {
        return Err(HotplugError::Unaligned {
            address,
            block_size,
        });
    }
    for &address in addresses {
        match fs::write(&path, format!("{address:#x}")) {
            // It is there already: asked for twice.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(|source| HotplugError::Probe { address, source })?,
        }
    }
    Ok(())
}

fn block_size_at(memory: &Path) -> Result<u64, HotplugError> {
    let path = memory.join("block_size_bytes");
    let text = read(&path)?;
    // Hexadecimal without a prefix.
    let size = u64::from_str_radix(&text, 16).ok().filter(|&size| size > 0);
    size.ok_or_else(|| HotplugError::text(&path, &text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A sysfs of blocks in these states.
    fn machine(states: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (index, state) in states.iter().enumerate() {
            let block = format!("memory{index}");
            fs::create_dir_all(file(&dir, &block)).unwrap();
            fs::write(file(&dir, &block).join("state"), format!("{state}\n")).unwrap();
        }
        fs::create_dir_all(file(&dir, "")).unwrap();
        fs::write(file(&dir, "block_size_bytes"), "8000000\n").unwrap();
        dir
    }

    fn file(machine: &tempfile::TempDir, name: &str) -> PathBuf {
        machine.path().join(MEMORY).join(name)
    }

    fn state(machine: &tempfile::TempDir, block: usize) -> String {
        let path = file(machine, &format!("memory{block}/state"));
        fs::read_to_string(path).unwrap().trim_end().to_owned()
    }

    #[test]
    fn blocks_that_are_not_in_use_are_brought_into_use() {
        let machine = machine(&["online", "offline", "going-offline", "offline"]);
        assert_eq!(bring_up_at(machine.path()).unwrap(), 2);
        let states = [0, 1, 2, 3].map(|block| state(&machine, block));
        assert_eq!(states, ["online", "online", "going-offline", "online"]);
        assert_eq!(bring_up_at(machine.path()).unwrap(), 0);
        assert_eq!(bring_up_at(&machine.path().join("absent")).unwrap(), 0);
    }

    #[test]
    fn the_kernels_policy_says_how() {
        for (policy, word) in [
            ("offline", "online"),
            ("online", "online"),
            ("online_movable", "online_movable"),
            ("online_kernel", "online_kernel"),
            ("nonsense", "online"),
        ] {
            let machine = machine(&["offline"]);
            fs::write(file(&machine, POLICY), format!("{policy}\n")).unwrap();
            bring_up_at(machine.path()).unwrap();
            assert_eq!(state(&machine, 0), word, "{policy}");
        }
    }

    #[test]
    fn a_block_that_went_away_is_not_missed() {
        let machine = machine(&["offline", "offline"]);
        fs::remove_file(file(&machine, "memory0/state")).unwrap();
        assert_eq!(bring_up_at(machine.path()).unwrap(), 1);
        assert_eq!(state(&machine, 1), "online");
    }

    #[test]
    fn addresses_are_written_in_hexadecimal() {
        let machine = machine(&[]);
        let probe = file(&machine, PROBE);
        fs::write(&probe, "").unwrap();
        probe_at(machine.path(), &[0x1_4000_0000]).unwrap();
        assert_eq!(fs::read_to_string(&probe).unwrap(), "0x140000000");
        probe_at(machine.path(), &[]).unwrap();
    }

    #[test]
    fn bug_all_addresses_are_looked_at_before_the_first_is_told() {
        let machine = machine(&[]);
        let probe = file(&machine, PROBE);
        fs::write(&probe, "").unwrap();
        let error = probe_at(machine.path(), &[0x1_4000_0000, 0x1_4000_1000]).unwrap_err();
        assert!(error.is_bad_input());
        assert_eq!(
            error.to_string(),
            "Memory address 0x140001000 is not a multiple of the block size 0x8000000"
        );
        assert_eq!(fs::read_to_string(&probe).unwrap(), "");
    }

    #[test]
    fn without_the_kernels_help_there_is_no_probing() {
        let machine = machine(&[]);
        let error = probe_at(machine.path(), &[0]).unwrap_err();
        assert!(matches!(error, HotplugError::NoProbe { .. }) && !error.is_bad_input());
    }

    #[test]
    fn a_refusal_names_the_address() {
        let machine = machine(&[]);
        fs::create_dir(file(&machine, PROBE)).unwrap();
        let error = probe_at(machine.path(), &[0x800_0000]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "The kernel does not take memory at 0x8000000"
        );
    }

    #[test]
    fn a_block_size_of_nothing_is_none() {
        let machine = machine(&[]);
        fs::write(file(&machine, PROBE), "").unwrap();
        for bad in ["", "0", "nonsense"] {
            fs::write(file(&machine, "block_size_bytes"), bad).unwrap();
            let error = probe_at(machine.path(), &[0]).unwrap_err();
            assert!(matches!(error, HotplugError::Text { .. }), "{bad}");
        }
    }
}
