// SPDX-License-Identifier: Apache-2.0
//! The guest's serial console as lines with the host time at which each arrived.
//!
//! Owns the thread that reads the console and the bounded store of lines. It never writes to the console.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Lines kept. A guest that prints for ever must not fill the host's memory.
const KEEP_LINES: usize = 20_000;
/// Bytes kept of one line.
const KEEP_BYTES: usize = 8192;

/// One line of the console, without its line end.
#[derive(Clone, Debug)]
pub struct Line {
    /// When its last byte arrived, by the host's clock.
    pub at: Instant,
    /// Its text; bytes that are not UTF-8 are replaced.
    pub text: String,
}

#[derive(Debug, Default)]
struct Store {
    lines: VecDeque<Line>,
    /// How many lines were dropped at the front.
    dropped: usize,
    partial: Vec<u8>,
}

impl Store {
    fn push(&mut self, bytes: &[u8], at: Instant) {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let room = KEEP_BYTES.saturating_sub(self.partial.len());
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            self.partial
                .extend_from_slice(&text[..text.len().min(room)]);
            if piece.ends_with(b"\n") {
                self.end_line(at);
            }
        }
    }

    fn end_line(&mut self, at: Instant) {
        let text = String::from_utf8_lossy(self.partial.trim_ascii_end()).into_owned();
        self.partial.clear();
        if self.lines.len() == KEEP_LINES {
            self.lines.pop_front();
            self.dropped += 1;
        }
        self.lines.push_back(Line { at, text });
    }
}

/// The console of one VM; clones share it.
#[derive(Clone, Debug)]
pub struct Console {
    store: Arc<Mutex<Store>>,
    /// Ticks with every read; closed when the console has ended.
    news: watch::Receiver<()>,
}

impl Console {
    /// Starts to read `source` to its end. Every byte is also written to `copies`, whose errors are ignored: a full disk or a
    /// closed terminal must not stop the guest.
    pub fn follow(
        mut source: impl Read + Send + 'static,
        mut copies: Vec<Box<dyn Write + Send>>,
    ) -> io::Result<Console> {
        let store = Arc::new(Mutex::new(Store::default()));
        let (tick, news) = watch::channel(());
        let console = Console { store, news };
        let store = Arc::clone(&console.store);
        thread::Builder::new()
            .name("console".into())
            .spawn(move || {
                let mut buffer = [0; 4096];
                loop {
                    let n = match source.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(n) => n,
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                        Err(_) => break,
                    };
                    lock(&store).push(&buffer[..n], Instant::now());
                    tick.send_replace(());
                    for copy in &mut copies {
                        let _ = copy.write_all(&buffer[..n]).and_then(|()| copy.flush());
                    }
                }
                let mut store = lock(&store);
                if !store.partial.is_empty() {
                    store.end_line(Instant::now());
                }
            })?;
        Ok(console)
    }

    /// All lines kept.
    pub fn lines(&self) -> Vec<Line> {
        lock(&self.store).lines.iter().cloned().collect()
    }

    /// All lines kept, and what has come of the next one, as one text.
    pub fn text(&self) -> String {
        let store = lock(&self.store);
        let mut text = String::new();
        for line in &store.lines {
            text.push_str(&line.text);
            text.push('\n');
        }
        text.push_str(&String::from_utf8_lossy(&store.partial));
        text
    }

    /// The last `count` lines as one text.
    pub fn tail(&self, count: usize) -> String {
        let store = lock(&self.store);
        let skip = store.lines.len().saturating_sub(count);
        let lines: Vec<&str> = store
            .lines
            .iter()
            .skip(skip)
            .map(|l| l.text.as_str())
            .collect();
        lines.join("\n")
    }

    /// The first line kept for which `wanted` is true.
    pub fn find(&self, mut wanted: impl FnMut(&str) -> bool) -> Option<Line> {
        lock(&self.store)
            .lines
            .iter()
            .find(|l| wanted(&l.text))
            .cloned()
    }

    /// Waits for the first line for which `wanted` is true, among those already there too. `None` when the console has
    /// ended or `timeout` is over without one.
    pub async fn wait(
        &self,
        mut wanted: impl FnMut(&str) -> bool,
        timeout: Duration,
    ) -> Option<Line> {
        let mut seen = 0;
        let mut search = || {
            let store = lock(&self.store);
            let skip = usize::saturating_sub(seen, store.dropped);
            let found = store
                .lines
                .iter()
                .skip(skip)
                .find(|l| wanted(&l.text))
                .cloned();
            seen = store.dropped + store.lines.len();
            found
        };
        let mut news = self.news.clone();
        let look = async {
            loop {
                news.mark_unchanged();
                if let Some(line) = search() {
                    return Some(line);
                }
                if news.changed().await.is_err() {
                    return search();
                }
            }
        };
        tokio::time::timeout(timeout, look).await.ok().flatten()
    }
}

fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_without_their_ends() {
        let console = Console::follow(&b"one\r\ntwo\n\nlast"[..], Vec::new()).unwrap();
        let line = console
            .wait(|l| l.contains("last"), Duration::from_secs(5))
            .await;
        assert_eq!(line.unwrap().text, "last");
        let texts: Vec<String> = console.lines().into_iter().map(|l| l.text).collect();
        assert_eq!(texts, ["one", "two", "", "last"]);
        assert_eq!(console.tail(2), "\nlast");
        assert_eq!(console.text(), "one\ntwo\n\nlast\n");
    }

    #[tokio::test]
    async fn waiting_ends_with_the_console_or_the_time() {
        let console = Console::follow(io::empty(), Vec::new()).unwrap();
        assert!(
            console
                .wait(|_| true, Duration::from_secs(60))
                .await
                .is_none()
        );
        let (reader, mut writer) = io::pipe().unwrap();
        let console = Console::follow(reader, Vec::new()).unwrap();
        assert!(
            console
                .wait(|_| true, Duration::from_millis(20))
                .await
                .is_none()
        );
        let waiter = console.wait(|l| l == "now", Duration::from_secs(5));
        writer.write_all(b"now\n").unwrap();
        assert!(waiter.await.is_some());
    }

    #[test]
    fn the_store_is_bounded() {
        let mut store = Store::default();
        store.push(&vec![b'x'; 3 * KEEP_BYTES], Instant::now());
        store.push(b"\n", Instant::now());
        assert_eq!(store.lines[0].text.len(), KEEP_BYTES);
        for _ in 0..KEEP_LINES {
            store.push(b"y\n", Instant::now());
        }
        assert_eq!((store.lines.len(), store.dropped), (KEEP_LINES, 1));
        assert_eq!(store.lines[0].text, "y");
    }
}
