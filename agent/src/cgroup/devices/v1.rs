// SPDX-License-Identifier: Apache-2.0
//! Device rules as the lists of cgroup v1. Pure: says what is to be written to
//! `devices.allow` and `devices.deny`, writes nothing.
//!
//! A v1 group either denies all but a list of exceptions, one of which must
//! cover an access as a whole, or allows all but a list, none of which may touch
//! it. Neither list knows "all but these" within itself, so rules that mix both
//! cannot always be said. Where they cannot, the list grants less, never more;
//! the usual case, any block device's node but the guest's, is said driver by
//! driver.

use std::collections::BTreeMap;
use std::fmt;

use super::guest::Guest;
use super::rule::{ALL, Kind, MKNOD, READ, Rule, WRITE, granted};

type Number = Option<u32>;

/// A line of `devices.list`; an absent number is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exception {
    pub kind: Kind,
    pub numbers: (Number, Number),
    pub access: u8,
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Block => 'b',
            Kind::Char => 'c',
        };
        let number = |n: Number| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let (major, minor) = (number(self.numbers.0), number(self.numbers.1));
        write!(f, "{kind} {major}:{minor} ")?;
        for (bit, letter) in [(READ, "r"), (WRITE, "w"), (MKNOD, "m")] {
            if self.access & bit != 0 {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

/// What a group's list is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct List {
    /// All but the exceptions, rather than none but the exceptions.
    pub allows: bool,
    pub exceptions: Vec<Exception>,
    /// Whether the list grants all that the rules grant.
    pub exact: bool,
}

/// Which file a write goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum File {
    Allow,
    Deny,
}

impl File {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Allow => "devices.allow",
            Self::Deny => "devices.deny",
        }
    }
}

impl List {
    /// The list that grants what the rules grant, or as much of it as a list can.
    pub(super) fn compile(rules: &[Rule], guest: &Guest) -> Self {
        let grids = [Kind::Block, Kind::Char].map(|kind| Grid::new(kind, rules, guest, &[]));
        let allows = grids.iter().all(|grid| grid.rest() == ALL);
        let mut list = Self {
            allows,
            exceptions: Vec::new(),
            exact: true,
        };
        for grid in grids {
            if allows {
                grid.denials(&mut list);
            } else if grid.in_all() == grid.rest() {
                grid.grants(&mut list);
            } else {
                let majors = guest.majors.iter().filter(|(kind, _)| *kind == grid.kind);
                let majors: Vec<_> = majors.map(|(_, major)| *major).collect();
                Grid::new(grid.kind, rules, guest, &majors).grants(&mut list);
            }
        }
        list
    }

    /// What a group grants that was never restricted.
    pub(super) fn all() -> Self {
        Self {
            allows: true,
            exceptions: Vec::new(),
            exact: true,
        }
    }

    /// The writes that bring a group from `old` here. Without an old one
    /// the group is emptied first; with one there is no moment at which less is
    /// granted than by both lists.
    pub(super) fn writes(&self, old: Option<&Self>) -> Vec<(File, String)> {
        let (more, less) = match self.allows {
            true => (File::Deny, File::Allow),
            false => (File::Allow, File::Deny),
        };
        let Some(old) = old.filter(|old| old.allows == self.allows) else {
            let reset = (less, "a *:* rwm".to_owned());
            let exceptions = self.exceptions.iter().map(|e| (more, e.to_string()));
            return std::iter::once(reset).chain(exceptions).collect();
        };
        let added = missing(&self.exceptions, &old.exceptions).map(|e| (more, e.to_string()));
        let removed = missing(&old.exceptions, &self.exceptions).map(|e| (less, e.to_string()));
        added.chain(removed).collect()
    }

    /// Both lists, for a group of which it is not known how far it came from
    /// one to the other.
    pub(super) fn between(self, old: Self) -> Option<Self> {
        if self.allows != old.allows {
            return None;
        }
        let more: Vec<_> = missing(&old.exceptions, &self.exceptions).collect();
        let mut both = self;
        for exception in more {
            match both.exceptions.iter_mut().find(|e| same(e, &exception)) {
                Some(there) => there.access |= exception.access,
                None => both.exceptions.push(exception),
            }
        }
        Some(both)
    }

    fn push(&mut self, kind: Kind, numbers: (Number, Number), access: u8) {
        if access != 0 {
            self.exceptions.push(Exception {
                kind,
                numbers,
                access,
            });
        }
    }
}

fn same(a: &Exception, b: &Exception) -> bool {
    (a.kind, a.numbers) == (b.kind, b.numbers)
}

/// What `these` have that `those` have not.
fn missing<'a>(
    these: &'a [Exception],
    those: &'a [Exception],
) -> impl Iterator<Item = Exception> + 'a {
    these.iter().filter_map(|exception| {
        let there = those.iter().find(|other| same(other, exception));
        let access = exception.access & !there.map_or(0, |other| other.access);
        (access != 0).then_some(Exception {
            access,
            ..*exception
        })
    })
}

/// One major number, or all that no rule names.
struct Row {
    major: Number,
    /// What is granted to minor numbers that no rule names here.
    rest: u8,
    /// What is granted to those that a rule names; sorted.
    cells: Vec<(u32, u8)>,
}

impl Row {
    fn in_all(&self) -> u8 {
        self.cells.iter().fold(self.rest, |all, (_, a)| all & a)
    }

    fn of(&self, minor: u32) -> u8 {
        let found = self.cells.binary_search_by_key(&minor, |(m, _)| *m);
        found.map_or(self.rest, |at| self.cells[at].1)
    }
}

/// What is granted to every device of a kind.
struct Grid {
    kind: Kind,
    /// The first is of the majors that no rule names.
    rows: Vec<Row>,
    /// The minor numbers that are named for any major.
    columns: Vec<u32>,
}

impl Grid {
    fn new(kind: Kind, rules: &[Rule], guest: &Guest, more_majors: &[u32]) -> Self {
        let is_ours = |k: Option<Kind>| k.is_none_or(|k| k == kind);
        let named = rules.iter().filter(|rule| is_ours(rule.kind));
        let of_rules = named.map(|rule| (rule.major, rule.minor));
        let ours = guest.devices.iter().filter(|device| device.kind == kind);
        let of_guest = ours.map(|device| (Some(device.major), Some(device.minor)));
        let points: Vec<_> = of_rules.chain(of_guest).collect();
        let majors = points.iter().filter_map(|(major, _)| *major);
        let majors = sorted(majors.chain(more_majors.iter().copied()));
        let row = |major: Number| {
            let here = points.iter().filter(|(m, _)| m.is_none() || *m == major);
            let access = |minor| granted(rules, &guest.devices, kind, (major, minor));
            Row {
                major,
                rest: access(None),
                cells: sorted(here.filter_map(|(_, minor)| *minor))
                    .into_iter()
                    .map(|minor| (minor, access(Some(minor))))
                    .collect(),
            }
        };
        let columns = points.iter().filter(|(major, _)| major.is_none());
        Self {
            kind,
            columns: sorted(columns.filter_map(|(_, minor)| *minor)),
            rows: std::iter::once(None)
                .chain(majors.into_iter().map(Some))
                .map(row)
                .collect(),
        }
    }

    /// What is granted to devices that no rule names.
    fn rest(&self) -> u8 {
        self.rows.first().map_or(0, |row| row.rest)
    }

    fn in_all(&self) -> u8 {
        self.rows.iter().fold(ALL, |all, row| all & row.in_all())
    }

    fn in_column(&self, minor: u32) -> u8 {
        self.rows.iter().fold(ALL, |all, row| all & row.of(minor))
    }

    /// Exceptions of a group that denies: a wide one may grant no more than the
    /// narrowest place in it, and a narrow one must hold all that is granted there.
    fn grants(&self, list: &mut List) {
        let everywhere = self.in_all();
        list.exact &= everywhere == self.rest();
        list.push(self.kind, (None, None), everywhere);
        let columns = self
            .columns
            .iter()
            .map(|&minor| (minor, self.in_column(minor)));
        let columns: BTreeMap<_, _> = columns.collect();
        for (&minor, &column) in &columns {
            list.exact &= self.rows.first().is_none_or(|row| row.of(minor) == column);
            if column != everywhere {
                list.push(self.kind, (None, Some(minor)), column);
            }
        }
        for row in self.rows.iter().filter(|row| row.major.is_some()) {
            let all = row.in_all();
            list.exact &= all == row.rest;
            if all != everywhere {
                list.push(self.kind, (row.major, None), all);
            }
            for &(minor, access) in &row.cells {
                let by_column = columns.get(&minor) == Some(&access);
                if access != all && access != everywhere && !by_column {
                    list.push(self.kind, (row.major, Some(minor)), access);
                }
            }
        }
    }

    /// Exceptions of a group that allows: what one denies, none can give back.
    fn denials(&self, list: &mut List) {
        for row in &self.rows {
            let denied = ALL & !row.rest;
            list.push(self.kind, (row.major, None), denied);
            for &(minor, access) in &row.cells {
                let column = self.columns.contains(&minor);
                let of_any = self.rows.first().filter(|_| column);
                let wide = denied | of_any.map_or(0, |any| ALL & !any.of(minor));
                list.exact &= access & wide == 0;
                let more = ALL & !access & !wide;
                let is_any = row.major.is_none();
                let access = if is_any { ALL & !access } else { more };
                list.push(self.kind, (row.major, Some(minor)), access);
            }
        }
    }
}

fn sorted(numbers: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut numbers: Vec<_> = numbers.collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

#[cfg(test)]
#[path = "v1_tests.rs"]
mod tests;
