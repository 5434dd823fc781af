// SPDX-License-Identifier: Apache-2.0
//! The kernel command line: how its text falls into words.
//!
//! Owns the splitting and the quoting rules, which are the kernel's own
//! (`next_arg()` in lib/cmdline.c), and the boolean rule of the agent's
//! words. It never decides what a word means and no input makes it fail:
//! a word nobody knows is just never asked for.

use std::path::{Path, PathBuf};
use std::{fs, io};

use thiserror::Error;

/// The command line could not be read.
#[derive(Debug, Error)]
pub enum CmdlineError {
    /// `/proc/cmdline` cannot be read; most likely `/proc` is not mounted.
    #[error("Cannot read the kernel command line from {}", path.display())]
    Read {
        /// The file that was tried.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// The kernel command line of this boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLine {
    text: String,
}

/// One word of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word<'a> {
    /// The text before the first `=`, or the whole word if it has none.
    pub key: &'a str,
    /// The text after the first `=` without its quotes; `None` for a bare word.
    pub value: Option<&'a str>,
}

impl CommandLine {
    /// Takes the text of a command line. Bytes which are not UTF-8 become
    /// U+FFFD; everything after a NUL is dropped, as the kernel does.
    pub fn parse(bytes: &[u8]) -> Self {
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
        Self { text }
    }

    /// Reads `/proc/cmdline` (proc(5)).
    pub fn read() -> Result<Self, CmdlineError> {
        Self::read_at(Path::new("/"))
    }

    /// Reads `proc/cmdline` below `root`.
    pub fn read_at(root: &Path) -> Result<Self, CmdlineError> {
        let path = root.join("proc/cmdline");
        match fs::read(&path) {
            Ok(bytes) => Ok(Self::parse(&bytes)),
            Err(source) => Err(CmdlineError::Read { path, source }),
        }
    }

    /// The words, in order.
    pub fn words(&self) -> Words<'_> {
        Words { rest: &self.text }
    }

    /// The value of the last `key=value` word with this key. An empty value
    /// is `Some("")`; a bare word has no value and does not count.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.words()
            .filter(|word| word.key == key)
            .filter_map(|word| word.value)
            .last()
    }

    /// Whether the bare word `key` occurs. `key=1` does not count.
    pub fn has(&self, key: &str) -> bool {
        self.words()
            .any(|word| word.key == key && word.value.is_none())
    }

    /// The text as the kernel gave it.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// The words of a command line; see [`CommandLine::words`].
#[derive(Debug, Clone)]
pub struct Words<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Words<'a> {
    type Item = Word<'a>;

    fn next(&mut self) -> Option<Word<'a>> {
        let start = self.rest.trim_start_matches(is_space);
        if start.is_empty() {
            return None;
        }
        let (word, rest) = start.split_at(word_length(start));
        self.rest = rest;
        Some(split_word(word))
    }
}

/// Length in bytes of the word that `text` starts with: up to the first blank
/// outside of double quotes. There is no escape character.
fn word_length(text: &str) -> usize {
    let mut quoted = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            c if is_space(c) && !quoted => return at,
            _ => {}
        }
    }
    text.len()
}

/// Parts a word at its first `=`. Quotes are taken off in two places only:
/// around the whole word and around the value.
fn split_word(word: &str) -> Word<'_> {
    let (word, quoted) = match word.strip_prefix('"') {
        Some(inner) => (inner, true),
        None => (word, false),
    };
    // A leading `=` belongs to the key.
    let equals = word.bytes().skip(1).position(|b| b == b'=');
    let Some(equals) = equals.map(|at| at + 1) else {
        let key = if quoted { unquote_end(word) } else { word };
        return Word { key, value: None };
    };
    let (key, value) = (&word[..equals], &word[equals + 1..]);
    let value = match value.strip_prefix('"') {
        Some(inner) => unquote_end(inner),
        None if quoted => unquote_end(value),
        None => value,
    };
    Word {
        key,
        value: Some(value),
    }
}

fn unquote_end(text: &str) -> &str {
    text.strip_suffix('"').unwrap_or(text)
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r')
}

/// The boolean rule of the agent's kernel words (protocol section 8.2):
/// `true` and `false`, else an integer other than 0, else false. A value with
/// another `=` in it is false.
pub fn boolean(value: &str) -> bool {
    match value {
        "true" => true,
        "false" => false,
        // i128 holds every integer that a host would call one.
        other => other.parse::<i128>().is_ok_and(|number| number != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str) -> Vec<(String, Option<String>)> {
        CommandLine::parse(text.as_bytes())
            .words()
            .map(|w| (w.key.to_owned(), w.value.map(str::to_owned)))
            .collect()
    }

    fn pair(key: &str, value: Option<&str>) -> (String, Option<String>) {
        (key.to_owned(), value.map(str::to_owned))
    }

    #[test]
    fn bare_words_and_values() {
        assert_eq!(
            words("  quiet root=/dev/vda1\tagent.log=debug\n"),
            [
                pair("quiet", None),
                pair("root", Some("/dev/vda1")),
                pair("agent.log", Some("debug"))
            ]
        );
    }

    #[test]
    fn only_the_first_equals_sign_parts() {
        assert_eq!(
            words("kata.extension.x.verity_params=root_hash=ab,salt=cd"),
            [pair(
                "kata.extension.x.verity_params",
                Some("root_hash=ab,salt=cd")
            )]
        );
        assert_eq!(
            words("empty= =lead ="),
            [
                pair("empty", Some("")),
                pair("=lead", None),
                pair("=", None)
            ]
        );
    }

    #[test]
    fn quotes_are_the_kernels() {
        assert_eq!(
            words(r#"dm-mod.create="dm-verity,,,ro,0 8192 verity 1 /dev/vda1" quiet"#),
            [
                pair(
                    "dm-mod.create",
                    Some("dm-verity,,,ro,0 8192 verity 1 /dev/vda1")
                ),
                pair("quiet", None)
            ]
        );
        assert_eq!(words(r#""a=b c""#), [pair("a", Some("b c"))]);
        assert_eq!(words(r#""just words""#), [pair("just words", None)]);
        // Quotes in the middle hide blanks but stay in the text.
        assert_eq!(
            words(r#"a=b" "c d"#),
            [pair("a", Some(r#"b" "c"#)), pair("d", None)]
        );
        // An unclosed quote reaches to the end.
        assert_eq!(words(r#"a="b c"#), [pair("a", Some("b c"))]);
        assert_eq!(words(r#"""#), [pair("", None)]);
    }

    #[test]
    fn last_value_wins_and_bare_words_do_not_count() {
        let line = CommandLine::parse(b"a=1 a=2 a rootwait b=");
        assert_eq!(line.value("a"), Some("2"));
        assert_eq!(line.value("b"), Some(""));
        assert_eq!(line.value("rootwait"), None);
        assert!(line.has("rootwait") && line.has("a"));
        assert!(!line.has("b") && !line.has("c"));
    }

    #[test]
    fn bug_unknown_words_are_ignored() {
        let line = CommandLine::parse(
            b"agent.bogus=\xff\xfe = == \"\" -- -x agent.log==,x agent.log=warn",
        );
        assert_eq!(line.value("agent.log"), Some("warn"));
        assert_eq!(line.value("agent.bogus"), Some("\u{fffd}\u{fffd}"));
    }

    #[test]
    fn text_after_nul_is_dropped() {
        assert_eq!(CommandLine::parse(b"a b\0c").words().count(), 2);
    }

    #[test]
    fn booleans() {
        for yes in ["true", "1", "-1", "007", "+5"] {
            assert!(boolean(yes), "{yes}");
        }
        for no in ["false", "0", "", "yes", "TRUE", "1=1", " 1", "0x1"] {
            assert!(!boolean(no), "{no}");
        }
    }

    #[test]
    fn missing_proc_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let err = CommandLine::read_at(dir.path()).unwrap_err();
        assert!(err.to_string().ends_with("proc/cmdline"), "{err}");
    }

    proptest! {
        #[test]
        fn any_bytes_make_words(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let line = CommandLine::parse(&bytes);
            for word in line.words() {
                let _ = (line.value(word.key), line.has(word.key), word.value.map(boolean));
            }
        }

        #[test]
        fn plain_words_come_back(parts in proptest::collection::vec("[a-z.]{1,9}(=[a-z0-9/,:.]{0,9})?", 0..20)) {
            let line = CommandLine::parse(parts.join(" ").as_bytes());
            let again: Vec<String> = line.words().map(|w| match w.value {
                Some(value) => format!("{}={value}", w.key),
                None => w.key.to_owned(),
            }).collect();
            prop_assert_eq!(again, parts);
        }
    }
}
