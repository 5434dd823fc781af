// SPDX-License-Identifier: Apache-2.0
//! What long work tells its caller while it goes on. No terminal knowledge here: the program that owns the terminal implements
//! [`Progress`]; libraries only report.

/// Receives what long work reports.
pub trait Progress: Send + Sync {
    /// Begins a step, e.g. `Kernel: building`. The step ends when it is told so, or is dropped (which means it failed).
    fn step(&self, title: &str) -> Box<dyn Step>;

    /// One line worth reading later, such as which of several ways was taken and why.
    fn note(&self, text: &str);
}

/// One step under way.
pub trait Step: Send {
    /// The newest line of what goes on; a terminal shows the last one only.
    fn line(&mut self, text: &str);

    /// How far it is, where that is known.
    fn position(&mut self, done: u64, total: u64);

    /// The step has succeeded, with a short result such as `cached` or `6.12.117`; may be empty.
    fn done(self: Box<Self>, result: &str);
}

/// Swallows every report; for tests and for `--quiet`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

struct SilentStep;

impl Progress for Silent {
    fn step(&self, _title: &str) -> Box<dyn Step> {
        Box::new(SilentStep)
    }

    fn note(&self, _text: &str) {}
}

impl Step for SilentStep {
    fn line(&mut self, _text: &str) {}

    fn position(&mut self, _done: u64, _total: u64) {}

    fn done(self: Box<Self>, _result: &str) {}
}
