// SPDX-License-Identifier: Apache-2.0
//! The guest's `/etc/resolv.conf`, by CreateSandbox (protocol section 10.6).
//! Containers get theirs through their own mounts.

use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};

/// Where the lines of the request are kept.
const OURS: &str = "/run/kata-containers/sandbox/resolv.conf";
const TARGET: &str = "/etc/resolv.conf";

/// Puts the lines in force; without lines, or without an `/etc/resolv.conf` to
/// cover, nothing happens.
///
/// # Errors
/// `EISDIR` if the target is a directory, or the errno of the failing call.
pub fn set_up(lines: &[String]) -> io::Result<()> {
    let Ok(target) = Path::new(TARGET).metadata() else {
        return Ok(());
    };
    if lines.is_empty() {
        return Ok(());
    }
    if target.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    std::fs::create_dir_all(Path::new(OURS).parent().unwrap_or(Path::new("/")))?;
    std::fs::write(OURS, content(lines))?;
    mount(
        Some(OURS),
        TARGET,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    Ok(())
}

fn content(lines: &[String]) -> String {
    let trimmed: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
    trimmed.join("\n")
}

#[cfg(test)]
mod tests {
    use super::content;

    #[test]
    fn lines_are_trimmed_and_joined() {
        let lines = [
            " nameserver 10.0.0.1 ".to_owned(),
            "search example.org".to_owned(),
        ];
        assert_eq!(content(&lines), "nameserver 10.0.0.1\nsearch example.org");
    }
}
