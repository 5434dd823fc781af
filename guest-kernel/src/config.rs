// SPDX-License-Identifier: Apache-2.0
//! Kernel configuration text: reading it, merging fragments, and checking that what was asked for is what a kernel has.

use std::collections::BTreeMap;
use std::fmt;

use crate::arch::Arch;

/// Options and their values, by name without `CONFIG_`. `n` and "is not set" are the same: an option that is off is absent or `n`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    options: BTreeMap<String, String>,
}

/// A line that is neither an option, nor a comment, nor empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Line {number} is no kernel option: {text:?}")]
pub struct BadLine {
    /// Its number, from 1.
    pub number: usize,
    /// What it says.
    pub text: String,
}

/// An option that was asked for and that the kernel does not have that way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its name without `CONFIG_`.
    pub option: String,
    /// The value asked for.
    pub requested: String,
    /// The value the kernel has; none if it does not know the option, or has it off.
    pub actual: Option<String>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let actual = self.actual.as_deref().unwrap_or("not set");
        write!(f, "CONFIG_{}={} (is {actual})", self.option, self.requested)
    }
}

impl Config {
    /// Reads `.config` text: `CONFIG_X=value`, `# CONFIG_X is not set`, comments and empty lines.
    pub fn parse(text: &str) -> Result<Config, BadLine> {
        let mut options = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            match parse_line(line) {
                Ok(Some((name, value))) => {
                    options.insert(name.to_owned(), value.to_owned());
                }
                Ok(None) => {}
                Err(()) => {
                    return Err(BadLine {
                        number: index + 1,
                        text: line.to_owned(),
                    });
                }
            }
        }
        Ok(Config { options })
    }

    /// Adds another configuration's options; its value wins where both have one.
    pub fn merge(&mut self, later: Config) {
        self.options.extend(later.options);
    }

    /// An option's value; none if it is off or unknown.
    pub fn value(&self, option: &str) -> Option<&str> {
        self.options
            .get(option)
            .map(String::as_str)
            .filter(|v| *v != "n")
    }

    /// The architecture the kernel is for, where it is one of ours.
    pub fn arch(&self) -> Option<Arch> {
        let of = |(option, arch)| (self.value(option) == Some("y")).then_some(arch);
        [("X86_64", Arch::X86_64), ("ARM64", Arch::Aarch64)]
            .into_iter()
            .find_map(of)
    }

    /// Every option with its value, `n` included, sorted by name.
    pub fn options(&self) -> impl Iterator<Item = (&str, &str)> {
        self.options
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The text Kconfig reads through `KCONFIG_ALLCONFIG`.
    pub fn to_text(&self) -> String {
        let line = |(name, value): (&str, &str)| match value {
            "n" => format!("# CONFIG_{name} is not set\n"),
            value => format!("CONFIG_{name}={value}\n"),
        };
        self.options().map(line).collect()
    }
}

fn parse_line(line: &str) -> Result<Option<(&str, &str)>, ()> {
    if let Some(comment) = line.strip_prefix('#') {
        let unset = comment.trim().strip_suffix(" is not set");
        let name = unset.and_then(|text| text.strip_prefix("CONFIG_"));
        return Ok(name.filter(|n| is_name(n)).map(|name| (name, "n")));
    }
    if line.is_empty() {
        return Ok(None);
    }
    let (name, value) = line
        .strip_prefix("CONFIG_")
        .and_then(|l| l.split_once('='))
        .ok_or(())?;
    if is_name(name) && !value.is_empty() {
        Ok(Some((name, value)))
    } else {
        Err(())
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Which of the requested options a kernel does not have as requested.
///
/// An option asked for as `m` is satisfied by `y`: built in is never less than a module. One asked for as `y` is not satisfied by
/// `m`, since what the guest needs before its modules are loaded must be built in.
pub fn check_config(requested: &Config, actual: &Config) -> Vec<Missing> {
    let mut missing = Vec::new();
    for (option, wanted) in requested.options() {
        let has = actual.value(option);
        let satisfied = match (wanted, has) {
            ("n", has) => has.is_none(),
            ("m", has) => matches!(has, Some("m" | "y")),
            (wanted, has) => has == Some(wanted),
        };
        if !satisfied {
            missing.push(Missing {
                option: option.to_owned(),
                requested: wanted.to_owned(),
                actual: has.map(str::to_owned),
            });
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(text: &str) -> Config {
        Config::parse(text).unwrap()
    }

    #[test]
    fn every_kind_of_line_is_read() {
        let text = "# a comment\n\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"a=b\"\n CONFIG_D=0x10 \nCONFIG_E=n\n";
        let read = config(text);
        assert_eq!(read.value("A"), Some("y"));
        assert_eq!(read.value("B"), None);
        assert_eq!(read.value("C"), Some("\"a=b\""));
        assert_eq!(read.value("D"), Some("0x10"));
        let all: Vec<_> = read.options().collect();
        assert_eq!(all[1], ("B", "n"));
        assert_eq!(all[4], ("E", "n"));
        assert_eq!(read.arch(), None);
        assert_eq!(config("CONFIG_ARM64=y\n").arch(), Some(Arch::Aarch64));
    }

    #[test]
    fn a_line_that_is_no_option_is_refused_with_its_number() {
        for bad in [
            "FOO=y",
            "CONFIG_=y",
            "CONFIG_A",
            "CONFIG_A=",
            "CONFIG_A B=y",
        ] {
            let error = Config::parse(&format!("CONFIG_OK=y\n{bad}\n")).unwrap_err();
            assert_eq!((error.number, error.text.as_str()), (2, bad));
        }
    }

    #[test]
    fn the_later_fragment_wins() {
        let mut merged = config("CONFIG_A=y\nCONFIG_B=y\n");
        merged.merge(config("# CONFIG_A is not set\nCONFIG_C=4\n"));
        assert_eq!(
            merged.to_text(),
            "# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_C=4\n"
        );
    }

    #[test]
    fn what_did_not_survive_is_named() {
        let requested = config(
            "CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=n\nCONFIG_D=m\nCONFIG_E=\"x\"\nCONFIG_F=y\nCONFIG_G=n\n",
        );
        let actual = config(
            "CONFIG_A=y\nCONFIG_B=m\nCONFIG_C=y\nCONFIG_D=y\nCONFIG_E=\"z\"\n# CONFIG_F is not set\n",
        );
        let names: Vec<_> = check_config(&requested, &actual)
            .iter()
            .map(Missing::to_string)
            .collect();
        assert_eq!(
            names,
            [
                "CONFIG_B=y (is m)",
                "CONFIG_C=n (is y)",
                "CONFIG_E=\"x\" (is \"z\")",
                "CONFIG_F=y (is not set)"
            ]
        );
        assert!(check_config(&requested, &requested).is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}") {
            let _ = Config::parse(&text);
        }

        #[test]
        fn written_text_reads_back(names in proptest::collection::btree_map("[A-Z0-9_]{1,12}", "y|m|n|\"[a-z]*\"|[0-9]{1,4}", 0..20)) {
            let text: String = names.iter().map(|(n, v)| format!("CONFIG_{n}={v}\n")).collect();
            let read = config(&text);
            prop_assert_eq!(config(&read.to_text()), read);
        }
    }
}
