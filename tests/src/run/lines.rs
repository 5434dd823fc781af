// SPDX-License-Identifier: Apache-2.0
//! Progress as plain lines: what a log keeps well.

use std::time::Instant;

use rootfs_builder::progress::{Progress, Step};

/// Reports each step when it begins and when it is done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lines;

struct Line {
    title: String,
    began: Instant,
}

impl Progress for Lines {
    fn step(&self, title: &str) -> Box<dyn Step> {
        eprintln!("-- {title} ...");
        Box::new(Line {
            title: title.to_owned(),
            began: Instant::now(),
        })
    }

    fn note(&self, text: &str) {
        eprintln!("-- {text}");
    }
}

impl Step for Line {
    fn line(&mut self, _text: &str) {}

    fn position(&mut self, _done: u64, _total: u64) {}

    fn done(self: Box<Self>, result: &str) {
        let colon = if result.is_empty() { "" } else { ": " };
        eprintln!(
            "-- {}{colon}{result} ({:.1} s)",
            self.title,
            self.began.elapsed().as_secs_f64()
        );
    }
}
