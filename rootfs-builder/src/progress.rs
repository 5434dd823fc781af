// SPDX-License-Identifier: Apache-2.0
//! Shows what goes on: bars on a terminal, plain lines elsewhere, nothing with `--quiet`. All of it goes to stderr; stdout belongs to
//! the container and to results.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

pub use guest_kernel::progress::{Progress, Silent, Step};

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nothing but errors.
    Quiet,
    /// Steps and notes.
    Normal,
    /// Every line of the programs that run.
    Verbose,
}

/// The reporter for this process's stderr.
pub fn reporter(level: Level) -> Box<dyn Progress> {
    let terminal =
        io::stderr().is_terminal() && env::var_os("TERM").is_none_or(|term| term != "dumb");
    match level {
        Level::Quiet => Box::new(Silent),
        Level::Normal if terminal => Box::new(Bars {
            bars: MultiProgress::new(),
            colour: env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }),
        level => Box::new(Lines {
            verbose: level == Level::Verbose,
        }),
    }
}

/// Plain lines, one when a step ends.
struct Lines {
    verbose: bool,
}

struct LineStep {
    title: String,
    begun: Instant,
    verbose: bool,
    announced: bool,
}

/// After this long, a step that is still going is announced, so that a log does not look stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// Writes a line to stderr. One that cannot be written has nobody to read it.
fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

impl Progress for Lines {
    fn step(&self, title: &str) -> Box<dyn Step> {
        if self.verbose {
            say(&format!("{title} …"));
        }
        Box::new(LineStep {
            title: title.to_owned(),
            begun: Instant::now(),
            verbose: self.verbose,
            announced: false,
        })
    }

    fn note(&self, text: &str) {
        say(text);
    }
}

impl LineStep {
    /// Announces the step once if it takes long.
    fn announce(&mut self) {
        if !self.verbose && !self.announced && self.begun.elapsed() > PATIENCE {
            say(&format!("{} …", self.title));
            self.announced = true;
        }
    }
}

impl Step for LineStep {
    fn line(&mut self, text: &str) {
        if self.verbose {
            say(&format!("    {text}"));
        }
        self.announce();
    }

    fn position(&mut self, _done: u64, _total: u64) {
        self.announce();
    }

    fn done(self: Box<Self>, result: &str) {
        say(&outcome(&self.title, result, self.begun.elapsed()));
    }
}

/// `Title: result (1.2s)`; short steps show no time.
fn outcome(title: &str, result: &str, took: Duration) -> String {
    let mut text = title.to_owned();
    if !result.is_empty() {
        text.push_str(": ");
        text.push_str(result);
    }
    if took >= Duration::from_millis(100) {
        text.push_str(&format!(" ({})", seconds(took)));
    }
    text
}

/// A duration for people: `0.4s`, `12s`, `3m05s`.
pub fn seconds(took: Duration) -> String {
    match took.as_secs() {
        0..10 => format!("{:.1}s", took.as_secs_f32()),
        whole @ 10..60 => format!("{whole}s"),
        whole => format!("{}m{:02}s", whole / 60, whole % 60),
    }
}

/// A line per step that moves while it goes on, on a terminal.
struct Bars {
    bars: MultiProgress,
    colour: bool,
}

struct BarStep {
    bar: ProgressBar,
    title: String,
    begun: Instant,
    with_length: ProgressStyle,
    colour: bool,
}

/// How often a moving line is drawn without news.
const TICK: Duration = Duration::from_millis(120);

fn style(template: &str) -> ProgressStyle {
    // The templates are constants of this file; one with a mistake still shows what happens, by the default style.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

impl Progress for Bars {
    fn step(&self, title: &str) -> Box<dyn Step> {
        let (spin, long) = if self.colour {
            (
                "{spinner:.cyan} {prefix} {elapsed:.dim}  {wide_msg:.dim}",
                "{spinner:.cyan} {prefix} [{bar:24.cyan}] {percent:>3}% {elapsed:.dim}  {wide_msg:.dim}",
            )
        } else {
            (
                "{spinner} {prefix} {elapsed}  {wide_msg}",
                "{spinner} {prefix} [{bar:24}] {percent:>3}% {elapsed}  {wide_msg}",
            )
        };
        let bar = self.bars.add(ProgressBar::new_spinner());
        bar.set_style(style(spin));
        bar.set_prefix(title.to_owned());
        bar.enable_steady_tick(TICK);
        Box::new(BarStep {
            bar,
            title: title.to_owned(),
            begun: Instant::now(),
            with_length: style(long),
            colour: self.colour,
        })
    }

    fn note(&self, text: &str) {
        // Above the moving lines; if that fails there is no terminal to write to.
        let _ = self.bars.println(text);
    }
}

impl Step for BarStep {
    fn line(&mut self, text: &str) {
        self.bar.set_message(printable(text));
    }

    fn position(&mut self, done: u64, total: u64) {
        if self.bar.length() != Some(total) {
            self.bar.set_length(total);
            self.bar.set_style(self.with_length.clone());
        }
        self.bar.set_position(done);
    }

    fn done(self: Box<Self>, result: &str) {
        self.bar.disable_steady_tick();
        self.bar.set_style(style("{msg}"));
        let mark = if self.colour {
            "\x1b[32m✓\x1b[0m "
        } else {
            "✓ "
        };
        let text = outcome(&self.title, result, self.begun.elapsed());
        self.bar.finish_with_message(format!("{mark}{text}"));
    }
}

impl Drop for BarStep {
    fn drop(&mut self) {
        if !self.bar.is_finished() {
            self.bar.abandon_with_message("failed");
        }
    }
}

/// A program's line without control characters, which could move the cursor.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_show_time_only_when_there_was_any() {
        let text = |result, millis| outcome("Kernel", result, Duration::from_millis(millis));
        assert_eq!(text("", 3), "Kernel");
        assert_eq!(text("cached", 99), "Kernel: cached");
        assert_eq!(text("6.12", 1500), "Kernel: 6.12 (1.5s)");
        assert_eq!(text("6.12", 59_900), "Kernel: 6.12 (59s)");
        assert_eq!(text("6.12", 185_000), "Kernel: 6.12 (3m05s)");
    }

    #[test]
    fn lines_cannot_move_the_cursor() {
        assert_eq!(printable("a\x1b[2Kb\r\tc"), "a[2Kbc");
    }

    #[test]
    fn every_template_is_valid() {
        let bars = Bars {
            bars: MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::hidden()),
            colour: true,
        };
        let mut step = bars.step("x");
        step.position(1, 2);
        step.line("y");
        step.done("z");
        for template in [
            "{spinner:.cyan} {prefix} {elapsed:.dim}  {wide_msg:.dim}",
            "{msg}",
        ] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
