// SPDX-License-Identifier: Apache-2.0
//! What the probe reported, and expectations of it, one a line: `uid=1000`, `mount:/mnt:options~ro`, `!dev:/dev/console`.
//!
//! | written | holds if |
//! |---|---|
//! | `name=value`, `name!=value` | the fact has, has not, this value |
//! | `name~word`, `name!~word` | the word is, is not, in the list that the fact is (blanks or commas between) |
//! | `name`, `!name` | the fact is there, is not there |
//!
//! The value `@guest` stands for what the guest's own process, its PID 1, has for this fact.

use std::collections::HashMap;

/// Facts by name. Of facts with one name the last counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts(HashMap<String, String>);

/// How a fact and a value are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Is,
    Has,
}

impl Facts {
    /// Reads the probe's lines; other lines are passed over.
    pub fn parse(text: &str) -> Facts {
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        let owned = pairs.map(|(name, value)| {
            let value = value.trim_end_matches('\r');
            (name.to_owned(), value.to_owned())
        });
        Facts(owned.collect())
    }

    /// Adds a fact.
    pub fn add(&mut self, name: &str, value: impl ToString) {
        self.0.insert(name.to_owned(), value.to_string());
    }

    /// The value of a fact.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The value of a fact that has to be there.
    #[track_caller]
    pub fn expect(&self, name: &str) -> &str {
        self.get(name)
            .unwrap_or_else(|| panic!("{name} is not among the facts {:#?}", self.sorted()))
    }

    /// All names that begin with `prefix`, in order, with their values.
    pub fn starting_with<'a>(&'a self, prefix: &'a str) -> Vec<(&'a str, &'a str)> {
        let all = self.sorted().into_iter();
        all.filter(|(name, _)| name.starts_with(prefix)).collect()
    }

    fn sorted(&self) -> Vec<(&str, &str)> {
        let mut all: Vec<_> = self
            .0
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        all.sort_unstable();
        all
    }

    /// What of the expectation does not hold, with both values; nothing if all of it does.
    pub fn mismatch(&self, expectation: &str, guest: &Facts) -> Option<String> {
        let Some((name, negated, relation, value)) = split(expectation) else {
            return self.presence(expectation);
        };
        let value = match value {
            "@guest" => guest.get(name).unwrap_or("nothing, in the guest"),
            other => other,
        };
        let seen = self.get(name);
        let holds = seen.is_some_and(|seen| match relation {
            Relation::Is => seen == value,
            Relation::Has => seen.split([',', ' ']).any(|word| word == value),
        });
        // What is not there has neither this value nor that word, but nothing is proved by it.
        let good = if negated {
            seen.is_some() && !holds
        } else {
            holds
        };
        (!good).then(|| format!("{expectation} ({value}), seen {}", shown(seen)))
    }

    fn presence(&self, expectation: &str) -> Option<String> {
        let (name, wanted) = match expectation.strip_prefix('!') {
            Some(name) => (name, false),
            None => (expectation, true),
        };
        let seen = self.get(name);
        (seen.is_some() != wanted).then(|| format!("{expectation}, seen {}", shown(seen)))
    }

    /// Insists on all of the expectations.
    #[track_caller]
    pub fn expect_all(&self, expectations: &[&str]) {
        let nobody = Facts::default();
        let wrong: Vec<_> = expectations
            .iter()
            .filter_map(|expectation| self.mismatch(expectation, &nobody))
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}\n{:#?}", self.sorted());
    }
}

fn shown(seen: Option<&str>) -> String {
    seen.map_or("nothing".to_owned(), |value| format!("{value:?}"))
}

/// Name, whether it is negated, relation, value.
fn split(expectation: &str) -> Option<(&str, bool, Relation, &str)> {
    let at = expectation.find(['=', '~'])?;
    let relation = if expectation.as_bytes()[at] == b'=' {
        Relation::Is
    } else {
        Relation::Has
    };
    let (name, value) = (&expectation[..at], &expectation[at + 1..]);
    match name.strip_suffix('!') {
        Some(name) => Some((name, true, relation, value)),
        None => Some((name, false, relation, value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts::parse("uid=0\r\noptions=ro,nosuid noexec\nenv:A=1=2\nempty=\nnonsense\n")
    }

    #[test]
    fn what_holds_is_no_mismatch() {
        let guest = Facts::parse("uid=0\n");
        for good in [
            "uid=0",
            "uid!=1",
            "uid=@guest",
            "options~ro",
            "options~noexec",
            "options!~rw",
            "env:A=1=2",
            "empty=",
            "empty",
            "!nonsense",
        ] {
            assert_eq!(facts().mismatch(good, &guest), None, "{good}");
        }
    }

    #[test]
    fn what_does_not_hold_is_told_with_both_values() {
        let guest = Facts::parse("uid=7\n");
        for bad in [
            "uid=1",
            "uid!=0",
            "uid=@guest",
            "options~r",
            "options!~ro",
            "absent",
            "absent=",
            "absent!=x",
            "absent!~x",
            "!uid",
        ] {
            assert!(facts().mismatch(bad, &guest).is_some(), "{bad}");
        }
        assert_eq!(
            facts().mismatch("uid=@guest", &guest).as_deref(),
            Some("uid=@guest (7), seen \"0\"")
        );
    }

    #[test]
    fn facts_are_listed_by_prefix() {
        assert_eq!(facts().starting_with("env:"), [("env:A", "1=2")]);
    }
}
