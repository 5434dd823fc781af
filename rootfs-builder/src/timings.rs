// SPDX-License-Identifier: Apache-2.0
//! Where the time of a run went: named phases by the host's clock, and their table.

use std::fmt;
use std::time::{Duration, Instant};

/// The phases of one run, in order.
#[derive(Clone, Debug)]
pub struct Timings {
    begun: Instant,
    last: Instant,
    phases: Vec<(&'static str, Duration)>,
}

impl Timings {
    /// Starts the clock.
    pub fn start() -> Timings {
        let now = Instant::now();
        Timings {
            begun: now,
            last: now,
            phases: Vec::new(),
        }
    }

    /// Ends a phase now; it lasted since the last one ended.
    pub fn end(&mut self, name: &'static str) {
        self.end_at(name, Instant::now());
    }

    /// Ends a phase at a time that has been noted. A time before the last phase's end counts as that end.
    pub fn end_at(&mut self, name: &'static str, at: Instant) {
        let at = at.max(self.last);
        self.phases.push((name, at - self.last));
        self.last = at;
    }

    /// The phases so far.
    pub fn phases(&self) -> &[(&'static str, Duration)] {
        &self.phases
    }
}

impl fmt::Display for Timings {
    /// One line per phase, and their sum.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, time) in &self.phases {
            writeln!(f, "{name:<10} {:>9.3} s", time.as_secs_f64())?;
        }
        write!(
            f,
            "{:<10} {:>9.3} s",
            "total",
            (self.last - self.begun).as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up() {
        let mut timings = Timings::start();
        let begun = timings.begun;
        timings.end_at("kernel", begun + Duration::from_millis(1500));
        // Noted before the last phase ended: lasts no time.
        timings.end_at("init", begun + Duration::from_millis(1000));
        timings.end_at("sandbox", begun + Duration::from_millis(1750));
        let expected = "kernel         1.500 s\ninit           0.000 s\nsandbox        0.250 s\ntotal          1.750 s";
        assert_eq!(timings.to_string(), expected);
    }
}
