// SPDX-License-Identifier: Apache-2.0
//! The OCI state of a container as JSON (OCI runtime specification, "State"),
//! for hooks. Writes only; nothing here reads JSON.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;

/// The version of the OCI runtime specification that the state follows.
const OCI_VERSION: &str = "1.2.0";

/// The members that stay the same for the whole life of a container.
#[must_use]
pub fn members(id: &str, bundle: &Path, annotations: &HashMap<String, String>) -> String {
    let mut text = String::new();
    for (key, value) in [
        ("ociVersion", OCI_VERSION),
        ("id", id),
        ("bundle", &bundle.to_string_lossy()),
    ] {
        member(&mut text, key, value);
    }
    text.push_str("\"annotations\":{");
    let mut sorted: Vec<_> = annotations.iter().collect();
    sorted.sort_unstable();
    for (key, value) in sorted {
        member(&mut text, key, value);
    }
    if text.ends_with(',') {
        text.pop();
    }
    text.push('}');
    text
}

/// The whole state: what [`members`] gave, the status, and the pid if there is
/// a process.
#[must_use]
pub fn state(members: &str, status: &str, pid: Option<i32>) -> String {
    let mut text = String::with_capacity(members.len() + 64);
    text.push('{');
    member(&mut text, "status", status);
    if let Some(pid) = pid {
        // Writing to a String cannot fail.
        let _ = write!(text, "\"pid\":{pid},");
    }
    text.push_str(members);
    text.push('}');
    text
}

fn member(text: &mut String, key: &str, value: &str) {
    string(text, key);
    text.push(':');
    string(text, value);
    text.push(',');
}

/// A JSON string: quotation mark, reverse solidus and control characters are
/// escaped (RFC 8259, section 7).
fn string(text: &mut String, value: &str) {
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            c if c < ' ' => {
                // Writing to a String cannot fail.
                let _ = write!(text, "\\u{:04x}", c as u32);
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn parsed(id: &str, annotations: &HashMap<String, String>) -> Value {
        let members = members(id, Path::new("/run/kata-containers/c1"), annotations);
        serde_json::from_str(&state(&members, "creating", Some(7))).unwrap()
    }

    #[test]
    fn the_state_is_what_the_specification_says() {
        let annotations = HashMap::from([("a\"b".to_owned(), "c\\d\n\u{1}é".to_owned())]);
        let value = parsed("c1", &annotations);
        let expected = serde_json::json!({
            "ociVersion": OCI_VERSION,
            "id": "c1",
            "status": "creating",
            "pid": 7,
            "bundle": "/run/kata-containers/c1",
            "annotations": {"a\"b": "c\\d\n\u{1}é"},
        });
        assert_eq!(value, expected);
        let stopped = state(
            &members("c1", Path::new("/b"), &HashMap::new()),
            "stopped",
            None,
        );
        let value: Value = serde_json::from_str(&stopped).unwrap();
        assert_eq!(value.get("pid"), None);
        assert_eq!(value["annotations"], serde_json::json!({}));
    }

    proptest! {
        #[test]
        fn any_text_arrives_unchanged(
            id in any::<String>(),
            annotations in proptest::collection::hash_map(any::<String>(), any::<String>(), 0..5),
        ) {
            let value = parsed(&id, &annotations);
            prop_assert_eq!(value["id"].as_str(), Some(&*id));
            let members = value["annotations"].as_object().unwrap();
            prop_assert_eq!(members.len(), annotations.len());
            for (key, text) in &annotations {
                prop_assert_eq!(members[key].as_str(), Some(text.as_str()));
            }
        }
    }
}
