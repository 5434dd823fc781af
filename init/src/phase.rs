// SPDX-License-Identifier: Apache-2.0
//! How long each part of the boot took.
//!
//! Owns the marks and the one line that reports them. It never logs by
//! itself before it is asked to: a boot is one line, not twenty.

use std::fmt::Write as _;

use rustix::time::{ClockId, clock_gettime};

/// Marks of a boot, in order, on the monotonic clock.
#[derive(Debug, Clone)]
pub struct Phases {
    /// When the program took over, in µs since the kernel started its clock.
    started: u64,
    /// Name and end of each phase, in µs on the same clock.
    marks: Vec<(&'static str, u64)>,
}

impl Phases {
    /// Starts the clock.
    pub fn start() -> Self {
        Self {
            started: now(),
            marks: Vec::with_capacity(20),
        }
    }

    /// Ends the phase that ran since the last mark and gives it a name.
    pub fn mark(&mut self, name: &'static str) {
        self.marks.push((name, now()));
    }

    /// Name and duration in µs of each phase.
    pub fn durations(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let begins = std::iter::once(self.started).chain(self.marks.iter().map(|&(_, end)| end));
        self.marks
            .iter()
            .zip(begins)
            .map(|(&(name, end), begin)| (name, end.saturating_sub(begin)))
    }

    /// Time in µs from the start to the last mark.
    pub fn total(&self) -> u64 {
        let end = self.marks.last().map_or(self.started, |&(_, end)| end);
        end.saturating_sub(self.started)
    }

    /// The boot in one line: `boot: kernel 812.0ms mounts 0.4ms … total 3.1ms`.
    /// `kernel` is the kernel's own time before it started this program and
    /// is not in the total.
    pub fn summary(&self) -> String {
        let mut line = String::with_capacity(256);
        line.push_str("boot:");
        push_phase(&mut line, "kernel", self.started);
        for (name, micros) in self.durations() {
            push_phase(&mut line, name, micros);
        }
        push_phase(&mut line, "total", self.total());
        line
    }

    /// Logs the summary at level info.
    pub fn log(&self) {
        log::info!("{}", self.summary());
    }
}

fn push_phase(line: &mut String, name: &str, micros: u64) {
    // Integers on purpose: the float formatter alone would cost the guest
    // binary tens of kilobytes. Writing to a String cannot fail.
    let tenths = micros / 100;
    let _ = write!(line, " {name} {}.{}ms", tenths / 10, tenths % 10);
}

/// CLOCK_MONOTONIC in µs. It starts with the kernel, so that its value at the
/// start of PID 1 is what the kernel needed.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds * 1_000_000 + nanos / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up_to_the_total() {
        let mut phases = Phases::start();
        phases.mark("one");
        phases.mark("two");
        let sum: u64 = phases.durations().map(|(_, micros)| micros).sum();
        assert_eq!(sum, phases.total());
        assert_eq!(
            phases.durations().map(|(n, _)| n).collect::<Vec<_>>(),
            ["one", "two"]
        );
    }

    #[test]
    fn one_line_in_milliseconds() {
        let phases = Phases {
            started: 812_345,
            marks: vec![("proc", 813_599), ("modules", 825_000)],
        };
        assert_eq!(
            phases.summary(),
            "boot: kernel 812.3ms proc 1.2ms modules 11.4ms total 12.6ms"
        );
    }

    #[test]
    fn no_marks_no_time() {
        assert_eq!(Phases::start().total(), 0);
    }
}
