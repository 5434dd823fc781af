// SPDX-License-Identifier: Apache-2.0
//! What a failed step of the boot leads to.
//!
//! Owns the choice between going on and powering off, and the text of a
//! failure in the log: the whole chain of causes in one line. It never
//! decides for a step; the step tables do.

use std::error::Error;
use std::fmt;

use crate::shutdown;

/// What follows when a step of the boot fails. The failure is logged in any
/// case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// The next step is taken. The host learns from the request that needs
    /// what is missing, in an answer that says so: better than a dead VM.
    GoOn,
    /// The VM powers off: going on would serve something other than what was
    /// asked for, or nothing at all.
    PowerOff,
}

/// An error with all of its causes, joined by `: `.
pub(crate) struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.0, f)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            f.write_str(": ")?;
            fmt::Display::fmt(error, f)?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Logs a failure and does what the table says. Returns only if that is to go
/// on.
pub(crate) fn handle(error: &dyn Error, then: OnFailure) {
    match then {
        OnFailure::GoOn => log::error!("{}", Chain(error)),
        OnFailure::PowerOff => {
            log::error!("{}; powering off", Chain(error));
            shutdown::power_off();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("Cannot do it")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_are_joined() {
        let error = Outer(std::io::Error::other("no reason"));
        assert_eq!(Chain(&error).to_string(), "Cannot do it: no reason");
    }
}
