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

    /// Adds a fact that the kernel may not tell: then it is left out.
    pub fn maybe<T: Display, E>(&mut self, name: &str, value: Result<T, E>) {
        if let Ok(value) = value {
            self.add(name, value);
        }
    }

    /// Adds others behind these.
    pub fn append(&mut self, mut others: Facts) {
        self.0.append(&mut others.0);
    }

    /// The same facts with `prefix` before their names.
    pub fn prefixed(self, prefix: &str) -> Facts {
        let named = |(name, value)| (format!("{prefix}{name}"), value);
        Facts(self.0.into_iter().map(named).collect())
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

/// What a file of `/proc` holds, without the end of its last line.
pub fn content(path: &str) -> std::io::Result<String> {
    let bytes = std::fs::read(path)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

/// Words with commas between them.
pub fn list(words: impl IntoIterator<Item = impl Display>) -> String {
    let words: Vec<String> = words.into_iter().map(|w| w.to_string()).collect();
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stays_on_its_line() {
        let mut facts = Facts::default();
        facts.add("size", 3);
        facts.maybe("absent", Err::<i32, _>(()));
        facts.maybe("path", Ok::<_, ()>("a\nb\\c=d"));
        assert_eq!(facts.text(), "size=3\npath=a\\nb\\\\c=d\n");
    }
}
