// SPDX-License-Identifier: Apache-2.0
//! Where log records go: to the kernel's log until a log port is configured,
//! then as JSON lines into a bounded queue that the port's reader empties.
//!
//! Logging never blocks: a full queue drops its oldest lines and says so.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// Bytes of unread log lines that are kept.
const QUEUE_BYTES: usize = 64 << 10;

/// Where lines go that no log port takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// `/dev/kmsg`: as PID 1, there is nothing else.
    Kernel,
    /// Standard error: as a service, for the journal.
    Stderr,
}

struct Logger {
    sink: Sink,
    queue: Mutex<Queue>,
    news: Notify,
}

#[derive(Default)]
struct Queue {
    enabled: bool,
    lines: VecDeque<String>,
    bytes: usize,
    dropped: u64,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Starts logging. Later calls change nothing.
pub fn start(sink: Sink, level: LevelFilter) {
    let logger = LOGGER.get_or_init(|| Logger {
        sink,
        queue: Mutex::default(),
        news: Notify::new(),
    });
    // Fails only if there is a logger already, which is then this one.
    let _ = log::set_logger(logger);
    log::set_max_level(level);
}

impl Logger {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        // The libraries' own chatter is of interest only when something breaks.
        let foreign = !record.target().starts_with("agent") && !record.target().starts_with("init");
        if !self.enabled(record.metadata()) || (foreign && record.level() > Level::Warn) {
            return;
        }
        let mut queue = self.queue();
        if queue.enabled {
            queue.push(json_line(record, SystemTime::now()));
            drop(queue);
            self.news.notify_one();
            if record.level() > Level::Warn {
                return;
            }
        }
        match self.sink {
            Sink::Kernel => init::kmsg::write(record.level().into(), &record.args().to_string()),
            // A closed standard error is nobody's fault here.
            Sink::Stderr => drop(writeln!(
                std::io::stderr(),
                "{} {}",
                code(record.level()),
                record.args()
            )),
        }
    }

    fn flush(&self) {}
}

impl Queue {
    fn push(&mut self, line: String) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.bytes > QUEUE_BYTES {
            let Some(oldest) = self.lines.pop_front() else {
                break;
            };
            self.bytes -= oldest.len();
            self.dropped += 1;
        }
    }

    fn pop(&mut self) -> Option<String> {
        let line = self.lines.pop_front()?;
        self.bytes -= line.len();
        Some(line)
    }
}

/// From now on lines are queued for the log port.
pub fn enable_queue() {
    if let Some(logger) = LOGGER.get() {
        logger.queue().enabled = true;
    }
}

/// Writes queued lines, then new ones as they come, until the peer goes.
pub async fn copy_to(mut peer: impl AsyncWrite + Unpin) {
    let Some(logger) = LOGGER.get() else { return };
    loop {
        let line = logger.queue().pop();
        match line {
            Some(line) => {
                if peer.write_all(line.as_bytes()).await.is_err() {
                    return;
                }
            }
            None => logger.news.notified().await,
        }
    }
}

/// The level words of Kata's log tools.
fn code(level: Level) -> &'static str {
    match level {
        Level::Error => "ERRO",
        Level::Warn => "WARN",
        Level::Info => "INFO",
        Level::Debug => "DEBG",
        Level::Trace => "TRCE",
    }
}

/// One line as Kata's tools read it (protocol section 11.6).
fn json_line(record: &Record<'_>, now: SystemTime) -> String {
    let mut line = String::with_capacity(256);
    line.push_str("{\"msg\":\"");
    escape(&record.args().to_string(), &mut line);
    let subsystem = record.target().rsplit("::").next().unwrap_or_default();
    let _ = writeln!(
        line,
        "\",\"level\":\"{}\",\"ts\":\"{}\",\"version\":\"{}\",\"subsystem\":\"{subsystem}\",\"pid\":\"{}\",\
         \"name\":\"kata-agent\",\"source\":\"agent\"}}",
        code(record.level()),
        timestamp(now),
        env!("CARGO_PKG_VERSION"),
        std::process::id(),
    );
    line
}

/// RFC 8259, section 7.
fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c < ' ' => drop(write!(out, "\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
}

/// RFC 3339 in UTC, microseconds.
fn timestamp(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_micros()
    )
}

/// Year, month and day of a day since 1970-01-01, proleptic Gregorian.
fn civil(days: u64) -> (u64, u64, u64) {
    let mut year = 1970;
    let mut left = days;
    let leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let months = [
        31,
        28 + u64::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let mut month = 0;
    while left >= months[month] {
        left -= months[month];
        month += 1;
    }
    (year, month as u64 + 1, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn lines_are_what_kata_s_tools_read() {
        let record = Record::builder()
            .args(format_args!("a \"quoted\"\nline\x01"))
            .level(Level::Warn)
            .target("agent::rpc::container")
            .build();
        let line = json_line(
            &record,
            UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456),
        );
        assert!(line.starts_with(
            r#"{"msg":"a \"quoted\"\nline\u0001","level":"WARN","ts":"2023-11-14T22:13:20.123456Z""#
        ));
        assert!(line.ends_with("\"name\":\"kata-agent\",\"source\":\"agent\"}\n"));
    }

    #[test]
    fn dates_are_right() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_777, (2026, 11, 20)),
        ] {
            assert_eq!(civil(days), date);
        }
    }

    #[test]
    fn bug_a_log_port_without_reader_stalls_nothing() {
        let mut queue = Queue::default();
        for i in 0..10_000 {
            queue.push(format!("line {i} {}\n", "x".repeat(100)));
        }
        assert!(queue.bytes <= QUEUE_BYTES);
        assert!(queue.dropped > 0);
        assert!(
            queue
                .lines
                .back()
                .is_some_and(|line| line.starts_with("line 9999 "))
        );
    }
}
