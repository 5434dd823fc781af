// SPDX-License-Identifier: Apache-2.0
//! The grammars of control files. Pure: text in, figures out; what does not fit
//! is passed over, because a newer kernel may say more than is known here.

use super::IoEntry;

/// Lines `word number`.
pub(in crate::cgroup) fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

/// The number of one word among such lines.
pub(super) fn value(text: &str, wanted: &str) -> u64 {
    pairs(text)
        .find(|(key, _)| *key == wanted)
        .map_or(0, |(_, value)| value)
}

/// A v2 limit: a number, or `unlimited` for the word `max`.
pub(super) fn limit(text: &str, unlimited: u64) -> Option<u64> {
    match text.trim_end() {
        "max" => Some(unlimited),
        number => number.parse().ok(),
    }
}

/// Numbers between blanks.
pub(super) fn numbers(text: &str) -> Vec<u64> {
    let words = text.split_ascii_whitespace();
    words.filter_map(|word| word.parse().ok()).collect()
}

/// v1: lines `major:minor [Op] number`, and a total without a device, which is left out.
pub(super) fn device_counts(text: &str) -> Vec<IoEntry> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (major, minor) = device(words.next()?)?;
            let (first, second) = (words.next()?, words.next());
            let (op, value) = second.map_or(("", first), |value| (first, value));
            Some(IoEntry {
                major,
                minor,
                op: op.to_ascii_lowercase(),
                value: value.parse().ok()?,
            })
        })
        .collect()
}

/// v2: lines `major:minor key=number…`. Bytes read and written are called as
/// on v1, the others by their keys.
pub(super) fn io_stat(text: &str) -> Vec<IoEntry> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some((major, minor)) = words.next().and_then(device) else {
            continue;
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let op = match key {
                "rbytes" => "read",
                "wbytes" => "write",
                "rios" | "wios" | "dbytes" | "dios" => key,
                // Of the cost model, in units of its own.
                _ => continue,
            };
            if let Ok(value) = value.parse() {
                entries.push(IoEntry {
                    major,
                    minor,
                    op: op.to_owned(),
                    value,
                });
            }
        }
    }
    entries
}

fn device(word: &str) -> Option<(u64, u64)> {
    let (major, minor) = word.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `hugepages-2048kB` is `2MB`: the kernel names control files by the largest unit that fits.
pub(super) fn huge_page_size(directory: &str) -> Option<String> {
    let kib = directory.strip_prefix("hugepages-")?.strip_suffix("kB")?;
    let kib: u64 = kib.parse().ok()?;
    Some(match kib {
        0 => return None,
        kib if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        kib if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        kib => format!("{kib}KB"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(major: u64, minor: u64, op: &str, value: u64) -> IoEntry {
        IoEntry {
            major,
            minor,
            op: op.to_owned(),
            value,
        }
    }

    #[test]
    fn counters_of_v1_with_and_without_operations() {
        let text = "8:0 Read 4096\n8:0 Discard 1\n8:16 77\n8:0 Total 4097\nTotal 4097\n";
        let expected = [
            entry(8, 0, "read", 4096),
            entry(8, 0, "discard", 1),
            entry(8, 16, "", 77),
            entry(8, 0, "total", 4097),
        ];
        assert_eq!(device_counts(text), expected);
    }

    /// The reference reads device numbers into 16 bits and panics.
    #[test]
    fn bug_minors_of_any_size() {
        let text = "259:1048575 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n";
        let ops = ["read", "write", "rios", "wios", "dbytes", "dios"];
        let expected: Vec<_> = (1..)
            .zip(ops)
            .map(|(value, op)| entry(259, 1_048_575, op, value))
            .collect();
        assert_eq!(io_stat(text), expected);
        assert_eq!(
            device_counts("259:1048575 Read 5")[0],
            entry(259, 1_048_575, "read", 5)
        );
    }

    #[test]
    fn odd_lines_of_io_stat_are_passed_over() {
        let text =
            "8:0\n(unknown) rbytes=1\n8:x rbytes=1\n7:1 cost.usage=9 rbytes=-1 wbytes rios=2\n";
        assert_eq!(io_stat(text), [entry(7, 1, "rios", 2)]);
    }

    #[test]
    fn limits_may_be_the_word_max() {
        assert_eq!(limit("max\n", 7), Some(7));
        assert_eq!(limit("123\n", 7), Some(123));
        assert_eq!(limit("x", 7), None);
        assert_eq!(limit("", 7), None);
    }

    #[test]
    fn huge_pages_are_called_as_in_control_files() {
        let name = |directory| huge_page_size(directory);
        assert_eq!(name("hugepages-2048kB").as_deref(), Some("2MB"));
        assert_eq!(name("hugepages-1048576kB").as_deref(), Some("1GB"));
        assert_eq!(name("hugepages-16777216kB").as_deref(), Some("16GB"));
        assert_eq!(name("hugepages-64kB").as_deref(), Some("64KB"));
        for odd in ["hugepages-0kB", "hugepages-kB", "hugepages-1MB", "x"] {
            assert_eq!(name(odd), None, "{odd}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in "(\\PC|[0-9: =\n]){0,200}") {
            let _ = (pairs(&text).count(), value(&text, "x"), limit(&text, 0), numbers(&text));
            let _ = (device_counts(&text), io_stat(&text), huge_page_size(&text));
        }

        #[test]
        fn figures_of_io_stat_are_found_again(
            devices in proptest::collection::vec((any::<u32>(), any::<u32>(), any::<u64>(), any::<u64>()), 0..6),
        ) {
            let text: String = devices
                .iter()
                .map(|(major, minor, read, dios)| format!("{major}:{minor} rbytes={read} new=1 dios={dios}\n"))
                .collect();
            let expected: Vec<_> = devices
                .iter()
                .flat_map(|&(major, minor, read, dios)| {
                    let (major, minor) = (u64::from(major), u64::from(minor));
                    [entry(major, minor, "read", read), entry(major, minor, "dios", dios)]
                })
                .collect();
            prop_assert_eq!(io_stat(&text), expected);
        }
    }
}
