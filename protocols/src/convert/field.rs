// SPDX-License-Identifier: Apache-2.0

//! The rules that hold for any field, by the kind of its value.
//!
//! Knows nothing of particular messages.

use super::ConvertError;
use oci_spec::OciSpecError;
use std::{collections::HashMap, ops::RangeInclusive, path::PathBuf, str::FromStr};

/// Most bytes of a bad word that are repeated in an error: messages may be megabytes long.
const QUOTED_MAX: usize = 64;

/// A string, unless it is empty.
pub(super) fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

/// A path, unless it is empty.
pub(super) fn path(value: &str) -> Option<PathBuf> {
    (!value.is_empty()).then(|| PathBuf::from(value))
}

/// A list with each element converted, unless it is empty.
pub(super) fn list<W, T>(values: &[W], convert: impl Fn(&W) -> T) -> Option<Vec<T>> {
    (!values.is_empty()).then(|| values.iter().map(convert).collect())
}

/// As [`list`], for elements that may be wrong.
pub(super) fn try_list<W, T>(
    values: &[W],
    convert: impl Fn(&W) -> Result<T, ConvertError>,
) -> Result<Option<Vec<T>>, ConvertError> {
    if values.is_empty() {
        return Ok(None);
    }
    // A loop rather than collect(), which costs the guest binary an adapter for each element type.
    let mut converted = Vec::with_capacity(values.len());
    for value in values {
        converted.push(convert(value)?);
    }
    Ok(Some(converted))
}

/// A map, unless it is empty.
pub(super) fn map(values: &HashMap<String, String>) -> Option<HashMap<String, String>> {
    (!values.is_empty()).then(|| values.clone())
}

/// A number, unless it is 0.
pub(super) fn non_zero<N: Default + PartialEq>(value: N) -> Option<N> {
    (value != N::default()).then_some(value)
}

/// A limit: unset for 0, -1 for unlimited, else above 0.
pub(super) fn limit(field: &'static str, value: i64) -> Result<Option<i64>, ConvertError> {
    in_range(field, value, -1..=i64::MAX).map(non_zero)
}

/// A number that must lie in a range.
pub(super) fn in_range<N>(
    field: &'static str,
    value: N,
    range: RangeInclusive<N>,
) -> Result<N, ConvertError>
where
    N: Copy + PartialOrd + Into<i128>,
{
    if range.contains(&value) {
        return Ok(value);
    }
    Err(ConvertError::OutOfRange {
        field,
        value: value.into(),
    })
}

/// A word of the closed set that `T` stands for.
pub(super) fn word<T: FromStr>(field: &'static str, value: &str) -> Result<T, ConvertError> {
    value.parse().map_err(|_| unknown(field, value))
}

/// The error for a word outside its set.
pub(super) fn unknown(field: &'static str, value: &str) -> ConvertError {
    let end = value.floor_char_boundary(QUOTED_MAX);
    ConvertError::UnknownValue {
        field,
        value: value[..end].to_owned(),
    }
}

/// The error for values that a builder of `oci_spec` did not take.
pub(super) fn refused(field: &'static str) -> impl Fn(OciSpecError) -> ConvertError {
    move |source| ConvertError::Refused { field, source }
}
