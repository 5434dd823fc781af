// SPDX-License-Identifier: Apache-2.0
//! A comparison for people.

use super::{Change, Comparison, Detail, Difference, Side};
use crate::cli::output::Report;

impl Report for Comparison {
    const KIND: &'static str = "comparison";

    fn text(&self) -> String {
        let mut lines = vec![
            format!("a  {}", side(&self.a)),
            format!("b  {}", side(&self.b)),
        ];
        lines.extend(self.differences.iter().flat_map(difference));
        lines.push(self.result());
        lines.join("\n")
    }
}

impl Comparison {
    fn result(&self) -> String {
        if self.identical {
            return "The images are identical.".to_owned();
        }
        let count = |change| {
            self.differences
                .iter()
                .filter(|d| d.change == change)
                .count()
        };
        if !self.same_entries {
            return format!(
                "{} added, {} removed, {} changed.",
                count(Change::Added),
                count(Change::Removed),
                count(Change::Changed)
            );
        }
        match &self.first_byte {
            None => "The images hold the same.".to_owned(),
            Some(byte) => {
                let holds = match byte.holds.len() {
                    0 => String::new(),
                    _ => format!(" ({})", byte.holds.join(", ")),
                };
                let offset = byte.offset;
                format!("The images hold the same, but their bytes differ from {offset} on{holds}.")
            }
        }
    }
}

fn side(side: &Side) -> String {
    let compressed = match side.compression {
        "none" => String::new(),
        name => format!(", {name}"),
    };
    let (path, format, size) = (&side.path, side.format, side.size);
    format!("{path} ({format}{compressed}, {size} bytes)")
}

fn difference(difference: &Difference) -> Vec<String> {
    let sign = match difference.change {
        Change::Added => '+',
        Change::Removed => '-',
        Change::Changed => '~',
    };
    let mut lines = vec![match difference.change {
        Change::Changed => format!("{sign}  {}", difference.path),
        _ => format!("{sign}  {} ({})", difference.path, difference.kind),
    }];
    lines.extend(difference.details.iter().map(detail));
    lines
}

fn detail(detail: &Detail) -> String {
    // A digest's first digits tell it from another; all of them are in the JSON document.
    let short = |text: &str| match (&detail.what[..], text) {
        ("content", digest) => digest.chars().take(12).collect(),
        (_, "") => "none".to_owned(),
        (_, text) => text.to_owned(),
    };
    format!(
        "     {}: {} -> {}",
        detail.what,
        short(&detail.a),
        short(&detail.b)
    )
}
