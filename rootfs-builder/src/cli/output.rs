// SPDX-License-Identifier: Apache-2.0
//! What a verb has to say: text for people on stdout, or with `--json` one JSON document, of which fields are only ever added.

use std::io::{self, Write};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Counts up when a field of a document changes its meaning or goes away.
pub const SCHEMA: u32 = 1;

/// The result of a verb.
pub trait Report: Serialize {
    /// What the document is called in its field `kind`.
    const KIND: &'static str;

    /// The same for people: lines without a newline at the end.
    fn text(&self) -> String;
}

/// What every document begins with.
#[derive(Serialize)]
struct Document<'a, R> {
    schema: u32,
    kind: &'static str,
    #[serde(flatten)]
    report: &'a R,
}

/// The document of a result, as `--json` prints it.
pub fn document<R: Report>(report: &R) -> Result<String> {
    let document = Document {
        schema: SCHEMA,
        kind: R::KIND,
        report,
    };
    serde_json::to_string_pretty(&document).context("Cannot write the result as JSON")
}

/// Prints a result on stdout.
pub fn report<R: Report>(report: &R, json: bool) -> Result<()> {
    let text = if json {
        document(report)?
    } else {
        report.text()
    };
    print(&text)
}

/// Writes text and a newline to stdout; a reader that has gone away is no failure worth a trace.
pub fn print(text: &str) -> Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("Cannot write to standard output")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Example {
        name: &'static str,
    }

    impl Report for Example {
        const KIND: &'static str = "example";

        fn text(&self) -> String {
            self.name.to_owned()
        }
    }

    #[test]
    fn every_document_says_what_it_is() {
        let value: serde_json::Value =
            serde_json::from_str(&document(&Example { name: "x" }).unwrap()).unwrap();
        let expected = serde_json::json!({ "schema": SCHEMA, "kind": "example", "name": "x" });
        assert_eq!(value, expected);
    }
}
