// SPDX-License-Identifier: Apache-2.0

//! What the tests of the conversions share.
//!
//! A test named `bug_…` guards against a defect seen in another agent.

use super::ConvertError;

pub(super) fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

/// Asserts that the error names the field, and the value as it was sent.
#[track_caller]
pub(super) fn assert_unknown<T: std::fmt::Debug>(
    result: Result<T, ConvertError>,
    wanted: &str,
    word: &str,
) {
    match result {
        Err(ConvertError::UnknownValue { field, value }) => {
            assert_eq!((field, value.as_str()), (wanted, word));
        }
        other => panic!("{wanted} with {word:?} gave {other:?}"),
    }
}

#[track_caller]
pub(super) fn assert_out_of_range<T: std::fmt::Debug>(
    result: Result<T, ConvertError>,
    wanted: &str,
) {
    match result {
        Err(ConvertError::OutOfRange { field, .. }) => assert_eq!(field, wanted),
        other => panic!("{wanted} gave {other:?}"),
    }
}
