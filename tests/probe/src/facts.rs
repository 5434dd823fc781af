// SPDX-License-Identifier: Apache-2.0
//! What a subcommand has to say: names and values, one pair a line.

use std::fmt::Display;

/// Why a fact could not be had: what was done, on what, and what the kernel answered.
pub type Error = String;

/// Facts in the order they were found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Facts(Vec<(String, String)>);

impl Facts {
    /// Adds a fact.
    pub fn add(&mut self, name: &str, value: impl Display) {
        self.0.push((name.to_owned(), value.to_string()));
    }

    /// The value of a fact.
    #[cfg(test)]
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The lines. A value stays on its line whatever is in it: line ends and backslashes are written as in C.
    pub fn text(&self) -> String {
        let escaped = |value: &str| value.replace('\\', "\\\\").replace('\n', "\\n");
        let line = |(name, value): &(String, String)| format!("{name}={}\n", escaped(value));
        self.0.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stays_on_its_line() {
        let mut facts = Facts::default();
        facts.add("size", 3);
        facts.add("path", "a\nb\\c=d");
        assert_eq!(facts.text(), "size=3\npath=a\\nb\\\\c=d\n");
    }
}
