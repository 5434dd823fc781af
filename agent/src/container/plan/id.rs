// SPDX-License-Identifier: Apache-2.0
//! Ids that came from the host: they become path components and map keys, so
//! they are checked once, here.

use std::fmt;

use super::PlanError;

/// Longest id taken. Container engines use 64 hex digits; a path component
/// may have 255 bytes, and suffixes are appended.
const MAX_ID: usize = 200;

/// Directories of the guest's own, where a container's bundle would be: files
/// and mounts of the host, and of the sandbox.
const TAKEN: [&str; 2] = ["shared", "sandbox"];

/// A container id: alphanumeric first, then alphanumeric or `.`, `-`, `_`; at
/// least two characters (protocol 3.2, step 2).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(String);

impl ContainerId {
    /// Checks `id`.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] naming what is wrong.
    pub fn parse(id: &str) -> Result<Self, PlanError> {
        let fail = |reason| Err(PlanError::invalid("container ID", shorten(id), reason));
        if id.len() < 2 {
            return fail("needs at least two characters");
        }
        if id.len() > MAX_ID {
            return fail("longer than 200 bytes");
        }
        let mut chars = id.chars();
        if !chars.next().is_some_and(char::is_alphanumeric) {
            return fail("must start with a letter or digit");
        }
        if !chars.all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_')) {
            return fail("only letters, digits, '.', '-' and '_' are allowed");
        }
        if TAKEN.contains(&id) {
            return fail("is the name of a directory of the guest's own");
        }
        Ok(Self(id.to_owned()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An exec id: unique within its container, never a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExecId(String);

impl ExecId {
    /// Checks `id`: not empty, at most 200 bytes, no control characters.
    ///
    /// # Errors
    /// [`PlanError::Invalid`].
    pub fn parse(id: &str) -> Result<Self, PlanError> {
        if id.is_empty() {
            return Err(PlanError::Missing("exec_id"));
        }
        if id.len() > MAX_ID || id.chars().any(char::is_control) {
            return Err(PlanError::invalid(
                "exec_id",
                shorten(id),
                "at most 200 printable bytes",
            ));
        }
        Ok(Self(id.to_owned()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The beginning of a hostile string, for an error text.
pub(crate) fn shorten(text: &str) -> String {
    text.chars()
        .take(64)
        .flat_map(char::escape_default)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_engines_are_taken() {
        for id in ["ab", "c1", "4bd1.x_y-z", &"f".repeat(64), "über"] {
            assert_eq!(ContainerId::parse(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn ids_that_are_no_path_component_are_refused() {
        for id in [
            "",
            "a",
            "..",
            ".hidden",
            "a/b",
            "a b",
            "a\0b",
            "-a",
            &"f".repeat(201),
        ] {
            assert!(ContainerId::parse(id).is_err(), "{id:?} was taken");
        }
    }

    /// What undoes a creation would remove every container's files.
    #[test]
    fn bug_the_guests_own_directories_are_no_containers() {
        for id in TAKEN {
            assert!(ContainerId::parse(id).is_err(), "{id:?} was taken");
            assert!(ContainerId::parse(&format!("{id}1")).is_ok());
        }
    }

    #[test]
    fn an_error_does_not_repeat_hostile_bytes() {
        let text = ContainerId::parse("x\x1b[2Jy").unwrap_err().to_string();
        assert!(!text.contains('\x1b'), "{text:?}");
    }

    #[test]
    fn exec_ids_may_be_almost_anything() {
        assert!(ExecId::parse("exec/../1 2").is_ok());
        assert!(ExecId::parse("").is_err());
        assert!(ExecId::parse("a\n").is_err());
    }
}
