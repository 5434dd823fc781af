// SPDX-License-Identifier: Apache-2.0
//! Our side of an interactive session: the host's terminal in raw mode, and its size.
//!
//! The terminal's settings are restored when the guard is dropped, so on every way out but SIGKILL: signals are received as events
//! while it lives, and a panic unwinds.

use std::io::{self, IsTerminal};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal on standard input, in raw mode while this lives.
#[derive(Debug)]
pub struct RawTerminal {
    saved: Termios,
}

impl RawTerminal {
    /// Puts the terminal on standard input into raw mode: every key goes to the guest, Ctrl-C included.
    pub fn enter() -> io::Result<RawTerminal> {
        let saved = tcgetattr(io::stdin())?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw)?;
        Ok(RawTerminal { saved })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Fails only if the terminal is gone, and then there is nothing to restore.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.saved);
    }
}

/// Whether standard input is a terminal.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal()
}

/// Whether standard input and output are both a terminal, as a program with a screen needs them.
pub fn is_full() -> bool {
    is_interactive() && io::stdout().is_terminal()
}

/// Rows and columns of the terminal on standard input or output, if one of them is a terminal that knows.
pub fn size() -> Option<(u16, u16)> {
    let sizes = [tcgetwinsize(io::stdin()), tcgetwinsize(io::stdout())];
    let known = sizes
        .into_iter()
        .flatten()
        .find(|size| size.ws_row > 0 && size.ws_col > 0);
    known.map(|size| (size.ws_row, size.ws_col))
}
