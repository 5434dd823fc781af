// SPDX-License-Identifier: Apache-2.0
//! Runs cargo inside a program that cargo itself may have started: the outer cargo's variables must not reach the inner one.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use guest_kernel::command::{self, CommandError};
use serde::Deserialize;

/// Variables that an outer cargo, or a user's settings for host programs, would let through.
const OUTER: &[&str] = &[
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_MAKEFLAGS",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "CARGO_PRIMARY_PACKAGE",
    "CARGO_CRATE_NAME",
    "CARGO_BIN_NAME",
    "OUT_DIR",
    "TARGET",
    "HOST",
    "PROFILE",
    "RUSTC",
    "RUSTFLAGS",
    "RUSTC_BOOTSTRAP",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUST_RECURSION_COUNT",
    "MAKEFLAGS",
    "MFLAGS",
    // Leads to the outer compiler's libraries, which another compiler must not load.
    "LD_LIBRARY_PATH",
];

/// Removes an outer cargo's variables from a command.
pub fn clean(command: &mut Command) {
    for name in OUTER {
        command.env_remove(name);
    }
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if [
            "CARGO_PKG_",
            "CARGO_BIN_EXE_",
            "CARGO_CFG_",
            "CARGO_FEATURE_",
            "DEP_",
        ]
        .iter()
        .any(|p| text.starts_with(p))
        {
            command.env_remove(&name);
        }
    }
}

/// The cargo that started this program, else the one in `PATH`, with a clean environment.
pub fn cargo_command() -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    clean(&mut command);
    command
}

/// Cargo's home directory, below which the sources of dependencies lie.
pub fn home() -> Option<PathBuf> {
    let set = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .filter(|p| p.is_absolute());
    set.or_else(|| Some(env::home_dir()?.join(".cargo")))
}

/// Where cargo puts what it builds in `workspace`; generated sources, whose paths show in messages, lie there too.
pub fn target_dir(workspace: &Path) -> PathBuf {
    let set = env::var_os("CARGO_TARGET_DIR").or_else(|| env::var_os("CARGO_BUILD_TARGET_DIR"));
    workspace.join(set.unwrap_or_else(|| OsString::from("target")))
}

/// One of cargo's messages, as far as it matters here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Runs a cargo build and returns the path of the binary `name` that it made or found made.
pub fn build(
    mut command: Command,
    name: &str,
    mut line: impl FnMut(&str),
) -> Result<Option<PathBuf>, CommandError> {
    command.args(["--message-format", "json-render-diagnostics"]);
    let mut binary = None;
    // Cargo's messages are for this function; what people should see, a compiler's error above all, comes as plain text.
    command::run_lines_where(&mut command, |text| match executable(text, name) {
        Spoken::Binary(path) => {
            binary = Some(path);
            false
        }
        Spoken::Message => false,
        Spoken::Text => {
            line(text.trim());
            true
        }
    })?;
    Ok(binary)
}

/// What a line of cargo's output is.
#[derive(Debug, PartialEq, Eq)]
enum Spoken {
    Binary(PathBuf),
    Message,
    Text,
}

fn executable(line: &str, name: &str) -> Spoken {
    if !line.starts_with('{') {
        return Spoken::Text;
    }
    let Ok(message) = serde_json::from_str::<Message>(line) else {
        return Spoken::Text;
    };
    match (message.target, message.executable) {
        (Some(target), Some(path))
            if message.reason == "compiler-artifact" && target.name == name =>
        {
            Spoken::Binary(path)
        }
        _ => Spoken::Message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_found_among_the_messages() {
        let artifact = r#"{"reason":"compiler-artifact","target":{"name":"keelson","kind":["bin"]},"executable":"/t/keelson","fresh":true}"#;
        assert_eq!(
            executable(artifact, "keelson"),
            Spoken::Binary("/t/keelson".into())
        );
        assert_eq!(executable(artifact, "other"), Spoken::Message);
        let library =
            r#"{"reason":"compiler-artifact","target":{"name":"keelson"},"executable":null}"#;
        assert_eq!(executable(library, "keelson"), Spoken::Message);
        assert_eq!(
            executable(r#"{"reason":"build-finished","success":true}"#, "x"),
            Spoken::Message
        );
        assert_eq!(
            executable("   Compiling agent v0.1.0", "agent"),
            Spoken::Text
        );
        assert_eq!(executable("{ not json", "agent"), Spoken::Text);
    }

    #[test]
    fn the_outer_cargo_does_not_show_through() {
        let mut command = Command::new("true");
        clean(&mut command);
        let removed: Vec<_> = command
            .get_envs()
            .filter(|(_, value)| value.is_none())
            .map(|(name, _)| name)
            .collect();
        for name in [
            "RUSTFLAGS",
            "CARGO_MANIFEST_DIR",
            "LD_LIBRARY_PATH",
            "CARGO_PKG_NAME",
        ] {
            assert!(removed.iter().any(|r| *r == name), "{name}");
        }
    }
}
